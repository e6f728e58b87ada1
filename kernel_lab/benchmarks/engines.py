"""Docker and podman: a whole engine between the wish and the container. Each has an image of the ground's root, and its own bridge."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from kernel_lab.benchmarks import hybrid
from kernel_lab.benchmarks.contestant import Absent, Ground, Run, command
from kernel_lab.benchmarks.peers import Peer, T

NAME = f"klab-bench-{os.getpid()}"
LIMITS, QUOTA = ("--memory=64m", "--pids-limit=64"), ("--cpus=0.5",)


class Engine(Peer):
    """Both take the same words, but for what is one's `own`."""

    own: tuple[str, ...] = ()

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Run]:
        with self.imported(ground) as words, self.surroundings(command) as runs:
            line = [self.path, "run", "--rm", *words, *ground.command]
            yield lambda: runs(line)

    @contextmanager
    def imported(self, ground: Ground) -> Iterator[list[str]]:
        """Its root as an image, and its network: the words of `run` that mean both. Raises Absent where no container can be started."""
        self._do("ps", "--quiet")  # the cheapest question that only a running engine answers
        with ExitStack() as made:
            self._do("import", "-", NAME, input=_archive(ground))
            made.callback(self._undo, "rmi", "--force", NAME)
            network = "none"
            if ground.network:
                network = NAME
                self._do("network", "create", NAME)
                made.callback(self._undo, "network", "rm", NAME)
            limits = (*LIMITS, *(QUOTA if ground.quota else ())) if ground.layered else ()
            words = [f"--network={network}", f"--hostname={ground.hostname}", *self.own, *limits, NAME]
            with self.surroundings(lambda words: self._do(*words)) as does:
                does(["run", "--rm", *words, "/bin/true"])  # an engine that answers may still not be allowed to start one
            yield words

    def _do(self, *words: str, input: bytes | None = None) -> None:
        done = subprocess.run([self.path, *words], input=input, capture_output=True)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"]
            raise Absent(f"installed, but `{self.program} {words[0]}` fails: {lines[-1].split('. ')[0]}")

    def _undo(self, *words: str) -> None:
        subprocess.run([self.path, *words], capture_output=True)


class Docker(Engine):
    program = who = "docker"
    includes = "client, daemon, containerd and runc; the root as an image on overlayfs, a full /dev and /sys, a cgroup; no user namespace"


class Podman(Engine):
    program = who = "podman"
    includes = "podman, conmon and a runtime; the root as an image on overlayfs, a full /dev and /sys, a cgroup"
    # Its own defaults are higher than what a root without CAP_SYS_RESOURCE may have.
    own = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")

    @contextmanager
    def imported(self, ground: Ground) -> Iterator[list[str]]:
        before = _pauses()
        try:
            with super().imported(ground) as words:
                yield words
        finally:
            for pid in _pauses() - before:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def surroundings(self, call: Callable[[Sequence[str]], T]) -> AbstractContextManager[Callable[[Sequence[str]], T]]:
        return hybrid.without_v2(call)  # its runtime is crun


def _pauses() -> set[int]:
    """What an ordinary user's podman leaves behind itself: a process that holds the user namespace of all that user's containers."""
    return {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if _is_own_pause(path)}


def _is_own_pause(comm: Path) -> bool:
    with suppress(OSError):  # it has ended meanwhile
        return comm.read_text() == "podman pause\n" and comm.stat().st_uid == os.geteuid()
    return False


def _archive(ground: Ground) -> bytes:
    return subprocess.run(["tar", "-C", str(ground.root), "-c", "."], check=True, capture_output=True).stdout
