"""Images in archives among other programs, which read ours and whose we read; and the files of containers that run."""

import gzip
import io
import json
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from here import busybox, users
from waiting import soon

from kernel_lab import PID, Container, Mount, Overlay, UsageError, User
from kernel_lab.images import owners
from kernel_lab.images.draft import Draft, put_layer
from kernel_lab.images.exporting import export_image, export_root
from kernel_lab.images.image import Image
from kernel_lab.images.importing import import_
from kernel_lab.images.loading import load
from kernel_lab.images.pack import pack
from kernel_lab.images.saving import save
from kernel_lab.images.snapshots import Snapshots
from kernel_lab.images.store import Store
from kernel_lab.kernel.errors import KernelError

ROOT = os.geteuid() == 0
BUSYBOX, OTHER = "docker.io/library/busybox:1.36", "host.example:5000/some/app:latest"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.fixture
def second(tmp_path: Path) -> Store:
    return Store(tmp_path / "second")


def said(*command: str | Path) -> str:
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def layer(*files: tuple[str, str]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as made:
        for name, text in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            made.addfile(entry, io.BytesIO(text.encode()))
    return written.getvalue()


def added(store: Store, name: str, *layers: bytes) -> Image:
    with store.adding() as adding:
        draft = Draft.scratch().with_settings({"Cmd": ["sh"], "Env": ["A=1"]})
        for content in layers:
            draft = draft.with_layer(put_layer(adding, [content]))
        return draft.put(adding, name)


LAYERS = layer(("bin/a", "one"), ("etc/b", "b")), layer(("bin/.wh.a", ""), ("c", "two"))


def written(path: Path, chunks: Iterable[bytes]) -> Path:
    with path.open("wb") as file:
        file.writelines(chunks)
    return path


def chunks_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(10_000), b"")


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as read:
        return read.getnames()


def docker_config(archive: Path) -> str:
    """The one configuration that docker's manifest.json names: a file that is called as its digest."""
    with tarfile.open(archive) as read:
        file = read.extractfile("manifest.json")
        assert file
        return str(json.loads(file.read())[0]["Config"]).removesuffix(".json")


# With other programs.


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_skopeo_reads_what_we_save_by_its_names(store: Store, tmp_path: Path, kind: str) -> None:
    first, other = added(store, BUSYBOX, *LAYERS), added(store, OTHER, LAYERS[0])
    both = written(tmp_path / "both.tar", save(store, [BUSYBOX, OTHER]))
    for image, name in ((first, BUSYBOX), (other, OTHER)):
        config = said("skopeo", "inspect", "--config", "--raw", f"{kind}:{both}:{name}")
        assert config.encode() == store.read(image.manifest.config)
        back = Store(tmp_path / f"back-{image.short_id}")
        said("skopeo", "copy", "-q", f"{kind}:{both}:{name}", f"oci:{back.path}:{name}")
        copied = Image.find(back, name)
        assert (copied.config.diff_ids, copied.settings, back.verify()) == (image.config.diff_ids, image.settings, {})
        # Out of docker's format it makes a configuration of OCI's, with other bytes.
        assert kind == "docker-archive" or copied.descriptor.digest == image.descriptor.digest
    alone = written(tmp_path / "alone.tar", save(store, [first.id]))
    assert said("skopeo", "inspect", "--config", "--raw", f"{kind}:{alone}").encode() == store.read(first.manifest.config)


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_we_load_what_skopeo_saves(store: Store, second: Store, tmp_path: Path, kind: str) -> None:
    image = added(store, BUSYBOX, *LAYERS, LAYERS[0])  # one layer twice: docker's format has links then
    archive = tmp_path / "theirs.tar"
    said("skopeo", "copy", "-q", f"oci:{store.path}:{BUSYBOX}", f"{kind}:{archive}:{BUSYBOX}")
    (loaded,) = load(second, chunks_of(archive))
    assert loaded.names == (BUSYBOX,) and second.verify() == {} and second.prune() == ((), ())
    assert Image(second, loaded.image).id == image.id


@pytest.mark.needs("podman", "root")
def test_podman_loads_what_we_save_and_we_what_it_saves(store: Store, second: Store, tmp_path: Path) -> None:
    first, other = added(store, BUSYBOX, *LAYERS), added(store, OTHER, LAYERS[0])
    for names, images in (([BUSYBOX], {BUSYBOX: first}), ([BUSYBOX, OTHER], {BUSYBOX: first, OTHER: other})):
        archive = written(tmp_path / "ours.tar", save(store, names))
        with tempfile.TemporaryDirectory(prefix="klab-") as folder:  # podman takes no long path
            podman = ["podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]
            said(*podman, "load", "-q", "-i", archive)
            for name, image in images.items():
                assert said(*podman, "image", "inspect", "--format", "{{.Id}}", name).strip() == image.id[7:]
            for kind in ("docker-archive", "oci-archive"):
                theirs = tmp_path / f"{kind}-{len(names)}.tar"
                said(*podman, "save", "-q", "--format", kind, "-o", theirs, BUSYBOX)
                (loaded,) = load(second, chunks_of(theirs))
                image = Image(second, loaded.image)
                assert loaded.names == (BUSYBOX,) and image.config.diff_ids == first.config.diff_ids
                # From one format into the other it writes the configuration anew; what it has written is what we keep.
                assert kind == "oci-archive" or image.id == f"sha256:{docker_config(theirs)}"
                assert kind == "docker-archive" or len(names) > 1 or image.id == first.id
    assert second.verify() == {}


@pytest.mark.needs("podman", "root")
def test_we_load_several_images_of_podmans(store: Store, second: Store, tmp_path: Path) -> None:
    images = {BUSYBOX: added(store, BUSYBOX, *LAYERS), OTHER: added(store, OTHER, LAYERS[0])}
    with tempfile.TemporaryDirectory(prefix="klab-") as folder:
        podman = ["podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]
        said(*podman, "load", "-q", "-i", written(tmp_path / "ours.tar", save(store, [*images])))
        said(*podman, "save", "-q", "--multi-image-archive", "-o", tmp_path / "theirs.tar", *images)
    load(second, chunks_of(tmp_path / "theirs.tar"))
    found = {name: Image.find(second, name).config for name in images}
    assert {name: config.diff_ids for name, config in found.items()} == {name: image.config.diff_ids for name, image in images.items()}


@pytest.mark.needs("umoci", "tar")
def test_we_load_a_layout_of_umocis_and_it_opens_ours(store: Store, second: Store, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    said("umoci", "init", "--layout", theirs)
    said("umoci", "new", "--image", f"{theirs}:empty")
    said("umoci", "config", "--image", f"{theirs}:empty", "--config.user", "nobody")
    said("tar", "-C", theirs, "-cf", tmp_path / "theirs.tar", ".")
    (loaded,) = load(second, chunks_of(tmp_path / "theirs.tar"))
    assert loaded.names == ("docker.io/library/empty:latest",) and Image(second, loaded.image).settings["User"] == "nobody"
    added(store, BUSYBOX, *LAYERS)
    (tmp_path / "ours").mkdir()
    said("tar", "-C", tmp_path / "ours", "-xf", written(tmp_path / "ours.tar", save(store, [BUSYBOX])))
    assert said("umoci", "ls", "--layout", tmp_path / "ours").split() == [BUSYBOX]
    assert "sha256" in said("umoci", "stat", "--image", f"{tmp_path}/ours:{BUSYBOX}", "--json")


@pytest.mark.needs("tar", "bsdtar")
def test_tar_and_bsdtar_list_what_we_save(store: Store, tmp_path: Path) -> None:
    added(store, BUSYBOX, *LAYERS)
    archive = written(tmp_path / "ours.tar", save(store, [BUSYBOX]))
    assert said("tar", "-tf", archive) == said("bsdtar", "-tf", archive)
    assert said("tar", "-tf", archive).split()[:4] == ["oci-layout", "index.json", "manifest.json", "blobs/"]


@pytest.mark.needs("bsdtar")
def test_an_archive_that_bsdtar_has_packed_again_is_loaded(store: Store, second: Store, tmp_path: Path) -> None:
    image = added(store, BUSYBOX, layer(("zeros", "\0" * 3_000_000)))
    (tmp_path / "out").mkdir()
    said("bsdtar", "-C", tmp_path / "out", "-xf", written(tmp_path / "ours.tar", save(store, [BUSYBOX])))
    said("bsdtar", "-C", tmp_path / "out", "--zstd", "-cf", tmp_path / "again.tar", ".")
    assert load(second, chunks_of(tmp_path / "again.tar"))[0].image == image.descriptor


def test_an_archive_comes_from_a_pipe(store: Store, second: Store) -> None:
    image = added(store, BUSYBOX, *LAYERS)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as sink:
        sink.write(gzip.compress(b"".join(save(store, [BUSYBOX]))))
        sink.close()
        assert load(second, iter(lambda: source.read1(100), b""))[0].image == image.descriptor


@pytest.mark.needs("tar")
def test_what_tar_packs_is_imported_bit_for_bit(store: Store, tmp_path: Path) -> None:
    (tmp_path / "root/bin").mkdir(parents=True)
    (tmp_path / "root/bin/sh").write_text("text")
    os.truncate(tmp_path / "root/bin/sh", 10 << 20)
    os.link(tmp_path / "root/bin/sh", tmp_path / "root/bin/ash")
    for options in (["--sparse"], ["--format=pax", "--xattrs"], ["--format=v7"]):
        said("tar", "-C", tmp_path / "root", *options, "-cf", tmp_path / "root.tar", ".")
        image = import_(store, chunks_of(tmp_path / "root.tar"), "imported")
        with store.open(image.layers[0].blob) as blob:
            assert gzip.decompress(blob.read()) == (tmp_path / "root.tar").read_bytes()


# Exported.


def entries(chunks: Iterable[bytes]) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as read:
        return {entry.name: entry for entry in read}


def content(chunks: Iterable[bytes], name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as read:
        file = read.extractfile(name)
        assert file
        return file.read()


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots")


def test_an_image_is_exported_as_its_containers_see_it(store: Store, snapshots: Snapshots) -> None:
    image = added(store, BUSYBOX, *LAYERS)
    found = entries(export_image(image))
    assert {name: found[name].isdir() for name in found} == {".": True, "bin": True, "c": False, "etc": True, "etc/b": False}
    assert content(export_image(image), "c") == b"two"
    assert os.listdir(snapshots.path) == []


def test_what_is_exported_and_imported_is_exported_again(store: Store, snapshots: Snapshots) -> None:
    first = b"".join(export_image(added(store, BUSYBOX, *LAYERS)))
    again = import_(store, [first], "again")
    assert b"".join(export_image(again)) == first


def test_half_an_export_leaves_nothing(store: Store, snapshots: Snapshots) -> None:
    chunks = export_image(added(store, BUSYBOX, *LAYERS))
    next(chunks)
    assert len(os.listdir(snapshots.path)) == 1
    chunks.close()  # type: ignore[attr-defined]
    assert os.listdir(snapshots.path) == []


def test_a_damaged_layer_is_not_exported(store: Store, snapshots: Snapshots) -> None:
    image = added(store, BUSYBOX, *LAYERS)
    blob = store.path / "blobs" / image.layers[1].blob.digest.replace(":", "/")
    blob.write_bytes(gzip.compress(LAYERS[0]))
    with pytest.raises(UsageError, match="this layer has the DiffID"):
        next(export_image(image))
    assert os.listdir(snapshots.path) == []


def running(tmp_path: Path, script: str = "", **mount: object) -> Container:
    """A container in which `script` has run, on layers of its own."""
    box = Container(*users(), PID(), Mount(Overlay(busybox()), **mount))  # type: ignore[arg-type]
    box.start("sh", "-c", f"{script}\necho ready; exec sleep 1000")
    assert soon(lambda: "ready" in box.logs()), box.logs()
    return box


def test_of_a_container_there_is_what_it_has_and_has_written(tmp_path: Path) -> None:
    script = "mkdir -m 750 /made; echo text > /made/file; ln /made/file /made/link; ln -s file /made/symlink; rm /etc/group; mkfifo /fifo"
    with running(tmp_path, script) as box:
        found = entries(export_root(box.pid))
        assert content(export_root(box.pid), "made/file") == b"text\n"
    assert {"bin", "bin/busybox", "etc/passwd", "made/file"} <= set(found) and "etc/group" not in found
    made = found["made"]
    assert (stat.S_IMODE(made.mode), made.uid, made.gid) == (0o750, 0, 0)
    assert found["made/link"].islnk() and found["made/link"].linkname == "made/file"
    assert found["made/symlink"].linkname == "file" and found["fifo"].isfifo()
    assert not [name for name in found if ".wh." in name]


def test_what_is_mounted_in_a_container_is_empty(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory/inside").write_text("not the container's")
    (tmp_path / "file").write_text("not the container's")
    os.link(tmp_path / "file", tmp_path / "second name")
    binds = [f"{tmp_path}/directory:/data", f"{tmp_path}/file:/etc/file", f"{tmp_path}/second name:/etc/second"]
    with running(tmp_path, "echo x > /cache/x", binds=binds, tmpfs=["/cache"]) as box:
        assert box.exec("cat", "/etc/file", "/data/inside").stdout == "not the container's" * 2
        found = entries(export_root(box.pid))
    for name in ("data", "cache", "proc", "sys", "dev"):
        assert found[name].isdir() and not [other for other in found if other.startswith(f"{name}/")]
    for name in ("etc/file", "etc/second"):
        assert found[name].isreg() and found[name].size == 0


def test_an_export_of_a_container_is_imported_and_runs(tmp_path: Path, store: Store, snapshots: Snapshots) -> None:
    with running(tmp_path, "echo text > /file") as box:
        image = import_(store, export_root(box.pid), "exported")
    with Container(*users(), PID(), Mount(Overlay(*snapshots.directories(image)))) as again:
        assert again.run("cat", "/file").stdout == "text\n"


def test_processes_go_on_meanwhile(tmp_path: Path) -> None:
    """Files come, go, grow and shrink: the archive is whole, and has what does not change."""
    script = """
        mkdir /busy /busy/d; echo kept > /busy/kept
        (while true; do
            for n in 1 2 3 4 5 6 7 8 9; do echo $n > /busy/$n; mkdir -p /busy/d/$n/e; done; echo more >> /busy/log
            rm -rf /busy/[0-9] /busy/d/*; head -c 300000 /dev/zero > /busy/large; : > /busy/large
        done) &
    """
    with running(tmp_path, script) as box:
        for _ in range(20):
            data = b"".join(export_root(box.pid))
            assert content([data], "busy/kept") == b"kept\n"


def test_what_vanishes_or_shrinks_is_left_out_or_filled_up(tmp_path: Path) -> None:
    top = tmp_path / "root"
    (top / "d").mkdir(parents=True)
    (top / "z").mkdir()
    for name in ("a", "b"):
        (top / name).write_bytes(b"x" * 600_000)
    (top / "c").write_bytes(b"x")
    os.link(top / "c", top / "e")
    os.link(top / "c", top / "f")
    told: list[str] = []
    chunks = pack(top, None, living=True, skipped=told.append)
    begun: list[bytes] = []
    while len(b"".join(begun)) < 300_000:
        begun.append(next(chunks))
    os.truncate(top / "a", 300_000)
    (top / "c").unlink()
    (top / "d").rmdir()
    (top / "z").rmdir()
    os.symlink("/", top / "z")
    found = entries([*begun, *chunks])
    assert [(name, found[name].linkname) for name in found][3:] == [("e", ""), ("f", "e"), ("z", "/")]
    assert list(found) == [".", "a", "b", "e", "f", "z"] and found["a"].size == 600_000
    assert told == ["a: has become shorter while it was packed"]


def test_what_becomes_something_else_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top, told = tmp_path / "root", list[str]()
    (top / "d").mkdir(parents=True)
    (top / "file").write_text("text")
    lstat = os.lstat

    def then_changed(path: bytes, **options: int) -> os.stat_result:
        status = lstat(path, **options)
        if path == b"file" and stat.S_ISREG(status.st_mode):
            (top / "file").unlink()
            (top / "file").mkdir()
        return status

    monkeypatch.setattr(os, "lstat", then_changed)
    chunks = list(pack(top, None, living=True, skipped=told.append))
    assert list(entries(chunks)) == [".", "d"] and told == ["file: has become something else while it was packed"]


def test_a_process_of_this_machines_root_is_not_exported() -> None:
    with pytest.raises(UsageError, match="its root is this machine's"):
        next(export_root(os.getpid()))


@pytest.mark.needs("user")
def test_nobody_exports_what_is_somebody_elses() -> None:
    with pytest.raises(KernelError, match=r"EACCES: .* A container is exported by its user, or by root"):
        next(export_root(1))


@pytest.mark.needs("root")
def test_owners_are_those_that_the_container_sees(tmp_path: Path) -> None:
    top = tmp_path / "root"
    top.mkdir()
    for name, owner in (("roots", 100_000), ("theirs", 100_123), ("nobodys", 5)):
        (top / name).touch()
        os.chown(top / name, owner, owner)
    os.chown(top, 100_000, 100_000)
    user = User([(0, 100_000, 1000)])
    with Container(user, PID()).start("sleep 1000") as box:
        found = entries(pack(top, None, owner=owners.of_process(box.pid)))
    assert {name: (entry.uid, entry.gid) for name, entry in found.items()} == {
        ".": (0, 0),
        "roots": (0, 0),
        "theirs": (123, 123),
        "nobodys": (65534, 65534),
    }


def test_a_file_that_could_be_no_layers_is_in_an_export(tmp_path: Path) -> None:
    with running(tmp_path, "echo text > /.wh.file") as box:
        assert content(export_root(box.pid), ".wh.file") == b"text\n"


def test_an_export_leaves_no_descriptor_open(tmp_path: Path) -> None:
    with running(tmp_path) as box:
        before = len(os.listdir("/proc/self/fd"))
        chunks = export_root(box.pid)
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.needs("bsdtar", "tar")
def test_tar_and_bsdtar_read_an_export(tmp_path: Path) -> None:
    with running(tmp_path, "ln /bin/busybox /link") as box:
        archive = written(tmp_path / "export.tar", export_root(box.pid))
    assert len(said("tar", "-tf", archive).splitlines()) == len(said("bsdtar", "-tf", archive).splitlines()) == len(names_in(archive))


def test_what_is_saved_is_json_that_anybody_reads(store: Store, tmp_path: Path) -> None:
    added(store, BUSYBOX, *LAYERS)
    with tarfile.open(written(tmp_path / "ours.tar", save(store, [BUSYBOX]))) as read:
        for name in ("oci-layout", "index.json", "manifest.json"):
            file = read.extractfile(name)
            assert file and json.loads(file.read())
