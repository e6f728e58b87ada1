"""The tools that others use for the same: each makes what the floor makes, as nearly as its options allow."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from kernel_lab import state
from kernel_lab.benchmarks import hybrid, oci, outside
from kernel_lab.benchmarks.contestant import Absent, Ground, Run, command

T = TypeVar("T")


class Peer:
    """A program of somebody else's, by the name that it is installed under."""

    program: str
    who: str
    includes: str

    def version(self) -> str | None:
        found = shutil.which(self.program)
        said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else ""
        number = re.search(r"\d[\w.+~-]*", said)
        return number[0] if number else None

    @property
    def path(self) -> str:
        """Raises Absent when it is not installed."""
        found = shutil.which(self.program)
        if not found:
            raise Absent("not installed")
        return found

    def surroundings(self, call: Callable[[Sequence[str]], T]) -> AbstractContextManager[Callable[[Sequence[str]], T]]:
        """What its command lines are run by: `call`, where this program can work."""
        return nullcontext(call)


class Unshare(Peer):
    program = "unshare"
    who = "unshare (util-linux)"
    includes = "six namespaces, map, /proc; less: chroot instead of bind and pivot_root, no host name, loopback down"

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Run]:
        options = ["--user", "--map-root-user", "--uts", "--mount", "--ipc", "--pid", "--fork", f"--root={ground.root}", "--mount-proc=/proc"]
        yield _starts([self.path, *options], ["--net"], ground)


class Bubblewrap(Peer):
    program = "bwrap"
    who = "bubblewrap"
    includes = "six namespaces, map, host name, bind, pivot_root twice, /proc with read-only parts, loopback, no_new_privs"

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Run]:
        namespaces = ["--unshare-user", "--unshare-uts", "--unshare-ipc", "--unshare-pid"]
        options = ["--uid", "0", "--gid", "0", "--hostname", ground.hostname, "--bind", str(ground.root), "/", "--proc", "/proc", "--as-pid-1"]
        yield _starts([self.path, *namespaces, *options], ["--unshare-net"], ground)


def _starts(words: Sequence[str], new_network: Sequence[str], ground: Ground) -> Run:
    """Of a tool that only makes a network namespace of its own, or stays in the one that it is in."""
    if ground.layered:
        raise Absent("it makes no control groups")
    if not ground.network:
        return lambda: command([*words, *new_network, *ground.command])
    file = ground.folder / "network"
    script = outside.wrapped(outside.joined([*words, *ground.command], file), ground.network, file)
    return lambda: command(script)


class Runtime(Peer):
    """An OCI runtime, driven as a container engine drives it: by a bundle."""

    without_groups: tuple[str, ...] = ()

    @contextmanager
    def ready(self, ground: Ground) -> Iterator[Run]:
        folder = ground.folder / self.program
        file = ground.folder / "network"
        place = ground.layers / self.program
        place.mkdir(exist_ok=True)
        bundle = oci.bundle(ground, folder, str(file) if ground.network else None, place / "merged" if ground.layered else None)
        name = f"klab-bench-{state.Creator.this().stamp}"
        base = [self.path, f"--root={folder / 'state'}", *(() if ground.layered else self.without_groups)]
        words = [*base, "run", f"--bundle={bundle}", name]
        line = outside.wrapped(words, ground.network, file) if ground.network else words
        line = outside.layered(words, ground.root, place) if ground.layered else line
        try:
            with self.surroundings(command) as runs:
                yield lambda: runs(line)
        finally:
            if any((folder / "state").glob("*")):
                subprocess.run([*base, "delete", "--force", name], capture_output=True)


class Crun(Runtime):
    program = who = "crun"
    includes = "six namespaces, map, host name, bind, pivot_root, /proc, loopback; more: nodes in /dev, capabilities, its state on disk"
    without_groups = ("--cgroup-manager=disabled",)

    def surroundings(self, call: Callable[[Sequence[str]], T]) -> AbstractContextManager[Callable[[Sequence[str]], T]]:
        return hybrid.without_v2(call)


class Runc(Runtime):
    program = who = "runc"
    includes = "as crun, and a cgroup, which it cannot leave out"
