"""The floor as Python sees it: `floor.c` and `veth.c`, compiled once, as a server that makes a container a line, or as a command."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kernel_lab.benchmarks import compiled as compiling
from kernel_lab.benchmarks.contestant import LIMITS, Ground, Run, Start, command
from kernel_lab.cgroups.part import Cgroup

SOURCES = tuple(Path(__file__).with_name(name) for name in ("floor.c", "veth.c", "layers.c", "groups.c"))
HEADER = Path(__file__).with_name("floor.h")


def compiled() -> Path:
    """The compiled program, made on first use. Raises Absent where there is no compiler."""
    return compiling.compiled("floor", SOURCES, [HEADER])


def arguments(ground: Ground) -> list[str]:
    """What the program is told of a ground."""
    veth = ("--veth", *ground.network) if ground.network else ()
    layers = ("--overlay", str(ground.layers), *_limits()) if ground.layered else ()
    return ["--hostname", ground.hostname, *veth, *layers, str(ground.root), *ground.command]


def _limits() -> Iterator[str]:
    """The groups that the kit would make, and what it would write into them."""
    for directory in Cgroup(**LIMITS).directories:
        yield from ("--limit", directory.parent, "", "")
        for write in directory.writes:
            yield from ("--limit", directory.parent, write.file, write.text)


class Server:
    """The floor itself: no process is started but the container's."""

    who = "C floor"
    includes = (
        "clone3, six namespaces, maps, host name, bind, pivot_root, /proc, loopback, both outputs read, wait; "
        "the veth, or the overlay and the kit's control groups: from within one small C process"
    )

    def version(self) -> str | None:
        return None

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Run]:
        words = [str(compiled()), "--server", *arguments(ground)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            yield lambda: _ask(process)


def _ask(server: "subprocess.Popen[bytes]") -> Start:
    assert server.stdin and server.stdout
    server.stdin.write(b"\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise ChildProcessError("the server of the floor has ended")
    nanoseconds, status, out, err = map(int, answer.split())
    stdout, stderr = server.stdout.read(out), server.stdout.read(err)
    return Start(nanoseconds / 1e9, status, os.fsdecode(stdout), os.fsdecode(stderr))


class Anew:
    """The same program as a command."""

    who = "C program, started anew"
    includes = "the same, in a process that is started for each container: what any command-line tool pays before its first line"

    def version(self) -> str | None:
        return None

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Run]:
        words: Sequence[str] = [str(compiled()), *arguments(ground)]
        yield lambda: command(words)
