"""Refusals of namespaces, ids, programs, IPC and interfaces: each provoked for real, each explained by the rule that was broken."""

import os
import subprocess
import sys
from errno import (
    E2BIG,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    EMFILE,
    ENAMETOOLONG,
    ENETUNREACH,
    ENODEV,
    ENOENT,
    ENOEXEC,
    ENOMEM,
    ENOSPC,
    EOVERFLOW,
    EPERM,
    EROFS,
    ETXTBSY,
)
from pathlib import Path

import pytest
from refusals import FILE, HERE, NEWNS, NEWUSER, NOBODY, NOTHING, PRIVATE, attempt, case, check, directory, mapped, tmpfs, writes

from kernel_lab.kernel.flags import AF, CLONE, IFF, IPC, MS, PR, RLIMIT, S_IF, SIOC, SOCK, O
from kernel_lab.kernel.memory import DONE, clone_args
from kernel_lab.kernel.program import Handle, Row, Strings, call
from kernel_lab.kernel.structs import ifreq, rlimit64, rtentry, sockaddr_in

SOCKET, OTHER, SETGROUPS = Handle("socket"), Handle("other"), Handle("setgroups")
NEWNET, NEWIPC = NEWUSER | CLONE.NEWNET, NEWUSER | CLONE.NEWIPC


def opened(path: str, flags: O = O.RDONLY, into: Handle = FILE) -> Row:
    return call("openat", HERE, path, flags, into=into)


def socket(into: Handle = SOCKET) -> Row:
    return call("socket", AF.INET, SOCK.DGRAM, 0, into=into)


def starts(path: str, *arguments: str) -> Row:
    return call("execve", path, Strings((path, *arguments)), Strings(()))


def a_child(**settings: str) -> Row:
    return call("clone3", clone_args(CLONE(0), DONE, 17), 88, **settings)


CASES = {
    "two kinds that exclude each other": case(NEWUSER | CLONE.FS, EINVAL, lambda t: [], "CLONE_FS|CLONE_NEWUSER: ", "clone(2)", "Leave one"),
    "nested too deeply": case(NEWUSER, ENOSPC, lambda t: nested_until_refused(), "32 deep", "user.max_user_namespaces"),
    "joining another kind": case(
        NEWUSER, EINVAL, lambda t: [opened("/proc/self/ns/uts"), call("setns", FILE, CLONE.NEWNET)], "of another kind than asked"
    ),
    "joining one's own user namespace": case(
        NEWUSER, EINVAL, lambda t: [opened("/proc/self/ns/user"), call("setns", FILE, NEWUSER)], "the process is in already"
    ),
    "joining without a right": case(
        NEWUSER, EPERM, lambda t: [opened("/proc/self/ns/uts"), call("setns", FILE, CLONE.NEWUTS)], "that owns the target"
    ),
    "a map of another's id": case(
        NEWUSER, EPERM, lambda t: writes("/proc/self/uid_map", f"0 {os.geteuid() + 1} 1"), "maps the writer's own id", "subuid"
    ),
    "a map that overlaps": case(NEWUSER, EINVAL, lambda t: writes("/proc/self/uid_map", "0 0 2\n1 5 2"), "no line overlaps another"),
    "groups without a map": case(NEWUSER, EPERM, lambda t: [call("setgroups", 0, None)], "gid_map", "/proc/self/setgroups"),
    "groups denied and allowed": case(
        NEWUSER,
        EPERM,
        lambda t: [
            opened("/proc/self/setgroups", O.WRONLY, SETGROUPS),
            call("write", SETGROUPS, "deny", 4),
            opened("/proc/self/setgroups", O.WRONLY, SETGROUPS),
            call("write", SETGROUPS, "allow", 5),
        ],
        "cannot be allowed again",
    ),
    "an id without a map": case(NEWUSER, EINVAL, lambda t: [call("setresuid", 5, 5, 5)], "does not exist in this user namespace", "uid_map"),
    "an id that is not one's own": case(NOTHING, EPERM, lambda t: [NOBODY, call("setresuid", 0, 0, 0)], "CAP_SETUID"),
    "the host's name": case(NEWUSER, EPERM, lambda t: [call("sethostname", "box", 3)], "UTS namespace", "Add UTS()"),
    "a long name": case(NEWUSER | CLONE.NEWUTS, EINVAL, lambda t: [call("sethostname", "x" * 65, 65)], "at most 64 bytes"),
    "after process 1": case(
        NEWUSER,
        ENOMEM,
        lambda t: [
            call("unshare", CLONE.NEWPID),
            a_child(positive="parent"),
            call("exit_group", 0),
            call("wait4", -1, None, 0, None, label="parent"),
            a_child(),
        ],
        "process 1 of the PID namespace has ended",
    ),
    "a device node": case(NEWUSER, EPERM, lambda t: [call("mknodat", HERE, f"{t}/null", S_IF.CHR | 0o666, 0x103)], "CAP_MKNOD", "bind the host's"),
    "a hard limit": case(
        NEWUSER,
        EPERM,
        lambda t: [
            call("prlimit64", 0, RLIMIT.NOFILE, rlimit64(9), None),
            call("prlimit64", 0, RLIMIT.NOFILE, rlimit64(10), None),
        ],
        "raises a hard limit",
    ),
    "no such option": case(NOTHING, EINVAL, lambda t: [call("prctl", 0x7FFFFFFF)], "does not know the option"),
    "a bounding set": case(NOTHING, EPERM, lambda t: [NOBODY, call("prctl", PR.CAPBSET_DROP, 0)], "CAP_SETPCAP"),
    "a change of root": case(NOTHING, EPERM, lambda t: [NOBODY, call("chroot", "/")], "CAP_SYS_CHROOT"),
    "a message queue": case(
        NEWIPC,
        EMFILE,
        lambda t: [*mapped(), call("prlimit64", 0, RLIMIT.MSGQUEUE, rlimit64(0), None), call("mq_open", "q", O.CREAT | O.RDWR, 0o600, None)],
        "RLIMIT_MSGQUEUE",
    ),
    "a key that is taken": case(NEWIPC, EEXIST, lambda t: [call("shmget", 7, 4096, IPC.CREAT | IPC.EXCL | 0o600)] * 2, "must be new", "ipcs"),
    "a key of nothing": case(NEWIPC, ENOENT, lambda t: [call("shmget", 8, 4096, 0)], "IPC_CREAT makes it"),
    "memory of no size": case(NEWIPC, EINVAL, lambda t: [call("shmget", 9, 0, IPC.CREAT | 0o600)], "size is out of the limits"),
    "the host's interface": case(
        NEWUSER, EPERM, lambda t: [socket(), call("ioctl", SOCKET, SIOC.SIFFLAGS, ifreq("lo", flags=IFF.UP))], "CAP_NET_ADMIN", "Add Net()"
    ),
    "no such interface": case(
        NEWNET, ENODEV, lambda t: [socket(), call("ioctl", SOCKET, SIOC.SIFFLAGS, ifreq("eth7", flags=IFF.UP))], "no interface of that name"
    ),
    "a gateway nobody reaches": case(
        NEWNET, ENETUNREACH, lambda t: [socket(), call("ioctl", SOCKET, SIOC.ADDRT, rtentry("0.0.0.0/0", "10.0.0.1"))], "Set address and IFF_UP"
    ),
    "an address of nobody": case(
        NEWNET,
        EADDRNOTAVAIL,
        # Until an interface has been up there is no table of local addresses, and anything goes.
        lambda t: [
            socket(),
            call("ioctl", SOCKET, SIOC.SIFFLAGS, ifreq("lo", flags=IFF.UP)),
            call("bind", SOCKET, sockaddr_in("10.9.9.9", 80), 16),
        ],
        "ip address",
    ),
    "a file of nobody": case(NEWUSER | NEWNS, EOVERFLOW, lambda t: [tmpfs(t), directory(f"{t}/x")], "are not mapped", "uid_map"),
    "an address of another": case(
        NEWNET,
        EADDRINUSE,
        lambda t: [socket(), socket(OTHER), *(call("bind", which, sockaddr_in("0.0.0.0", 80), 16) for which in (SOCKET, OTHER))],
        "ss -ltnp",
    ),
    "no such file": case(NEWUSER, ENOENT, lambda t: [opened(f"{t}/nothing")], "does not exist"),
    "a directory to write into": case(NEWUSER, EISDIR, lambda t: [opened("/", O.WRONLY)], "directory cannot be opened for writing"),
    "a directory that is there": case(NEWUSER, EEXIST, lambda t: [directory("/etc")], "taken", "tolerate EEXIST"),
    "a long file name": case(NEWUSER, ENAMETOOLONG, lambda t: [opened(f"{t}/{'x' * 300}")], "at most 255 bytes"),
    "no descriptors": case(
        NEWUSER, EMFILE, lambda t: [call("prlimit64", 0, RLIMIT.NOFILE, rlimit64(0), None), opened("/etc/passwd")], "RLIMIT_NOFILE"
    ),
    "nothing to be written": case(NEWUSER | NEWNS, EROFS, lambda t: [tmpfs(t, MS.RDONLY), directory(f"{t}/x")], "read-only", "mountinfo"),
    "no space": case(NEWUSER | NEWNS, ENOSPC, lambda t: [*mapped(), tmpfs(t, options="nr_inodes=1"), directory(f"{t}/x")], "df -i"),
}


def nested_until_refused() -> list[Row]:
    """As many user namespaces as can lie inside each other below the test's own, which may be in some already, and one more."""
    levels = [call("unshare", NEWUSER), *mapped(0, 0)]
    error = attempt([*mapped(), *levels * 40], NEWUSER)
    assert error is not None and error.index is not None
    return [*mapped(), *levels * 40][: error.index + 1]


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_explained(name: str, tmp_path: Path) -> None:
    check(CASES[name], str(tmp_path))


@pytest.mark.needs("userns")
def test_a_limit_is_explained() -> None:
    if os.statvfs("/proc/sys").f_flag & os.ST_RDONLY:
        pytest.skip("/proc/sys is read-only: this is a container")
    error = attempt([*writes("/proc/sys/user/max_uts_namespaces", "0"), call("unshare", CLONE.NEWUTS)], NEWUSER)
    assert error is not None
    assert error.errno == ENOSPC, str(error)
    assert "user.max_uts_namespaces" in error.rule
    assert "lsns" in error.look


def script(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def circle(folder: Path) -> str:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return str(folder / "a")


PROGRAMS = {
    "missing": (ENOENT, lambda t: starts(str(t / "nothing")), "nothing does not exist"),
    "no interpreter": (ENOENT, lambda t: starts(script(t / "s", "#!/no/such/sh\n")), "the interpreter /no/such/sh"),
    "no permission": (EACCES, lambda t: starts(script(t / "s", mode=0o644)), "no execute permission"),
    "a directory": (EACCES, lambda t: starts(str(t)), "is a directory"),
    "no program": (ENOEXEC, lambda t: starts(script(t / "s", "echo\n")), "neither an ELF program"),
    "a circle": (ELOOP, lambda t: starts(circle(t)), "lead in a circle"),
    "a long argument": (E2BIG, lambda t: starts("/bin/true", "x" * (32 * os.sysconf("SC_PAGESIZE"))), "argument 1 has "),
    "many arguments": (E2BIG, lambda t: starts("/bin/true", *["x" * 100_000] * 70), "a quarter of the stack limit"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_cannot_start_is_explained(name: str, tmp_path: Path) -> None:
    errno, row, words = PROGRAMS[name]
    error = attempt([row(tmp_path)], NOTHING)
    assert error is not None
    assert (error.errno, error.index) == (errno, 0), str(error)
    assert words in error.rule


def test_a_program_that_is_being_written(tmp_path: Path) -> None:
    path = script(tmp_path / "s")
    with open(path, "a"):
        error = attempt([starts(path)], NOTHING)
    if error is None:
        pytest.skip("this kernel starts a program that is open for writing, as Linux 6.11 did")
    assert error.errno == ETXTBSY
    assert "open for writing" in error.rule


@pytest.mark.needs("userns")
def test_a_root_without_the_loader(tmp_path: Path) -> None:
    (tmp_path / "python").write_bytes(Path(os.path.realpath(sys.executable)).read_bytes())
    (tmp_path / "python").chmod(0o755)
    error = attempt([call("chroot", str(tmp_path)), call("chdir", "/"), starts("./python")], NEWUSER)
    assert error is not None
    assert error.errno == ENOENT, str(error)
    assert "python exists, but the loader /lib" in error.rule
    assert f"in the root {tmp_path}" in error.rule
    assert "libc.so.6" in error.look


@pytest.mark.needs("root", "unshare")
def test_a_file_system_without_programs(tmp_path: Path) -> None:
    finds = "from kernel_lab.kernel.executables import reason; import sys; print(reason(sys.argv[1]))"
    steps = f'mount -t tmpfs -o noexec none {tmp_path}; printf "#!/bin/sh\\n" >{tmp_path}/s; chmod 755 {tmp_path}/s; "$0" -c "$1" {tmp_path}/s'
    ran = subprocess.run(["unshare", "-m", "sh", "-c", steps, sys.executable, finds], capture_output=True, text=True, check=True)
    assert "mounted with noexec" in ran.stdout


@pytest.mark.needs("user")
def test_a_namespace_for_root_alone() -> None:
    error = attempt([], CLONE.NEWUTS)
    assert error is not None
    assert error.errno == EPERM
    assert "CAP_SYS_ADMIN" in error.rule
    assert "Add User()" in error.look


@pytest.mark.needs("root")
def test_the_whole_line(tmp_path: Path) -> None:
    error = attempt([PRIVATE, call("mount", None, str(tmp_path), None, MS.PRIVATE)], NEWNS)
    begin = f'row 1, mount(NULL, "{tmp_path}", NULL, MS_PRIVATE): EINVAL: only a mount point has a propagation'
    assert str(error).startswith(begin)
    assert "\n" not in str(error)
