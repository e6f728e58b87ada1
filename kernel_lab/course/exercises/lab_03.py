"""Lab 03: who shares mounts, a private tmpfs, a root by pivot_root."""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kernel_lab import rootfs
from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.course.session import user
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import AT_FD, CLONE, MNT, MS
from kernel_lab.kernel.mountinfo import Mount as Mounted
from kernel_lab.kernel.mountinfo import at, mounts
from kernel_lab.kernel.program import Row, call
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.part import Part, Plan

SLEEP = "/bin/sleep 1d"
MEBIBYTE = "size=1024k"  # as tmpfs prints it (shmem_show_options)


class Rows(Part):
    """Rows, after those of every other part."""

    flags = CLONE.NEWNS
    order = 90

    def __init__(self, *given: Row) -> None:
        self.given = given

    def rows(self, plan: Plan) -> Iterable[Row]:
        return self.given


class SharedRoot(Part):
    """What systemd leaves: a tree that is shared, but with nobody outside this namespace."""

    flags = CLONE.NEWNS
    order = 20

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("mount", None, "/", None, MS.REC | MS.PRIVATE)
        yield call("mount", None, "/", None, MS.REC | MS.SHARED)


def directory(path: str) -> Row:
    return call("mkdirat", AT_FD.FDCWD, path, 0o755)


def tmpfs(path: str) -> Row:
    return call("mount", "tmpfs", path, "tmpfs", 0, None)


def change(path: str, kind: MS) -> Row:
    return call("mount", None, path, None, kind)


def stage(*parts: Part) -> Container:
    """A small root with memory at /tmp to try things in, far from the host's tree."""
    bare = Mount(rootfs.busybox(), tmpfs=["/tmp"], proc=False, sys=False, dev=False)
    return Container(*user(), bare, *parts)


@exercise(
    "03.1",
    wants="a function from the text of a mountinfo to a list of places",
    accepts=inspect.isfunction,
    hints={
        "nothing": "In man 5 proc_pid_mountinfo, or in the line above: between which two fields does a mount say whom it belongs with?",
        "no places": "Count the fields: the mount's id, its parent's, the device, a root, and then? The place is the one that you would cd to.",
        "too many": "Three things look alike: what a path says, who only receives (master:N), and who shares (shared:N). Which fields count?",
        "too few": "There is a line for each mount and a number for each group of peers. Are you looking at every line, and at every number?",
    },
)
def shared_places(answer: Callable[[str], Any]) -> str | NotYet:
    rows = [directory(f"/tmp/{name}") for name in ("a", "shared:7", "receives", "both")]
    rows += [tmpfs("/tmp/a"), change("/tmp/a", MS.SHARED), tmpfs("/tmp/shared:7")]
    for name in ("receives", "both"):
        rows += [call("mount", "/tmp/a", f"/tmp/{name}", None, MS.BIND), change(f"/tmp/{name}", MS.SLAVE)]
    with stage(Rows(*rows, change("/tmp/both", MS.SHARED))).start(SLEEP) as box:
        text = Path(f"/proc/{box.pid}/mountinfo").read_text()
        table = mounts(box.pid)
    given = set(answer(text) or ())
    right = {mount.point for mount in table if mount.shared is not None}
    if not given:
        return not_yet("nothing", f"the list was empty, and the kernel says that {len(right)} places are shared")
    if stray := given - {mount.point for mount in table}:
        return not_yet("no places", f"nothing is mounted at {_one(stray)!r}")
    if extra := given - right:
        wrong = at(_one(extra), table)
        return not_yet("too many", f"{_one(extra)} is {wrong.propagation if wrong else 'not there'}")
    if missed := right - given:
        return not_yet("too few", f"{_one(missed)} is shared too")
    return f"{len(table)} mounts, and it found the {len(right)} that are shared, as the kernel has them"


def _one(places: set[Any]) -> str:
    return str(min(map(str, places)))


@exercise(
    "03.2",
    wants="a class made from Part",
    accepts=lambda answer: isinstance(answer, type) and issubclass(answer, Part),
    hints={
        "no namespace": "Without a namespace of its own, whose table of mounts would the rows change? clone(2) lists the flags; `Rows.flags` has it.",
        "refused": "The row and its error are named; what does mount(2) say of its five arguments?",
        "no tmpfs": "`Container.setup` shows the rows of a container. Which place do yours name, and which type (the third argument)?",
        "leaked": "Look at the first row of `Container(Mount()).setup`: what does it change, and why does it come before all others?",
        "no limit": "The fifth argument of mount(2) is text for the file system itself; tmpfs(5) lists what it understands.",
    },
)
def scratch(answer: type[Part]) -> str | NotYet:
    part = answer()
    if CLONE.NEWNS not in part.flags:
        return not_yet("no namespace")
    # The whole tree a second time, as a peer: it stands for the host, which a mount reaches that is not kept private.
    host = [directory("/tmp/host"), change("/", MS.SHARED), call("mount", "/", "/tmp/host", None, MS.BIND)]
    try:
        with stage(Rows(*host, *part.rows(None))).start(SLEEP) as box:  # type: ignore[arg-type]
            table = mounts(box.pid)
    except KernelError as error:
        return not_yet("refused", str(error))
    made = at("/mnt", table)
    if made is None or (made.point, made.kind) != ("/mnt", "tmpfs"):
        return not_yet("no tmpfs", "there is no tmpfs at /mnt")
    if made.shared is not None or any(mount.point == "/tmp/host/mnt" for mount in table):
        return not_yet("leaked", "the tmpfs is shared: it turned up on the host as well")
    if MEBIBYTE not in made.super_options.split(","):
        return not_yet("no limit", f"its options are {made.super_options}")
    return "a private tmpfs of 1 MiB at /mnt, on a machine whose whole tree is shared; the host has nothing of it"


ESCAPE = Rows(call("chroot", "bin"), *[call("chdir", "..")] * 20, call("chroot", "."))


@exercise(
    "03.3",
    wants="a class made from Part, that is made with a directory",
    accepts=lambda answer: isinstance(answer, type) and issubclass(answer, Part),
    hints={
        "refused": "The error names the row and its rule. Each of the two conditions, a mount point and nothing shared, is a row of its own.",
        "no new root": "Which of your rows changes what / is? `Program(Root(…).rows(None))` prints the table that you have made.",
        "walked out": "The check took the walk of the first half of this lab, and left. Which call leaves nothing behind to walk to?",
        "old root": "After pivot_root the old root is still mounted, at the place that the second argument named. Which call lets go of it?",
    },
)
def new_root(answer: Callable[[str], Part]) -> str | NotYet:
    root = str(rootfs.busybox())
    try:
        reached, table = _roots(root, answer(root))
        escaped, _ = _roots(root, answer(root), ESCAPE)
    except KernelError as error:
        return not_yet("refused", str(error))
    if not reached:
        return not_yet("no new root", "/ is still what it was")
    if len(table) > 1:
        return not_yet("old root", f"{len(table) - 1} mounts of the old tree can still be reached")
    if not escaped:
        return not_yet("walked out", "chroot and chdir .. led out of it")
    return "/ is the directory, it is the only mount, and no walk leads out of it"


def _roots(root: str, *parts: Part) -> tuple[bool, tuple[Mounted, ...]]:
    """Whether the directory is the root in such a container, and its mounts. It runs where the tree is shared."""
    with Container(*user(), SharedRoot(), *parts).start(SLEEP) as box:
        return os.path.samefile(f"/proc/{box.pid}/root", root), mounts(box.pid)


def _fields(text: str) -> Iterator[tuple[list[str], list[str]]]:
    for line in text.splitlines():
        before, _, _ = line.partition(" - ")
        yield before.split()[:6], before.split()[6:]


def _right_shared(text: str) -> list[str]:
    return [fields[4] for fields, tags in _fields(text) if any(tag.startswith("shared:") for tag in tags)]


class _Private(Part):
    flags = CLONE.NEWNS

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield change("/", MS.REC | MS.PRIVATE)


class _Scratch(_Private):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield from super().rows(plan)
        yield call("mount", "tmpfs", "/mnt", "tmpfs", MS.NOSUID | MS.NODEV, "size=1m,mode=700")


class _Slave(Part):
    flags = CLONE.NEWNS

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield change("/", MS.REC | MS.SLAVE)
        yield call("mount", "none", "/mnt", "tmpfs", 0, "size=1048576")


class _NoNamespace(_Scratch):
    flags = CLONE(0)


class _NoType(_Private):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("mount", "tmpfs", "/mnt", None, 0, "size=1m")


class _Elsewhere(_Private):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("mount", "tmpfs", "/home", "tmpfs", 0, "size=1m")


class _Leaking(Part):
    flags = CLONE.NEWNS

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("mount", "tmpfs", "/mnt", "tmpfs", 0, "size=1m")


class _PrivateTooLate(_Leaking):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield from super().rows(plan)
        yield change("/mnt", MS.PRIVATE)


class _Endless(_Private):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield from super().rows(plan)
        yield tmpfs("/mnt")


class _Root(Part):
    """Five rows, each of which can be left out."""

    flags = CLONE.NEWNS
    without: tuple[str, ...] = ()

    def __init__(self, root: str) -> None:
        self.root = root

    def rows(self, plan: Plan) -> Iterable[Row]:
        five = {
            "private": change("/", MS.REC | MS.PRIVATE),
            "bind": call("mount", self.root, self.root, None, MS.BIND | MS.REC),
            "chdir": call("chdir", self.root),
            "pivot": call("pivot_root", ".", "."),
            "umount": call("umount2", ".", MNT.DETACH),
        }
        return [row for name, row in five.items() if name not in self.without]


class _Shared(_Root):
    without = ("private",)


class _Plain(_Root):
    without = ("bind",)


class _Unchanged(_Root):
    without = ("pivot", "umount")


class _Kept(_Root):
    without = ("umount",)


class _Chroot(_Root):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("chroot", self.root)
        yield call("chdir", "/")


shared_places.answers(
    right=[_right_shared, lambda text: set(_right_shared(text))],
    wrong={
        "nothing": [lambda text: [], lambda text: None],
        "no places": [lambda text: [fields[2] for fields, _ in _fields(text)]],
        "too many": [
            lambda text: [line.split()[4] for line in text.splitlines() if "shared:" in line],
            lambda text: [fields[4] for fields, tags in _fields(text) if tags],
        ],
        "too few": [lambda text: [fields[4] for fields, tags in _fields(text) if len(tags) == 1 and tags[0].startswith("shared:")]],
    },
)
scratch.answers(
    right=[_Scratch],
    wrong={
        "no namespace": [_NoNamespace],
        "refused": [_NoType],
        "no tmpfs": [_Private, _Elsewhere],
        "leaked": [_Leaking, _PrivateTooLate],
        "no limit": [_Endless],
    },
)
new_root.answers(
    right=[_Root],
    wrong={"refused": [_Shared, _Plain], "no new root": [_Unchanged], "walked out": [_Chroot], "old root": [_Kept]},
)
