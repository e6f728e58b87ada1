"""Why the kernel would not start a program: what execve(2) looks for, looked for again, inside the root that it had."""

import errno
import os
import platform
import posixpath
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kernel_lab.kernel import calls
from kernel_lab.kernel.elf import Elf, read_elf
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import RESOLVE, O

LINE = 256  # BINPRM_BUF_SIZE: so much of a file the kernel reads to see what it is
NESTED = 5  # so many #! may stand behind each other
MACHINES = {3: "i386", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64", 258: "loongarch64"}
ALSO_RUNS = {"x86_64": {"x86_64", "i386"}, "aarch64": {"aarch64", "arm"}}


@dataclass(frozen=True)
class Reason:
    """What is wrong: the errno that execve gives for it, the kernel's rule, and what to do."""

    errno: int
    rule: str
    look: str


class _Found(Exception):
    def __init__(self, number: int, rule: str, look: str) -> None:
        super().__init__(rule)
        self.reason = Reason(number, rule, look)


@contextmanager
def opened(root: str, path: str, flags: O = O.PATH) -> Iterator[int]:
    """A descriptor of `path` as a process whose root is `root` would find it: no symlink leads out (openat2(2), RESOLVE_IN_ROOT)."""
    top = os.open(root, O.PATH | O.DIRECTORY | O.CLOEXEC)
    try:
        file = calls.syscall("openat2", top, os.fsencode(path), struct.pack("<QQQ", flags | O.CLOEXEC, 0, RESOLVE.IN_ROOT), 24)
    finally:
        os.close(top)
    try:
        yield file
    finally:
        os.close(file)


def exists(path: str, root: str = "/") -> bool:
    """Whether there is such a file inside `root`."""
    try:
        with opened(root, path):
            return True
    except OSError:
        return False


def reason(path: str, *, root: str = "/", cwd: str = "/") -> Reason | None:
    """Why execve of `path` fails in that root and working directory, or None when nothing is wrong with the file."""
    try:
        _check(posixpath.join(cwd, path.removeprefix("./")), root, cwd, 0)
    except _Found as found:
        return found.reason
    except OSError:  # the root is gone, or what stands there may not be read: nothing can be said
        return None
    return None


def _check(path: str, root: str, cwd: str, depth: int) -> None:
    if depth > NESTED:
        rule = f"more than {NESTED} scripts stand behind each other as interpreters (execve(2))."
        raise _Found(errno.ELOOP, rule, f"Look at the first line of {path}.")
    _check_file(path, root)
    with opened(root, path, O.RDONLY | O.NONBLOCK) as file:
        head = os.pread(file, LINE, 0)
        if head.startswith(b"#!"):
            _check_script(head, path, root, cwd, depth)
        elif head.startswith(b"\x7fELF"):
            _check_elf(read_elf(file), path, root)
        else:
            raise _Found(
                errno.ENOEXEC,
                f"{path} is neither an ELF program nor does it begin with #! (execve(2)); only a shell runs such a file by itself.",
                _not_a_program(head),
            )


def _check_file(path: str, root: str) -> None:
    try:
        with opened(root, path) as file:
            found, noexec = os.fstat(file), os.fstatvfs(file).f_flag & os.ST_NOEXEC
    except KernelError as error:
        raise _not_found(path, root, error) from None
    if stat.S_ISDIR(found.st_mode):
        raise _Found(errno.EACCES, f"{path} is a directory, and execve(2) starts regular files only.", "Name a program inside it.")
    if not stat.S_ISREG(found.st_mode):
        raise _Found(errno.EACCES, f"{path} is not a regular file (execve(2)).", "See ls -l.")
    if not found.st_mode & 0o111:
        raise _Found(errno.EACCES, f"{path} has no execute permission, and even root needs one x bit (execve(2)).", f"chmod +x {path}")
    if noexec:
        rule = f"{path} lies on a file system mounted with noexec (execve(2), mount(8))."
        raise _Found(errno.EACCES, rule, "Mount it without MS_NOEXEC, or copy the program.")


def _not_found(path: str, root: str, error: KernelError) -> Exception:
    where = _inside(root)
    simple = {
        errno.ELOOP: (f"the symbolic links of {path} lead in a circle", "Follow them with ls -l."),
        errno.ENOTDIR: (f"a part of {path} is no directory{where}", "Check each part of the path."),
        errno.EACCES: (f"a directory of {path} has no x permission for this user", "Look at each directory with ls -ld."),
    }
    if error.errno in simple:
        rule, look = simple[error.errno]
        return _Found(error.errno, f"{rule} (path_resolution(7)).", look)
    if error.errno != errno.ENOENT:
        return error
    if (target := _link(path, root)) is not None:
        rule = f"{path} is a symbolic link to {target}, which does not exist{where} (path_resolution(7))."
        return _Found(errno.ENOENT, rule, "A link is followed from the new root.")
    lacking = next((part for part in _parents(path) if not exists(part, root)), path)
    which = f"{path} does not exist{where}" + (f": there is no {lacking}" if lacking != path else "")
    return _Found(errno.ENOENT, f"{which} (execve(2)).", "Check the path; execve does not search PATH.")


def _inside(root: str) -> str:
    return "" if root == "/" else f" in the root {root}"


def _link(path: str, root: str) -> str | None:
    try:
        with opened(root, path, O.PATH | O.NOFOLLOW) as file:
            return os.readlink("", dir_fd=file)
    except OSError:
        return None


def _not_a_program(head: bytes) -> str:
    if head.startswith(b"MZ"):
        return "It is one of Windows': Wine loads such a file."
    return "Write #!/bin/sh as its first line." if head else "The file is empty."


def _parents(path: str) -> Iterator[str]:
    parts = path.strip("/").split("/")
    return ("/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1))


def _check_script(head: bytes, path: str, root: str, cwd: str, depth: int) -> None:
    line = head[2:].split(b"\n")[0]
    words = line.strip(b" \t").split(maxsplit=1)
    if not words:
        raise _Found(errno.ENOEXEC, f"the first line of {path} is #! without an interpreter (execve(2)).", "Write #!/bin/sh.")
    interpreter = os.fsdecode(line.strip(b" \t").split(b" ")[0].split(b"\t")[0])
    if interpreter.endswith("\r"):
        raise _Found(
            errno.ENOENT,
            f"the first line of {path} ends with a carriage return, so the kernel looks for an interpreter named {interpreter!r} (execve(2)).",
            f"Give the file Unix line ends: sed -i 's/\\r$//' {path}",
        )
    try:
        _check(posixpath.join(cwd, interpreter), root, cwd, depth + 1)
    except _Found as found:
        inner = found.reason
        if inner.errno == errno.ELOOP:
            raise
        rule = f"the interpreter {interpreter} that the first line of {path} names cannot be started: {inner.rule}"
        raise _Found(inner.errno, rule, inner.look) from None


def _check_elf(elf: Elf | None, path: str, root: str) -> None:
    here = platform.machine()
    if elf is None or not elf.program:
        rule = f"{path} begins like an ELF file but is no program (elf(5))."
        raise _Found(errno.ENOEXEC, rule, "It may be cut short, an object file, or damaged.")
    there = MACHINES.get(elf.machine, f"machine {elf.machine}")
    if there not in ALSO_RUNS.get(here, {here}):
        raise _Found(
            errno.ENOEXEC,
            f"{path} is a program for {there}, and this machine is {here} (elf(5)).",
            f"Take the {here} build, or install qemu-user-static, which registers itself with binfmt_misc.",
        )
    if elf.interpreter and not exists(elf.interpreter, root):
        needed = ", ".join(elf.needed) or "none"
        raise _Found(
            errno.ENOENT,
            f"{path} exists, but the loader {elf.interpreter} that its PT_INTERP names does not{_inside(root)} (execve(2), ld.so(8)).",
            f"Copy the loader and the libraries into the root (needed: {needed}), or use a statically linked program.",
        )
