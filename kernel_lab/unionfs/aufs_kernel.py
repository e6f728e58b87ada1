"""AUFS in the kernel, where somebody has built it in: what mount(2) is told (aufs(5))."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from kernel_lab.unionfs.branches import Branch


def is_there() -> bool:
    """Whether this kernel has AUFS; no kernel of a distribution's own has had it for years."""
    return "\taufs\n" in Path("/proc/filesystems").read_text()


def options(branches: Sequence[Branch], create: str) -> str:
    """The data of mount(2)."""
    return f"br:{':'.join(map(str, branches))},create={create}"


def changes(old: Sequence[Branch], new: Sequence[Branch]) -> str:
    """The data of a remount that makes `new` of `old`: what is not in its place is taken away, and put there."""
    return ",".join(_steps(list(old), new))


def _steps(now: list[Branch], new: Sequence[Branch]) -> Iterator[str]:
    for number, branch in enumerate(new):
        if now[number : number + 1] != [branch]:
            if branch in now:
                now.remove(branch)
                yield f"del:{branch.path}"
            now.insert(number, branch)
            yield f"ins:{number}:{branch}"
    for branch in now[len(new) :]:
        yield f"del:{branch.path}"
