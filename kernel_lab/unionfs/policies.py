"""Where AUFS makes a new file when several branches are writable (aufs(5), "create=")."""

import os
from collections.abc import Callable, Sequence
from itertools import count

from kernel_lab.unionfs.branches import Branch, Place

# The writable branches that may be chosen, the topmost first, and the places of the directory: the chosen one.
Policy = Callable[[Sequence[Branch], Sequence[Place]], Branch]


def top_down_parent(branches: Sequence[Branch], directory: Sequence[Place]) -> Branch:
    """The topmost that has the directory; where none has it, the topmost."""
    having = {place.branch for place in directory}
    return next((branch for branch in branches if branch in having), branches[0])


def most_free_space(branches: Sequence[Branch], directory: Sequence[Place]) -> Branch:
    """The one with the most room; of equal ones, the topmost."""
    return max(branches, key=_free)


def _free(branch: Branch) -> int:
    status = os.statvfs(branch.path)
    return status.f_bavail * status.f_frsize


def round_robin() -> Policy:
    """One after the other."""
    turns = count()
    return lambda branches, directory: branches[next(turns) % len(branches)]


POLICIES: dict[str, Callable[[], Policy]] = {"tdp": lambda: top_down_parent, "mfs": lambda: most_free_space, "rr": round_robin}
