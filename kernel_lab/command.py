"""What a container runs: the words of the command, and what the process is given."""

import os
import resource
import shlex
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from errno import ENOENT
from functools import lru_cache

from kernel_lab.kernel import executables
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import O

LONGEST = 1 << 20  # bytes of a file of users that are looked at
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOTS_HOME = "/root"
MARK = ("container", "kernel-lab")  # the name that systemd and podman use too: programs look at it to know where they are
LIMITS = {name.removeprefix("RLIMIT_").lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}

Limits = Mapping[str, int | tuple[int, int]]


@dataclass(frozen=True)
class User:
    """Whom a command runs as: numbers, since the kernel knows no names."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


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
    def given(self) -> tuple[str, ...]:
        """Its environment but for a HOME that is its user's own: another command of the container may be another user's."""
        home = self.user.home if self.user else ROOTS_HOME
        return tuple(f"{name}={value}" for name, value in self.env if (name, value) != ("HOME", home))

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
    roots: tuple[str, ...],
    argv: tuple[str, ...],
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | int | None = None,
    rlimits: Limits | None = None,
    terminal: bool = False,
) -> Command:
    """The command that these settings mean in a container. Raises UsageError for wrong ones.

    `roots`: the directories that its root is made of, the topmost first; none: it is the host's own.
    """
    if cwd is not None and (not isinstance(cwd, str) or not cwd.startswith("/") or "\0" in cwd):
        raise UsageError(f"cwd={cwd!r}: a working directory is an absolute path")
    whose = identity(user, roots)
    return Command(words(argv), environment(roots, env, whose), cwd, whose, limits(rlimits), terminal, hosts=not roots)


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


def environment(roots: tuple[str, ...], given: Mapping[str, str] | None, user: User | None = None) -> tuple[tuple[str, str], ...]:
    """With a root of its own a container gets a small environment; in the host's tree it gets its creator's. `given` comes on top."""
    base = {"PATH": PATH, "HOME": user.home if user else ROOTS_HOME} if roots else dict(os.environ)
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


def identity(text: str | int | None, roots: tuple[str, ...]) -> User | None:
    """`UID`, `UID:GID`, or names that are looked up in the root's own /etc/passwd and /etc/group. Raises UsageError for an unknown one."""
    if text is None:
        return None
    name, _, group = str(text).partition(":")
    entries = _entries(roots, "passwd")
    entry = next((fields for fields in entries if name in (fields[0], fields[2])), None)
    if entry is None and not name.isdecimal():
        raise UsageError(f"user {name!r}: not in {roots[-1] if roots else ''}/etc/passwd; a number works without an entry")
    uid = int(entry[2]) if entry else int(name)
    gid = _group(roots, group) if group else int(entry[3]) if entry else 0
    if max(uid, gid) >= 2**32 - 1:
        raise UsageError(f"user {text!r}: ids end at {2**32 - 2}")
    return User(uid, gid, *((_groups(roots, entry[0]), entry[5] or "/") if entry and len(entry) > 5 else ()))


def _entries(roots: tuple[str, ...], file: str) -> list[list[str]]:
    lines = [line.split(":") for line in _text(roots or ("/",), f"/etc/{file}").splitlines() if line.count(":") >= 3]
    return [fields for fields in lines if fields[2].isdecimal() and (file != "passwd" or fields[3].isdecimal())]


def _text(roots: tuple[str, ...], path: str) -> str:
    """What the file holds in the topmost root that has one."""
    for root in roots:
        # The root is the container's: a link in it must not lead out, and what is no file must not keep us waiting.
        try:
            with executables.opened(root, path, O.RDONLY | O.NONBLOCK | O.CLOEXEC) as descriptor:
                return os.read(descriptor, LONGEST).decode(errors="replace") if stat.S_ISREG(os.fstat(descriptor).st_mode) else ""
        except OSError as error:
            if error.errno != ENOENT:
                return ""
    return ""


def _group(roots: tuple[str, ...], name: str) -> int:
    entry = next((fields for fields in _entries(roots, "group") if name in (fields[0], fields[2])), None)
    if entry is None and not name.isdecimal():
        raise UsageError(f"group {name!r}: not in {roots[-1] if roots else ''}/etc/group; a number works without an entry")
    return int(entry[2]) if entry else int(name)


def _groups(roots: tuple[str, ...], name: str) -> tuple[int, ...]:
    return tuple(int(fields[2]) for fields in _entries(roots, "group") if name in fields[3].split(","))
