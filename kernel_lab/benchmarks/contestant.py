"""What every contestant of a benchmark is: something that gets ready on a ground, and then makes a container each time it is called."""

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from kernel_lab.cgroups.limits import Words


class Absent(Exception):
    """This contestant cannot take part here; the text says why."""


class Start(NamedTuple):
    """One container, from the wish to its end: how long it took, and what its command left."""

    seconds: float
    code: int
    stdout: str
    stderr: str


Run = Callable[[], Start]


LIMITS: Words = {"memory": "64M", "pids": 64, "cpus": 0.5}


class Network(NamedTuple):
    """A bridge of the host's, and what a container gets in it."""

    bridge: str
    address: str
    gateway: str


@dataclass(frozen=True)
class Ground:
    """What is the same for all: the root, the command that is run in it, the network, and a directory for what somebody needs besides.

    `layered`: the root is the lower layer of an overlay, and the container is in a control group with LIMITS; `quota`: that of CPU time among them.
    `disk`: what has no file of the host's to write to gets a disk.
    """

    root: Path
    folder: Path
    command: tuple[str, ...] = ("/bin/true",)
    network: Network | None = None
    hostname: str = "box"
    layered: bool = False
    quota: bool = True
    disk: bool = False

    @property
    def limits(self) -> Words:
        """Of a layered ground."""
        return LIMITS if self.quota else {"memory": LIMITS["memory"], "pids": LIMITS["pids"]}

    @property
    def layers(self) -> Path:
        """Where a layered ground's upper directories are made."""
        return self.folder / "layers"


class Contestant(Protocol):
    """`who` it is, what one start `includes`, and `ready`: raises Absent where it is not installed or cannot run."""

    who: str
    includes: str

    def version(self) -> str | None:
        """Of the program, where it is one."""

    def ready(self, ground: Ground) -> AbstractContextManager[Run]:
        """Everything that is not part of a start: afterwards each call makes a container."""


def command(words: Sequence[str]) -> Start:
    """A start by a command line: with the process that it takes, and its outputs read, as a program that uses the tool has to."""
    begin = time.perf_counter()
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    return Start(time.perf_counter() - begin, done.returncode, done.stdout, done.stderr)
