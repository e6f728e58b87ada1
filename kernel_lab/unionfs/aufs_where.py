"""Where a file of a union comes from, branch by branch: what a picture of the layers shows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from kernel_lab.unionfs.branches import Branch, Place, walk
from kernel_lab.unionfs.policies import top_down_parent
from kernel_lab.unionfs.whiteouts import AUFS_OPAQUE, AUFS_WHITEOUT, is_directory


@dataclass(frozen=True)
class Sight:
    """What one branch has under a path: `has` is its own path of it; whether the union shows it, and otherwise the path of what hides it."""

    branch: Branch
    has: str | None
    shown: bool
    hidden_by: str | None


@dataclass(frozen=True)
class Where:
    """`comes_from`: the branch whose file the union shows, of a merged directory the topmost; None where there is nothing. `sights`: every branch,
    the topmost first. `on_write`: what would happen then, in words."""

    path: str
    comes_from: Branch | None
    sights: tuple[Sight, ...]
    on_write: str


def where(branches: Sequence[Branch], path: str) -> Where:
    """Everything about an absolute path of the union."""
    names = [name for name in path.split("/") if name]
    places = walk(branches, path)
    shown = {place.branch: place.path for place in places}
    sights = []
    for number, branch in enumerate(branches):
        own = "/".join((branch.path, *names))
        has = own if os.path.lexists(own) else None
        hider = None if branch in shown or not has else _hider(branches[:number], names) or places[0].path
        sights.append(Sight(branch, has, branch in shown, hider))
    return Where("/" + "/".join(names), places[0].branch if places else None, tuple(sights), _on_write(branches, places, names[:-1]))


def _hider(above: Sequence[Branch], names: Sequence[str]) -> str | None:
    """The mark, or the file in the place of a directory, that keeps what is below from being seen."""
    for branch in above:
        directory = branch.path
        for name in (*names, ""):
            marks = [f"{directory}/{mark}" for mark in (AUFS_OPAQUE, f"{AUFS_WHITEOUT}{name}") if branch.has_whiteouts and mark != AUFS_WHITEOUT]
            if found := [mark for mark in marks if os.path.lexists(mark)]:
                return found[0]
            directory = f"{directory}/{name}"
            if os.path.lexists(directory) and not is_directory(directory):
                return directory
    return None


def _on_write(branches: Sequence[Branch], places: Sequence[Place], parent: Sequence[str]) -> str:
    if not places:
        return "there is nothing to write to"
    branch = places[0].branch
    if branch.writable:
        return f"it is changed in place, in {branch.path}"
    above = [one for one in branches[: branches.index(branch)] if one.writable]
    if not above:
        return "EROFS: no branch above is writable"
    return f"it is copied up first, from {branch.path} to {top_down_parent(above, walk(branches, '/'.join(parent))).path}"
