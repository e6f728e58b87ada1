"""Pushes: what is sent, in which order and in which pieces, what need not be sent, and what happens when it does not arrive."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from registry_double import PASSWORD, USER, Double, nobodys_settings, problem

from kernel_lab import UsageError
from kernel_lab.images.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Config, Descriptor, Index, Manifest, Platform, digest_of
from kernel_lab.images.store import Store
from kernel_lab.registry import client, credentials
from kernel_lab.registry.progress import Lines, Progress
from kernel_lab.registry.pull import pull
from kernel_lab.registry.push import Pushed, push, push_all
from kernel_lab.registry.transport import RegistryError

LARGE = random.Random(1).randbytes(1_000_000)


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobodys_settings(monkeypatch, tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.fixture
def double() -> Iterator[Double]:
    with Double() as double:
        yield double


def image(store: Store, *names: str, layers: tuple[bytes, ...] = (b"one",)) -> Descriptor:
    with store.adding() as adding:
        blobs = tuple(adding.put(layer, OCI_LAYER) for layer in layers)
        config = adding.put(Config("amd64", "linux", tuple(blob.digest for blob in blobs)).raw, OCI_CONFIG)
        found = adding.put(Manifest(config, blobs).raw, OCI_MANIFEST)
        for name in names:
            store.tag(found, name)
    return found


def sent(name: str, store: Store) -> Pushed:
    return push(name, store, progress=Progress())


def test_an_image_arrives_whole_and_its_manifest_last(double: Double, store: Store) -> None:
    found = image(store, f"{double.name}/x/y:1", layers=(b"base", LARGE))
    pushed = sent(f"{double.name}/x/y:1", store)
    assert pushed.digest == found.digest and len(pushed.transferred) == 3
    assert double.blobs["x/y", digest_of(LARGE)] == LARGE
    assert double.manifests["x/y", "1"] == (OCI_MANIFEST, store.read(found))
    assert [request.method for request in double.asked][-1] == "PUT" and "/manifests/1" in double.asked[-1].path
    assert len(double.requests("PATCH")) == 0
    other = Store(store.path.parent / "other")
    assert pull(f"{double.name}/x/y:1", other, progress=Progress()).digest == found.digest


def test_a_push_says_what_docker_says(double: Double, store: Store) -> None:
    found = image(store, f"{double.name}/x:1", f"{double.name}/y:1")
    said: list[str] = []
    layer = digest_of(b"one")[7:19]
    for name in ("x:1", "x:1", "y:1"):
        push(f"{double.name}/{name}", store, progress=Lines(said.append))
    for repository, status in (("x", "Pushed"), ("x", "Layer already exists"), ("y", "Mounted from x")):
        expected = [f"The push refers to repository [{double.name}/{repository}]", f"{layer}: Preparing", f"{layer}: {status}"]
        assert said[:4] == [*expected, f"1: digest: {found.digest} size: {found.size}"]
        del said[:4]


def test_only_what_is_missing_is_sent(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", layers=(b"base", b"one"))
    second = image(store, f"{double.name}/x:2", layers=(b"base", b"two"))
    sent(f"{double.name}/x:1", store)
    pushed = sent(f"{double.name}/x:2", store)
    assert {blob.digest for blob in pushed.already} == {digest_of(b"base")}
    assert {blob.digest for blob in pushed.transferred} == {digest_of(b"two"), store.manifest(second).config.digest}


def test_what_another_repository_has_is_mounted_or_else_sent(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", f"{double.name}/y:1", f"{double.name}/z:1", layers=(LARGE,))
    image(store, "other.example/x:1", layers=(LARGE, b"y"))
    sent(f"{double.name}/x:1", store)
    assert len(sent(f"{double.name}/y:1", store).mounted) == 2
    double.blobs = {}
    double.manifests = {}
    pushed = sent(f"{double.name}/z:1", store)
    assert len(pushed.transferred) == 2 and ("z", digest_of(LARGE)) in double.blobs
    assert not [path for path in double.requests("POST", "mount") if "other.example" in path]
    assert len(double.uploads) == len(double.requests("PUT", "uploads"))  # those that began instead of a mount were ended


def test_a_registry_that_mounts_nothing_is_sent_everything(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", f"{double.name}/y:1")

    async def fault(request: web.Request) -> web.Response | None:
        return problem(405, "UNSUPPORTED", "no") if "mount" in request.query else None

    double.faults.append(fault)
    sent(f"{double.name}/x:1", store)
    assert len(sent(f"{double.name}/y:1", store).transferred) == 2


def test_an_index_comes_after_all_that_it_points_to(double: Double, store: Store) -> None:
    with store.adding() as adding:
        children = tuple(replace(image(store, layers=(name.encode(),)), platform=Platform(name, "linux")) for name in ("amd64", "arm64"))
        inner = adding.put(Index(children).raw, OCI_INDEX)
        outer = adding.put(Index((inner, children[0])).raw, OCI_INDEX)
        store.tag(outer, f"{double.name}/x:1")
    assert sent(f"{double.name}/x:1", store).digest == outer.digest
    order = [path.rpartition("/")[2] for path in double.requests("PUT", "manifests")]
    assert sorted(order[:2]) == sorted(child.digest for child in children) and order[2:] == [inner.digest, "1"]


def test_what_was_chosen_from_an_index_is_pushed_with_a_word_about_it(double: Double, store: Store) -> None:
    index = double.index("x", "1", amd64=double.image("x", None, b"one"), arm64=double.image("x", None, b"two"))
    name = f"{double.name}/x:1"
    pull(name, store, progress=Progress())
    store.tag(store.resolve(name), f"{double.name}/y:1")
    said: list[str] = []
    push(f"{double.name}/y:1", store, progress=Lines(said.append))
    assert any(index.digest in line and "one platform" in line for line in said)


def test_all_tags_of_a_repository_are_pushed(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", f"{double.name}/x:2", f"{double.name}/y:1", "other.example/x:1")
    assert [pushed.reference.tag for pushed in push_all(f"{double.name}/x", store, progress=Progress())] == ["1", "2"]
    assert {name for repository, name in double.manifests if repository == "x" and ":" not in name} == {"1", "2"}
    with pytest.raises(UsageError, match="no image here has this name and a tag"):
        list(push_all(f"{double.name}/z", store))
    with pytest.raises(UsageError, match="all tags are asked for"):
        list(push_all(f"{double.name}/x:1", store))


def test_what_is_not_here_or_has_no_tag_is_not_pushed(double: Double, store: Store) -> None:
    found = image(store, f"{double.name}/x:1")
    with pytest.raises(UsageError, match="there is no image of this name"):
        sent(f"{double.name}/x:2", store)
    with pytest.raises(UsageError, match="an image is sent under a tag"):
        sent(f"{double.name}/x@{found.digest}", store)
    (store.path / "blobs" / digest_of(b"one").replace(":", "/")).unlink()
    with pytest.raises(UsageError, match="is not whole"):
        sent(f"{double.name}/x:1", store)
    assert double.requests("POST") == []


def test_a_foreign_layer_is_its_owners_to_hand_out(double: Double, store: Store) -> None:
    with store.adding() as adding:
        layer = adding.put(b"theirs", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
        layer = replace(layer, others={"urls": ["https://owner.example/theirs"]})
        config = adding.put(Config("amd64", "linux", (layer.digest,)).raw, OCI_CONFIG)
        store.tag(adding.put(Manifest(config, (layer,)).raw, OCI_MANIFEST), f"{double.name}/x:1")
    with pytest.raises(RegistryError, match="blob unknown"):  # this registry wants every layer
        sent(f"{double.name}/x:1", store)
    assert not double.requests("PUT", digest_of(b"theirs"))


# In chunks.


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CHUNKED_FROM", 500_000)
    monkeypatch.setattr(client, "CHUNK", 300_000)


def ranges(double: Double) -> list[str]:
    return [request.headers["Content-Range"] for request in double.asked if request.method == "PATCH"]


@pytest.mark.usefixtures("chunked")
def test_a_large_blob_is_sent_in_chunks(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", layers=(LARGE,))
    sent(f"{double.name}/x:1", store)
    assert double.blobs["x", digest_of(LARGE)] == LARGE
    assert ranges(double) == ["0-299999", "300000-599999", "600000-899999", "900000-999999"]


@pytest.mark.usefixtures("chunked")
def test_the_least_chunk_that_a_registry_takes_is_honoured(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", layers=(LARGE,))
    double.upload_headers["OCI-Chunk-Min-Length"] = "700000"
    sent(f"{double.name}/x:1", store)
    assert ranges(double) == ["0-699999", "700000-999999"]


@pytest.mark.usefixtures("chunked")
def test_a_chunk_that_is_lost_in_the_middle_is_gone_on_with(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", layers=(LARGE,))
    losing = [400_000]
    counts: list[int] = []

    async def fault(request: web.Request) -> web.StreamResponse | None:
        session = request.path.rpartition("/")[2]
        if request.method == "PATCH" and losing and len(double.uploads[session]) >= 300_000:
            del losing[0]
            double.uploads[session] += await request.content.readexactly(100_000)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return None

    class Counted(Progress):
        def moved(self, blob: Descriptor, count: int) -> None:
            if blob.size == len(LARGE):
                counts.append(count)

    double.faults.append(fault)
    push(f"{double.name}/x:1", store, progress=Counted())
    assert double.blobs["x", digest_of(LARGE)] == LARGE and sum(counts) == len(LARGE) and min(counts) < 0
    assert ranges(double) == ["0-299999", "300000-599999", "400000-699999", "700000-999999"]


@pytest.mark.usefixtures("chunked")
def test_a_registry_that_takes_no_chunk_is_given_up(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", layers=(LARGE,))

    async def fault(request: web.Request) -> web.Response | None:
        return web.Response(status=202, headers={"Location": request.path_qs, "Range": "0-0"}) if request.method == "PATCH" else None

    double.faults.append(fault)
    with pytest.raises(RegistryError, match="has 0 of 1000000 bytes, and does not take what comes next"):
        sent(f"{double.name}/x:1", store)


# What does not arrive.


def test_an_upload_that_is_lost_is_begun_again(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", layers=(LARGE,))
    losing = [1, 1]

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if request.method == "PUT" and "uploads" in request.path and losing:
            losing.pop()
            await request.content.readany()
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return None

    double.faults.append(fault)
    sent(f"{double.name}/x:1", store)
    assert double.blobs["x", digest_of(LARGE)] == LARGE


def test_a_refusal_is_one_line(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1", layers=(LARGE,))

    async def fault(request: web.Request) -> web.Response | None:
        return problem(413, "SIZE_INVALID", "too large") if request.method == "PUT" else None

    double.faults.append(fault)
    with pytest.raises(RegistryError, match=re.escape(f"{double.name} answered 413 Request Entity Too Large: too large")):
        sent(f"{double.name}/x:1", store)
    assert len(double.requests("PUT", digest_of(LARGE))) <= 1
    assert double.manifests == {}


def test_a_registry_that_has_received_something_else_is_not_believed(double: Double, store: Store) -> None:
    image(store, f"{double.name}/x:1")

    async def fault(request: web.Request) -> web.Response | None:
        found = request.method == "PUT" and "manifests" in request.path
        return web.Response(status=201, headers={"Docker-Content-Digest": digest_of(b"")}) if found else None

    double.faults.append(fault)
    with pytest.raises(RegistryError, match=f"says that it has received {digest_of(b'')}"):
        sent(f"{double.name}/x:1", store)


def test_what_begins_instead_of_a_mount_is_ended_at_the_registry_alone(double: Double) -> None:
    blob = double.add("y", b"one")
    with Double() as elsewhere:

        async def fault(request: web.Request) -> web.Response | None:
            place = {"Location": f"{elsewhere.url}/v2/y/blobs/{blob.digest}"}
            return web.Response(status=202, headers=place) if "mount" in request.query else None

        double.faults.append(fault)
        with client.Client(double.name) as asking:
            assert not asking.mount("x", blob, "y")
        assert elsewhere.asked == []


def test_a_place_for_an_upload_elsewhere_is_not_told_who_we_are(store: Store) -> None:
    with Double(auth="basic") as double, Double() as elsewhere:
        credentials.store(double.name, credentials.Credential(USER, PASSWORD))
        image(store, f"{double.name}/x:1")
        elsewhere.uploads["here"] = bytearray()

        async def fault(request: web.Request) -> web.Response | None:
            if request.method != "POST" or "Authorization" not in request.headers:
                return None
            return web.Response(status=202, headers={"Location": f"{elsewhere.url}/v2/x/blobs/uploads/here"})

        double.faults.append(fault)
        with pytest.raises(RegistryError, match="blob unknown"):  # the registry itself has heard nothing of it
            sent(f"{double.name}/x:1", store)
        assert elsewhere.requests("PUT") and not any("Authorization" in request.headers for request in elsewhere.asked)
