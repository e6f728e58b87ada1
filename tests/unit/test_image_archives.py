"""Images in archives: what is saved and loaded is the same, whoever has saved it; and nothing of a hostile archive comes in."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import random
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images import archive, build_cache
from kernel_lab.images.archive import Archive, Entry, encode
from kernel_lab.images.descriptor import (
    CONTAINERD_NAME,
    NAME,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Config,
    Descriptor,
    Index,
    Manifest,
    Platform,
    digest_of,
)
from kernel_lab.images.draft import Draft, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.loading import Loaded, load
from kernel_lab.images.parts import LONGEST_NAME, MOST_FILES
from kernel_lab.images.saving import save
from kernel_lab.images.store import INDEX_DIGEST, Store

Files = Mapping[str, bytes]
AMD, ARM = Platform("amd64", "linux"), Platform("arm64", "linux")
BUSYBOX, OTHER = "docker.io/library/busybox:1.36", "host.example:5000/some/app:latest"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.fixture
def second(tmp_path: Path) -> Store:
    return Store(tmp_path / "second")


def tar(files: Files | Iterable[tuple[str, bytes]]) -> bytes:
    """As tarfile has it, so that not only our own writer is read."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as made:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return written.getvalue()


def files_of(written: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(written)) as read:
        return {entry.name: content.read() for entry in read if (content := read.extractfile(entry))}


def added(store: Store, name: str | None, *layers: Files, platform: Platform = AMD, **config: Any) -> Image:
    with store.adding() as adding:
        draft = Draft.scratch(platform).with_settings(config)
        for layer in layers:
            draft = draft.with_layer(put_layer(adding, [tar(layer)]), created="2020-01-01T00:00:00Z")
        return draft.put(adding, name)


def indexed(store: Store, name: str, *images: Image) -> Descriptor:
    with store.adding() as adding:
        manifests = tuple(replace(image.descriptor, annotations={}, platform=image.platform) for image in images)
        return store.tag(adding.put(Index(manifests).raw, OCI_INDEX), name)


def content(store: Store) -> dict[str, bytes]:
    """All files of a store's folder but its lock."""
    return {str(path.relative_to(store.path)): path.read_bytes() for path in store.path.rglob("*") if path.is_file() and path.name != "lock"}


def saved(store: Store, *names: str) -> bytes:
    return b"".join(save(store, names))


def cut(data: bytes, size: int = 10_000) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def refused(store: Store, data: bytes | Iterable[bytes], why: str) -> None:
    before = content(store)
    with pytest.raises(UsageError, match=why) as caught:
        load(store, cut(data) if isinstance(data, bytes) else data)
    assert "\n" not in str(caught.value)
    assert content(store) == before


# Saved, and loaded again.


def test_one_archive_is_a_layout_and_what_docker_loads(store: Store) -> None:
    image = added(store, BUSYBOX, {"a": b"one"}, {"b": b"two"})
    store.tag(image.descriptor, OTHER)
    files = files_of(saved(store, "busybox:1.36", OTHER))
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    entries = json.loads(files["index.json"])["manifests"]
    assert [entry["digest"] for entry in entries] == [image.descriptor.digest] * 2
    assert [entry["annotations"] for entry in entries] == [{NAME: name, CONTAINERD_NAME: name} for name in (BUSYBOX, OTHER)]
    (item,) = json.loads(files["manifest.json"])
    assert item["RepoTags"] == [BUSYBOX, OTHER]
    assert hashlib.sha256(files[item["Config"]]).hexdigest() == image.id[7:]
    assert [hashlib.sha256(gzip.decompress(files[layer])).hexdigest() for layer in item["Layers"]] == [diff[7:] for diff in image.config.diff_ids]
    blobs = {f"blobs/{blob.digest.replace(':', '/')}" for blob in store.needs(image.descriptor)}
    assert set(files) == {"oci-layout", "index.json", "manifest.json", *blobs}


def test_an_image_that_is_saved_by_its_id_has_no_name(store: Store, second: Store) -> None:
    image = added(store, BUSYBOX, {"a": b"one"})
    for what in (image.id, image.short_id, image.descriptor.digest):
        written = saved(store, what)
        assert json.loads(files_of(written)["manifest.json"])[0]["RepoTags"] is None
        assert load(second, [written]) == [Loaded(image.descriptor.__class__(OCI_MANIFEST, image.descriptor.digest, image.descriptor.size), ())]


_files = st.dictionaries(st.sampled_from(["a", "b", "d/c"]), st.binary(max_size=2000), min_size=1, max_size=3)
_images = st.lists(st.tuples(st.lists(_files, max_size=3), st.lists(st.sampled_from("abcd"), min_size=1, max_size=2), st.booleans()), min_size=1)


@given(_images, st.randoms(use_true_random=False), st.integers(1, 100_000))
@settings(max_examples=50)
def test_what_is_saved_and_loaded_is_the_same(images: list[tuple[list[Files], list[str], bool]], chance: random.Random, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Store(f"{folder}/first"), Store(f"{folder}/second")
        for layers, names, several in images:
            image = added(first, names[0], *layers)
            made = indexed(first, names[0], image, added(first, None, *layers, platform=ARM)) if several else image.descriptor
            for name in names:
                first.tag(made, name)
        wanted = {name: first.resolve(name) for _, names, _ in images for name in names}
        written = saved(first, *wanted)
        assert written == saved(first, *chance.sample(sorted(wanted), len(wanted)))
        loaded = load(second, cut(written, size))
        assert {name: second.resolve(name) for name in wanted} == wanted
        assert sorted(name for image in loaded for name in image.names) == sorted(f"docker.io/library/{name}:latest" for name in wanted)
        assert second.verify() == {}
        needed = {blob.digest for blob in second.needs(*wanted.values())}
        assert {f"{path.parent.name}:{path.name}" for path in second.path.glob("blobs/*/*")} == needed
        assert saved(second, *wanted) == written


@given(st.randoms(use_true_random=False), st.sampled_from([gzip.compress, zstd.compress, lzma.compress, bz2.compress, bytes]))
@settings(max_examples=30)
def test_the_files_come_in_any_order_and_compressed(chance: random.Random, compress: Callable[[bytes], bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Store(f"{folder}/first"), Store(f"{folder}/second")
        image = added(first, BUSYBOX, {"a": b"one"}, {"b": b"two"})
        files = list(files_of(saved(first, BUSYBOX)).items())
        chance.shuffle(files)
        assert load(second, cut(compress(tar(files)), chance.randint(1, 2000)))[0].image == image.descriptor
        assert second.verify() == {}


def test_of_an_index_those_images_come_that_are_there(store: Store, second: Store) -> None:
    images = [added(store, None, {"a": platform.architecture.encode()}, platform=platform) for platform in (AMD, ARM)]
    index = indexed(store, BUSYBOX, *images)
    missing = images[1].layers[0].blob
    (store.path / "blobs" / missing.digest.replace(":", "/")).unlink()
    written = saved(store, BUSYBOX)
    (item,) = json.loads(files_of(written)["manifest.json"])
    assert (item["Config"], item["RepoTags"]) == (f"blobs/{images[0].id.replace(':', '/')}", [BUSYBOX])
    (loaded,) = load(second, [written])
    assert loaded.names == (BUSYBOX,)
    assert [child.digest for child in second.index(loaded.image).manifests] == [images[0].descriptor.digest]
    assert second.verify() == {} and Image.find(second, BUSYBOX, AMD).id == images[0].id
    with store.adding() as adding:  # where the rest is, the index is what it was
        adding.put(gzip.compress(b""), OCI_LAYER)
    (store.path / "blobs" / missing.digest.replace(":", "/")).write_bytes(bytes(missing.size))
    (again,) = load(store, [written])
    assert again.image.digest == index.digest


def test_nobody_removes_what_is_being_saved(store: Store, second: Store) -> None:
    image = added(store, BUSYBOX, {"a": random.Random(1).randbytes(3 << 20)})
    chunks = save(store, [BUSYBOX])
    begun = [next(chunks)]
    assert store.remove(BUSYBOX) == ()
    assert load(second, [*begun, *chunks])[0].image == image.descriptor
    assert store.prune().digests


def test_an_archive_cannot_write_the_notes_of_the_store(store: Store, second: Store) -> None:
    """As what a build has made, it would be taken for the outcome of somebody's Dockerfile; as of an index, for what a digest has pinned."""
    notes = {build_cache.KEY: "k", build_cache.PARENT: "p", INDEX_DIGEST: digest_of(b"index")}
    image = added(store, None, {"a": b"1"})
    store.tag(replace(image.descriptor, annotations=notes | {"others": "stay"}), BUSYBOX)
    written = b"".join(save(store, [BUSYBOX]))
    assert json.loads(files_of(written)["index.json"])["manifests"][0]["annotations"].keys() == {NAME, CONTAINERD_NAME, "others"}
    noted = files_of(written)
    noted["index.json"] = noted["index.json"].replace(b'"others":"stay"', b'"kernel-lab.build.key":"k"')
    load(second, [tar(noted)])
    assert second.images() and not [key for found in second.images() for key in found.annotations if key.startswith("kernel-lab.")]


def test_what_is_damaged_is_not_saved_as_if_it_were_whole(store: Store) -> None:
    image = added(store, BUSYBOX, {"a": b"one"})
    blob = image.layers[0].blob
    (store.path / "blobs" / blob.digest.replace(":", "/")).write_bytes(bytes(blob.size))
    with pytest.raises(UsageError, match=f"{blob.digest}: damaged in the store"):
        saved(store, BUSYBOX)
    (store.path / "blobs" / blob.digest.replace(":", "/")).unlink()
    with pytest.raises(UsageError, match="a part of this image is missing"):
        next(save(store, [BUSYBOX]))
    with pytest.raises(UsageError, match="no image of this name"):
        save(store, ["nothing"])
    with pytest.raises(UsageError, match="name one or more"):
        save(store, [])


def test_a_name_of_another_programs_is_written_whole(store: Store, second: Store) -> None:
    image = added(store, None, {"a": b"one"})
    index = store.path / "index.json"
    listed = [replace(image.descriptor, annotations={NAME: "bare"}).json()]
    index.write_text(json.dumps(json.loads(index.read_text()) | {"manifests": listed}))
    assert load(second, [saved(store, "bare")])[0].names == ("docker.io/library/bare:latest",)


# docker's archives.


def config_of(*layers: bytes) -> bytes:
    """As docker writes it, with fields that OCI does not know."""
    diff_ids = [digest_of(layer) for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    return json.dumps({"docker_version": "20.10", "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]}, "rootfs": rootfs}).encode()


ONE, TWO = tar({"a": b"one"}), tar({"b": b"two"})
CONFIG = config_of(ONE, TWO)
ID = digest_of(CONFIG)


def items(layers: list[str], names: list[str] | None = None, config: str = "config.json") -> bytes:
    return json.dumps([{"Config": config, "RepoTags": names, "Layers": layers}]).encode()


def link(name: str, target: str, kind: bytes = archive.SYMLINK) -> bytes:
    return encode(Entry(name.encode(), kind, link=target.encode()))


def parts(files: Files) -> bytes:
    """The beginning of an archive."""
    return b"".join(encode(Entry(name.encode(), size=len(data))) + data + bytes(-len(data) % 512) for name, data in files.items())


OLD = {"1/layer.tar": ONE, "1/VERSION": b"1.0", "1/json": b"{}", "2/layer.tar": TWO, "2/VERSION": b"1.0", "2/json": b"{}"}


def test_an_archive_of_old_docker_keeps_the_configuration_and_so_the_id(store: Store) -> None:
    manifest = items(["1/layer.tar", "2/layer.tar"], ["busybox:1.36", OTHER])
    written = tar(OLD | {"config.json": CONFIG, "manifest.json": manifest, "repositories": b"{}"})
    (loaded,) = load(store, cut(written))
    assert loaded.names == (BUSYBOX, OTHER)
    image = Image(store, loaded.image)
    assert image.id == ID and store.read(image.manifest.config) == CONFIG
    assert [gzip.decompress(store.open(layer.blob).read()) for layer in image.layers] == [ONE, TWO]
    assert {layer.blob.media_type for layer in image.layers} == {OCI_LAYER_GZIP}
    assert store.verify() == {} and store.prune() == ((), ())


@pytest.mark.parametrize(
    "links",
    [
        link("2/layer.tar", "../1/layer.tar"),
        link("2/layer.tar", "1/layer.tar", archive.LINK),
        link("./2//layer.tar", "./../3/./layer.tar") + link("3/layer.tar", "../x/../1/layer.tar"),
        link("2/layer.tar", "/1/layer.tar"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_layer_may_be_a_link_to_another(store: Store, links: bytes, first: bool) -> None:
    config = config_of(ONE, ONE)
    rest = parts({"1/layer.tar": ONE, "config.json": config, "manifest.json": items(["2/layer.tar", "1/layer.tar"])})
    (loaded,) = load(store, [links + rest if first else rest + links, archive.END])
    assert Image(store, loaded.image).id == digest_of(config)


@pytest.mark.parametrize("prefix", ["./", "/", ".//./"])
def test_names_may_begin_at_the_root(store: Store, prefix: str) -> None:
    files = {"l": ONE, "config.json": config_of(ONE), "manifest.json": items(["l"], ["busybox"])}
    assert load(store, [parts({prefix + name: data for name, data in files.items()})])[0].names == ("docker.io/library/busybox:latest",)


@pytest.mark.parametrize(
    ("compress", "media_type"),
    [(gzip.compress, OCI_LAYER_GZIP), (zstd.compress, OCI_LAYER_ZSTD), (lzma.compress, None), (bz2.compress, None)],
)
def test_layers_that_are_compressed_stay_so_where_images_may_have_them(store: Store, compress: Any, media_type: str | None) -> None:
    layer = compress(ONE)
    files = {"x.tar.gz": layer, "config.json": config_of(ONE), "manifest.json": items(["x.tar.gz"])}
    (loaded,) = load(store, cut(tar(files)))
    (put,) = store.manifest(loaded.image).layers
    assert (put.digest == digest_of(layer), put.media_type) == (media_type is not None, media_type or OCI_LAYER_GZIP)
    assert Image(store, loaded.image).config.diff_ids == (digest_of(ONE),) and store.verify() == {}


def with_hole(name: str, data: bytes) -> bytes:
    """A file of which an archive has the first 512 bytes, and the rest is zeros: as in PAX 0.1, which GNU tar and bsdtar know."""
    records = (b"GNU.sparse.map=0,512", b"GNU.sparse.size=%d" % len(data))
    text = b"".join(b"%d %s\n" % (len(record) + 4, record) for record in records)
    return encode(Entry(b"x", archive.PAX, size=len(text))) + text + bytes(-len(text) % 512) + encode(Entry(name.encode(), size=512)) + data[:512]


HOLE = encode(Entry(b"big", size=1 << 20)) + bytes(1 << 20) + archive.END


@pytest.mark.parametrize("name", ["l", f"blobs/{digest_of(HOLE).replace(':', '/')}"])
def test_a_layer_with_holes_is_read(store: Store, name: str) -> None:
    rest = parts({"config.json": config_of(HOLE), "manifest.json": items([name])})
    assert Image(store, load(store, [with_hole(name, HOLE) + rest])[0].image).config.diff_ids == (digest_of(HOLE),)


def test_the_layers_of_docker_25_0_are_found_though_its_index_has_none(store: Store) -> None:
    config = config_of(ONE)
    manifest = Manifest(Descriptor.of(OCI_CONFIG, config), ()).raw
    index = Index((Descriptor.of(OCI_MANIFEST, manifest),)).raw
    paths = {data: f"blobs/{digest_of(data).replace(':', '/')}" for data in (ONE, config, manifest)}
    files = {paths[data]: data for data in paths}
    files |= {"index.json": index, "manifest.json": items([paths[ONE]], ["busybox:1.36"], paths[config])}
    (loaded,) = load(store, [tar(files)])
    image = Image(store, loaded.image)
    assert (image.id, loaded.names, len(image.layers)) == (digest_of(config), (BUSYBOX,), 1)
    assert store.verify() == {} and store.prune() == ((), ())  # neither their manifest nor their layer is left


def test_images_of_one_archive_share_their_layers(store: Store) -> None:
    several = [json.loads(items(["1/layer.tar", "2/layer.tar"], ["a"]))[0], json.loads(items(["1/layer.tar"], ["b:2"], "b.json"))[0]]
    files = OLD | {"config.json": CONFIG, "b.json": config_of(ONE), "manifest.json": json.dumps(several).encode()}
    one, two = load(store, [tar(files)])
    assert (one.names, two.names) == (("docker.io/library/a:latest",), ("docker.io/library/b:2",))
    assert store.manifest(one.image).layers[0] == store.manifest(two.image).layers[0]


def test_an_uncompressed_layer_of_a_layout_stays_what_it_is(store: Store) -> None:
    config = config_of(ONE)
    manifest = Manifest(Descriptor.of(OCI_CONFIG, config), (Descriptor.of(OCI_LAYER, ONE),)).raw
    annotations = {NAME: "1.36", CONTAINERD_NAME: BUSYBOX}  # as docker writes them
    index = Index((replace(Descriptor.of(OCI_MANIFEST, manifest), annotations=annotations),)).raw
    files = {f"blobs/{digest_of(data).replace(':', '/')}": data for data in (ONE, config, manifest)} | {"index.json": index}
    assert load(store, [tar(files)])[0].names == (BUSYBOX,)
    assert store.resolve(BUSYBOX).digest == digest_of(manifest) and store.verify() == {}


# What is hostile, or damaged.


@pytest.fixture
def full(store: Store) -> Store:
    """A store that has an image of the same layer already."""
    added(store, "mine", {"a": b"one"})
    return store


GOOD = {"l": ONE, "config.json": config_of(ONE), "manifest.json": items(["l"])}
WITHOUT_LAYER = {name: GOOD[name] for name in ("config.json", "manifest.json")}
BLOB = f"blobs/sha256/{'a' * 64}"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "neither index.json nor manifest.json"),
        (b"no archive at all" * 100, "no tar archive"),
        (tar({"etc/passwd": b"root"}), "klab import takes the archive of a root"),
        (tar({"repositories": b"{}"}), "docker before 1.10"),
        (parts({"../x": b"text"}), "'../x': leads out of the archive"),
        (parts({"a/../../x": b"text"}), "leads out of the archive"),
        (link("l", "../../etc/passwd") + parts(GOOD), "'l': leads out of the archive, by '..' or through '../../etc/passwd'"),
        (parts(GOOD) + link("x", "../x", archive.LINK), "leads out of the archive"),
        (link("l", "/etc/passwd") + parts(WITHOUT_LAYER), "names 'l', which the archive does not have"),
        (link("l", "m") + link("m", "l") + parts(WITHOUT_LAYER), "lead in a circle"),
        (parts(GOOD) + parts({"l": TWO}), "'l': is in the archive twice"),
        (parts(GOOD) + link("./l", "x"), "is in the archive twice"),
        (link("l", "x") + parts(GOOD), "is in the archive twice"),
        (encode(Entry(b"dev", archive.CHARACTER, device=259)) + parts(GOOD), "no devices or fifos"),
        (encode(Entry(b"l", size=1 << 60)) + bytes(10_000), "more than what is left of the disk"),
        (parts({"n" * (LONGEST_NAME + 1): b""}), "a name of 256 bytes"),
        (link("l", "n" * (LONGEST_NAME + 1)), "links to a name of 256 bytes"),
        (parts(GOOD)[:-600], "truncated"),
        (gzip.compress(parts(GOOD) + archive.END)[:-4], "truncated"),
        (parts({BLOB: b"text"}), f"sha256:{'a' * 64}: what has come is something else"),
        (parts(GOOD | {"l": TWO}), "a layer has the DiffID sha256:.* the archive is damaged"),
        (parts(GOOD | {"l": gzip.compress(TWO)}), "a layer has the DiffID sha256:"),
        (parts(GOOD | {"l": gzip.compress(ONE)[:-4]}), "truncated"),
        (parts(GOOD | {"manifest.json": b"null"}), "manifest.json: null; an array is needed"),
        (parts(GOOD | {"manifest.json": b"[{}]"}), "manifest.json: Config is missing"),
        (parts(GOOD | {"manifest.json": b"[{"}), "manifest.json: this is no JSON"),
        (parts(GOOD | {"manifest.json": b"[" * 100_000}), "manifest.json: this is no JSON"),
        (parts(GOOD | {"manifest.json": items(["l", "l"])}), "config.json has 1 layers, and 2 files"),
        (parts(GOOD | {"manifest.json": items(["nothing"])}), "manifest.json: names 'nothing', which the archive does not have"),
        (parts(GOOD | {"manifest.json": items(["../../l"])}), "names '../../l', which the archive does not have"),
        (parts(GOOD | {"manifest.json": items(["l"], config="x")}), "names 'x', which the archive does not have"),
        (parts(GOOD | {"manifest.json": items(["l"], ["Bad Name"])}), "Bad Name"),
        (parts(GOOD | {"config.json": b"{}"}), "config.json: rootfs is missing"),
        (parts(GOOD | {"config.json": bytes((1 << 19) + 1)}), "too many for a document"),
        (parts(GOOD | {"index.json": b"{}"}), "index.json: schemaVersion is missing"),
        (parts({"index.json": Index((Descriptor.of(OCI_MANIFEST, b"x"),)).raw}), "the archive has not all of this image: sha256:.* is missing"),
        (parts({"index.json": Index((Descriptor.of(OCI_INDEX, b"x"),)).raw}), "the archive has not all of this image: sha256:.* is missing"),
        (parts({"index.json": Index((Descriptor.of("text/plain", b"x"),)).raw}), "text/plain: an image is a manifest or an index"),
    ],
)
def test_what_is_hostile_or_damaged_is_one_line_and_leaves_nothing(full: Store, data: bytes, why: str) -> None:
    refused(full, data, why)


def layout(manifest: bytes, *blobs: bytes, name: str | None = None) -> bytes:
    descriptor = replace(Descriptor.of(OCI_MANIFEST, manifest), annotations={NAME: name} if name else {})
    files = {f"blobs/{digest_of(blob).replace(':', '/')}": blob for blob in (manifest, *blobs)}
    return parts(files | {"index.json": Index((descriptor,)).raw})


def test_manifests_that_do_not_go_together_are_refused(full: Store) -> None:
    config = config_of(ONE)
    whole = Manifest(Descriptor.of(OCI_CONFIG, config), (Descriptor.of(OCI_LAYER, ONE),))
    refused(full, layout(whole.raw, config), "the archive has not all of this image")
    refused(full, layout(replace(whole, layers=()).raw, config), "0 layers, and its configuration 1 DiffIDs")
    refused(full, layout(whole.raw, config, ONE, name="-"), "no component of a repository's name")
    wrong = replace(whole, layers=(Descriptor(OCI_LAYER, digest_of(ONE), 1),))
    refused(full, layout(wrong.raw, config, ONE), "the archive has not all of this image")


def test_two_images_of_one_name_are_refused(full: Store) -> None:
    several = [json.loads(items(["l"], ["a"]))[0], json.loads(items([], ["a:latest"], "b.json"))[0]]
    refused(full, parts(GOOD | {"b.json": config_of(), "manifest.json": json.dumps(several).encode()}), "two images of the archive have this name")


def test_names_that_are_not_utf_8_are_names(store: Store) -> None:
    odd = encode(Entry(b"not utf-8 \xff", size=4)) + b"text" + bytes(508)
    assert load(store, [odd + parts(GOOD)])
    refused(store, odd + odd, r"'not utf-8 \\udcff': is in the archive twice")


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_a_bomb_is_stopped(full: Store, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = compress(encode(Entry(b"l", size=1 << 26)) + bytes(1 << 26))
    before = content(full)
    with pytest.raises(UsageError, match="more than what is left of the disk, or of what is allowed"):
        load(full, [bomb], 1 << 20)
    with pytest.raises(UsageError, match="larger, once it is decompressed"):
        load(full, [compress(parts(GOOD) + archive.END + bytes(1 << 26))], 1 << 20)
    monkeypatch.setattr("kernel_lab.images.loading.FLOOR", 1 << 20)
    with pytest.raises(UsageError, match="larger, once it is decompressed"):
        load(full, [parts(GOOD | {"l": compress(bytes(1 << 26))})], 1 << 26)
    assert content(full) == before


def test_of_too_many_files_no_more_are_read(store: Store) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            yield encode(Entry(b"d%d" % read))
            read += 1

    refused(store, endless(), f"more than {MOST_FILES} files")
    assert read <= MOST_FILES


def test_wherever_an_archive_is_cut_off_nothing_is_left(store: Store, second: Store) -> None:
    added(store, BUSYBOX, {"a": b"one"}, {"b": b"two"})
    written = saved(store, BUSYBOX)
    before, size = content(second), len(written) - len(archive.END)
    for length in range(0, size, 97):
        with pytest.raises(UsageError):
            load(second, [written[:length]])
        assert content(second) == before
    assert load(second, [written[:size]])


def test_what_a_failure_takes_back_is_not_what_others_need(store: Store) -> None:
    image = added(store, "mine", {"a": b"one"})
    written = saved(store, "mine")
    with pytest.raises(UsageError, match="truncated"):
        load(store, [written[: -len(archive.END)], b"x" * 100])
    assert store.verify() == {} and Image.find(store, "mine") == image


def test_a_sender_that_fails_leaves_nothing(store: Store) -> None:
    def failing() -> Iterator[bytes]:
        yield parts(GOOD)
        raise ConnectionError("the other side has gone")

    before = content(store)
    with pytest.raises(ConnectionError):
        load(store, failing())
    assert content(store) == before


def test_a_large_archive_takes_little_memory(store: Store, second: Store) -> None:
    size, piece = 200 << 20, random.Random(1).randbytes(1 << 18)
    with store.adding() as adding:
        layer = put_layer(adding, (part for part in (encode(Entry(b"big", size=size)), *[piece] * (size >> 18), archive.END)))
        Draft.scratch().with_layer(layer).put(adding, "big")
    tracemalloc.start()
    try:
        load(second, save(store, ["big"]))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_saved_archive_is_read_by_our_own_reader_too(store: Store) -> None:
    added(store, BUSYBOX, {"a": b"one"})
    found = [entry.name.decode() for entry in Archive(save(store, [BUSYBOX]))]
    assert found[:5] == ["oci-layout", "index.json", "manifest.json", "blobs/", "blobs/sha256/"]


def test_an_artifact_is_loaded_and_is_no_image(store: Store) -> None:
    empty = Descriptor.of("application/vnd.oci.empty.v1+json", b"{}")
    (loaded,) = load(store, [layout(Manifest(empty, (empty,)).raw, b"{}", name="artifact")])
    assert store.resolve("artifact").digest == loaded.image.digest


def test_a_configuration_of_ours_is_read_back(store: Store, second: Store) -> None:
    image = added(store, BUSYBOX, {"a": b"one"}, Cmd=["sh"], Env=["A=ü"])
    load(second, save(store, [BUSYBOX]))
    assert Config.read(second.read(Image.find(second, BUSYBOX).manifest.config)) == image.config
