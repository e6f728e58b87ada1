"""What directories show that lie on one another: where a name comes from, and what hides it."""

from collections.abc import Iterable, Sequence

from kernel_lab.unionfs.whiteouts import Notation, is_directory


def lookup(directories: Iterable[str], name: str, notation: Notation) -> tuple[str, ...]:
    """What a name shows in a directory that is merged from these, the topmost first.

    One path; or, of directories that are merged in their turn, several; or none, when it is not there or hidden.
    """
    found: list[str] = []
    for directory in directories:
        path = f"{directory}/{name}"
        if notation.has(directory, name):
            if not is_directory(path):
                # Under a directory it shows as little as under anything else.
                return tuple(found) or (path,)
            found.append(path)
            if notation.is_opaque(path):
                break
        if notation.hides(directory, name):
            break
    return tuple(found)


def names(directories: Sequence[str], notation: Notation) -> set[str]:
    """The names in a directory that is merged from these."""
    shown: set[str] = set()
    hidden: set[str] = set()
    for directory in directories:
        listing = notation.read(directory)
        shown |= listing.names - hidden
        hidden |= listing.whiteouts
    return shown
