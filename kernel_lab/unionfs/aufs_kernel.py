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
    """The data of a remount that makes `new` of `old`. What is no longer wanted goes last: a union always has a branch."""
    return ",".join(_steps(old, new))


def _steps(old: Sequence[Branch], new: Sequence[Branch]) -> Iterator[str]:
    wanted = {branch.path: branch for branch in new}
    now = [wanted.get(branch.path, branch) for branch in old]
    yield from (f"mod:{branch}" for branch, before in zip(now, old, strict=True) if branch != before)
    for number, branch in enumerate(new):
        if now[number : number + 1] != [branch]:
            if branch in now:
                now.remove(branch)
                yield f"del:{branch.path}"
            now.insert(number, branch)
            yield f"ins:{number}:{branch}"
    yield from (f"del:{branch.path}" for branch in now[len(new) :])
