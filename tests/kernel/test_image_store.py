"""The store of images among others: processes that work on it at once, processes that are killed, and the programs that open the same folder."""

import hashlib
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_lab.cleanup import leftovers
from kernel_lab.images.descriptor import NAME, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Config, Descriptor, Manifest
from kernel_lab.images.store import Store, local, name_of

# Adds images, each with a layer of its own and one of all, and says so when the store has said so; or stays in the middle
# of an addition; or removes what it finds; or looks for damage.
WORKER = """
import sys, time
from kernel_lab import UsageError
from kernel_lab.images.descriptor import *
from kernel_lab.images.store import Store, name_of

def add(store, name, number):
    with store.adding() as adding:
        layers = tuple(adding.put(content, OCI_LAYER) for content in (b"base" * 50_000, f"{name} {number} ".encode() * 20_000))
        config = adding.put(Config("amd64", "linux", tuple(layer.digest for layer in layers)).raw, OCI_CONFIG)
        image = store.tag(adding.put(Manifest(config, layers).raw, OCI_MANIFEST), f"{name}:{number}")
    print(name_of(image), image.digest, flush=True)

def remove(store, name):
    for image in store.images():
        if (called := name_of(image)) and int(called.rpartition(":")[2]) % 2:
            try:
                store.remove(called)
            except UsageError as error:  # somebody else was faster
                assert "no image of this name" in str(error), error
    store.prune()

store, what, name, times = Store(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
for number in range(times):
    if what == "verify":
        assert store.verify() == {}, store.verify()
    elif what == "stay":
        with store.adding() as adding:
            print(adding.put(b"held").digest, flush=True)
            time.sleep(1000)
    else:
        add(store, name, number) if what == "add" else remove(store, name)
"""


@contextmanager
def working(folder: Path, *jobs: tuple[str, str, int]) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes, each with its job on the store."""
    started = []
    try:
        for what, name, times in jobs:
            command = [sys.executable, "-c", WORKER, str(folder), what, name, str(times)]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def digests(store: Store) -> set[str]:
    return {f"{path.parent.name}:{path.name}" for path in store.path.glob("blobs/*/*")}


def test_processes_that_add_and_remove_at_once_leave_whole_images(tmp_path: Path) -> None:
    with working(tmp_path, *(("add", name, 30) for name in "abc"), ("remove", "d", 60), ("verify", "e", 60)) as processes:
        ended = [(process.communicate(timeout=120), process.returncode) for process in processes]
    assert [(errors, code) for (_, errors), code in ended] == [("", 0)] * 5
    store = Store(tmp_path)
    assert store.verify() == {}
    assert {f"docker.io/library/{name}:{even}" for name in "abc" for even in range(0, 30, 2)} <= set(map(name_of, store.images()))
    store.prune()
    assert digests(store) == {descriptor.digest for descriptor in store.needs(*store.images())}


def test_processes_that_make_one_store_at_once_make_one(tmp_path: Path) -> None:
    with working(tmp_path / "deep/images", *(("add", name, 1) for name in "abcd")) as processes:
        assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 4
    store = Store(tmp_path / "deep/images")
    assert len(store.images()) == 4 and store.verify() == {}


@pytest.mark.slow
def test_whoever_is_killed_every_acknowledged_image_is_whole(tmp_path: Path) -> None:
    chance = random.Random(1)
    store, acknowledged = Store(tmp_path), dict[str, str]()
    for attempt in range(30):
        with working(tmp_path, ("add", f"n{attempt}", 1000)) as (process,):
            # From the first moment to several images later.
            time.sleep(chance.uniform(0.1, 0.5))
            process.send_signal(signal.SIGKILL)
            said = process.communicate()[0].split("\n")[:-1]  # what has no newline was cut off
        acknowledged |= dict(line.split() for line in said)
        opened = Store(tmp_path)
        assert opened.verify() == {}
        assert acknowledged.items() <= {str(name_of(image)): image.digest for image in opened.images()}.items()
    assert len(acknowledged) > 20
    left = [name for name in os.listdir(tmp_path) if name.startswith((".new", ".adding"))]
    assert left, "nobody was killed in the middle of anything"
    assert set(store.prune().leftovers) == set(left)
    assert sorted(os.listdir(tmp_path)) == ["blobs", "index.json", "lock", "oci-layout"]
    assert digests(store) == {descriptor.digest for descriptor in store.needs(*store.images())}
    assert all(store.resolve(name).digest == digest for name, digest in acknowledged.items()) and store.verify() == {}


@pytest.mark.slow
@pytest.mark.needs("strace")
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "unlink", "mkdir", "flock"])
def test_killed_at_any_system_call_the_store_opens(tmp_path: Path, call: str) -> None:
    """strace kills the process as it enters the call for the n-th time: while the store is made, and its first image."""
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        # -B: Python's own files would be among those that are renamed.
        worker = [sys.executable, "-B", "-c", WORKER, str(folder), "add", "x", "1"]
        ran = subprocess.run([*inject, *worker], capture_output=True, text=True, timeout=60)
        store = Store(folder)
        assert store.verify() == {}
        assert {str(name_of(image)) for image in store.images()} >= {line.split()[0] for line in ran.stdout.splitlines()}
        store.prune()
        assert digests(store) == {descriptor.digest for descriptor in store.needs(*store.images())}
        assert sorted(os.listdir(folder)) == ["blobs", "index.json", "lock", "oci-layout"]
        if not ran.returncode:
            break
    assert number > 2


def test_a_cleanup_finds_what_a_killed_process_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    store = local()
    assert store.path == tmp_path / "data/images"
    with working(store.path, ("stay", "x", 1)) as (process,):
        assert process.stdout
        held = process.stdout.readline().strip()
        assert store.prune() == ((), ())
        process.kill()
        process.wait()
    (left,) = store.path.glob(".adding.*")
    (found,) = (leftover for leftover in leftovers() if leftover.name.startswith(str(store.path)))
    assert Path(found.name) == left
    found.remove()
    assert not left.exists() and store.prune().digests == (held,)


@pytest.mark.needs("strace")
def test_the_disk_has_what_is_renamed_what_the_index_names_and_what_is_acknowledged(tmp_path: Path) -> None:
    """By the rules of fsync(2): of a file its content, of a folder the names in it."""
    folder, log = tmp_path / "images", tmp_path / "log"
    strace = ["strace", "-f", "-qq", "-y", "-s", "0", "-o", log, "-e", "trace=/^(write|fsync|rename|mkdir)"]
    said(*strace, sys.executable, "-B", "-c", WORKER, folder, "add", "x", "1")
    not_on_disk = set[str]()
    renamed: list[str] = []
    for call in log.read_text().splitlines():
        name = call.split()[1].partition("(")[0]
        paths = [path for path in re.findall(r'[<"]([^<>"]+)[>"]', call) if path.startswith(f"{folder}/") and "/.adding." not in path]
        if name == "write" and "<pipe:" in call:
            assert not not_on_disk
            renamed.append("said")
        elif name == "fsync":
            not_on_disk -= set(re.findall("<(.+)>", call))
        elif name == "write":
            not_on_disk |= set(paths)
        elif paths and call.endswith(" = 0"):  # a new name in a folder
            assert name == "mkdir" or paths[0] not in not_on_disk
            assert not paths[-1].endswith("index.json") or "oci-layout" not in renamed or not not_on_disk
            not_on_disk.add(os.path.dirname(paths[-1]))
            renamed += [os.path.basename(path) for path in paths[1:]]
    assert [name if len(name) < 64 else "blob" for name in renamed][:8] == ["index.json", "oci-layout", *["blob"] * 4, "index.json", "said"]


def layer(**files: str) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return archive.getvalue()


def added(store: Store, name: str, **files: str) -> Descriptor:
    with store.adding() as adding:
        blob = adding.put(layer(**files), OCI_LAYER)
        config = Config("amd64", "linux", (blob.digest,), config={"Cmd": ["/hello"]})
        return store.tag(adding.put(Manifest(adding.put(config.raw, OCI_CONFIG), (blob,)).raw, OCI_MANIFEST), name)


def said(*command: str | Path) -> str:
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


NAMES = ["docker.io/library/busybox:1.36", "host.example:5000/some/app:latest"]


@pytest.mark.needs("skopeo")
def test_skopeo_reads_our_images_by_their_names(store: Store) -> None:
    images = {name: added(store, name, hello=name) for name in NAMES}
    for name, image in images.items():
        assert said("skopeo", "inspect", "--raw", f"oci:{store.path}:{name}").encode() == store.read(image)
        inspected = json.loads(said("skopeo", "inspect", f"oci:{store.path}:{name}"))
        assert inspected["Layers"] == [blob.digest for blob in store.manifest(image).layers]
        config = said("skopeo", "inspect", "--config", "--raw", f"oci:{store.path}:{name}").encode()
        assert hashlib.sha256(config).hexdigest() == store.manifest(image).config.digest[7:]


@pytest.mark.needs("skopeo")
def test_skopeo_copies_from_us_and_to_us(store: Store, tmp_path: Path) -> None:
    image = added(store, NAMES[0], hello="text")
    said("skopeo", "copy", "-q", f"oci:{store.path}:{NAMES[0]}", f"oci:{tmp_path}/theirs:docker.io/library/copy:1")
    theirs = Store(tmp_path / "theirs")  # which it has made: we open it as it is
    copy = theirs.resolve("copy:1")
    own, their = store.config(store.manifest(image)), theirs.config(theirs.manifest(copy))
    assert (their.diff_ids, their.config) == (own.diff_ids, own.config)
    assert theirs.verify() == {}
    for name in ("docker.io/library/back:2", "bare"):
        said("skopeo", "copy", "-q", f"oci:{theirs.path}:docker.io/library/copy:1", f"oci:{store.path}:{name}")
    assert [name_of(known) for known in store.images()] == [NAMES[0], "docker.io/library/back:2", "bare"]
    assert store.resolve("back:2").digest == store.resolve("bare").digest == copy.digest
    assert store.verify() == {}
    for name in ("back:2", "bare"):
        store.remove(name)
    assert store.prune().digests == () and store.resolve(NAMES[0]) == image


@pytest.mark.needs("skopeo")
def test_a_name_that_skopeo_moves_is_moved(store: Store, tmp_path: Path) -> None:
    first = added(store, NAMES[0], hello="1")
    other = added(Store(tmp_path / "other"), NAMES[0], hello="2")
    said("skopeo", "copy", "-q", f"oci:{tmp_path}/other:{NAMES[0]}", f"oci:{store.path}:{NAMES[0]}")
    moved = store.resolve("busybox:1.36")
    assert store.config(store.manifest(moved)).diff_ids == (Store(tmp_path / "other").manifest(other).layers[0].digest,)
    assert store.images() == (replace(first, annotations={}), moved)  # it keeps the old image under no name, as we do
    assert first.digest in store.prune(unnamed=True).digests and store.verify() == {}


@pytest.mark.needs("umoci")
def test_umoci_lists_tags_and_changes_our_images(store: Store) -> None:
    added(store, NAMES[0], hello="text")
    store.tag(added(store, "moved", hello="more"), None)
    added(store, "moved", hello="other")  # so that one image has no name
    added(store, NAMES[1], hello="app")
    assert set(said("umoci", "ls", "--layout", store.path).split()) >= {*NAMES, "docker.io/library/moved:latest"}
    said("umoci", "tag", "--image", f"{store.path}:{NAMES[0]}", "bare")
    assert store.resolve("bare").digest == store.resolve(NAMES[0]).digest
    said("umoci", "config", "--image", f"{store.path}:{NAMES[0]}", "--config.user", "nobody", "--tag", "docker.io/library/users:1")
    changed = store.manifest(store.resolve("users:1"))
    assert store.config(changed).config["User"] == "nobody"
    assert store.verify() == {}
    store.untag("bare")
    said("umoci", "gc", "--layout", store.path)
    assert store.verify() == {} and store.resolve("users:1")


@pytest.mark.needs("umoci", "root")
def test_umoci_unpacks_our_image_to_what_we_put(store: Store, tmp_path: Path) -> None:
    added(store, NAMES[0], hello="text")
    said("umoci", "unpack", "--image", f"{store.path}:{NAMES[0]}", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/hello").read_text() == "text"


@pytest.mark.needs("umoci")
def test_we_read_what_umoci_has_made(tmp_path: Path) -> None:
    said("umoci", "init", "--layout", tmp_path / "theirs")
    said("umoci", "new", "--image", f"{tmp_path}/theirs:empty")
    store = Store(tmp_path / "theirs")
    manifest = store.manifest(store.resolve("empty"))
    assert manifest.layers == () == store.config(manifest).diff_ids
    image = store.tag(store.resolve("empty"), "scratch-of-ours:1")
    assert "docker.io/library/scratch-of-ours:1" in said("umoci", "ls", "--layout", store.path).split()
    assert image.annotations == {NAME: "docker.io/library/scratch-of-ours:1"}


@pytest.mark.needs("podman", "root")
def test_podman_pulls_from_our_folder_by_name(store: Store) -> None:
    image = added(store, NAMES[1], hello="text")
    added(store, NAMES[0], hello="other")
    with tempfile.TemporaryDirectory(prefix="klab-") as folder:  # podman takes no long path
        podman = ["podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]
        assert said(*podman, "pull", "-q", f"oci:{store.path}:{NAMES[1]}").strip() == store.manifest(image).config.digest[7:]
