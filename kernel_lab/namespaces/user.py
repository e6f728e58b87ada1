"""User: ids of its own. Root inside is somebody, or nobody, outside (user_namespaces(7))."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path

from kernel_lab.kernel import rules
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import AT_FD, CLONE, PR, O
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.namespaces.part import Part, Plan, Waiting

Range = tuple[int, int, int]  # inside, outside, how many
Map = tuple[Range, ...]
LARGEST = 2**32 - 1  # (uid_t) -1 means "leave it as it is" and can be nobody's id
MOST_RANGES = 340


class User(Part):
    """A user namespace with the maps `uids` and `gids`: ranges of (inside, outside, count). Without any, root inside is the caller outside.

    The map of a single id to the caller's own may be written by the child itself, as it is here; any other is written from outside,
    by root directly and for an ordinary user by newuidmap(1) and newgidmap(1), within what /etc/subuid and /etc/subgid grant.
    `setgroups`: whether processes inside may change their groups; never with a map that the child writes itself.
    """

    flags = CLONE.NEWUSER
    order = 10

    def __init__(self, uids: Sequence[Range] | None = None, gids: Sequence[Range] | None = None, setgroups: bool | None = None) -> None:
        own: tuple[Map, Map] = ((0, os.geteuid(), 1),), ((0, os.getegid(), 1),)
        self.uids: Map = own[0] if uids is None else tuple(uids)
        self.gids: Map = tuple(gids) if gids is not None else own[1] if uids is None else self.uids
        self.setgroups = (self.uids, self.gids) != own if setgroups is None else setgroups
        self.waits = self.setgroups or (self.uids, self.gids) != own

    @classmethod
    def subordinate(cls) -> "User":
        """Root inside is the caller; the ids from 1 on are those that /etc/subuid and /etc/subgid grant to the caller."""
        uid, gid = _granted("/etc/subuid"), _granted("/etc/subgid")
        return cls([(0, os.geteuid(), 1), (1, *uid)], [(0, os.getegid(), 1), (1, *gid)])

    @classmethod
    def granted(cls) -> "User":
        """`subordinate`, or the caller alone where nothing is granted: for an image, which has files of several users."""
        try:
            return cls.subordinate()
        except UsageError:
            return cls()

    def check(self, plan: Plan) -> None:
        for name, ranges in (("uids", self.uids), ("gids", self.gids)):
            _check_map(name, ranges)
        if self.waits and os.geteuid() and not (shutil.which("newuidmap") and shutil.which("newgidmap")):
            raise UsageError("User: an ordinary user needs newuidmap and newgidmap for this map: install uidmap, or map just yourself with User()")

    def rows(self, plan: Plan) -> Iterable[Row]:
        if not self.waits:
            yield from _write("setgroups", "deny", "or dropping a group could open what the group forbids")
            yield from _write("gid_map", "{} {} {}".format(*self.gids[0]), "group 0 inside is the caller's group outside")
            yield from _write("uid_map", "{} {} {}".format(*self.uids[0]), "user 0 inside is the caller outside")
        if _maps(self.gids, 0):
            if self.setgroups:
                yield call("setgroups", 0, None, why="the creator's groups mean nothing here")
            yield call("setresgid", 0, 0, 0, why="be group root inside")
        if _maps(self.uids, 0):
            yield call("setresuid", 0, 0, 0, why="be root inside")
        if self.is_another and os.geteuid():
            # Other ids close a process (commit_creds), and then no ordinary user may open its namespaces, not even their owner.
            yield call("prctl", PR.SET_DUMPABLE, 1, why="its creator still has to look at it")

    @property
    def is_another(self) -> bool:
        """Whether root inside is somebody else outside than the creator."""
        maps = ((self.uids, os.geteuid()), (self.gids, os.getegid()))
        return any(inside == 0 and outside != own for ranges, own in maps for inside, outside, _ in ranges)

    def place(self, child: Waiting) -> AbstractContextManager[object]:
        if not self.waits:
            return nullcontext()
        if not self.setgroups:
            _write_from_outside(child.pid, "setgroups", "deny")
        for name, program, ranges in (("uid_map", "newuidmap", self.uids), ("gid_map", "newgidmap", self.gids)):
            if os.geteuid():
                _by_program(program, child.pid, ranges)
            else:
                _write_from_outside(child.pid, name, "\n".join(" ".join(map(str, entry)) for entry in ranges))
        return nullcontext()


def _check_map(name: str, ranges: Map) -> None:
    if not 0 < len(ranges) <= MOST_RANGES:
        raise UsageError(f"User({name}): a map of {len(ranges)} ranges; it has 1 to {MOST_RANGES} (user_namespaces(7))")
    for entry in ranges:
        if not isinstance(entry, tuple) or len(entry) != 3 or not all(isinstance(number, int) and number >= 0 for number in entry) or entry[2] == 0:
            raise UsageError(f"User({name}): {entry} is no range of (inside, outside, count), numbers from 0 on and at least one id")
        if max(entry[0], entry[1]) + entry[2] > LARGEST:
            raise UsageError(f"User({name}): {entry} goes beyond the largest id, {LARGEST - 1}")
    for side, position in (("inside", 0), ("outside", 1)):
        spans = sorted((entry[position], entry[position] + entry[2]) for entry in ranges)
        for (_, end), (start, _) in pairwise(spans):
            if start < end:
                raise UsageError(f"User({name}={ranges}): the ranges overlap {side}, at {start}; each id may be mapped once (user_namespaces(7))")


def _maps(ranges: tuple[Range, ...], number: int) -> bool:
    return any(inside <= number < inside + count for inside, _, count in ranges)


def _write(file: str, text: str, why: str) -> Iterator[Row]:
    handle = Handle(file)
    yield call("openat", AT_FD.FDCWD, f"/proc/self/{file}", O.WRONLY | O.CLOEXEC, into=handle)
    yield call("write", handle, text, len(text), why=why)
    yield call("close", handle)


def _write_from_outside(pid: int, file: str, text: str) -> None:
    try:
        Path(f"/proc/{pid}/{file}").write_text(text)
    except OSError as error:
        row = call("write", f"/proc/{pid}/{file}", text)
        raise rules.refused(row, None, error.errno or 0, rules.Context(CLONE.NEWUSER)) from error


def _by_program(program: str, pid: int, ranges: Map) -> None:
    arguments = [str(number) for entry in ranges for number in entry]
    done = subprocess.run([program, str(pid), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"{program} {' '.join(arguments)}: {done.stderr.strip()}: see what /etc/subuid and /etc/subgid grant (subuid(5))")


def _granted(path: str) -> tuple[int, int]:
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = str(os.geteuid())
    lines = (line.split(":") for line in Path(path).read_text().splitlines() if line.count(":") == 2) if Path(path).exists() else ()
    for owner, start, count in lines:
        if owner in (name, str(os.geteuid())):
            return int(start), int(count)
    raise UsageError(f"{path} grants {name} no range of ids: as root, usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}")
