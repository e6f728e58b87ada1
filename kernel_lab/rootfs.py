"""Directories that a container can have as its root: a small one made of one file, and a Debian.

Each is made once, under a name of its maker's, and then renamed into place: whoever finds it finds it whole.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from kernel_lab import bootstrap, state
from kernel_lab.kernel.elf import read_elf
from kernel_lab.kernel.errors import UsageError

DIRECTORIES = "bin dev dev/mqueue dev/pts dev/shm etc home mnt proc root run sys tmp usr usr/bin usr/sbin var var/log var/tmp"
ANYBODYS = ("tmp", "var/tmp", "dev/shm")
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/os-release": 'ID=busybox\nNAME="BusyBox"\nPRETTY_NAME="BusyBox"\n',
    "etc/profile": "export PS1='\\u@\\h:\\w\\$ '\n",
    "etc/resolv.conf": "",
}


def busybox() -> Path:
    """A root directory of one program that is several hundred commands, from Debian's package busybox-static."""
    program = _static_busybox()
    version, applets = _told(program)
    root = once(f"busybox-{version}", lambda root: _fill(root, program, applets))
    _fill(root, program, applets)  # what a container's root has removed is there again: it is everybody's
    return root


def fill_busybox(root: Path) -> int:
    """Fills an empty directory as `busybox` does; the time of the program's file, in nanoseconds, which says of what age this root is."""
    program = _static_busybox()
    _fill(root, program, _told(program)[1])
    return program.stat().st_mtime_ns


def debian(suite: str | None = None) -> Path:
    """A Debian (or what this machine runs) with apt, made by mmdebstrap in about a minute. `suite`: without it, this machine's own."""
    suite = bootstrap.own_suite() if suite is None else suite
    bootstrap.check_suite(suite)
    return once(f"debian-{suite}", lambda root: bootstrap.make(root, bootstrap.recipe(suite)))


def resolve(root: str) -> Path:
    """The directory that a command line's ROOT means: `busybox`, `debian`, `host` or a path."""
    if root == "busybox":
        return busybox()
    if root == "debian":
        return debian()
    path = Path("/" if root == "host" else root)
    # An empty path would be the working directory.
    if not root or not path.is_dir():
        raise UsageError(f"{root!r}: a root is busybox, debian, host, or a directory, and there is no such directory")
    return path.resolve()


def debian_is_made() -> bool:
    """Whether the directory that `debian` means is there already."""
    return (state.data_path() / "rootfs" / f"debian-{bootstrap.own_suite()}").is_dir()


def once(name: str, fill: Callable[[Path], None]) -> Path:
    """The directory `name` among the root filesystems, filled by one process while the others wait."""
    store = _store()
    root = store / name
    if root.is_dir():
        return root
    with state.locked(store / "lock"):
        if not root.is_dir():
            half = store / f"{name}.{state.Creator.this().stamp}"
            try:
                half.mkdir()
                half.chmod(0o755)
                fill(half)
                half.rename(root)
            except BaseException:
                state.discard(half)
                raise
    return root


def _store() -> Path:
    store = state.data_dir() / "rootfs"
    store.mkdir(exist_ok=True)
    store.chmod(0o755)
    return store


def _static_busybox() -> Path:
    found = shutil.which("busybox")
    if not found:
        raise UsageError("busybox: not found; install Debian's package busybox-static")
    # The package busybox has a program of the same name that needs a C library, and the root has none.
    with open(found, "rb") as file:
        program = read_elf(file.fileno())
    if program and program.interpreter:
        raise UsageError(f"{found}: needs {program.interpreter}, which a root of busybox alone lacks; install Debian's package busybox-static")
    return Path(found)


def _told(program: Path) -> tuple[str, list[str]]:
    """The version of a busybox's root, and the applets in it. They are written down: to ask takes as long as a whole container."""
    # Beside the roots, and not in one: there a container could write names of its own.
    note = _store() / "busybox.json"
    status = program.stat()
    # A file that is changed, or replaced, has another ctime, which nobody can set (inode(7)).
    identity = repr((str(program), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, DIRECTORIES, FILES))
    with suppress(FileNotFoundError, ValueError):  # there is none yet, or a power cut has halved it
        of, version, applets = json.loads(note.read_text())
        if of == identity:
            return version, applets
    version, applets = _asked(program)
    state.write_atomically(note, json.dumps([identity, version, applets]))
    return version, applets


def _asked(program: Path) -> tuple[str, list[str]]:
    version = hashlib.sha256(program.read_bytes() + repr((DIRECTORIES, FILES)).encode()).hexdigest()[:12]
    return version, subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()


def _fill(root: Path, program: Path, applets: Iterable[str]) -> None:
    """Makes what is missing."""
    for name in filter(lambda name: not (root / name).is_dir(), DIRECTORIES.split()):
        (root / name).mkdir()
        # Whatever the umask: other users must be able to walk through, also those of a user namespace.
        (root / name).chmod(0o1777 if name in ANYBODYS else 0o755)
    for name, text in FILES.items():
        if not (root / name).exists():
            (root / name).write_text(text)
            (root / name).chmod(0o644)
    if not (copy := root / "bin/busybox").exists() or copy.stat().st_size != program.stat().st_size:
        shutil.copyfile(program, root / "bin/.busybox")
        (root / "bin/.busybox").chmod(0o755)
        (root / "bin/.busybox").replace(copy)
    there = {"busybox", *os.listdir(root / "bin")}
    # Scripts begin with #!/usr/bin/env.
    links = {f"bin/{applet}": "busybox" for applet in applets if applet not in there} | {"sbin": "bin", "usr/bin/env": "../../bin/busybox"}
    for name, target in links.items():
        if not os.path.lexists(root / name):
            (root / name).symlink_to(target)
