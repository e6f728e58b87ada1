"""What a container runs: the words of the command, and what the process is given."""

import os
import resource
import shlex
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from kernel_lab.kernel import executables
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import O

LONGEST = 1 << 20  # bytes of a file of users that are looked at
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MARK = ("container", "kernel-lab")  # the name that systemd and podman use too: programs look at it to know where they are
LIMITS = {name.removeprefix("RLIMIT_").lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}

Limits = Mapping[str, int | tuple[int, int]]


@dataclass(frozen=True)
class User:
    """Whom a command runs as: numbers, since the kernel knows no names."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Command:
    """A command and its settings; hashable, so that the table made for it can be kept and used again."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str | None = None
    user: User | None = None
    limits: tuple[tuple[int, int, int], ...] = ()
    terminal: bool = False
    hosts: bool = False

    @property
    def path(self) -> str:
        """Where names without a slash are looked for."""
        return dict(self.env).get("PATH", PATH)

    @property
    def candidates(self) -> list[str]:
        """The files that the command's name may mean, in the order of PATH, as execvp(3) tries them.

        In the host's own tree (`hosts`) they can be looked up from here, and one is enough.
        """
        name = self.argv[0]
        if self.hosts and (found := shutil.which(name, path=self.path)):
            return [found if "/" not in name else name]
        return [name] if "/" in name else [f"{place or '.'}/{name}" for place in self.path.split(":")]


def settled(
    root: str | None,
    argv: tuple[str, ...],
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | int | None = None,
    rlimits: Limits | None = None,
    terminal: bool = False,
) -> Command:
    """The command that these settings mean in a container with this root (None: the host's own). Raises UsageError for wrong ones."""
    if cwd is not None and (not isinstance(cwd, str) or not cwd or "\0" in cwd):
        raise UsageError(f"cwd={cwd!r}: a working directory is a path")
    return Command(words(argv), environment(root, env), cwd, identity(user, root), limits(rlimits), terminal, hosts=root is None)


def words(argv: tuple[str, ...]) -> tuple[str, ...]:
    """One text is split as a shell would; several are taken as they are. Raises UsageError for none, or an unclosed quote."""
    if not argv or not all(isinstance(word, str) for word in argv):
        raise UsageError(f"command {argv!r}: it is one text, or several: the program and its arguments")
    split = _split(argv[0]) if len(argv) == 1 else argv
    if not split or not split[0]:
        raise UsageError(f"command {argv!r}: it names no program")
    if any("\0" in word for word in split):
        raise UsageError(f"command {argv!r}: an argument holds a NUL, which ends it for the kernel")
    return split


@lru_cache(maxsize=256)
def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"command {text!r}: {error}") from error


def environment(root: str | None, given: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """With a root of its own a container gets a small environment; in the host's tree it gets its creator's. `given` comes on top."""
    base = dict(os.environ) if root is None else {"PATH": PATH, "HOME": "/root"}
    base.update([MARK])
    for name, value in (given or {}).items():
        if not isinstance(name, str) or not isinstance(value, str) or not name or "=" in name or "\0" in name + value:
            raise UsageError(f"environment {name!r}={value!r}: a name is a text without '=', and neither side may hold a NUL")
        base[name] = value
    return tuple(base.items())


def limits(given: Limits | None) -> tuple[tuple[int, int, int], ...]:
    """Resource limits by getrlimit(2)'s names in lower case, a number or (soft, hard): {"nofile": 64}."""
    return tuple(_limit(name, value) for name, value in (given or {}).items())


def _limit(name: str, value: int | tuple[int, int]) -> tuple[int, int, int]:
    if name not in LIMITS:
        raise UsageError(f"rlimit {name!r}: there is {', '.join(sorted(LIMITS))}")
    soft, hard = value if isinstance(value, tuple) else (value, value)
    if not all(isinstance(number, int) and -1 <= number < 2**63 for number in (soft, hard)) or (hard != -1 and not -1 < soft <= hard):
        raise UsageError(f"rlimit {name}={value!r}: a soft limit from 0 to the hard one; -1 is no limit (setrlimit(2))")
    return LIMITS[name], soft, hard


def identity(text: str | int | None, root: str | None) -> User | None:
    """`UID`, `UID:GID`, or names that are looked up in the root's own /etc/passwd and /etc/group. Raises UsageError for an unknown one."""
    if text is None:
        return None
    name, _, group = str(text).partition(":")
    entries = _entries(root, "passwd")
    entry = next((fields for fields in entries if name in (fields[0], fields[2])), None)
    if entry is None and not name.isdecimal():
        raise UsageError(f"user {name!r}: not in {root or ''}/etc/passwd; a number works without an entry")
    uid = int(entry[2]) if entry else int(name)
    gid = _group(root, group) if group else int(entry[3]) if entry else 0
    if max(uid, gid) >= 2**32 - 1:
        raise UsageError(f"user {text!r}: ids end at {2**32 - 2}")
    return User(uid, gid, () if entry is None else _groups(root, entry[0]))


def _entries(root: str | None, file: str) -> list[list[str]]:
    # The root is the container's: a link in it must not lead out, and what is no file must not keep us waiting.
    try:
        with executables.opened(root or "/", f"/etc/{file}", O.RDONLY | O.NONBLOCK | O.CLOEXEC) as descriptor:
            text = os.read(descriptor, LONGEST).decode(errors="replace") if stat.S_ISREG(os.fstat(descriptor).st_mode) else ""
    except OSError:
        return []
    lines = [line.split(":") for line in text.splitlines() if line.count(":") >= 3]
    return [fields for fields in lines if fields[2].isdecimal() and (file != "passwd" or fields[3].isdecimal())]


def _group(root: str | None, name: str) -> int:
    entry = next((fields for fields in _entries(root, "group") if name in (fields[0], fields[2])), None)
    if entry is None and not name.isdecimal():
        raise UsageError(f"group {name!r}: not in {root or ''}/etc/group; a number works without an entry")
    return int(entry[2]) if entry else int(name)


def _groups(root: str | None, name: str) -> tuple[int, ...]:
    return tuple(int(fields[2]) for fields in _entries(root, "group") if name in fields[3].split(","))


