"""What a container on overlay writes into: a directory for its changes, and one that the kernel works in.

Every container that starts comes by here: hence plain strings, and few calls.
"""

import fcntl
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kernel_lab import state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.state import Creator
from kernel_lab.unionfs import layers
from kernel_lab.unionfs.changes import Changes, changes
from kernel_lab.unionfs.whiteouts import Notation

Owner = tuple[int, int]  # user and group
INNER = "work"  # what the kernel makes in a work directory, and in it for the option volatile
INCOMPATIBLE = f"{INNER}/incompat"
VOLATILE = f"{INCOMPATIBLE}/volatile"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Writable:
    """The top of one container's layers: `upper` takes its changes, `work` is overlay's own, and the whole is mounted on `place`, inside."""

    place: str
    upper: str
    work: str
    lower: tuple[str, ...]
    notation: Notation

    def changes(self) -> Changes:
        """What the container has changed so far."""
        return changes(self.upper, self.lower, self.notation)


def home() -> str:
    """Where containers get their directories, whether or not it is there."""
    return f"{state.data_path()}/layers"


def beside(upper: str) -> str:
    """The directory that the kernel works in while a container writes into `upper`: on the same mount, and outside of it."""
    parent, name = os.path.split(upper)
    return f"{parent}/.{name}.work"


@contextmanager
def fresh(lower: tuple[str, ...], notation: Notation, owner: Owner | None) -> Iterator[Writable]:
    """Directories for one container, which go when it has ended. `owner`: who is root in its user namespace."""
    place = _new_place()
    try:
        _give(place, owner)
        made = Writable(place, f"{place}/upper", f"{place}/work", lower, notation)
        _make_like(lower[0], made.upper, owner)
        _make(made.work, owner)
        yield made
    finally:
        _remove(place)


@contextmanager
def kept(upper: str, lower: tuple[str, ...], notation: Notation, owner: Owner | None) -> Iterator[Writable]:
    """The same with a directory of the caller's for the changes, which stays. Raises UsageError while another container writes there."""
    work = beside(upper)
    with _alone(upper):
        place = _new_place()
        try:
            _give(place, owner)
            # Where a path is too long to be told to the kernel, it is found from here.
            os.symlink(upper, f"{place}/upper")
            os.symlink(work, f"{place}/work")
            # A killed creator may have left one.
            _remove_work(work)
            _make(work, owner)
            yield Writable(place, upper, work, lower, notation)
        finally:
            state.discard(Path(place))
            _remove_work(work)


@contextmanager
def _alone(upper: str) -> Iterator[None]:
    """No other container writes there: without an index the kernel would let them, and both would come to harm."""
    descriptor = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor, upper)
        yield
    finally:
        # Not left to the close: a child that is just being made holds the same open file, and with it the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _lock(descriptor: int, upper: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"upper {upper!r}: another container writes there now; end that one, or give each its own") from None


def _new_place() -> str:
    """A directory that carries this process's stamp: `cleanup` finds it by that."""
    # Nobody else may come in: a container's root can make programs there that run as somebody else (set-user-ID).
    path = f"{home()}/{Creator.this().stamp}-{next(_numbers)}"
    try:
        os.mkdir(path, 0o700)
    except FileNotFoundError:
        state.data_dir()
        with suppress(FileExistsError):
            os.mkdir(home())
        # In a user namespace root is another user, who must be able to walk through.
        os.chmod(home(), 0o711)
        os.mkdir(path, 0o700)
    return path


def _make(path: str, owner: Owner | None) -> None:
    os.mkdir(path, 0o700)
    _give(path, owner)


def _make_like(layer: str, path: str, owner: Owner | None) -> None:
    """The top directory of a union has the owner and mode of its topmost layer's: here, those of the layer that lies below."""
    status = os.stat(layer)
    _make(path, owner or (status.st_uid, status.st_gid))
    os.chmod(path, stat.S_IMODE(status.st_mode))


def _give(path: str, owner: Owner | None) -> None:
    # Root alone can give something away; what an ordinary user makes is that user's, who is root inside.
    if owner and os.geteuid() == 0 and owner != (0, os.getegid()):
        os.chown(path, *owner)


def _remove(place: str) -> None:
    _open_up(f"{place}/work")
    try:
        # A container that has written nothing leaves these; for anything else it takes longer anyway.
        os.rmdir(f"{place}/upper")
        work = f"{place}/work"
        os.unlink(f"{work}/{VOLATILE}/dirty")
        for name in (VOLATILE, INCOMPATIBLE, INNER, ""):
            os.rmdir(f"{work}/{name}")
        os.rmdir(place)
    except OSError:
        state.discard(Path(place))


def _remove_work(work: str) -> None:
    """A work directory beside one of the caller's, unless somebody else keeps something there."""
    _open_up(work)
    for name in layers.WORKED:
        state.discard(Path(work, name))
    with suppress(FileNotFoundError):
        os.rmdir(work)


def _open_up(work: str) -> None:
    # The kernel gives its own directories no permissions at all, which stops an ordinary user, to whom they belong.
    with suppress(FileNotFoundError):
        for name in (INNER, INCOMPATIBLE, VOLATILE):
            os.chmod(f"{work}/{name}", 0o700)
