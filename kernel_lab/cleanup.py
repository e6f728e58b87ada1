"""Everything of the kit whose creator is dead, found and taken away. What a living process has made is never touched.

The order of `leftovers()` is that of the removal: processes first, since what they use cannot go before them, and records last, since they
are what the rest is found by.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from kernel_lab import records, state
from kernel_lab.cgroups.processes import end
from kernel_lab.kernel import mountinfo
from kernel_lab.members import Members
from kernel_lab.records import Record
from kernel_lab.state import Creator, Leftover

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "klab"
DEPTH = 8  # systemd puts a delegated scope six levels down
LOG, UNREADABLE = "log", "unreadable record"


def leftovers() -> list[Leftover]:
    """Everything of this user's, of the directories that the state is kept in now."""
    found: list[Leftover] = []
    for kind, look in FINDERS.items():
        try:
            found += look()
        except Exception as error:
            # The others are looked for all the same; and who wants to have this one removed hears of the error.
            found.append(Leftover(kind, "?", f"it is not known what is left: {error}", partial(_raise, error)))
    return found


def _raise(error: Exception) -> None:
    raise error


def remove(found: Iterable[Leftover]) -> None:
    """Take each away, whatever becomes of the others; raises what went wrong, all together."""
    errors = []
    for leftover in found:
        try:
            leftover.remove()
        except Exception as error:
            error.add_note(f"while removing {leftover.kind} {leftover.name}")
            errors.append(error)
    if errors:
        raise ExceptionGroup("not everything could be removed", errors)


def of_dead_creators() -> None:
    """What a janitor does last. A log that nobody may have read yet stays, and a record that may be another version's."""
    remove(leftover for leftover in leftovers() if leftover.kind not in (LOG, UNREADABLE))


def _dead(creator: Creator) -> str:
    return f"its creator, process {creator.pid}, has ended"


def _abandoned() -> list[Record]:
    # One with a code has ended in order, and is kept until `klab rm`.
    return [record for record in records.all() if record.code is None and not record.creator.alive()]


def _processes() -> Iterator[Leftover]:
    for record in _abandoned():
        if record.alive():
            yield Leftover("process", f"{record.pid} ({record.name})", _dead(record.creator), partial(_kill, record))


def _kill(record: Record) -> None:
    members = Members.of(record.pid, record.namespaces)
    # It lives still, so its number has been its own all the time, and what has been opened is its.
    if record.alive():
        members.kill_all()
    members.close()


def _networks() -> list[Leftover]:
    if os.geteuid():  # links and rules of the host are root's
        return []
    # Imported here: networks know this module's neighbours, and most cleanups find none of them.
    from kernel_lab.networks.cleanup import leftovers

    return leftovers()


def _places() -> list[str]:
    return [os.path.realpath(path) for path in (state.run_path(), state.data_path())]


def _owner(path: str) -> Creator | None:
    """The dead creator that something below the directories of the kit's state is stamped with."""
    for place in _places():
        if path.startswith(f"{place}/"):
            creator = Creator.in_name(os.path.relpath(path, place))
            return creator if creator and not creator.alive() else None
    return None


def _mounts() -> Iterator[Leftover]:
    # The last one that was mounted first: others may lie below or under it.
    for mount in reversed(mountinfo.mounts()):
        if creator := _owner(mount.point):
            yield Leftover("mount", mount.point, _dead(creator), partial(state.unmount, mount.point))


def _cgroups() -> Iterator[Leftover]:
    for directory in _named(CGROUPS, DEPTH):
        creator = Creator.in_name(directory.name)
        if creator and not creator.alive():
            yield Leftover("cgroup", str(directory), _dead(creator), partial(end, str(directory)))


def _named(directory: Path, depth: int) -> Iterator[Path]:
    """The control groups that carry the kit's prefix, the inner ones first."""
    with suppress(OSError):
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                if depth > 1:
                    yield from _named(Path(entry), depth - 1)
                if entry.name.startswith(PREFIX):
                    yield Path(entry)


def _records() -> Iterator[Leftover]:
    for record in _abandoned():
        yield Leftover("record", record.name, _dead(record.creator), partial(_forget, record))
    for path in records.unreadable():
        yield Leftover(UNREADABLE, path.name, "it cannot be read", partial(path.unlink, missing_ok=True))


def _forget(record: Record) -> None:
    if record.alive():
        raise RuntimeError(f"process {record.pid} still runs, and this record is what it is found by")
    records.drop(record.id)


def _files() -> Iterator[Leftover]:
    """What carries the stamp of a dead creator: temporary files and directories, logs, half-made root filesystems."""
    for place in _places():
        # No deeper: below that are the files of root filesystems, which the kit has not named.
        for path in sorted((*Path(place).glob("*"), *Path(place).glob("*/*"))):
            creator = Creator.in_name(path.name)
            if creator and not creator.alive():
                yield Leftover("file", str(path), _dead(creator), partial(state.discard, path))


def _log() -> Iterator[Leftover]:
    path = state.run_path() / "janitor.log"
    if path.exists():
        yield Leftover(LOG, str(path), "a janitor has met errors; read it first", partial(path.unlink, missing_ok=True))


FINDERS: dict[str, Callable[[], Iterable[Leftover]]] = {
    "process": _processes,
    "network": _networks,
    "mount": _mounts,
    "cgroup": _cgroups,
    "record": _records,
    "file": _files,
    "log": _log,
}
