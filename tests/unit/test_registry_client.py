"""The client of a registry, and pulls: what comes, what is believed, and what happens when a registry or the line misbehaves."""

import asyncio
import errno
import io
import os
import random
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from registry_double import PASSWORD, USER, Double, nobodys_settings, part_of, problem
from waiting import soon

from kernel_lab import UsageError
from kernel_lab.images import platforms
from kernel_lab.images.descriptor import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Config,
    Descriptor,
    Index,
    Manifest,
    Platform,
    digest_of,
)
from kernel_lab.images.store import INDEX_DIGEST, Addition, Store
from kernel_lab.registry import credentials, endpoints, partial, transport
from kernel_lab.registry.client import Client
from kernel_lab.registry.progress import Lines, Progress
from kernel_lab.registry.pull import Pulled, pull, pull_all
from kernel_lab.registry.transport import RegistryError

LARGE = random.Random(1).randbytes(2_000_000)
SILENT = Progress()


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


def files(store: Store) -> set[str]:
    return {str(path.relative_to(store.path)) for path in store.path.rglob("*") if path.is_file()} - {"lock", "oci-layout", "index.json"}


def got(store: Store, name: str, **words: object) -> Pulled:
    return pull(name, store, progress=SILENT, **words)  # type: ignore[arg-type]


def test_an_image_comes_with_all_that_it_needs(double: Double, store: Store) -> None:
    image = double.image("x/y", "1", b"base", LARGE)
    pulled = got(store, f"{double.name}/x/y:1")
    assert (pulled.digest, pulled.image.digest, pulled.newer) == (image.digest, image.digest, True)
    assert store.resolve(f"{double.name}/x/y:1").digest == image.digest and store.verify() == {}
    manifest = store.manifest(image)
    assert {blob.digest for blob in pulled.transferred} == {blob.digest for blob in (manifest.config, *manifest.layers)} and pulled.already == ()
    with store.open(manifest.layers[1]) as file:
        assert file.read() == LARGE
    assert len(files(store)) == 4


def test_only_what_is_missing_is_fetched(double: Double, store: Store) -> None:
    double.image("x", "1", b"base", b"one")
    second = double.image("x", "2", b"base", b"two")
    got(store, f"{double.name}/x:1")
    pulled = got(store, f"{double.name}/x:2")
    assert {blob.digest for blob in pulled.already} == {digest_of(b"base")}
    assert {blob.digest for blob in pulled.transferred} == {digest_of(b"two"), store.manifest(second).config.digest}
    again = got(store, f"{double.name}/x:2")
    assert not again.newer and again.transferred == () and len(again.already) == 3
    assert len(double.requests("GET", digest_of(b"base"))) == 1


def test_a_pull_says_what_docker_says(double: Double, store: Store) -> None:
    double.image("x/y", "1", b"base")
    image = double.image("x/y", "1", b"base", b"top")
    said: list[str] = []
    base, top = (digest_of(content)[7:19] for content in (b"base", b"top"))
    with store.adding() as adding:
        adding.put(b"base")
        pull(f"{double.name}/x/y:1", store, progress=Lines(said.append))
    status = f"Status: Downloaded newer image for {double.name}/x/y:1"
    expected = ["1: Pulling from x/y", f"{base}: Already exists", f"{top}: Pulling fs layer", f"{top}: Pull complete", f"Digest: {image.digest}"]
    assert said == [*expected, status]
    said.clear()
    pull(f"{double.name}/x/y:1", store, progress=Lines(said.append))
    assert said[-1] == f"Status: Image is up to date for {double.name}/x/y:1"


def test_a_tag_that_moves_at_the_registry_moves_here(double: Double, store: Store) -> None:
    first = double.image("x", "1", b"one")
    got(store, f"{double.name}/x:1")
    second = double.image("x", "1", b"two")
    assert got(store, f"{double.name}/x:1").newer
    assert store.resolve(f"{double.name}/x:1").digest == second.digest and store.resolve(first.digest)


def test_an_image_comes_by_its_digest(double: Double, store: Store) -> None:
    image = double.image("x", "1", b"one")
    pulled = got(store, f"{double.name}/x@{image.digest}")
    assert pulled.digest == image.digest and store.resolve(f"{double.name}/x@{image.digest}").digest == image.digest
    assert len(store.images()) == 1


def test_a_digest_of_another_algorithm_is_verified_too(double: Double, store: Store) -> None:
    image = double.image("x", "1", b"one")
    media_type, raw = double.manifests["x", "1"]
    other = digest_of(raw, "sha512")
    double.manifests["x", other] = media_type, raw
    wrong = digest_of(b"", "sha512")
    double.manifests["x", wrong] = media_type, raw
    assert got(store, f"{double.name}/x@{other}").image.size == image.size and store.verify() == {}
    with pytest.raises(RegistryError, match="has sent something else, whose digest is sha512:"):
        got(store, f"{double.name}/x@{wrong}")


# Platforms.


def test_of_an_index_the_image_of_this_machine_is_kept_with_the_digest_of_the_index(double: Double, store: Store) -> None:
    amd64, arm = double.image("x", None, b"amd64"), double.image("x", None, b"arm", architecture="arm", variant="v7")
    index = double.index("x", "1", arm_v7=arm, amd64=amd64)
    pulled = got(store, f"{double.name}/x:1")
    found = store.resolve(f"{double.name}/x:1")
    assert (pulled.digest, pulled.image.digest, found.digest) == (index.digest, amd64.digest, amd64.digest)
    assert store.resolve(f"{double.name}/x@{index.digest}").digest == found.digest
    assert found.annotations[INDEX_DIGEST] == index.digest and len(files(store)) == 3 and store.verify() == {}
    assert got(store, f"{double.name}/x:1", platform="linux/arm").image.digest == arm.digest
    assert got(store, f"{double.name}/x@{index.digest}").digest == index.digest


def test_of_an_index_all_can_be_kept(double: Double, store: Store) -> None:
    images = {name: double.image("x", None, name.encode()) for name in ("amd64", "arm64")}
    index = double.index("x", "1", **images)
    pulled = got(store, f"{double.name}/x:1", all_platforms=True)
    assert pulled.image.digest == pulled.digest == index.digest and INDEX_DIGEST not in pulled.image.annotations
    assert len(files(store)) == 7 and store.verify() == {}
    outer = double.document("x", "outer", OCI_INDEX, Index((index, images["amd64"])).raw)
    assert got(store, f"{double.name}/x:outer", all_platforms=True).digest == outer.digest and store.verify() == {}


def test_an_index_without_this_machine_says_which_it_has(double: Double, store: Store) -> None:
    double.index("x", "1", arm64=double.image("x", None, b"a"), s390x=double.image("x", None, b"b"))
    with pytest.raises(UsageError, match=r"has no image for linux/amd64; the platforms that it has: linux/arm64, linux/s390x$"):
        got(store, f"{double.name}/x:1")
    assert files(store) == set() and store.images() == ()


def test_an_image_of_another_platform_than_was_asked_for_is_refused(double: Double, store: Store) -> None:
    double.image("x", "1", b"one", architecture="arm64")
    double.image("x", "windows", b"one", os="windows")
    with pytest.raises(UsageError, match="is for linux/arm64 alone, and linux/amd64 was asked for"):
        got(store, f"{double.name}/x:1", platform="linux/amd64")
    with pytest.raises(UsageError, match="is for windows/amd64 alone"):
        got(store, f"{double.name}/x:windows")
    said: list[str] = []
    pull(f"{double.name}/x:1", store, progress=Lines(said.append))
    assert f"WARNING: {double.name}/x:1 is for linux/arm64, and this machine is linux/amd64" in said


@pytest.mark.parametrize(
    ("asked", "offered", "chosen"),
    [
        ("linux/amd64", "linux/arm64 linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64", "linux/amd64"),
        ("linux/amd64", "linux/amd64/v3 linux/amd64", "linux/amd64"),
        ("linux/amd64/v2", "linux/amd64 linux/amd64/v2 linux/amd64/v3", "linux/amd64/v2"),
        ("linux/arm64", "linux/arm/v7 linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm64/v8", "linux/arm64", "linux/arm64"),
        ("linux/arm", "linux/arm/v5 linux/arm/v7 linux/arm/v6", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v7 linux/arm/v6 linux/arm/v5", "linux/arm/v6"),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/arm64", "linux/arm/v7", None),
        ("windows/amd64", "linux/amd64", None),
        ("linux/amd64", "unknown/unknown", None),
    ],
)
def test_a_platform_is_chosen_as_containerd_does(asked: str, offered: str, chosen: str | None) -> None:
    manifests = [Descriptor(OCI_MANIFEST, digest_of(text.encode()), 1, platform=platforms.parse(text)) for text in offered.split()]
    found = platforms.choose([Descriptor(OCI_MANIFEST, digest_of(b""), 1), *manifests], platforms.parse(asked))
    assert (found and found.digest) == (chosen and digest_of(chosen.encode()))


# What is no image.


def test_what_is_no_image_is_refused_in_one_line(double: Double, store: Store) -> None:
    blob = double.add("x", b"a: b", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
    empty = double.add("x", b"{}", "application/vnd.cncf.helm.config.v1+json")
    double.document("x", "chart", OCI_MANIFEST, Manifest(empty, (blob,)).raw)
    config = double.add("x", Config("amd64", "linux", (digest_of(b"a"),)).raw, OCI_CONFIG)
    double.document("x", "odd", OCI_MANIFEST, Manifest(config, (blob,)).raw)
    double.document("x", "count", OCI_MANIFEST, Manifest(config, ()).raw)
    double.document("x", "old", "application/vnd.docker.distribution.manifest.v1+prettyjws", b'{"schemaVersion": 1}')
    double.document("x", "text", "text/plain", b"hello")
    double.document("x", "both", OCI_INDEX, Manifest(config, ()).raw)
    double.document("x", "docker", DOCKER_MANIFEST, Manifest(config, ()).raw)
    for tag, why in {
        "chart": r"this is no image, but an artifact of type application/vnd\.cncf\.helm\.config\.v1\+json",
        "odd": r"has a layer of type application/vnd\.cncf\.helm\.chart\.content\.v1\.tar\+gzip",
        "count": "its manifest has 0 layers, and its configuration 1",
        "old": "schema 1",
        "text": "text/plain; only manifests and indexes",
        "both": "this could mean two things",
        "docker": "this could mean two things",
    }.items():
        with pytest.raises(UsageError, match=why) as error:
            got(store, f"{double.name}/x:{tag}")
        assert "\n" not in str(error.value)
    assert store.images() == ()


def test_a_foreign_layer_is_fetched_where_the_image_is_and_nowhere_else(double: Double, store: Store) -> None:
    layer = double.add("x", b"theirs", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    layer = replace(layer, others={"urls": [f"{double.url}/elsewhere"]})
    config = double.add("x", Config("amd64", "linux", (layer.digest,)).raw, OCI_CONFIG)
    double.document("x", "1", OCI_MANIFEST, Manifest(config, (layer,)).raw)
    got(store, f"{double.name}/x:1")
    store.remove(f"{double.name}/x:1")
    del double.blobs["x", layer.digest]
    with pytest.raises(RegistryError, match="its owner hands it out himself, and links in manifests are not followed"):
        got(store, f"{double.name}/x:1")
    assert double.requests("GET", "elsewhere") == []


# A registry that cannot be believed.


def test_another_content_under_a_digest_is_refused(double: Double, store: Store) -> None:
    image = double.image("x", "1", LARGE)
    double.blobs["x", digest_of(LARGE)] = b"!" + LARGE[1:]
    with pytest.raises(RegistryError, match=f"does not send what it should: {digest_of(LARGE)}: what has come is something else"):
        got(store, f"{double.name}/x:1")
    double.manifests["x", image.digest] = OCI_MANIFEST, double.manifests["x", "1"][1] + b" "
    with pytest.raises(RegistryError, match=f"@{image.digest}: .* has sent something else"):
        got(store, f"{double.name}/x@{image.digest}")
    assert store.images() == () and not [name for name in files(store) if ".partial" in name or ".new" in name]


def test_a_tag_whose_digest_the_registry_states_wrongly_is_refused(double: Double, store: Store) -> None:
    double.image("x", "1", b"one")

    async def lie(request: web.Request) -> web.Response | None:
        if not request.path.endswith("manifests/1"):
            return None
        media_type, raw = double.manifests["x", "1"]
        return web.Response(body=raw, headers={"Content-Type": media_type, "Docker-Content-Digest": digest_of(b"")})

    double.faults.append(lie)
    with pytest.raises(RegistryError, match="has sent something else"):
        got(store, f"{double.name}/x:1")


async def _endless(request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65536)


@pytest.mark.parametrize(("path", "why"), [("/blobs/", "the manifest says 2000000 bytes"), ("/manifests/", "the most that a document may have")])
def test_a_registry_that_never_ends_is_cut_off(double: Double, store: Store, path: str, why: str) -> None:
    double.image("x", "1", LARGE)

    async def endless(request: web.Request) -> web.StreamResponse | None:
        aimed = path in request.path and (path == "/manifests/" or digest_of(LARGE) in request.path)
        return await _endless(request, {"Content-Type": OCI_MANIFEST}) if aimed else None

    double.faults.append(endless)
    with pytest.raises(RegistryError, match=why):
        got(store, f"{double.name}/x:1")
    assert store.images() == ()


def test_a_size_that_is_not_the_manifests_is_refused_before_the_content_comes(double: Double, store: Store) -> None:
    double.image("x", "1", LARGE)
    double.blobs["x", digest_of(LARGE)] = LARGE + b"more"
    with pytest.raises(RegistryError, match=r"2000004 bytes at .*, and the manifest says 2000000"):
        got(store, f"{double.name}/x:1")


def test_an_index_that_is_wrong_about_its_images_is_refused(double: Double, store: Store) -> None:
    image = replace(double.image("x", None, b"one"), size=7, platform=Platform("amd64", "linux"))
    double.document("x", "1", OCI_INDEX, Index((image,)).raw)
    with pytest.raises(UsageError, match=r"the index says that it is .* of 7 bytes, and it is"):
        got(store, f"{double.name}/x:1")


def test_what_a_registry_says_is_one_short_line_for_a_terminal(double: Double, store: Store) -> None:
    async def rude(request: web.Request) -> web.Response | None:
        return problem(403, "DENIED", "no\x1b[2J\n" * 1000) if "manifests" in request.path else None

    double.faults.append(rude)
    with pytest.raises(RegistryError) as error:
        got(store, f"{double.name}/x:1")
    assert str(error.value).isprintable() and len(str(error.value)) < 500


# A line that breaks.


def broken_after(double: Double, counts: list[int], ranges: bool = True) -> None:
    """The connections of LARGE, one after the other, break after so many bytes."""

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if digest_of(LARGE) not in request.path:
            return None
        start = int(re.findall("[0-9]+", request.headers.get("Range", "0"))[0]) if ranges else 0
        headers = {"Content-Length": str(len(LARGE) - start)} | ({"Content-Range": f"bytes {start}-{len(LARGE) - 1}/{len(LARGE)}"} if start else {})
        if not counts:
            return None if ranges else web.Response(body=LARGE)
        return await part_of(request, LARGE[start : start + counts.pop(0)], headers, 206 if start else 200)

    double.faults.append(fault)


def ranges(double: Double) -> list[str | None]:
    return [request.headers.get("Range") for request in double.asked if digest_of(LARGE) in request.path]


def test_a_lost_connection_goes_on_where_it_was(double: Double, store: Store) -> None:
    double.image("x", "1", LARGE)
    broken_after(double, [100_000, 50_000, 0])
    said: list[str] = []
    pull(f"{double.name}/x:1", store, progress=Lines(said.append))
    assert sum("Retrying in 1 seconds" in line for line in said) == 3
    asked = ranges(double)
    starts = [int(re.findall("[0-9]+", text)[0]) for text in asked[1:] if text]
    assert asked[0] is None and len(starts) == 3 and starts[0] <= 100_000 < starts[1] <= 150_000 and starts[1] == starts[2]
    assert store.verify() == {} and files(store) == {name for name in files(store) if name.startswith("blobs/")}


def test_where_ranges_are_not_known_it_begins_again_and_keeps_what_it_has(double: Double, store: Store) -> None:
    double.image("x", "1", LARGE)
    broken_after(double, [500_000, 100_000], ranges=False)
    got(store, f"{double.name}/x:1")
    assert len(ranges(double)) == 3 and store.verify() == {}


def test_a_later_pull_goes_on_where_an_earlier_one_was_given_up(double: Double, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    double.image("x", "1", LARGE)
    broken_after(double, [1_000_000, *[0] * transport.TRIES])
    with pytest.raises(RegistryError, match="not reachable"):
        got(store, f"{double.name}/x:1")
    (left,) = (store.path / partial.FOLDER).iterdir()
    begun = left.stat().st_size
    assert store.images() == () and 0 < begun <= 1_000_000
    double.asked.clear()
    got(store, f"{double.name}/x:1")
    assert ranges(double) == [f"bytes={begun}-"] and store.verify() == {} and not left.exists()


def test_what_was_kept_and_is_damaged_is_fetched_anew(double: Double, store: Store) -> None:
    double.image("x", "1", LARGE)
    folder = store.path / partial.FOLDER
    folder.mkdir()
    (folder / digest_of(LARGE).replace(":", "-")).write_bytes(b"\0" * 1000)
    got(store, f"{double.name}/x:1")
    assert ranges(double) == ["bytes=1000-", None] and store.verify() == {} and list(folder.iterdir()) == []


def test_what_nobody_has_gone_on_with_is_removed(double: Double, store: Store) -> None:
    double.image("x", "1", b"one")
    folder = store.path / partial.FOLDER
    folder.mkdir()
    for name, age in (("old", partial.KEPT + 60), ("new", 0)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age,) * 2)
    got(store, f"{double.name}/x:1")
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_two_pulls_of_one_image_download_it_once(double: Double, store: Store) -> None:
    double.image("x", "1", LARGE)
    both = threading.Barrier(2)

    async def slowly(request: web.Request) -> None:
        if digest_of(LARGE) in request.path:
            await asyncio.sleep(0.3)

    double.faults.append(slowly)

    def one() -> None:
        both.wait()
        got(store, f"{double.name}/x:1")

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ranges(double)) == 1 and store.verify() == {}


def test_an_answer_that_is_too_short_is_not_taken_for_the_end(double: Double, store: Store) -> None:
    double.image("x", "1", LARGE)

    async def short(request: web.Request) -> web.Response | None:
        return web.Response(body=LARGE[:1000]) if digest_of(LARGE) in request.path else None

    double.faults.append(short)
    with pytest.raises(RegistryError, match="ends it after 1000 of 2000000 bytes"):
        got(store, f"{double.name}/x:1")
    double.faults.clear()
    got(store, f"{double.name}/x:1")
    assert store.verify() == {}


def refusing(double: Double, times: int, status: int, headers: dict[str, str] | None = None) -> None:
    """So many requests of each path are refused first."""
    seen: dict[str, int] = {}

    async def fault(request: web.Request) -> web.Response | None:
        seen[request.path] = seen.get(request.path, 0) + 1
        return problem(status, "BUSY", "busy", headers) if seen[request.path] <= times else None

    double.faults.append(fault)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again(double: Double, store: Store, status: int) -> None:
    double.image("x", "1", b"one")
    refusing(double, 2, status)
    got(store, f"{double.name}/x:1")
    assert len(double.requests("GET", digest_of(b"one"))) == 3


def test_a_registry_that_stays_busy_is_given_up(double: Double, store: Store) -> None:
    double.image("x", "1", b"one")
    refusing(double, 1000, 503)
    with pytest.raises(RegistryError, match=f"{double.name}/x:1: .* answered 503 Service Unavailable: busy$"):
        got(store, f"{double.name}/x:1")
    assert len(double.requests("GET", "manifests")) == transport.TRIES


def test_the_seconds_that_a_registry_asks_for_are_waited(double: Double, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(transport.Transport, "wait", lambda self, seconds: waited.append(seconds))
    double.image("x", "1", b"one")
    refusing(double, 1, 429, {"Retry-After": "7"})
    got(store, f"{double.name}/x:1")
    assert waited and set(waited) == {7.0}
    double.faults.clear()
    refusing(double, 1, 429, {"Retry-After": "3600"})
    with pytest.raises(RegistryError, match="answered 429 Too Many Requests: busy; try again in 3600 seconds"):
        got(store, f"{double.name}/x:1")


def test_after_a_failure_nothing_else_is_downloaded_and_nothing_is_half_made(double: Double, store: Store) -> None:
    layers = [b"%d" % number * 1000 for number in range(20)]
    double.image("x", "1", *layers)
    del double.blobs["x", digest_of(layers[3])]
    with pytest.raises(RegistryError, match=f"{digest_of(layers[3])}: .* does not have it: blob unknown"):
        got(store, f"{double.name}/x:1")
    assert store.images() == () and store.verify() == {}
    assert len(double.requests("GET", "/blobs/")) < 12
    assert not [name for name in files(store) if ".new" in name or ".adding" in name]


def test_a_failure_does_not_wait_for_a_silent_server(double: Double, store: Store) -> None:
    double.image("x", "1", LARGE, b"small")
    silent = asyncio.Event()

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if digest_of(LARGE) in request.path:
            response = web.StreamResponse(headers={"Content-Length": str(len(LARGE))})
            await response.prepare(request)
            await response.write(LARGE[:1000])
            silent.set()
            await asyncio.sleep(1000)
        if digest_of(b"small") in request.path:
            await silent.wait()
            return problem(404, "BLOB_UNKNOWN", "gone")
        return None

    double.faults.append(fault)
    begun = time.monotonic()
    with pytest.raises(RegistryError, match="gone"):
        got(store, f"{double.name}/x:1")
    assert time.monotonic() - begun < transport.TIMEOUT.read / 2  # type: ignore[operator]


@contextmanager
def stalled(double: Double, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`klab pull` in the middle of a layer, of which no more comes."""
    double.image("x", "1", LARGE)

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if digest_of(LARGE) not in request.path:
            return None
        response = web.StreamResponse(headers={"Content-Length": str(len(LARGE))})
        await response.prepare(request)
        await response.write(LARGE[:1000])
        await asyncio.sleep(1000)
        return response

    double.faults.append(fault)
    with subprocess.Popen(klab_pull(double), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        part = tmp_path / "data/images" / partial.FOLDER / digest_of(LARGE).replace(":", "-")
        assert soon(lambda: part.exists() and part.stat().st_size == 1000)
        yield process
    double.faults.clear()


def klab_pull(double: Double) -> list[str]:
    return [sys.executable, "-m", "kernel_lab.cli", "pull", "--platform", "linux/amd64", f"{double.name}/x:1"]


def test_an_interrupted_pull_ends_at_once_and_says_so(double: Double, tmp_path: Path) -> None:
    with stalled(double, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=transport.TIMEOUT.read / 2)  # type: ignore[operator]
    assert process.returncode == 130 and said.endswith("klab: interrupted\n")
    assert Store(tmp_path / "data/images").images() == ()


def test_what_a_killed_pull_has_is_gone_on_with(double: Double, tmp_path: Path) -> None:
    with stalled(double, tmp_path) as process:
        process.kill()
    assert Store(tmp_path / "data/images").images() == ()
    done = subprocess.run(klab_pull(double), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ranges(double) == [None, "bytes=1000-"] and Store(tmp_path / "data/images").verify() == {}


def test_a_full_disk_is_one_line_and_leaves_room(double: Double, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    double.image("x", "1", LARGE)
    put = Addition.put

    def full(self: Addition, content: object, media_type: str = "", digest: str | None = None, size: int | None = None) -> Descriptor:
        if digest == digest_of(LARGE):
            next(iter(content))  # type: ignore[call-overload]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(self, content, media_type, digest, size)  # type: ignore[arg-type]

    monkeypatch.setattr(Addition, "put", full)
    with pytest.raises(UsageError, match=f"no space left for {digest_of(LARGE)}, which has 2000000 bytes"):
        got(store, f"{double.name}/x:1")
    assert store.images() == () and not list((store.path / partial.FOLDER).iterdir())


# Names that lead nowhere.


def test_a_name_that_is_not_there_is_explained(double: Double, store: Store) -> None:
    for number in range(12):
        double.image("x", f"v{number:02}", b"one")
    shown = ", ".join(f"v{number:02}" for number in range(10))
    with pytest.raises(RegistryError, match=f"x:latest: there is no such tag; the tags of {double.name}/x: {shown} and others$"):
        got(store, f"{double.name}/x")
    with pytest.raises(RegistryError, match=f"^{double.name}/none: {double.name} has no such repository$"):
        got(store, f"{double.name}/none")
    with pytest.raises(RegistryError, match=f"@{digest_of(b'')}: .* does not have it: manifest unknown"):
        got(store, f"{double.name}/x@{digest_of(b'')}")


def test_a_host_that_is_no_registry_is_told_from_one_that_is_not_there(double: Double, store: Store) -> None:
    with pytest.raises(RegistryError, match=r"not reachable: .*refused"):
        got(store, "127.0.0.1:1/x")

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>welcome</html>", content_type="text/html")

    double.faults.append(page)
    with pytest.raises(RegistryError, match=r"this is no registry: .* answers with a web page"):
        got(store, f"{double.name}/x")
    double.faults[:] = []
    refusing(double, 100, 404)
    with pytest.raises(RegistryError, match="this is no registry, or not one of version 2"):
        got(store, f"{double.name}/x")


# Tags, and what is removed.


def test_tags_come_page_by_page(double: Double, store: Store) -> None:
    for number in range(12):
        double.image("x", f"v{number:02}", b"one")
    double.page = 5
    with Client(double.name) as client:
        assert list(client.tags("x")) == [f"v{number:02}" for number in range(12)]
    assert len(double.requests("GET", "tags/list")) == 3
    assert [pulled.reference.tag for pulled in pull_all(f"{double.name}/x", store, progress=SILENT)] == [f"v{number:02}" for number in range(12)]
    assert len(store.images()) == 12
    with pytest.raises(UsageError, match="all tags are asked for, and one image"):
        list(pull_all(f"{double.name}/x:v01", store, progress=SILENT))


def test_a_next_page_that_is_no_url_is_said(double: Double) -> None:
    async def fault(request: web.Request) -> web.Response | None:
        return web.json_response({"tags": ["1"]}, headers={"Link": '<http://x:port/>; rel="next"'}) if "tags" in request.path else None

    double.faults.append(fault)
    with Client(double.name) as client, pytest.raises(RegistryError, match="the next page of tags is at what is no URL"):
        list(client.tags("x"))


def test_an_error_that_is_nested_too_deeply_is_an_error(double: Double, store: Store) -> None:
    async def fault(request: web.Request) -> web.Response | None:
        return web.Response(status=403, text="[" * 100_000) if "manifests" in request.path else None

    double.faults.append(fault)
    with pytest.raises(RegistryError, match="denied"):
        got(store, f"{double.name}/x:1")


@pytest.mark.parametrize("link", ["</v2/x/tags/list>", "<http://other.example/v2/x/tags/list>"])
def test_pages_without_end_or_of_somebody_else_are_not_followed(double: Double, link: str) -> None:
    async def fault(request: web.Request) -> web.Response | None:
        return web.json_response({"tags": ["1"]}, headers={"Link": f'{link}; rel="next"'}) if "tags" in request.path else None

    double.faults.append(fault)
    with Client(double.name) as client, pytest.raises(RegistryError, match="from one page of tags to the next"):
        list(client.tags("x"))


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", '{"tags": 5}', '{"tags": ["a\\u001bb"]}', '{"tags": [1]}'])
def test_a_list_of_tags_that_is_none_is_refused(double: Double, content: str) -> None:
    async def fault(request: web.Request) -> web.Response | None:
        return web.Response(text=content) if "tags" in request.path else None

    double.faults.append(fault)
    with Client(double.name) as client, pytest.raises(RegistryError, match="asked for tags, and has answered something else"):
        list(client.tags("x"))


def test_manifests_tags_and_blobs_are_removed(double: Double) -> None:
    image = double.image("x", "1", b"one")
    with Client(double.name) as client:
        assert client.has_manifest("x", "1") and client.has_blob("x", digest_of(b"one"))
        client.delete_manifest("x", "1")
        client.delete_manifest("x", image.digest)
        client.delete_blob("x", digest_of(b"one"))
        assert not client.has_manifest("x", image.digest) and not client.has_blob("x", digest_of(b"one"))
        with pytest.raises(RegistryError, match="does not have it"):
            client.delete_blob("x", digest_of(b"one"))


# The way there.


def test_a_redirection_is_followed_without_who_we_are(store: Store) -> None:
    with Double(auth="basic") as double, Double() as elsewhere:
        double.image("x", "1", LARGE)
        elsewhere.blobs["x", digest_of(LARGE)] = LARGE

        async def fault(request: web.Request) -> web.Response | None:
            return web.Response(status=307, headers={"Location": f"{elsewhere.url}{request.path}"}) if digest_of(LARGE) in request.path else None

        double.faults.append(fault)
        credentials.store(double.name, credentials.Credential(USER, PASSWORD))
        got(store, f"{double.name}/x:1")
        assert any("Authorization" in request.headers for request in double.asked)
        assert len(elsewhere.asked) == 1 and "Authorization" not in elsewhere.asked[0].headers


def test_no_redirection_leads_to_where_nothing_is_encrypted(double: Double, store: Store) -> None:
    double.image("x", "1", b"one")

    async def fault(request: web.Request) -> web.Response | None:
        return web.Response(status=302, headers={"Location": "http://198.51.100.1/blob"}) if digest_of(b"one") in request.path else None

    double.faults.append(fault)
    with pytest.raises(RegistryError, match=r"sends to http://198\.51\.100\.1, which is not encrypted"):
        got(store, f"{double.name}/x:1")


@contextmanager
def leading(double: Double, what: str, place: str) -> Iterator[None]:
    """What is asked for leads somewhere else."""

    async def fault(request: web.Request) -> web.Response | None:
        return web.Response(status=307, headers={"Location": place}) if what in request.path else None

    double.faults.append(fault)
    yield
    double.faults.remove(fault)


@pytest.mark.parametrize("what", ["/blobs/", "/manifests/"])
def test_nobody_to_whom_a_redirection_leads_is_told_who_we_are(store: Store, what: str) -> None:
    with Double(auth="basic") as double, Double(auth="bearer") as elsewhere:
        double.image("x", "1", b"one")
        credentials.store(double.name, credentials.Credential(USER, PASSWORD))
        said = f"sends to {elsewhere.name}, which wants to know who asks, and is not told"
        with leading(double, what, f"{elsewhere.url}/v2/x/blobs/{digest_of(b'one')}"), pytest.raises(RegistryError, match=said) as refused:
            got(store, f"{double.name}/x:1")
        assert refused.value.status == 401 and elsewhere.asked
        assert not elsewhere.requests("GET", "token") and not any("Authorization" in request.headers for request in elsewhere.asked)


def test_a_name_and_a_password_in_a_redirection_are_not_sent(double: Double, store: Store) -> None:
    double.image("x", "1", b"one")
    with Double() as elsewhere:
        elsewhere.blobs["x", digest_of(b"one")] = b"one"
        with leading(double, digest_of(b"one"), f"http://me:secret@{elsewhere.name}/v2/x/blobs/{digest_of(b'one')}"):
            got(store, f"{double.name}/x:1")
        assert elsewhere.asked and not any("Authorization" in request.headers for request in elsewhere.asked)


def test_what_stands_in_a_redirection_is_not_read(double: Double, store: Store) -> None:
    double.image("x", "1", b"one")
    moved = threading.Event()

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if digest_of(b"one") not in request.path or request.query:
            return None
        response = web.StreamResponse(status=307, headers={"Location": f"{request.path}?moved"})
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x" * 65536)
        moved.set()
        return response

    double.faults.append(fault)
    got(store, f"{double.name}/x:1")
    assert not moved.is_set()


def test_a_registry_with_encryption_leads_to_nothing_without_on_this_machine(
    secure: Double, double: Double, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    blob = secure.add("x", b"one")
    double.add("x", b"one")
    for allowed in ((), (double.name,)):
        with Client(endpoints.Endpoint("x.example", secure.name, ("https",)), None, endpoints.Endpoints(insecure=allowed)) as client:
            assert client.has_blob("x", blob.digest)
            with leading(secure, "/blobs/", f"{double.url}/v2/x/blobs/{blob.digest}"):
                with pytest.raises(RegistryError, match="which is not encrypted"):
                    client.has_blob("x", blob.digest)
                with pytest.raises(RegistryError, match="which is not encrypted"):
                    list(client.blob("x", blob))
                with pytest.raises(RegistryError, match="307"):
                    client.delete_blob("x", blob.digest)

            async def upload(request: web.Request) -> web.Response | None:
                return web.Response(status=202, headers={"Location": f"{double.url}/upload"}) if request.method == "POST" else None

            async def realm(request: web.Request) -> web.Response:
                return problem(401, "UNAUTHORIZED", "who", {"WWW-Authenticate": f'Bearer realm="{double.url}/token"'})

            for fault in (upload, realm):
                secure.faults[:] = [fault]
                with pytest.raises(RegistryError, match="which is not encrypted; name both in insecure-registries"):
                    client.upload("x", blob, lambda: io.BytesIO(b"one"))
            secure.faults.clear()
    assert double.asked == []


def test_redirections_without_end_are_given_up(double: Double, store: Store) -> None:
    double.image("x", "1", b"one")

    async def fault(request: web.Request) -> web.Response | None:
        return web.Response(status=302, headers={"Location": request.path}) if digest_of(b"one") in request.path else None

    double.faults.append(fault)
    with pytest.raises(RegistryError, match="sends from one place to the next, without end"):
        got(store, f"{double.name}/x:1")


def test_plain_http_is_for_loopback_and_what_is_named() -> None:
    found = endpoints.Endpoints(insecure=("lan.example:5000", "other.example"))
    for registry, schemes in {
        "127.0.0.1:5000": 2,
        "127.9.9.9:5000": 2,
        "localhost": 2,
        "localhost:1": 2,
        "[::1]:5000": 2,
        "lan.example:5000": 2,
        "lan.example:5001": 1,
        "other.example:7": 2,
        "docker.io": 1,
        "127.0.0.1.example": 1,
        "10.0.0.1:5000": 1,
    }.items():
        assert len(found.itself(registry).schemes) == schemes, registry


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Double]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Double(tls=context) as double:
        yield double


def test_a_certificate_that_nobody_vouches_for_is_refused_even_on_loopback(secure: Double, store: Store) -> None:
    secure.image("x", "1", b"one")
    with pytest.raises(RegistryError, match=r"its certificate is not trusted .*put the certificate of its authority into /etc/docker/certs.d/127"):
        got(store, f"{secure.name}/x:1")
    assert secure.asked == []


def test_an_authority_is_trusted_from_dockers_folder_or_the_environment(
    secure: Double, store: Store, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure.image("x", "1", LARGE)
    folder = tmp_path / "certs.d" / secure.name
    folder.mkdir(parents=True)
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    monkeypatch.setattr(transport, "CERTIFICATES", tmp_path / "certs.d")
    assert got(store, f"{secure.name}/x:1").newer
    monkeypatch.setattr(transport, "CERTIFICATES", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.crt"))
    assert not got(store, f"{secure.name}/x:1").newer
    (tmp_path / secure.name).mkdir()
    (tmp_path / secure.name / "ca.crt").write_text("none")
    with pytest.raises(UsageError, match=r"ca\.crt: cannot be read as certificates"):
        got(store, f"{secure.name}/x:1")


def test_mirrors_are_asked_before_the_hub(double: Double, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = double.image("library/busybox", "latest", b"one")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / endpoints.FILE).write_text('{"registry-mirrors": ["http://127.0.0.1:1"]}')
    monkeypatch.setenv("KERNEL_LAB_REGISTRY_MIRRORS", double.url)
    said: list[str] = []
    assert pull("busybox", store, progress=Lines(said.append)).digest == image.digest
    assert store.resolve("busybox").digest == image.digest and "going on without this mirror" in said[0]


def test_a_mirror_whose_documents_nobody_understands_is_gone_on_without(double: Double, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    image = double.image("library/busybox", "latest", b"one")
    said: list[str] = []
    with Double() as strange:
        strange.document("library/busybox", "latest", "text/plain", b"hello")
        monkeypatch.setenv("KERNEL_LAB_REGISTRY_MIRRORS", f"{strange.url},{double.url}")
        assert pull("busybox", store, progress=Lines(said.append)).digest == image.digest
    assert "text/plain" in said[0] and "going on without this mirror" in said[0]


@pytest.mark.parametrize("mirror", ["mirror.example", "https://me:secret@mirror.example", "https://mirror.example/path", "ftp://mirror.example"])
def test_a_mirror_that_is_no_url_is_refused(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_REGISTRY_MIRRORS", mirror)
    with pytest.raises(UsageError, match="a mirror is a URL of a scheme, a host and nothing else") as error:
        endpoints.Endpoints.configured()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"insecure-registries": "x"}', '{"registry-mirrors": [1]}'])
def test_settings_that_cannot_be_understood_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / endpoints.FILE).write_text(content)
    with pytest.raises(UsageError, match=endpoints.FILE):
        endpoints.Endpoints.configured()


def test_a_proxy_is_used_but_not_for_this_machine(double: Double, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Double() as proxy:
        proxy.image("x", "1", b"one")  # it answers itself, in the place of a host that there is not
        double.image("x", "1", b"two")
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("KERNEL_LAB_INSECURE_REGISTRIES", "registry.invalid")
        got(store, "registry.invalid/x:1")
        assert any(str(request.url).startswith("http://registry.invalid/v2/") for request in proxy.asked)
        proxy.asked.clear()
        got(store, f"{double.name}/x:1")
        assert proxy.asked == [] and double.asked
        monkeypatch.setenv("NO_PROXY", "registry.invalid")
        with pytest.raises(RegistryError, match="not reachable"):
            got(store, "registry.invalid/x:1")


def test_what_is_asked_names_itself_and_wants_the_bytes_as_they_are(double: Double, store: Store) -> None:
    double.image("x", "1", b"one")
    got(store, f"{double.name}/x:1")
    assert {request.headers["User-Agent"] for request in double.asked} == {"kernel-lab"}
    assert {request.headers["Accept-Encoding"] for request in double.asked} == {"identity"}
