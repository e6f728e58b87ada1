"""An ordinary user of this machine, made for the tests: an account with ranges of ids, and not one of its processes left afterwards."""

import grp
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

NAME = "klabtest"
UIDS = range(59000, 60000)  # the end of what Debian gives to people, which no distribution hands out first
FIRST_RANGE = 100000
IDS = 65536  # how many ids a subordinate range has: those of a whole root file system
RANGES = (Path("/etc/subuid"), Path("/etc/subgid"))
# What the user's processes may know of root's environment; the rest names root's own folders.
ENVIRONMENT = ("LANG", "LC_ALL", "TERM", "CI", "KERNEL_LAB_EXECUTOR", "http_proxy", "https_proxy", "no_proxy")
NOT_COPIED = (".git", "__pycache__", ".*_cache", ".hypothesis", ".ipynb_checkpoints")
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
PATIENCE = 20.0


@dataclass(frozen=True)
class Ordinary:
    name: str
    uid: int
    gid: int
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name in ENVIRONMENT if (value := os.environ.get(name)) is not None}
        own = {"HOME": self.home, "TMPDIR": self.home / "tmp", "XDG_RUNTIME_DIR": self.home / "run"}
        return inherited | {"USER": self.name, "LOGNAME": self.name, "PATH": PATH} | {name: str(path) for name, path in own.items()}

    def run(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> int:
        """The exit status of a command that this user runs, with no id and no group of root's."""
        everything = self.environment | dict(env or {})
        done = subprocess.run(argv, cwd=cwd, env=everything, user=self.uid, group=self.gid, extra_groups=[], umask=0o022, check=False)
        return done.returncode

    def can_read(self, folder: Path) -> bool:
        """Whether this user reaches every file below a folder, but for NOT_COPIED."""
        skipped = [word for name in NOT_COPIED for word in ("-name", name, "-prune", "-o")]
        find = ["find", str(folder), *skipped, "!", "-type", "l", "!", "-readable", "-print", "-quit"]
        nothing_printed = 'test -x "$1" && shift && test -z "$("$@" 2>&1)"'
        return self.run(["sh", "-c", nothing_printed, "sh", str(folder), *find], cwd=Path("/")) == 0


@contextmanager
def ordinary_user(name: str = NAME) -> Iterator[Ordinary]:
    """Make the account as root, and take it away again with its processes and files."""
    with _turn(name):
        _remove_account(name)  # of a run that was killed
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir="/tmp") as home:
            try:
                # Two at once would find the same ids free.
                with _turn(f"{NAME} making"):
                    account = _make_account(name, Path(home))
                yield account
            finally:
                _remove_account(name)


@contextmanager
def readable(project: Path, user: Ordinary) -> Iterator[Path]:
    """The project where this user can read it: in place, or else (below root's home, say) in a copy."""
    if user.can_read(project):
        yield project
        return
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        copy = Path(folder, project.name)
        shutil.copytree(project, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED), copy_function=_link_or_copy)
        subprocess.run(["find", copy, "-type", "d", "-exec", "chmod", "a+rx", "{}", "+"], check=True)
        yield copy


def inside(copy: Path, project: Path, path: Path) -> Path:
    """The same path in a copy of the project, if it is one in the project."""
    return copy / path.relative_to(project) if path.is_relative_to(project) else path


def _link_or_copy(source: str, target: str) -> None:
    """A link where everybody may read the file already: an environment of Python's has thousands, of 600 MB."""
    mode = os.stat(source).st_mode
    if mode & 0o004:
        with suppress(OSError):  # another file system
            os.link(source, target)
            return
    shutil.copy(source, target)
    os.chmod(target, mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)


@contextmanager
def _turn(name: str) -> Iterator[None]:
    """One at a time. The kernel drops this lock, a name and not a file, with its process."""
    with socket.socket(socket.AF_UNIX) as lock:
        told = False
        while True:
            with suppress(OSError):
                lock.bind(f"\0{name}")
                break
            if not told:
                print(f"another test run has the user {name}; waiting for it", flush=True)
                told = True
            time.sleep(0.2)
        yield


def _make_account(name: str, home: Path) -> Ordinary:
    uid = _free_uid()
    # A system account gets no range by itself, whatever the release.
    options = ["--system", "-K", f"SYS_UID_MAX={UIDS.stop}", "--uid", str(uid), "--user-group", "--home-dir", str(home), "--shell", "/bin/sh"]
    subprocess.run(["useradd", *options, name], check=True)
    first = _free_range()
    for path, option in zip(RANGES, ("--add-subuids", "--add-subgids"), strict=True):
        path.touch(mode=0o644)
        subprocess.run(["usermod", option, f"{first}-{first + IDS - 1}", name], check=True)
    gid = pwd.getpwnam(name).pw_gid
    for folder in (home, home / "tmp", home / "run"):
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, uid, gid)
    return Ordinary(name, uid, gid, home)


def _free_uid() -> int:
    """An id of no account and of no process: a container's process can have one that this machine's accounts do not know."""
    taken = {entry.pw_uid for entry in pwd.getpwall()} | {entry.gr_gid for entry in grp.getgrall()} | {_uid(pid) for pid in _processes()}
    return next(uid for uid in UIDS if uid not in taken)


def _free_range() -> int:
    ends = [ids.stop for path in RANGES for _, ids in _ranges(path)]
    used = [_uid(pid) for pid in _processes()]
    return next(first for first in count(max([FIRST_RANGE, *ends]), IDS) if not any(uid in range(first, first + IDS) for uid in used))


def _ranges(path: Path) -> list[tuple[str, range]]:
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [line.split(":") for line in lines if line.count(":") == 2]
    return [(name, range(int(first), int(first) + int(size))) for name, first, size in entries]


def _remove_account(name: str) -> None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return
    if not entry.pw_dir.startswith(f"/tmp/{name}-"):
        raise RuntimeError(f"the account {name} is somebody's (its home is {entry.pw_dir}); the tests need the name")
    # Those of the user's containers have ids of its range.
    _end_processes([range(entry.pw_uid, entry.pw_uid + 1), *(ids for owner, ids in _ranges(RANGES[0]) if owner == name)])
    subprocess.run(["userdel", name], check=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(entry.pw_dir)


def _end_processes(uids: Sequence[range]) -> None:
    """Kill until none is left: one that has not been reached yet may fork."""
    end = time.monotonic() + PATIENCE
    while found := [pid for pid in _processes() if any(_uid(pid) in each for each in uids)]:
        if time.monotonic() > end:
            raise TimeoutError(f"processes do not end: {found}")
        for pid in found:
            _kill(pid, uids)
        time.sleep(0.02)


def _kill(pid: int, uids: Sequence[range]) -> None:
    """Through a pidfd, and after a second look: the number may be another process's by now."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if any(_uid(pid) in each for each in uids):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _uid(pid: int) -> int:
    """The owner of a process; -1 when there is none any more, or when it is a zombie and only waits for its parent."""
    with suppress(OSError):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        if not status["State"].startswith("Z"):
            return int(status["Uid"].split()[0])
    return -1
