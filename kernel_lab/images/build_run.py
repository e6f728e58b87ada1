"""RUN: a command in a container on the image so far; what it has changed becomes a layer."""

import codecs
import os
import select
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kernel_lab.cgroups.part import Cgroup
from kernel_lab.command import Command
from kernel_lab.container import Container
from kernel_lab.images.build_errors import BuildError
from kernel_lab.images.build_mounts import Mounts
from kernel_lab.images.draft import PutLayer, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.inside import packed
from kernel_lab.images.root import ImageRoot
from kernel_lab.images.store import Addition
from kernel_lab.namespaces.ipc import IPC
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.net import Net
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS
from kernel_lab.process import Streams, nothing
from kernel_lab.unionfs.writable import Writable

CHUNK = 1 << 16
HOSTNAME = "build"  # the same every time, for commands that write it down


@dataclass(frozen=True)
class Task:
    """A command, and what its container is given besides the image. network: None is the host's."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: str | None
    network: Net | None
    group: Cgroup | None
    mounts: Mounts


def run(task: Task, image: Image, adding: Addition, identifier: str, write: Callable[[str], object]) -> PutLayer | None:
    """The layer of what the command has changed; None where that is nothing. identifier: the container's; write: is told what the command prints.

    Raises BuildError when it ends with another code than 0; then, as after an interrupt, nothing is left.
    """
    root = ImageRoot(image)
    mount = Mount(root, binds=task.mounts.binds, tmpfs=task.mounts.tmpfs, directories=[task.cwd] if task.cwd != "/" else ())
    container = Container(UTS(HOSTNAME), mount, IPC(), PID(), *([User.granted()] if os.geteuid() else []), *filter(None, (task.network, task.group)))
    # One word is a program here, and no line to be split.
    argv = task.argv if len(task.argv) > 1 else (shlex.quote(task.argv[0]),)
    command = container.command(argv, task.env, task.cwd, task.user)
    with container:
        if code := _code(container, command, identifier, write):
            raise BuildError(f"The command '{' '.join(task.argv)}' returned a non-zero code: {code}", code)
        made = container.made(mount)
        assert isinstance(made, Writable)
        task.mounts.take_away(made)
        return put_layer(adding, packed(Path(made.upper))) if _has_changes(made) else None


def _code(container: Container, command: Command, identifier: str, write: Callable[[str], object]) -> int:
    """The command's exit code, once all that it has printed is written."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(ours, False)
        first = container.launch(command, Streams(nothing(), theirs, theirs), identifier=identifier)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        poll = select.poll()
        for descriptor in (ours, first.pidfd):
            poll.register(descriptor, select.POLLIN)
        while first.pidfd not in (ready := [descriptor for descriptor, _ in poll.poll()]):
            write(decoder.decode(os.read(ready[0], CHUNK)))
        code = first.wait()  # and with it everybody in its PID namespace has ended
        write(decoder.decode(_rest(ours), final=True))
        first.check()
        return code
    finally:
        os.close(ours)
        os.close(theirs)


def _rest(descriptor: int) -> bytes:
    pieces = []
    try:
        while piece := os.read(descriptor, CHUNK):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces)


def _has_changes(made: Writable) -> bool:
    upper, below = os.stat(made.upper), os.stat(made.lower[0])
    same = all(getattr(upper, name) == getattr(below, name) for name in ("st_mode", "st_uid", "st_gid"))
    return bool(os.listdir(made.upper)) or not same
