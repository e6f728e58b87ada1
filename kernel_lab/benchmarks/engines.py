"""Docker and podman: a whole engine between the wish and the container. Each has an image of the ground's root, and its own bridge."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kernel_lab.benchmarks.contestant import Absent, Ground, Run, command
from kernel_lab.benchmarks.peers import Peer

NAME = f"klab-bench-{os.getpid()}"
LIMITS = ("--memory=64m", "--pids-limit=64", "--cpus=0.5")


class Engine(Peer):
    """Both take the same words."""

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Run]:
        self._do("ps", "--quiet")  # the cheapest question that only a running engine answers
        with ExitStack() as made:
            self._do("import", "-", NAME, input=_archive(ground))
            made.callback(self._undo, "rmi", "--force", NAME)
            network = "none"
            if ground.network:
                network = NAME
                self._do("network", "create", NAME)
                made.callback(self._undo, "network", "rm", NAME)
            limits = LIMITS if ground.layered else ()
            words = ["run", "--rm", f"--network={network}", f"--hostname={ground.hostname}", *limits, NAME]
            self._do(*words, "/bin/true")  # an engine that answers may still not be allowed to start one
            yield lambda: command([self.path, *words, *ground.command])

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


def _archive(ground: Ground) -> bytes:
    return subprocess.run(["tar", "-C", str(ground.root), "-c", "."], check=True, capture_output=True).stdout
