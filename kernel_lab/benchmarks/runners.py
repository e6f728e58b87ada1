"""What runs a program apart from the others, whoever does it: a plain process, this kit, other runtimes, a virtual machine.

Each gets ready on a ground, and then runs a program to its end while somebody reads what it prints, or starts one that does nothing and stays.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Protocol

from kernel_lab.benchmarks import kit
from kernel_lab.benchmarks.contestant import Ground
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.container import Container
from kernel_lab.kernel.errors import UsageError
from kernel_lab.namespaces.part import Part
from kernel_lab.process import Streams, nothing
from kernel_lab.state import Creator

IDLE = ("/bin/sleep", "1000000")

Stop = Callable[[], object]


class Boxes(Protocol):
    """What makes one box after the other on a ground that is ready."""

    def idle(self, number: int) -> Stop:
        """Starts a box that does nothing, and returns once it runs; the answer ends it, and returns when nothing of it is left."""

    def output(self, *words: str) -> AbstractContextManager[Iterator[str]]:
        """Runs a program in a new box; what it prints, line by line as it comes. At the end of the context nothing of the box is left."""


class Runner(Protocol):
    """`who` it is, what it `includes`, whether it `networks` its boxes, and `ready`: raises Absent where it is not installed or cannot run."""

    who: str
    includes: str
    networks: bool

    def version(self) -> str | None:
        """Of the program, where it is one."""

    def ready(self, ground: Ground) -> AbstractContextManager[Boxes]:
        """Everything that is done once: an image, a network."""


@contextmanager
def printed(process: "subprocess.Popen[str]", kill: Callable[[], object]) -> Iterator[IO[str]]:
    """What a process prints; `kill` ends it, and all that came with it, where the reader gives up."""
    with process:
        assert process.stdout
        try:
            yield process.stdout
        except BaseException:
            kill()
            raise


def started(words: Sequence[str], cwd: str | None = None) -> "subprocess.Popen[str]":
    """A command line with both of its outputs to be read. In a session of its own: a terminal's Ctrl-C is for its starter alone."""
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        cwd=cwd,
    )


def named(number: int) -> str:
    """What a box is called: by the process that measures."""
    return f"klab-bench-{Creator.this().stamp}-{number}"


class PlainBoxes:
    """No box at all."""

    def __init__(self, ground: Ground) -> None:
        self.root = str(ground.root)

    def idle(self, number: int) -> Stop:
        process = subprocess.Popen(["sleep", IDLE[1]], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

        def stop() -> None:
            process.kill()
            process.wait()

        return stop

    def output(self, *words: str) -> AbstractContextManager[IO[str]]:
        program, *others = words
        process = started([self.root + program, *others], cwd=self.root)
        return printed(process, process.kill)


class Plain:
    who = "plain process"
    includes = "fork, exec and wait: nothing is apart"
    networks = True

    def version(self) -> str | None:
        return None

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Boxes]:
        yield PlainBoxes(ground)


class KitBoxes:
    """A Container for each."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.group = limits(ground)

    def _container(self) -> Container:
        return Container(*kit.parts(self.ground), *self.group)

    def idle(self, number: int) -> Stop:
        return self._container().start(*IDLE).kill

    @contextmanager
    def output(self, *words: str) -> Iterator[IO[str]]:
        box = self._container()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        with open(reading, errors="replace") as lines, box:
            try:
                box.launch(box.command(words), Streams(nothing(), writing, writing))
            finally:
                os.close(writing)
            yield lines


class Kit:
    who = "kit"
    includes = "Container.start: six namespaces, pivot_root into an overlay of its own, /proc, a control group where this user may make one"
    networks = True

    def version(self) -> str | None:
        return None

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Boxes]:
        yield KitBoxes(ground)


def limits(ground: Ground) -> tuple[Part, ...]:
    """A control group with the ground's limits; none where this user may make none."""
    try:
        group = Cgroup(**ground.limits)
        group.directories  # noqa: B018 -- looked up for the error
    except UsageError:
        return ()
    return (group,)
