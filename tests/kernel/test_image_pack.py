"""Directories packed as layers: the same archive for the same content, which others read, and which unpacks to the same tree."""

import os
import shutil
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from trees import OVERLAY, Directory, layers, make

from kernel_lab import UsageError
from kernel_lab.images.archive import Archive, Entry
from kernel_lab.images.pack import pack
from kernel_lab.images.unpack import Rules, unpack_layer
from kernel_lab.kernel.errors import KernelError
from kernel_lab.unionfs.whiteouts import AUFS, Notation

ROOT = os.geteuid() == 0


def entries(directory: Path, marks: Notation = OVERLAY) -> list[Entry]:
    return list(Archive(pack(directory, marks)))


def seen(root: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        # A whiteout has no time, and a directory's links are the file system's matter.
        is_mark = stat.S_ISCHR(status.st_mode) and not status.st_rdev
        owner = status.st_mode, status.st_uid, status.st_gid, status.st_rdev, path.is_dir() or status.st_nlink
        found[str(path.relative_to(root))] = is_mark or (*owner, attributes, content, status.st_mtime_ns)
    return found


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    top = tmp_path / "varied"
    for name in ("d/empty", "n" * 200 + "/" + "m" * 200):
        (top / name).mkdir(parents=True)
    (top / "d/file").write_bytes(os.urandom(300_000))
    (top / ("n" * 200) / ("m" * 200) / "long").write_text("long")
    (top / "not utf-8 \udcff").write_text("odd")
    os.link(top / "d/file", top / "another name")
    os.symlink("t" * 150, top / "d/symlink")
    os.mkfifo(top / "fifo")
    os.setxattr(top / "d/file", "user.mark", b"a\0=\n\xff")
    os.setxattr(top / "d", "user.mark", b"of a directory")
    if ROOT:
        os.mknod(top / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
        os.chown(top / "d/file", 123, 3_000_000)
        os.lchown(top / "d/symlink", 5, 6)
    os.chmod(top / "d/file", 0o6755)
    os.chmod(top / "d", 0o1777)
    for number, path in enumerate([top, *sorted(top.rglob("*"), reverse=True)]):
        os.utime(path, ns=(1, 1_500_000_000_123_456_789 + number), follow_symlinks=False)
    return top


def test_what_is_packed_and_unpacked_is_the_same_tree(varied: Path, tmp_path: Path) -> None:
    unpack_layer(pack(varied, OVERLAY), tmp_path / "made", Rules(1 << 30, OVERLAY))
    assert seen(tmp_path / "made") == seen(varied)


@pytest.mark.needs("root", "tar")
def test_gnu_tar_makes_the_same_tree(varied: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    command = ["tar", "--numeric-owner", "-p", "--xattrs", "--xattrs-include=*", "-C", tmp_path / "made", "-xf", "-"]
    told = subprocess.run(command, input=b"".join(pack(varied, OVERLAY)), check=True, capture_output=True)
    assert seen(tmp_path / "made") == seen(varied)
    assert told.stderr == b""


@pytest.mark.needs("root", "bsdtar")
def test_bsdtar_makes_the_same_tree(varied: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    subprocess.run(["bsdtar", "--numeric-owner", "-p", "-C", tmp_path / "made", "-xf", "-"], input=b"".join(pack(varied, OVERLAY)), check=True)
    ours, theirs = seen(varied), seen(tmp_path / "made")
    assert ours.pop(".") and theirs.pop(".")
    assert theirs == ours


@pytest.mark.slow
@given(layer=layers)
@pytest.mark.parametrize("marks", [OVERLAY, AUFS])
def test_a_layer_with_whiteouts_is_the_same_after_a_journey(marks: Notation, layer: Directory, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("layers")
    make(layer, str(folder / "layer"), marks)
    there = b"".join(pack(folder / "layer", marks))
    unpack_layer([there], folder / "again", Rules(1 << 30, marks))
    make(layer, str(folder / "by itself"), marks)
    assert {name: found for name, found in seen(folder / "again").items() if ".wh." not in name} == {
        name: found for name, found in seen(folder / "layer").items() if ".wh." not in name
    }
    assert b"".join(pack(folder / "again", marks)) == there
    assert [entry.name for entry in entries(folder / "by itself", marks)] == [entry.name for entry in Archive([there])]


def test_whiteouts_are_files_and_come_first(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("!early", "late", "d/new"):
        (tmp_path / name).touch()
    OVERLAY.hide(str(tmp_path), "gone")
    OVERLAY.hide(str(tmp_path / "d"), "old")
    OVERLAY.make_opaque(str(tmp_path / "d"))
    found = entries(tmp_path)
    assert [entry.name for entry in found] == [b"./", b".wh.gone", b"!early", b"late", b"d/", b"d/.wh..wh..opq", b"d/.wh.old", b"d/new"]
    assert not any(entry.xattrs for entry in found)


def test_the_order_in_which_files_were_made_does_not_matter(tmp_path: Path) -> None:
    packed = set()
    for number in range(2):
        top = tmp_path / str(number)
        top.mkdir()
        for name in sorted((f"{letter}{digit}" for letter in "aBü" for digit in range(9)), reverse=bool(number)):
            (top / name).write_text(name)
            os.utime(top / name, ns=(number, 5))
        os.utime(top, ns=(number, 5))
        packed.add(b"".join(pack(top, OVERLAY)))
    assert len(packed) == 1


def test_the_second_name_of_a_file_is_a_link(varied: Path) -> None:
    named = {entry.name: (entry.kind, entry.link) for entry in entries(varied)}
    assert named[b"another name"] == (b"0", b"")
    assert named[b"d/file"] == (b"1", b"another name")


def test_owners_go_through_a_function(varied: Path) -> None:
    assert {(entry.uid, entry.gid) for entry in Archive(pack(varied, OVERLAY, owner=lambda uid, gid: (7, 8)))} == {(7, 8)}


def test_sockets_are_left_out_with_a_word(tmp_path: Path) -> None:
    told: list[str] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        packed = list(Archive(pack(tmp_path, OVERLAY, skipped=told.append)))
    assert [entry.name for entry in packed] == [b"./"]
    assert len(told) == 1 and told[0].startswith("socket: a socket, which lives with the process")


def test_what_only_overlay_can_say_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d/moved").mkdir(parents=True)
    os.setxattr(tmp_path / "d/moved", f"{OVERLAY.prefix}redirect", b"/other")
    with pytest.raises(UsageError, match=r"^d/moved: has .*redirect: only overlay can say"):
        entries(tmp_path)


def test_a_name_that_would_be_a_whiteout_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".wh.name").touch()
    with pytest.raises(UsageError, match=r"\.wh\.name: no file of a layer can have a name"):
        entries(tmp_path)


def test_a_file_that_becomes_shorter_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    chunks = pack(tmp_path, OVERLAY)
    while len(next(chunks)) < 1 << 18:
        pass
    os.truncate(tmp_path / "f", 1 << 18)
    with pytest.raises(UsageError, match="f: has become shorter while it was packed"):
        list(chunks)


@pytest.mark.parametrize(("read", "error"), [(2, r"openat2\('a'\): ENOTDIR"), (5, r"openat2\('a/d'\): ELOOP")])
def test_a_directory_that_becomes_a_link_leads_nowhere(read: int, error: str, tmp_path: Path) -> None:
    """The layer of a container that runs may change at any moment."""
    (tmp_path / "outside/d").mkdir(parents=True)
    (tmp_path / "outside/secret").write_text("secret")
    layer = tmp_path / "layer"
    (layer / "a/d").mkdir(parents=True)
    (layer / "file").touch()
    (layer / "a/file").touch()
    chunks = pack(layer, OVERLAY)
    # After the root's entry and a header of its file it is known that `a` is a directory; after padding, `a` itself, and its file, that `a/d` is.
    for _ in range(read):
        next(chunks)
    shutil.rmtree(layer / "a")
    os.symlink(tmp_path / "outside", layer / "a")
    with pytest.raises(KernelError, match=error):
        list(chunks)


def test_no_descriptor_is_left_open_by_half_a_packing(varied: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    chunks = pack(varied, OVERLAY)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.needs("user")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").touch(mode=0)
    with pytest.raises(KernelError, match=r"pack 'closed' of .*: EACCES"):
        entries(tmp_path)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    thread = threading.Thread(target=entries, args=(tmp_path,), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
