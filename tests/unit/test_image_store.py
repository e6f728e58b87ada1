"""The store of images: what is on disk, what is found again under which name, what goes and what stays."""

import hashlib
import io
import json
import os
import re
import subprocess
import tempfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kernel_lab import UsageError
from kernel_lab.images.descriptor import (
    CONTAINERD_NAME,
    DOCKER_MANIFEST,
    NAME,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Config,
    Descriptor,
    Index,
    Manifest,
    Platform,
    digest_of,
)
from kernel_lab.images.reference import Reference
from kernel_lab.images.store import Addition, Store, name_of
from kernel_lab.state import Creator


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def made(adding: Addition, *layers: bytes, author: str | None = None) -> Descriptor:
    """A manifest, and all that it needs."""
    blobs = tuple(adding.put(layer, OCI_LAYER) for layer in layers)
    config = adding.put(Config("amd64", "linux", tuple(layer.digest for layer in blobs), author=author).raw, OCI_CONFIG)
    return adding.put(Manifest(config, blobs).raw, OCI_MANIFEST)


def added(store: Store, name: str | None, *layers: bytes, author: str | None = None) -> Descriptor:
    with store.adding() as adding:
        return store.tag(made(adding, *layers, author=author), name)


def id_of(*layers: bytes, author: str | None = None) -> str:
    """The id of an image that is made of these."""
    return digest_of(Config("amd64", "linux", tuple(map(digest_of, layers)), author=author).raw)


def image_id(store: Store, image: Descriptor) -> str:
    return store.manifest(image).config.digest


def names(store: Store) -> list[str | None]:
    return [name_of(image) for image in store.images()]


def files(store: Store) -> set[str]:
    """All that is in the store's folder but for its lock."""
    return {str(path.relative_to(store.path)) for path in store.path.rglob("*") if path.is_file()} - {"lock"}


def blob(store: Store, digest: str) -> Path:
    return store.path / "blobs" / digest.replace(":", "/")


def blobs(store: Store) -> set[str]:
    return {f"{path.parent.name}:{path.name}" for path in store.path.glob("blobs/*/*")}


def list_as(store: Store, *images: Descriptor, **others: object) -> None:
    """Writes into the index what another program could have written."""
    index = store.path / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"manifests": [image.json() for image in images]} | others))


def test_the_folder_is_an_image_layout(store: Store) -> None:
    image = added(store, "busybox", b"layer")
    assert json.loads((store.path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.path / "index.json").read_text())
    annotations = {"org.opencontainers.image.ref.name": "docker.io/library/busybox:latest"}
    assert index["schemaVersion"] == 2
    assert index["manifests"] == [{"mediaType": OCI_MANIFEST, "digest": image.digest, "size": image.size, "annotations": annotations}]
    layer = hashlib.sha256(b"layer").hexdigest()
    assert (store.path / "blobs/sha256" / layer).read_bytes() == b"layer"
    manifest = store.manifest(image)
    needed = (image.digest, manifest.config.digest, f"sha256:{layer}")
    assert files(store) == {"oci-layout", "index.json", *(f"blobs/{digest.replace(':', '/')}" for digest in needed)}
    assert store.config(manifest).diff_ids == (f"sha256:{layer}",)


def test_a_blob_comes_as_bytes_as_pieces_or_from_a_file(store: Store) -> None:
    with store.adding() as adding:
        for content in (b"content", iter([b"con", b"", b"tent"]), io.BytesIO(b"content")):
            assert adding.put(content, "text/x") == Descriptor("text/x", digest_of(b"content"), 7)
        with store.open(Descriptor("text/x", digest_of(b"content"), 7)) as file:
            assert file.read() == b"content"
        other = f"sha512:{hashlib.sha512(b'content').hexdigest()}"
        assert adding.put(b"content", digest=other).digest == other
        assert store.read(Descriptor("text/x", other, 7)) == b"content"
    assert {path.name for path in store.path.glob("blobs/*")} == {"sha256", "sha512"}
    assert store.verify() == {}


def failing() -> Iterator[bytes]:
    yield b"con"
    raise ConnectionError("the other side has gone")


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 1000


@pytest.mark.parametrize(
    ("content", "digest", "size", "why"),
    [
        (b"content", digest_of(b"other"), 7, "what has come is something else"),
        (b"content", None, 8, "8 bytes were announced, and 7 have come"),
        (b"content", None, 6, "6 bytes were announced, and more have come"),
        (b"", None, 1, "and 0 have come"),
        (endless(), None, 5000, "and more have come"),
        (b"content", "sha256:../../x", 7, "is no digest"),
        (failing(), None, 7, "the other side has gone"),
    ],
)
def test_what_is_not_as_announced_leaves_nothing(store: Store, content: bytes, digest: str | None, size: int, why: str) -> None:
    before = files(store)
    with store.adding() as adding, pytest.raises((UsageError, ConnectionError), match=why):
        adding.put(content, digest=digest, size=size)
    assert files(store) == before


def test_a_large_blob_takes_little_memory(store: Store) -> None:
    tracemalloc.start()
    try:
        with store.adding() as adding:
            large = adding.put((b"%08d" % number * 8192 for number in range(512)), size=512 * 65536)
            with store.open(large) as file:
                assert adding.put(file) == large
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_an_image_is_found_under_its_names_digest_and_id(store: Store) -> None:
    image = added(store, "busybox:1.36", b"layer")
    own = image_id(store, image)
    other = added(store, "host.example/x", b"another")
    found = ("busybox:1.36", "docker.io/busybox:1.36", Reference.parse("busybox:1.36"), image.digest, own, own[7:], own[7:19], own[:20])
    assert all(store.resolve(what) == image for what in (*found, f"busybox@{image.digest}", f"busybox:any@{image.digest}"))
    absent = ("busybox", "x", "", "sha256:", f"host.example/x@{image.digest}", digest_of(b"layer"), f"sha512:{own[7:]}", "sha256:XX", own[7:] + "0")
    for what in absent:
        with pytest.raises(UsageError, match=r"no image of this name or id; .* busybox:1\.36, host\.example/x:latest"):
            store.resolve(what)
    assert store.resolve("host.example/x") == other


def test_the_beginning_of_an_id_must_be_of_one_image_only(store: Store) -> None:
    images = [added(store, None, author=str(number)) for number in range(17)]  # there are 16 first digits
    ids = [image_id(store, image).removeprefix("sha256:") for image in images]
    for at, own in enumerate(ids):
        length = next(length for length in range(1, 64) if sum(other.startswith(own[:length]) for other in ids) == 1)
        assert store.resolve(own[:length]) == images[at]
        if length > 1:
            with pytest.raises(UsageError, match=f"more than one image's id begins so: sha256:{own[: length - 1]}"):
                store.resolve(own[: length - 1])


def test_one_id_with_layers_of_two_forms_is_one_image(store: Store) -> None:
    """The same configuration, as when one of two manifests has compressed layers."""
    image = added(store, "one", b"layer")
    manifest = store.manifest(image)
    with store.adding() as adding:
        store.tag(adding.put(replace(manifest, annotations={"a": "b"}).raw, OCI_MANIFEST), "two")
    assert store.resolve(manifest.config.digest[7:12]) == image


def test_a_name_comes_before_the_beginning_of_an_id(store: Store) -> None:
    own = image_id(store, added(store, "x", b"layer"))[7:15]
    other = added(store, own, b"another")
    assert store.resolve(own) == other


def test_a_name_that_moves_leaves_its_image_under_the_id(store: Store) -> None:
    first, second = added(store, "x", b"1"), added(store, "x", b"2")
    assert store.resolve("x") == second
    assert names(store) == [None, "docker.io/library/x:latest"]
    assert store.resolve(image_id(store, first)).digest == first.digest
    store.tag(store.resolve(first.digest), "y")
    assert names(store) == ["docker.io/library/x:latest", "docker.io/library/y:latest"]


def test_the_same_tag_twice_is_one(store: Store) -> None:
    image = added(store, "x", b"1")
    store.tag(image, "x")
    store.tag(image, None)
    other = added(store, None, b"2")
    store.tag(other, None)
    assert store.images() == (image, other)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("X", "in lower case"),
        (f"x@{digest_of(b'other')}", "this is the name of another image"),
        ("sha256:abc", "would make it look like a digest"),
        ("sha512", "would make it look like a digest"),
    ],
)
def test_a_wrong_name_is_refused(store: Store, name: str, why: str) -> None:
    image = added(store, None, b"1")
    with pytest.raises(UsageError, match=why):
        store.tag(image, name)
    assert store.images() == (image,)


def test_a_name_may_have_the_images_own_digest(store: Store) -> None:
    image = added(store, None, b"1")
    store.tag(image, f"x@{image.digest}")
    assert names(store) == [f"docker.io/library/x@{image.digest}"]
    assert name_of(store.resolve(f"x@{image.digest}")) == f"docker.io/library/x@{image.digest}"


def test_untag_leaves_the_image(store: Store) -> None:
    image = added(store, "x", b"1")
    store.tag(image, "y")
    store.untag("x")
    assert names(store) == ["docker.io/library/y:latest"]
    assert name_of(store.untag("y")) is None
    assert names(store) == [None] and store.resolve(image.digest).digest == image.digest
    with pytest.raises(UsageError, match="no image of this name"):
        store.untag(image.digest)


def test_an_image_that_is_not_whole_gets_no_name(store: Store) -> None:
    with store.adding() as adding:
        image = made(adding, b"1", b"2")
        blob(store, digest_of(b"2")).unlink()
        with pytest.raises(UsageError, match=f"^{digest_of(b'2')}: missing, and {image.digest} needs it"):
            store.tag(image, "x")
        assert not adding.keep(image) and adding.keep(Descriptor(OCI_LAYER, digest_of(b"1"), 1))
        blob(store, digest_of(b"2")).write_bytes(b"22")
        with pytest.raises(UsageError, match="damaged: 2 bytes instead of 1"):
            store.tag(image, "x")
        adding.put(b"2", OCI_LAYER)
        assert adding.keep(image) and store.tag(image, "x")
        with pytest.raises(UsageError, match="an image is a manifest or an index"):
            store.tag(Descriptor(OCI_LAYER, digest_of(b"2"), 1), "y")
    assert len(store.images()) == 1


def test_what_two_images_need_stays_with_the_other(store: Store) -> None:
    first, second = added(store, "x", b"base", b"1"), added(store, "y", b"base", b"2")
    own = image_id(store, first)
    assert set(store.remove("x")) == {first.digest, own, digest_of(b"1")}
    assert blobs(store) == {second.digest, image_id(store, second), digest_of(b"base"), digest_of(b"2")}
    store.remove("y")
    assert blobs(store) == set() == set(store.images())
    with pytest.raises(UsageError, match="the images here: none that has a name"):
        store.remove("y")


def test_one_of_two_names_takes_nothing_with_it_and_an_id_takes_both(store: Store) -> None:
    image = added(store, "x", b"1")
    store.tag(image, "y")
    assert store.remove("x") == () and store.verify() == {}
    store.tag(image, "x")
    assert len(store.remove(image_id(store, image)[7:19])) == 3
    assert store.images() == () and blobs(store) == set()


def test_nothing_of_an_addition_is_removed(store: Store) -> None:
    image = added(store, "x", b"base")
    with store.adding() as adding:
        assert adding.keep(Descriptor(OCI_LAYER, digest_of(b"base"), 4))
        other = made(adding, b"new")
        own = image_id(store, image)
        assert set(store.remove("x")) == {image.digest, own}
        assert store.prune().digests == ()
        store.tag(other, "y")
        assert store.verify() == {}
    assert store.prune().digests == (digest_of(b"base"),)
    assert store.verify() == {} and names(store) == ["docker.io/library/y:latest"]


def test_prune_removes_what_no_image_needs(store: Store) -> None:
    added(store, "x", b"1")
    before = blobs(store)
    with store.adding() as adding:
        forgotten = made(adding, b"1", b"2")
    assert set(store.prune().digests) == {forgotten.digest, id_of(b"1", b"2"), digest_of(b"2")}
    assert blobs(store) == before


def test_prune_takes_images_without_a_name_when_it_is_told_to(store: Store) -> None:
    added(store, "x", b"1")
    second = added(store, "x", b"2")
    assert store.prune().digests == () and len(store.images()) == 2
    assert len(store.prune(unnamed=True).digests) == 3 and store.images() == (second,)
    assert store.verify() == {}


def test_prune_removes_what_the_dead_have_left_and_nothing_of_the_living(store: Store) -> None:
    with subprocess.Popen(["true"]) as process:
        dead = Creator(process.pid, 1)
    gone = {f".new.{dead.stamp}.ab", f".adding.{dead.stamp}.cd"}
    stays = {f".new.{Creator.this().stamp}.ab", f".adding.{Creator.this().stamp}.cd", ".newsletter", f".newsletter.{dead.stamp}", ".new.a"}
    with store.adding() as adding:
        held = adding.put(b"held by the dead").digest
    for name in gone | stays:
        (store.path / name).write_text(f"{held}\n" if dead.stamp in name else "")
    pruned = store.prune()
    assert set(pruned.leftovers) == gone and pruned.digests == (held,)
    assert stays <= files(store) and not gone & files(store)


def test_a_damaged_manifest_stops_what_would_guess_at_its_needs(store: Store) -> None:
    first, second = added(store, "x", b"1"), added(store, "y", b"2")
    raw = blob(store, first.digest).read_bytes()
    blob(store, first.digest).write_bytes(raw.replace(b"sha256", b"sha512"))
    before = blobs(store)
    for change in (store.prune, lambda: store.remove("y")):
        with pytest.raises(UsageError, match=f"^{first.digest}: damaged"):
            change()
    assert blobs(store) == before and len(store.images()) == 2
    with store.adding() as adding:
        adding.put(raw, digest=first.digest)  # what is put again mends it
    assert store.verify() == {}
    blob(store, first.digest).write_bytes(b"")
    assert store.remove("x") == (first.digest,)  # of the damaged one itself nothing more is known
    assert len(store.prune().digests) == 2 and store.resolve("y") == second and store.verify() == {}


def test_verify_names_what_is_missing_or_damaged(store: Store) -> None:
    image = added(store, "x", b"missing", b"short", b"other", b"whole")
    with store.adding() as adding:
        stray = adding.put(b"stray").digest
    blob(store, digest_of(b"missing")).unlink()
    blob(store, digest_of(b"short")).write_bytes(b"sho")
    blob(store, digest_of(b"other")).write_bytes(b"OTHER")
    blob(store, stray).write_bytes(b"")
    assert store.verify() == {
        digest_of(b"missing"): "missing",
        digest_of(b"short"): "damaged: 3 bytes instead of 5",
        digest_of(b"other"): f"damaged: its content has the digest {digest_of(b'OTHER')}",
        stray: f"damaged: its content has the digest {digest_of(b'')}",
    }
    blob(store, image.digest).unlink()
    assert store.verify()[image.digest] == "missing"


def test_what_is_removed_meanwhile_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    added(store, "x", b"1")
    before = store.images()
    store.remove("x")
    listed = [before, ()]
    monkeypatch.setattr(store, "images", lambda: listed.pop(0))
    assert store.verify() == {} and not listed
    with store.adding() as adding:
        stray = adding.put(b"stray").digest
    blob(store, stray).write_bytes(b"")
    listed = [(), before]
    assert set(store.verify()) == {stray} and not listed


def test_verify_names_a_manifest_that_says_nothing_of_use(store: Store) -> None:
    with store.adding() as adding:
        manifest = adding.put(b'{"schemaVersion": 2}', OCI_MANIFEST)
        with pytest.raises(UsageError, match="config is missing"):
            store.tag(manifest, "x")
    list_as(store, manifest)
    assert store.verify() == {manifest.digest: f"{manifest.digest}: config is missing"}


def test_an_index_has_images_of_several_platforms(store: Store) -> None:
    with store.adding() as adding:
        amd64, arm64 = made(adding, b"1", author="amd64"), made(adding, b"2", author="arm64")
        index = Index((replace(amd64, platform=Platform("amd64", "linux")), replace(arm64, platform=Platform("arm64", "linux", "v8"))))
        image = store.tag(adding.put(index.raw, OCI_INDEX), "x")
    assert store.index(image) == index
    assert len(list(store.needs(image))) == 7
    own = image_id(store, arm64)
    assert store.resolve(own).digest == store.resolve(arm64.digest).digest == arm64.digest
    with pytest.raises(UsageError, match="belongs to an index of several images"):
        store.remove(own)
    blob(store, amd64.digest).unlink()  # as in a folder that has one platform's image alone
    assert {descriptor.digest for descriptor in store.needs(image)} >= {amd64.digest, arm64.digest, own, digest_of(b"2")}
    assert store.resolve(own).digest == arm64.digest
    assert len(store.remove("x")) == 4 and set(store.prune().digests) == {digest_of(b"1"), id_of(b"1", author="amd64")}


def test_a_layer_that_is_another_image_too_does_not_hide_what_that_needs(store: Store) -> None:
    inner = added(store, "inner", b"1")
    with store.adding() as adding:
        config = adding.put(Config("amd64", "linux", (inner.digest,)).raw, OCI_CONFIG)
        store.tag(adding.put(Manifest(config, (Descriptor(OCI_LAYER, inner.digest, inner.size),)).raw, OCI_MANIFEST), "outer")
    list_as(store, *reversed(store.images()))
    assert store.prune().digests == () and store.verify() == {}


def test_what_points_to_a_document_says_what_it_is(store: Store) -> None:
    image = added(store, None, b"1")
    with pytest.raises(UsageError, match=re.escape(f"mediaType: {OCI_MANIFEST}, and what points to it says {DOCKER_MANIFEST}")):
        store.manifest(replace(image, media_type=DOCKER_MANIFEST))
    with pytest.raises(UsageError, match="5242880 bytes are too many for a document"):
        store.read(replace(image, size=5 << 20))
    with pytest.raises(UsageError, match="damaged"):
        store.read(replace(image, size=image.size - 1))
    with pytest.raises(UsageError, match="is no digest"):
        store.open(replace(image, digest="sha256:../../index.json"))
    for size, more in ((image.size + 1, b""), (image.size, b"\n")):
        with open(blob(store, image.digest), "ab") as file:
            file.write(more)
        with pytest.raises(UsageError, match="damaged"):
            store.read(replace(image, size=size))


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({NAME: "docker.io/library/busybox:latest"}, "docker.io/library/busybox:latest"),
        ({NAME: "latest", CONTAINERD_NAME: "docker.io/library/busybox:latest"}, "docker.io/library/busybox:latest"),  # docker save
        ({CONTAINERD_NAME: "docker.io/library/busybox:latest"}, "docker.io/library/busybox:latest"),
        ({NAME: "docker.io/library/own:1", CONTAINERD_NAME: "docker.io/library/busybox:latest"}, "docker.io/library/own:1"),  # then umoci tag
        ({NAME: "latest"}, "latest"),  # skopeo copy … oci:FOLDER:latest
        ({NAME: "Any+Thing"}, "Any+Thing"),
        ({}, None),
    ],
)
def test_names_that_other_programs_write(store: Store, annotations: dict[str, str], name: str | None) -> None:
    image = added(store, None, b"1")
    list_as(store, replace(image, annotations=annotations), x_other=[1])
    assert names(store) == [name]
    if name:
        assert store.resolve(name).digest == image.digest
    store.tag(store.resolve(image.digest), "mine")
    assert set(names(store)) == {name, "docker.io/library/mine:latest"} - {None}
    assert json.loads((store.path / "index.json").read_text())["x_other"] == [1]
    if name:
        store.remove(name)
    assert names(store) == ["docker.io/library/mine:latest"] and store.verify() == {}


def test_a_digest_is_never_a_name(store: Store) -> None:
    """Another program may have called one image as the other's digest."""
    image, other = added(store, None, b"1"), added(store, None, b"2")
    list_as(store, replace(other, annotations={NAME: f"docker.io/library/{image.digest}"}), image)
    assert store.resolve(image.digest) == image


def test_a_short_name_that_another_program_wrote_means_the_whole_one(store: Store) -> None:
    image = added(store, None, b"1")
    list_as(store, replace(image, annotations={NAME: "busybox:latest"}))
    assert store.resolve("busybox") == store.resolve("docker.io/library/busybox:latest") == store.images()[0]
    own = added(store, "busybox", b"2")
    assert store.resolve("busybox") == store.resolve("busybox:latest") == own  # the whole name before the short one


@pytest.mark.parametrize(
    "there", [(), ("lock",), ("lock", "blobs/sha256"), ("lock", "blobs/sha256", "index.json", ".new.p1t1.ab"), ("lock", ".adding.p1t1.ab")]
)
def test_a_half_made_store_is_finished(tmp_path: Path, there: tuple[str, ...]) -> None:
    whole, half = Store(tmp_path / "whole").path, tmp_path / "half"
    half.mkdir()
    for name in there:
        if name.startswith("blobs"):
            (half / name).mkdir(parents=True)
        else:
            (half / name).write_bytes((whole / "index.json").read_bytes() if name == "index.json" else b"")
    store = Store(half)
    assert added(store, "x", b"1") and store.verify() == {}


def test_a_folder_with_other_things_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match=r"has 'thesis\.txt' and no oci-layout"):
        Store(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(UsageError, match="kept in a folder, and this is none"):
        Store(tmp_path / "thesis.txt")


@pytest.mark.parametrize("layout", ["", "[]", "{}", '{"imageLayoutVersion": "2.0.0"}', '{"imageLayoutVersion": 1}'])
def test_only_version_one_is_opened(store: Store, layout: str) -> None:
    (store.path / "oci-layout").write_text(layout)
    with pytest.raises(UsageError, match=r"only image layouts of version 1\.0\.0"):
        Store(store.path)


def test_without_its_index_a_layout_is_none(store: Store) -> None:
    (store.path / "index.json").unlink()
    with pytest.raises(UsageError, match=r"index\.json is missing"):
        store.images()


NAMES = st.sampled_from(["a", "b:1", "host.example/c"])
LAYERS = st.lists(st.sampled_from([b"1", b"2", b"3"]), max_size=3, unique=True).map(tuple)


@settings(max_examples=40, stateful_step_count=25)
class Model(RuleBasedStateMachine):
    """A store beside a dictionary of names and a set of images without one."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name, "images"))
        self.named: dict[str, tuple[bytes, ...]] = {}
        self.unnamed: set[tuple[bytes, ...]] = set()

    def teardown(self) -> None:
        self.folder.cleanup()

    def lost(self, layers: tuple[bytes, ...]) -> None:
        if layers not in self.named.values():
            self.unnamed.add(layers)

    @rule(name=NAMES, layers=LAYERS)
    def add(self, name: str, layers: tuple[bytes, ...]) -> None:
        added(self.store, name, *layers)
        before = self.named.get(name)
        self.named[name] = layers
        self.unnamed.discard(layers)
        if before is not None:
            self.lost(before)

    @rule(layers=LAYERS)
    def add_without_a_name(self, layers: tuple[bytes, ...]) -> None:
        added(self.store, None, *layers)
        self.lost(layers)

    @rule(layers=LAYERS)
    def forget(self, layers: tuple[bytes, ...]) -> None:
        with self.store.adding() as adding:
            made(adding, *layers)

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def untag(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.named)))
        self.store.untag(name)
        self.lost(self.named.pop(name))

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def remove_a_name(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.named)))
        self.store.remove(name)
        del self.named[name]

    @precondition(lambda self: self.named or self.unnamed)
    @rule(data=st.data())
    def remove_an_image(self, data: st.DataObject) -> None:
        layers = data.draw(st.sampled_from(sorted({*self.named.values(), *self.unnamed})))
        self.store.remove(id_of(*layers)[7:])
        self.named = {name: other for name, other in self.named.items() if other != layers}
        self.unnamed.discard(layers)

    @rule(unnamed=st.booleans())
    def prune(self, unnamed: bool) -> None:
        self.store.prune(unnamed)
        if unnamed:
            self.unnamed.clear()
        needed = {descriptor.digest for descriptor in self.store.needs(*self.store.images())}
        assert blobs(self.store) == needed

    @invariant()
    def all_is_there(self) -> None:
        assert Store(self.store.path).verify() == {}
        found = {(name_of(image), self.store.config(self.store.manifest(image)).diff_ids) for image in self.store.images()}
        expected = {(str(Reference.parse(name)), layers) for name, layers in self.named.items()} | {(None, layers) for layers in self.unnamed}
        assert found == {(name, tuple(map(digest_of, layers))) for name, layers in expected}
        assert files(self.store) == {"oci-layout", "index.json", *(f"blobs/{digest.replace(':', '/')}" for digest in blobs(self.store))}


TestModel = Model.TestCase
