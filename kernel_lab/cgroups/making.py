"""A group made, step by step, and taken back: what a crash or a refusal leaves half-made is taken back as well."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EBUSY

from kernel_lab.cgroups import bpf, delegation, files, processes
from kernel_lab.cgroups.group import PREFIX, Group, Place
from kernel_lab.cgroups.hierarchies import V2
from kernel_lab.cgroups.layout import Directory
from kernel_lab.state import Creator

# Where the processes of a v2 group with controllers are: the group hands its controllers on to this one. As long as it does, nobody who tidies up
# above can take them away from it, as systemd does with what its own units do not need (cg_enable_everywhere); and inside a cgroup namespace the
# group's own limits are out of sight.
INSIDE = "inside"
_numbers = itertools.count(1)


@contextmanager
def made(directories: Sequence[Directory]) -> Iterator[Group]:
    """A group with these directories, until the context ends: then who is still in it is ended, and it is removed. Raises KernelError."""
    name = f"{PREFIX}{Creator.this().stamp}-{next(_numbers)}"
    places: list[Place] = []
    try:
        for directory in directories:
            path = f"{directory.parent}/{name}"
            hands_on = directory.hierarchy.version == V2 and directory.controllers
            # Before it is there: whatever interrupts the making, what has been made is known.
            places.append(Place(directory.hierarchy.version, directory.controllers, path, f"{path}/{INSIDE}" if hands_on else path))
            if hands_on:
                delegation.hand_on(directory.parent, directory.controllers)
            _make(path)
            _limit(path, directory)
            if hands_on:
                delegation.hand_on(path, directory.controllers)
                _make(f"{path}/{INSIDE}")
        yield Group(places)
    finally:
        _remove(places)


def _make(path: str) -> None:
    try:
        os.mkdir(path)
    except OSError as error:
        raise files.not_made(path, error.errno or 0) from None


def _limit(path: str, directory: Directory) -> None:
    for write in directory.writes:
        files.write(f"{path}/{write.file}", write.text)
    if directory.program:
        bpf.attach(path, directory.program)


def _remove(places: Sequence[Place]) -> None:
    left = [place for place in places if not _gone(place)]
    if not left:
        return
    # Somebody is in it still, or was a moment ago; without a PID namespace a container's processes can outlive its first.
    Group(places).kill()
    for place in left:
        processes.remove(place.path)


def _gone(place: Place) -> bool:
    """The way of nearly every time: nobody is in it, and there is nothing to look for."""
    for path in dict.fromkeys((place.inside, place.path)):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != EBUSY:
                raise
            return False
    return True
