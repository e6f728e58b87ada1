"""A union as something to live on: a Debian that installs a package and compiles, and writers whose file system is killed again and again."""

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kernel_lab import IPC, PID, UTS, Container, Mount, rootfs
from kernel_lab.kernel import procfs
from kernel_lab.unionfs.aufs import Aufs
from kernel_lab.unionfs.branches import Branch

pytestmark = [pytest.mark.needs("root", "module:pyfuse3"), pytest.mark.slow]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """On a disk, with a data directory of its own: but for Debian, which takes a minute to make and is kept."""
    path = Path(tempfile.mkdtemp(prefix="klab-aufs-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


def fingerprint(top: Path) -> str:
    """Of all names, kinds, modes, owners, times and contents."""
    found = hashlib.sha256()
    for directory, directories, files in os.walk(top):
        directories.sort()
        for name in sorted(directories + files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            found.update(
                f"{path} {status.st_mode} {status.st_uid} {status.st_gid} {status.st_size} {status.st_mtime_ns}".encode("utf-8", "surrogateescape")
            )
            if os.path.isfile(path) and not os.path.islink(path):
                found.update(Path(path).read_bytes())
    return found.hexdigest()


@pytest.mark.needs("mmdebstrap")
def test_a_debian_installs_a_package(folder: Path) -> None:
    base, upper = rootfs.debian(), folder / "upper"
    before = fingerprint(base)
    upper.mkdir()
    _make_package(folder / "hello.deb")
    box = Container(
        UTS("debian"), IPC(), PID(), Mount(Aufs(Branch(str(upper)), Branch(str(base), "ro")), binds=[f"{folder}/hello.deb:/hello.deb:ro"])
    )
    assert box.run("sh", "-c", "cat /etc/debian_version && id -u").stdout.endswith("\n0\n")
    box.run("dpkg", "-i", "/hello.deb")
    assert box.run("hello").stdout == "hello from a package\n"
    assert "install ok installed" in box.run("dpkg", "-s", "hello").stdout
    box.run("dpkg", "--purge", "hello")
    assert box.run("sh", "-c", "command -v hello || echo gone").stdout == "gone\n"
    box.run("sh", "-c", "mv /etc /etc.moved && mv /etc.moved /etc && useradd learner && su learner -c 'touch ~/x || touch /tmp/x'", check=False)
    assert "learner" in box.run("cat", "/etc/passwd").stdout
    assert fingerprint(base) == before


def _make_package(path: Path) -> None:
    tree = path.parent / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/bin").mkdir(parents=True)
    fields = ("Package: hello", "Version: 1", "Architecture: all", "Maintainer: nobody <nobody@localhost>", "Description: says hello")
    (tree / "DEBIAN/control").write_text("\n".join(fields) + "\n")
    (tree / "usr/bin/hello").write_text("#!/bin/sh\necho hello from a package\n")
    (tree / "usr/bin/hello").chmod(0o755)
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, path], check=True, capture_output=True)


PROGRAM = """
#include <stdio.h>
int main(void) { puts("compiled on a union"); return 0; }
"""


@pytest.mark.needs("gcc")
def test_a_compiler_works_on_the_hosts_own_root(folder: Path) -> None:
    # The upper branch in memory: on the host's file system it would be inside the lower one.
    upper = folder / "upper"
    upper.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", upper], check=True)
    try:
        box = Container(PID(), Mount(Aufs(Branch(str(upper)), Branch("/", "ro"))))
        box.run(
            "sh",
            "-c",
            f"mkdir /work-here && cd /work-here && cat > a.c <<'END'\n{PROGRAM}\nEND\ngcc -O1 -c a.c && gcc -o a a.o && strip a || gcc -o a a.o",
        )
        assert box.run("/work-here/a").stdout == "compiled on a union\n"
        assert (upper / "work-here/a.o").exists() and not Path("/work-here").exists()
    finally:
        subprocess.run(["umount", upper], check=True)


# Changes files of its own and of the lower branch, as long as the file system lets it; what it has been told is done, it says.
WRITER = """
import os, random, sys
top, number = sys.argv[1], int(sys.argv[2])
chance = random.Random(number)
os.chdir(top)
for turn in range(10**9):
    if turn == 40:
        print("busy", flush=True)
    name = f"{chance.randrange(8)}/{chance.randrange(40)}"
    mine = f"{name}.{number}"
    try:
        match chance.randrange(7):
            case 0:
                with open(name, "a") as file:
                    file.write("more")
            case 1:
                os.unlink(name)
            case 2:
                os.rename(name, mine)
            case 3:
                os.rename(str(chance.randrange(8)), f"moved{number}")
            case 4:
                os.makedirs(os.path.dirname(name), exist_ok=True)
            case 5:
                os.truncate(name, 3)
            case 6:
                os.link(name, mine)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
        pass
    except OSError as error:
        if error.strerror == "Directory not empty":
            continue
        print(error.strerror)
        break
"""
GONE = {os.strerror(errno.ENOTCONN), os.strerror(errno.ECONNABORTED)}


def test_a_killed_process_loses_no_file_of_the_lower_branches(folder: Path) -> None:
    base, upper, second = folder / "base", folder / "upper", folder / "second"
    for directory in (base, upper, second):
        directory.mkdir()
    chance = random.Random(1)
    for number in range(8 * 40):
        path = base / str(number // 40) / str(number % 40)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(20000)))
    before = fingerprint(base)
    for life in range(12):
        with Aufs(Branch(str(upper)), Branch(str(second)), Branch(str(base), "ro"), create="rr") as tree:
            (Path(tree.path) / f"life{life}").write_text(str(life))
            seen = sorted(path.name for path in Path(tree.path).glob("life*"))
            assert seen == sorted(f"life{number}" for number in range(life + 1))  # what was finished is there
            with ExitStack() as stack:
                writers = [stack.enter_context(_writer(tree.path, number)) for number in range(8)]
                for writer in writers:
                    assert _line(writer) == "busy"
                os.kill(_daemon(), signal.SIGKILL)
                assert {_line(writer) for writer in writers} <= GONE
        assert fingerprint(base) == before
    with Aufs(Branch(str(upper)), Branch(str(second)), Branch(str(base), "ro")) as tree:
        for directory, _, files in os.walk(tree.path):
            for name in files:
                assert os.path.getsize(os.path.join(directory, name)) == len(Path(directory, name).read_bytes())
        shutil.rmtree(tree.path, ignore_errors=True)
        assert os.listdir(tree.path) == []


def _writer(top: str, number: int) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", WRITER, top, str(number)], stdout=subprocess.PIPE, text=True)


def _line(writer: "subprocess.Popen[str]") -> str:
    assert writer.stdout
    return writer.stdout.readline().strip()


def _daemon() -> int:
    [pid] = [pid for pid, one in procfs.processes().items() if one.name == "klab-aufs" and one.parent == os.getpid()]
    return pid
