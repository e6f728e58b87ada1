"""A living group: its limits changed, what it has used, and all of its processes at once."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from errno import EOPNOTSUPP
from typing import Any, NamedTuple, Unpack

from kernel_lab.cgroups import bpf, files, processes, v1, v2
from kernel_lab.cgroups.device_program import program
from kernel_lab.cgroups.hierarchies import V1, V2, Hierarchy, hierarchies
from kernel_lab.cgroups.layout import CONTROLLERS
from kernel_lab.cgroups.limits import Limits, Words
from kernel_lab.cgroups.stats import Pressure, Stall, Stats
from kernel_lab.cgroups.writes import Write
from kernel_lab.kernel.errors import UsageError
from kernel_lab.state import Creator

PREFIX = "klab-"
RESOURCES = ("cpu", "memory", "io")


class Place(NamedTuple):
    """A group's directory in one hierarchy, and the one in it where its processes are."""

    version: int
    controllers: tuple[str, ...]
    path: str
    inside: str


class Doors(NamedTuple):
    """Open files through which a process comes into a group: in v1 it writes 0 into each of `procs`, in v2 it is born in `directory`."""

    procs: tuple[int, ...]
    directory: int | None


class Group:
    """The group of a container, in each hierarchy in which it is one. It is removed with its container."""

    def __init__(self, places: Iterable[Place]) -> None:
        self.places = tuple(places)

    @classmethod
    def of(cls, pid: int) -> "Group":
        """The kit's group that a process is in. Raises UsageError if it is in none, ProcessLookupError if it has ended."""
        places = [place for hierarchy in hierarchies() if (place := _place_of(pid, hierarchy))]
        if not places:
            raise UsageError(f"process {pid} is in no group of the kit's: see /proc/{pid}/cgroup, and give its container a Cgroup()")
        return cls(places)

    def __repr__(self) -> str:
        return f"Group({', '.join(dict.fromkeys(self.paths().values()))})"

    def paths(self) -> dict[str, str]:
        """Its directories, by controller; that of version 2 as `v2`, too."""
        return {name: place.path for place in self.places for name in (*place.controllers, *(["v2"] if place.version == V2 else []))}

    @property
    def _control(self) -> str:
        """The directory by which all of it can be frozen and killed."""
        paths = self.paths()
        return paths.get("v2") or paths["freezer"]

    def set(self, **limits: Unpack[Words]) -> None:
        """Changes limits; what is not named stays. Raises UsageError before anything is changed, KernelError for the first that is refused."""
        wanted = Limits.of(limits)
        for place, write in self._writes(wanted):
            files.write(f"{place.path}/{write.file}", write.text)
        if wanted.devices is not None and "devices" not in self.paths():
            bpf.attach(self._control, program(wanted.devices))

    def _writes(self, limits: Limits) -> list[tuple[Place, Write]]:
        places: dict[str, Place] = {}
        for word in limits.given:
            if place := self._place(word):
                places[next(name for name in CONTROLLERS[word] if name in place.controllers)] = place
        return [(place, write) for name, place in places.items() for write in _changes(place, name, limits)]

    def _place(self, word: str) -> Place | None:
        names = CONTROLLERS[word]
        if found := next((place for place in self.places if set(names) & set(place.controllers)), None):
            return found
        if word == "devices" and "v2" in self.paths():
            return None
        raise UsageError(f"{word}: the container is in no group of the controller {' or '.join(names)}; start it with this limit, 'max' if need be")

    def stats(self) -> Stats:
        """What has been used so far. Raises UsageError once the container has ended, as `events` and `pressure` do."""
        with self._there():
            return Stats(**self._used())

    def _used(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for place in self.places:
            readers = _readers(place)
            if place.version == V2:
                found |= v2.time_used(place.path)
            for name in place.controllers:
                found |= readers[name](place.path) if name in readers else {}
        return found

    @property
    def memory_limit(self) -> int | None:
        """Bytes; None where memory is not limited."""
        place = next((place for place in self.places if "memory" in place.controllers), None)
        found: int | None = _readers(place)["memory"](place.path)["memory_limit"] if place else None
        return found

    @contextmanager
    def _there(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if os.path.isdir(self._control):
                raise
            raise UsageError(f"{self._control}: {files.GONE}") from None

    def events(self) -> dict[str, int]:
        """What has happened, by name: memory.oom_kill, pids.max and others, how often; whether it is populated, and frozen."""
        with self._there():
            found = {"populated": int(bool(self.processes())), "frozen": int(processes.is_frozen(self._control))}
            for place in self.places:
                readers: Mapping[str, Callable[[str], dict[str, int]]] = v1.EVENTS if place.version == V1 else v2.EVENTS
                for name in place.controllers:
                    found |= readers[name](place.path) if name in readers else {}
            return found

    def pressure(self) -> dict[str, Pressure]:
        """How long its processes have waited for cpu, memory and io. Raises UsageError where the kernel does not say."""
        directory = self.paths().get("v2")
        if directory is None:
            raise UsageError("pressure: only groups of version 2 have it, and no cgroup2 file system is mounted here")
        with self._there():
            return {name: _pressure(directory, name) for name in RESOURCES}

    def processes(self) -> list[int]:
        """The processes in it and in the groups inside, lowest number first."""
        return processes.pids(self._control)

    def freeze(self) -> None:
        """Returns when every process stands still. Raises KernelError when some do not."""
        processes.freeze(self._control)

    def thaw(self) -> None:
        """They go on."""
        processes.thaw(self._control)

    def kill(self) -> None:
        """Ends every process, wherever in the group it is; returns when none is left."""
        processes.kill(self._control)

    @contextmanager
    def doors(self) -> Iterator[Doors]:
        """The ways in, open as long as the context lasts."""
        procs, directories = list[int](), list[int]()
        try:
            for place in self.places:
                if place.version == V1:
                    procs.append(os.open(f"{place.inside}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
                else:
                    directories.append(os.open(place.inside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            yield Doors(tuple(procs), directories[0] if directories else None)
        finally:
            for file in (*procs, *directories):
                os.close(file)


def _readers(place: Place) -> Mapping[str, Callable[[str], dict[str, Any]]]:
    return v1.READERS if place.version == V1 else v2.READERS


def _place_of(pid: int, hierarchy: Hierarchy) -> Place | None:
    line = hierarchy.line(pid)
    steps = line.path.split("/") if line else []
    depth = next((depth for depth, name in enumerate(steps) if name.startswith(PREFIX) and Creator.in_name(name)), None)
    if line is None or depth is None:
        return None
    path, inside = (hierarchy.directory(group) for group in ("/".join(steps[: depth + 1]), line.path))
    if path is None or inside is None:
        return None
    # Of version 2, those that it was made for: these it hands on.
    names = hierarchy.controllers if hierarchy.version == V1 else tuple(files.read(f"{path}/cgroup.subtree_control").split())
    return Place(hierarchy.version, names, path, inside)


def _changes(place: Place, controller: str, limits: Limits) -> list[Write]:
    if place.version == V2:
        return v2.writes(limits, controller)
    return v1.writes(limits, controller, v1.Memory.of(place.path) if controller == "memory" else v1.NEW)


def _pressure(directory: str, resource: str) -> Pressure:
    try:
        lines = files.read(f"{directory}/{resource}.pressure").splitlines()
    except FileNotFoundError:
        if not os.path.isdir(directory):
            raise
        raise UsageError(f"pressure: this kernel does not count that of {resource} (CONFIG_PSI, since Linux 4.20)") from None
    except OSError as error:
        if error.errno != EOPNOTSUPP:
            raise
        raise UsageError("pressure: this kernel counts it only when it is booted with psi=1 (Documentation/accounting/psi.rst)") from None
    stalls = {line.split()[0]: _stall(line) for line in lines}
    return Pressure(stalls["some"], stalls.get("full"))


def _stall(line: str) -> Stall:
    values = dict(pair.split("=") for pair in line.split()[1:])
    return Stall(float(values["avg10"]), float(values["avg60"]), float(values["avg300"]), int(values["total"]) / 1e6)
