"""Lab 10: a blob under its digest, the name of a stack of layers, and what no image needs any more."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.images.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Config, Manifest, chain_ids, digest_of
from kernel_lab.images.store import Store

Put = Callable[[Path, str, bytes], Any]
MEDIA_TYPE = "application/vnd.example"


@contextmanager
def layout() -> Iterator[Path]:
    """An empty image layout."""
    with TemporaryDirectory(prefix="lab10-") as directory:
        folder = Path(directory, "images")
        Store(folder)
        yield folder


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@exercise(
    "10.1",
    wants="a function of a folder, a media type, and bytes",
    accepts=inspect.isfunction,
    hints={
        "nothing": "After the call there must be one file more below `blobs/`. Which directory did the digests of the lab lead to?",
        "name": "`blob(digest)` in this lab finds a file by its digest: what of the digest is the file's name, and what is the directory's?",
        "content": "The file's SHA-256 must be its name. Which bytes were hashed, and which were written?",
        "descriptor": "Compare with the descriptors in the manifest above: three fields, with which names? And what does a digest begin with?",
        "other": "Only a blob is to be added. An image has a name later, when all its blobs are there.",
    },
)
def put(answer: Put) -> str | NotYet:
    with layout() as folder:
        for content in (b"{}", bytes(range(256)) * 100, b"", b"{}"):
            digest = digest_of(content)
            before = _files(folder)
            said = answer(folder, MEDIA_TYPE, content)
            after = _files(folder)
            name = digest.replace(":", "/")
            new = [path for path in after if path not in before]
            if any(after.get(path) != content_before for path, content_before in before.items()):
                return not_yet("other", "a file that was there is another now")
            if f"blobs/{name}" not in after:
                if not new:
                    return not_yet("nothing", f"{len(content)} bytes were to be put, and no file is new")
                return not_yet("name", f"the new file is {new[0]}")
            if after[f"blobs/{name}"] != content:
                return not_yet("content", f"blobs/{name[:14]}… has other bytes")
            if len(new) > 1:
                return not_yet("other", f"{len(new)} files are new")
            if said != {"mediaType": MEDIA_TYPE, "digest": digest, "size": len(content)}:
                return not_yet("descriptor", f"it returned {json.dumps(said, default=repr)[:150]}")
    return "each blob lies under the SHA-256 of its bytes, once, and its descriptor says so"


DIFF_IDS = [digest_of(text.encode()) for text in ("base", "app", "settings", "more")]


@exercise(
    "10.2",
    wants="a function of a list of DiffIDs",
    accepts=inspect.isfunction,
    hints={
        "single": "Nothing lies below the lowest layer. What is its ChainID, by the sentence above?",
        "form": "A ChainID looks like any digest, `sha256:` and 64 digits; and in the text that is hashed both digests stand whole.",
        "order": "The list begins with the lowest layer. Whose ChainID is needed first?",
        "chain": "Each step hashes two things: the ChainID of *all* below, and one DiffID. Of three layers, which text is hashed in the second step?",
    },
)
def chain(answer: Callable[[list[str]], str]) -> str | NotYet:
    for count in range(1, len(DIFF_IDS) + 1):
        given = DIFF_IDS[:count]
        found, right = answer(list(given)), chain_ids(given)[-1]
        if found == right:
            continue
        if count == 1:
            return not_yet("single", f"of one layer it is {str(found)[:20]}…")
        if not isinstance(found, str) or found.partition(":")[0] != "sha256" or len(found) != len(right) or found == _bare(given):
            return not_yet("form", f"of {count} layers it is {str(found)[:80]}")
        if found == chain_ids(given[::-1])[-1]:
            return not_yet("order", f"of {count} layers it is that of the list turned round")
        return not_yet("chain", f"of {count} layers it is another")
    return f"of one to {len(DIFF_IDS)} layers it is what the specification says"


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _bare(diff_ids: Sequence[str]) -> str:
    """With the digits alone hashed."""
    chained = diff_ids[0].partition(":")[2]
    for diff_id in diff_ids[1:]:
        chained = _hashed(f"{chained} {diff_id.partition(':')[2]}")
    return f"sha256:{chained}"


def _image(store: Store, name: str | None, *layers: bytes) -> list[str]:
    """An image of these layers: the digests of manifest, configuration, and layers."""
    with store.adding() as adding:
        put_layers = [adding.put(layer, OCI_LAYER) for layer in layers]
        config = adding.put(Config("amd64", "linux", tuple(layer.digest for layer in put_layers), config={"Cmd": [name or "none"]}).raw, OCI_CONFIG)
        manifest = adding.put(Manifest(config, tuple(put_layers)).raw, OCI_MANIFEST)
        if name:
            store.tag(manifest, name)
    return [manifest.digest, config.digest, *(layer.digest for layer in put_layers)]


@exercise(
    "10.3",
    wants="a function of a folder, which returns digests",
    accepts=inspect.isfunction,
    hints={
        "form": "Digests as the index and the manifests write them, `sha256:` and all, in a set or a list.",
        "manifest": "The index names manifests. Does an image need its own?",
        "config": "A manifest has one descriptor beside its layers. What becomes of a container whose image does not say what to run?",
        "layer": "An image has several layers, and a layer several images: it is needed as long as one of them is in the index.",
        "missed": "Compare all files below `blobs/sha256` with all that is needed. What leads to a blob that no index names?",
        "deleted": "Only say which. Whoever deletes while he is still looking cannot take it back.",
    },
)
def unneeded(answer: Callable[[Path], object]) -> str | NotYet:
    with layout() as folder:
        store = Store(folder)
        if answer(folder) not in (set(), [], ()):
            return not_yet("form", "of an empty folder it returns something")
        manifest, config, shared, _ = _image(store, "app", b"base", b"app")
        other = _image(store, "other", b"base", b"between", b"other")
        gone = _image(store, None, b"base", b"gone")
        alone = _image(store, None, b"alone", b"between")
        dead = {*gone, *alone} - {shared, *other}
        before = _files(folder)
        found = answer(folder)
        if _files(folder) != before:
            return not_yet("deleted", "files of the folder are others now")
        if not isinstance(found, (set, list, tuple, frozenset)) or not all(str(digest).startswith("sha256:") for digest in found):
            return not_yet("form", f"it returned {str(found)[:60]}")
        for state, needed in (("manifest", {manifest, other[0]}), ("config", {config, other[1]}), ("layer", {*other[2:], shared})):
            if wrongly := needed & set(found):
                return not_yet(state, f"{len(wrongly)} that {'is' if len(wrongly) == 1 else 'are'} needed would go")
        if dead - set(found):
            return not_yet("missed", f"{len(dead - set(found))} of {len(dead)} would stay")
    return f"of {len(before) - 3} blobs it names the {len(dead)} that no image needs, and has touched none"


def _put(folder: Path, media_type: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (folder / "blobs/sha256" / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _with_prefix(folder: Path, media_type: str, content: bytes) -> dict[str, object]:
    (folder / "blobs/sha256" / digest_of(content)).write_bytes(content)
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _unwritten(folder: Path, media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def _half(folder: Path, media_type: str, content: bytes) -> dict[str, object]:
    (folder / "blobs/sha256" / hashlib.sha256(content).hexdigest()).write_bytes(content[:1])
    return _unwritten(folder, media_type, content)


def _bare_descriptor(folder: Path, media_type: str, content: bytes) -> dict[str, object]:
    return _put(folder, media_type, content) | {"digest": hashlib.sha256(content).hexdigest()}


def _named_too(folder: Path, media_type: str, content: bytes) -> dict[str, object]:
    descriptor = _put(folder, media_type, content)
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    return descriptor


def _chain(diff_ids: list[str]) -> str:
    return chain_ids(diff_ids)[-1]


def _whole_list(diff_ids: list[str]) -> str:
    return diff_ids[0] if len(diff_ids) == 1 else f"sha256:{_hashed(' '.join(diff_ids))}"


def _seek(folder: Path, parts: Sequence[str] = ("manifest", "config", "layers")) -> set[str]:
    needed = set()
    for image in json.loads((folder / "index.json").read_bytes())["manifests"]:
        manifest = json.loads((folder / "blobs" / image["digest"].replace(":", "/")).read_bytes())
        found = {"manifest": [image], "config": [manifest["config"]], "layers": manifest["layers"], "first": manifest["layers"][:1]}
        needed |= {descriptor["digest"] for part in parts for descriptor in found[part]}
    return {f"sha256:{name}" for name in os.listdir(folder / "blobs/sha256")} - needed


def _swept(folder: Path) -> set[str]:
    found = _seek(folder)
    for digest in found:
        (folder / "blobs" / digest.replace(":", "/")).unlink()
    return found


put.answers(
    right=[_put],
    wrong={
        "nothing": [_unwritten, lambda folder, media_type, content: None],
        "name": [_with_prefix],
        "content": [_half],
        "descriptor": [_bare_descriptor, lambda *given: list(_put(*given).values())],
        "other": [_named_too],
    },
)
chain.answers(
    right=[_chain],
    wrong={
        "single": [lambda diff_ids: f"sha256:{_hashed(' '.join(diff_ids))}", lambda diff_ids: None],
        "form": [lambda diff_ids: diff_ids[0] if len(diff_ids) == 1 else _chain(diff_ids)[7:], _bare],
        "order": [lambda diff_ids: _chain(diff_ids[::-1])],
        "chain": [_whole_list, lambda diff_ids: diff_ids[-1] if len(diff_ids) == 2 else _chain(diff_ids)],
    },
)
unneeded.answers(
    right=[_seek],
    wrong={
        "form": [lambda folder: {digest[7:] for digest in _seek(folder)}, lambda folder: 3],
        "manifest": [lambda folder: _seek(folder, ("config", "layers"))],
        "config": [lambda folder: _seek(folder, ("manifest", "layers"))],
        "layer": [lambda folder: _seek(folder, ("manifest", "config", "first"))],
        "missed": [lambda folder: set()],
        "deleted": [_swept],
    },
)
