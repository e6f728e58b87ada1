"""The containers that have been started, one small file each, so that every process of this user can list and find them.

A file is called by the container's id and its name: whether a name is free can be seen without reading the files of all the others.
"""

import dataclasses
import json
import os
import random
import re
from dataclasses import dataclass
from pathlib import Path

from kernel_lab import state
from kernel_lab.kernel import procfs
from kernel_lab.kernel.errors import UsageError
from kernel_lab.state import Creator

COLOURS = "amber black blue brown coral crimson cyan golden green grey indigo ivory lilac olive orange pink purple red silver teal white yellow"
ANIMALS = "badger bear bee cat crane crow deer dove eagle finch fox frog goat hare hawk heron horse lark lynx mole moth otter owl seal swan wolf wren"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Record:
    """A container that has been started. `started`: when its first process did, in ticks after boot; `created`: seconds since the epoch;
    `namespaces`: the kinds that are the container's own; `code`: how it ended, of one that is kept after its end; `image`: what it was made from,
    and its id; `layers`: the directories of its root, the topmost first; `writes`: whether that one is its own, which takes what it writes;
    `env`, `cwd`, `user`: what its command was given."""

    id: str
    name: str
    pid: int
    started: int
    creator: Creator
    command: tuple[str, ...]
    created: float
    log: str | None = None
    parts: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    code: int | None = None
    image: str | None = None
    image_id: str | None = None
    layers: tuple[str, ...] = ()
    writes: bool = False
    stop_signal: str | None = None
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None

    def alive(self) -> bool:
        """Whether the container's first process runs."""
        return procfs.alive(self.pid, self.started)


def new_id() -> str:
    """Twelve hexadecimal digits, as docker shows them."""
    return f"{random.SystemRandom().getrandbits(48):012x}"


def new_name() -> str:
    """A name that no container has."""
    taken = {_name(file) for file in _names()}
    free = [name for colour in COLOURS.split() for animal in ANIMALS.split() if (name := f"{colour}_{animal}") not in taken]
    return random.choice(free) if free else new_id()


def check_name(name: str) -> None:
    """Refuse a name that is none, or that a living container has."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r}: a container's name has 1 to 128 letters, digits, '_', '.' and '-', and begins with a letter or a digit")
    for file in _names():
        if _name(file) == name and (record := _read(_place() / file)) and (record.alive() or record.code is not None):
            mend = "end that one" if record.alive() else f"klab rm {record.id[:12]}"
            raise UsageError(f"{name!r}: container {record.id} has this name; choose another, or {mend}")


def save(record: Record) -> None:
    """Write the record, unless another living container has its name."""
    directory = _directory()
    with state.locked(directory / "lock"):
        path = _path(record)
        if not path.exists():
            check_name(record.name)
        state.write_atomically(path, json.dumps(dataclasses.asdict(record), indent=1))


def drop(identifier: str) -> None:
    """Forget the container with this id; its log goes with it."""
    for path in _place().glob(f"{identifier}-*.json"):
        record = _read(path)
        if record and record.log:
            Path(record.log).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def all() -> list[Record]:
    """Every record that can be read, oldest first."""
    return sorted((record for path in files() if (record := _read(path))), key=lambda record: record.created)


def files() -> list[Path]:
    """The files of all records, those that cannot be read among them."""
    return sorted(_place().glob("*.json"))


def unreadable() -> list[Path]:
    """The files that hold no record: halved by a crash, or another version's."""
    return [path for path in files() if path.exists() and not _read(path)]


def find(name: str) -> Record:
    """The container with this name, or whose id begins so."""
    records = all()
    exact = [record for record in records if name in (record.id, record.name)]
    found = exact or [record for record in records if name and record.id.startswith(name)]
    # A name is free again when its container has ended, and may then stand in two records.
    found = [record for record in found if record.alive()] or found
    if not found:
        raise UsageError(f"{name!r}: no such container; klab ps lists them")
    if len(found) > 1:
        raise UsageError(f"{name!r}: {len(found)} containers are meant: {', '.join(record.id for record in found)}; write more of the id")
    return found[0]


def _directory() -> Path:
    return state.folder("containers")


def _place() -> Path:
    """The directory of the records, whether or not it is there."""
    return state.run_path() / "containers"


def _path(record: Record) -> Path:
    return _place() / f"{record.id}-{record.name}.json"


def _names() -> list[str]:
    """What the files of the records are called."""
    return [name for name in os.listdir(_place()) if name.endswith(".json")] if _place().is_dir() else []


def _name(file: str) -> str:
    """The container's name in that of its file."""
    return file.partition("-")[2].removesuffix(".json")


def _read(path: Path) -> Record | None:
    try:
        fields = json.loads(path.read_text())
        for several in ("command", "parts", "namespaces", "layers", "env"):
            fields[several] = tuple(fields[several])
        return Record(**fields | {"creator": Creator(*fields["creator"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
