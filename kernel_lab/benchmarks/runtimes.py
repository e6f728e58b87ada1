"""Boxes by the tools of others: OCI runtimes, LXC, podman, docker. One that does nothing stays by itself, as their users have it: detached."""

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from kernel_lab import state
from kernel_lab.benchmarks import oci, outside
from kernel_lab.benchmarks.contestant import Absent, Ground
from kernel_lab.benchmarks.engines import Docker, Podman
from kernel_lab.benchmarks.peers import Crun, Peer, Runc
from kernel_lab.benchmarks.runners import IDLE, Boxes, Stop, named, printed, started
from kernel_lab.cgroups.part import Cgroup

Calls = Callable[[Sequence[str]], None]
Starts = Callable[[Sequence[str]], "subprocess.Popen[str]"]


def detached(words: Sequence[str]) -> None:
    """A command whose children stay, with its outputs open: these are not waited for. Raises Absent with its last line when it fails."""
    with tempfile.TemporaryFile("w+", errors="replace") as messages:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=messages)
        if done.returncode:
            messages.seek(0)
            lines = messages.read().strip().splitlines() or [f"exit {done.returncode}"]
            raise Absent(f"installed, but it fails: {lines[-1]}")


def quietly(words: Sequence[str]) -> None:
    """A command that takes something away, whatever is left of it."""
    subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def begun(start: Callable[[], object], stop: Stop) -> Stop:
    """How to stop what `start` starts. Where that fails half-way, it is stopped at once."""
    try:
        start()
    except BaseException:
        stop()
        raise
    return stop


class RuntimeBoxes:
    """By an OCI runtime, with the overlay and the bundle that an engine would make for it."""

    def __init__(self, ground: Ground, path: str, calls: Calls, starts: Starts) -> None:
        self.ground, self._calls, self._starts = ground, calls, starts
        self._words = [path, f"--root={ground.folder / Path(path).name}"]

    def idle(self, number: int) -> Stop:
        place, bundle = self._made(number, IDLE)
        options = f"volatile,index=off,lowerdir={self.ground.root},upperdir=upper,workdir=work"
        run = [*self._words, "run", "--detach", f"--bundle={bundle}", named(number)]
        script = f"cd {place} && mkdir upper work merged && mount -t overlay -o {options} overlay merged && exec {shlex.join(run)}"

        def stop() -> None:
            delete = shlex.join([*self._words, "delete", "--force", named(number)])
            self._calls(["sh", "-c", f"{delete}; umount {place}/merged; true"])
            state.discard(place)
            state.discard(bundle)

        return begun(lambda: self._calls(["sh", "-c", script]), stop)

    @contextmanager
    def output(self, *words: str) -> Iterator[IO[str]]:
        place, bundle = self._made(0, words)
        line = outside.layered([*self._words, "run", f"--bundle={bundle}", named(0)], self.ground.root, place)
        try:
            with printed(self._starts(line), lambda: quietly([*self._words, "delete", "--force", named(0)])) as lines:
                yield lines
        finally:
            state.discard(place)
            state.discard(bundle)

    def _made(self, number: int, words: Sequence[str]) -> tuple[Path, Path]:
        """A directory for the overlay, and one for the bundle."""
        place, bundle = self.ground.layers / f"box{number}", self.ground.folder / f"bundle{number}"
        place.mkdir()
        return place, oci.bundle(replace(self.ground, command=tuple(words), layered=True), bundle, root=place / "merged")


class OciRunner:
    """An OCI runtime, as a runner. A network it only joins; which, its caller has to make."""

    networks = False

    def __init__(self, peer: Crun | Runc) -> None:
        self.peer, self.who = peer, peer.who
        self.includes = "the same namespaces, overlay, limits: a shell that mounts, and the runtime"

    def version(self) -> str | None:
        return self.peer.version()

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Boxes]:
        path = self.peer.path
        with self.peer.surroundings(detached) as calls, self.peer.surroundings(started) as starts:
            yield RuntimeBoxes(ground, path, calls, starts)


class LxcBoxes:
    """By lxc-start: detached for one that does nothing, in the foreground for one that is read."""

    def __init__(self, ground: Ground, path: str) -> None:
        self.ground, self.path = ground, path

    def idle(self, number: int) -> Stop:
        words = self._words(number)

        def stop() -> None:
            quietly(["lxc-stop", "--kill", *words[1:5]])
            self._remove(number)

        return begun(lambda: detached([*words, "--", *IDLE]), stop)

    @contextmanager
    def output(self, *words: str) -> Iterator[IO[str]]:
        line = self._words(0)
        try:
            with printed(started([*line, "--foreground", "--", *words]), lambda: quietly(["lxc-stop", "--kill", *line[1:5]])) as lines:
                yield lines
        finally:
            self._remove(0)

    def _words(self, number: int) -> list[str]:
        place = self.ground.layers / f"lxc{number}"
        place.mkdir()
        (place / "upper").mkdir()
        (place / "config").write_text("".join(f"{name} = {value}\n" for name, value in self._config(place / "upper")))
        return [self.path, "-n", named(number), "-P", str(place), "-f", str(place / "config")]

    def _config(self, upper: Path) -> Iterator[tuple[str, object]]:
        yield from (("lxc.rootfs.path", f"overlay:{self.ground.root}:{upper}"), ("lxc.uts.name", self.ground.hostname))
        yield from (("lxc.mount.auto", "proc"), ("lxc.console.path", "none"), ("lxc.pty.max", 0), ("lxc.tty.max", 0))
        # Nobody else here has a profile of AppArmor's either, and where the kernel has that, but not LXC's profile in it, LXC would start nothing.
        yield "lxc.apparmor.profile", "unconfined"
        network = self.ground.network
        yield "lxc.net.0.type", "veth" if network else "empty"
        if network:
            yield from (("lxc.net.0.link", network.bridge), ("lxc.net.0.flags", "up"))
            yield from (("lxc.net.0.ipv4.address", network.address), ("lxc.net.0.ipv4.gateway", network.gateway))
        for directory in Cgroup(**self.ground.limits).directories:
            version = "cgroup" if directory.hierarchy.version == 1 else "cgroup2"
            yield from ((f"lxc.{version}.{write.file}", write.text) for write in directory.writes)

    def _remove(self, number: int) -> None:
        state.discard(self.ground.layers / f"lxc{number}")


class Lxc(Peer):
    program = "lxc-start"
    networks = True
    who = "LXC"
    includes = "namespaces but user, overlay, limits, a /dev, /proc with read-only parts, capabilities; a monitor process each"

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Boxes]:
        yield LxcBoxes(ground, self.path)


class EngineBoxes:
    """By podman or docker. `words`: everything of `run` but the command."""

    def __init__(self, path: str, words: Sequence[str], calls: Calls, starts: Starts) -> None:
        self.path, self.words, self._calls, self._starts = path, words, calls, starts

    def idle(self, number: int) -> Stop:
        self._calls([self.path, "run", "--detach", f"--name={named(number)}", *self.words, *IDLE])
        return lambda: self._kill(number)

    def output(self, *words: str) -> AbstractContextManager[IO[str]]:
        process = self._starts([self.path, "run", "--rm", f"--name={named(0)}", *self.words, *words])
        return printed(process, lambda: self._kill(0))

    def _kill(self, number: int) -> None:
        quietly([self.path, "rm", "--force", *(["--time=0"] if self.path.endswith("podman") else []), named(number)])


class EngineRunner:
    """Docker or podman, as a runner."""

    networks = True

    def __init__(self, peer: Docker | Podman) -> None:
        self.peer, self.who, self.includes = peer, peer.who, peer.includes

    def version(self) -> str | None:
        return self.peer.version()

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Boxes]:
        with self.peer.imported(ground) as words, self.peer.surroundings(detached) as calls, self.peer.surroundings(started) as starts:
            yield EngineBoxes(self.peer.path, words, calls, starts)
