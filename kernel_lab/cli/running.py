"""`klab run`, `klab program` and `klab exec`: a command in a new container, or in one that runs."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kernel_lab import command as commands
from kernel_lab import rootfs, state
from kernel_lab.cgroups.limits import Words
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.cli import detached, limits
from kernel_lab.cli.containers import opened
from kernel_lab.command import Command
from kernel_lab.container import Container
from kernel_lab.foreground import attached
from kernel_lab.joining import Joined
from kernel_lab.kernel.errors import UsageError
from kernel_lab.namespaces.ipc import IPC
from kernel_lab.namespaces.mnt import Bind, Mount
from kernel_lab.namespaces.net import Net
from kernel_lab.namespaces.part import Part
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.root import Root
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS
from kernel_lab.networks.bridge import Bridge
from kernel_lab.networks.usermode import Usermode
from kernel_lab.plan import Plan
from kernel_lab.process import Process, Streams
from kernel_lab.unionfs.overlay import Overlay

if TYPE_CHECKING:
    from kernel_lab.images.image import Image

F = TypeVar("F", bound=Callable[..., Any])
ALWAYS, MISSING, NEVER = "always", "missing", "never"
WORDS = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


CONTAINER = _options(
    click.option("--hostname", "-h", help="Its host name; without it, its name, or klab."),
    click.option("--network", default="none", help="none (loopback alone), host, bridge, a bridge's name, or user (pasta, slirp4netns)."),
    click.option("--ip", help="Its address on the bridge."),
    click.option("--volume", "-v", multiple=True, help="SOURCE:TARGET[:ro]"),
    click.option("--tmpfs", multiple=True, help="A place for an empty file system in memory, with options if you like: /cache:size=64m."),
    click.option("--layers", is_flag=True, help="What it writes goes into a layer of its own, on top of ROOT, and ends with it."),
    click.option("--read-only", is_flag=True, help="Nothing in the root can be written."),
    click.option("--pull", type=click.Choice([ALWAYS, MISSING, NEVER]), default=MISSING, help="When an image is fetched from its registry."),
    click.option("--entrypoint", help="In place of the image's own, without its words; an empty one for none."),
    click.option("--init", is_flag=True, help="Process 1 is a reaper; the command is process 2."),
    click.option("--userns", type=click.Choice(["host", "self", "subordinate"]), help="Whose ids: the host's, yourself alone, or /etc/subuid's."),
    *limits.OPTIONS,
)
PROCESS = _options(
    click.option("--env", "-e", multiple=True, help="NAME=VALUE, or the NAME of a variable of yours."),
    click.option("--workdir", "-w", help="Its working directory."),
    click.option("--user", "-u", help="UID[:GID], or names."),
    click.option("--ulimit", multiple=True, help="NAME=SOFT[:HARD]"),
    click.option("--interactive", "-i", is_flag=True, help="It may read what you can read."),
    click.option("--tty", "-t", is_flag=True, help="It has a terminal."),
)


@click.command(context_settings=WORDS)
@click.option("--name", help="What other commands call it.")
@click.option("--detach", "-d", is_flag=True, help="In the background; prints its id.")
@click.option("--rm", is_flag=True, help="Nothing of a detached one is kept when it ends; in the foreground nothing ever is.")
@CONTAINER
@PROCESS
@click.argument("root", metavar="IMAGE|ROOT")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def run(name: str | None, detach: bool, rm: bool, root: str, words: tuple[str, ...], interactive: bool, tty: bool, **settings: Any) -> int:
    """Run a command in a new container.

    An image's name, digest or id; or as its root a directory, host for the host's own, or busybox or debian where no image is called so: what is
    written into a root stays there, but with --layers.
    """
    tell = detached.told()  # first of all: what this process has in its environment, the command may get
    container, command = _asked(root, name, words, tty and not detach, settings)
    if detach:
        return detached.monitored(sys.argv[1:], tell, container, command, keep=not rm)
    return attached(lambda streams: container.launch(command, streams), interactive, tty)


@click.command(context_settings=WORDS)
@CONTAINER
@PROCESS
@click.argument("root", metavar="IMAGE|ROOT")
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def program(root: str, words: tuple[str, ...], interactive: bool, tty: bool, **settings: Any) -> None:
    """Print the table of system calls that `klab run` would execute, and execute none of them."""
    if root == "debian" and not _image(root, NEVER) and not rootfs.debian_is_made():
        raise UsageError("debian: its root has not been made yet, and its files decide about some of the rows: klab run debian true makes it")
    container, command = _asked(root, None, words, tty, settings)
    click.echo(str(container.table(command).program))


@click.command(context_settings=WORDS)
@PROCESS
@click.argument("container")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def exec(container: str, words: tuple[str, ...], interactive: bool, tty: bool, **settings: Any) -> int:
    """Run a command in a running container."""
    with opened(container) as target:
        record = target.record
        own = {"user": settings["user"] or record.user, "workdir": settings["workdir"] or record.cwd}
        given = settings | own | {"env": (*record.env, *settings["env"])}
        command = _settled((f"/proc/{target.pid}/root",) if record.layers else (), words, tty, given)

        def start(streams: Streams) -> Process:
            return Joined(target, command, streams)

        return attached(start, interactive, tty)


COMMANDS = (run, program, exec)


def _asked(root: str, name: str | None, words: tuple[str, ...], terminal: bool, settings: dict[str, Any]) -> tuple[Container, Command]:
    """The container and the command of a command line."""
    image = _image(root, settings["pull"])
    if image is None:
        if settings["entrypoint"] is not None:
            raise UsageError(f"--entrypoint {settings['entrypoint']}: a directory has no entrypoint, as an image has; write the command alone")
        container = _container(_root(rootfs.resolve(root), settings), name, settings)
        return container, _settled(container.plan.roots, words or ("sh",), terminal, settings)
    from kernel_lab.images.execution import execution
    from kernel_lab.images.root import ImageRoot

    given = _variables(settings["env"])
    runs = execution(image, words, entrypoint=settings["entrypoint"], env=given, cwd=settings["workdir"], user=settings["user"])
    # The name alone of a variable that its caller has not takes away the image's, as with docker.
    env = [f"{name}={value}" for name, value in runs.env.items() if name in given or name not in settings["env"]]
    settings = settings | {"env": env, "workdir": runs.cwd, "user": runs.user}
    container = _container(ImageRoot(image), name, settings)
    return container, _settled(container.plan.roots, runs.argv, terminal, settings)


def _image(root: str, pull: str) -> "Image | None":
    """The image of this name, if that is what is meant: no path, and it is here or in its registry."""
    if root == "host" or root.startswith(("/", ".")):
        return None
    # What they bring along takes longer to be loaded than a container to be started.
    from kernel_lab.images import store
    from kernel_lab.images.image import Image
    from kernel_lab.images.reference import Reference

    own = root in ("busybox", "debian") or os.path.isdir(root)
    if own and not (state.data_path() / "images").is_dir():
        return None
    try:
        if pull != ALWAYS:
            return Image.find(store.local(), root)
    except UsageError:
        if own:
            return None
        if pull == NEVER:
            raise
        click.echo(f"Unable to find image {Reference.parse(root).familiar!r} locally", err=True)
    return _pulled(root)


def _pulled(name: str) -> "Image":
    from kernel_lab.images import store
    from kernel_lab.images.image import Image
    from kernel_lab.registry.progress import automatic
    from kernel_lab.registry.pull import pull

    kept = store.local()
    return Image(kept, pull(name, kept, progress=automatic(partial(click.echo, err=True))).image)


def _container(root: Path | Root | None, name: str | None, settings: dict[str, Any]) -> Container:
    cwd = settings["workdir"]
    mount = Mount(
        root,
        readonly=settings["read_only"],
        directories=[cwd] if isinstance(root, Overlay) and cwd and cwd.strip("/") else (),
        binds=[Bind.parse(text) for text in settings["volume"]],
        tmpfs=settings["tmpfs"],
    )
    parts: list[Part] = [UTS(settings["hostname"] or name or "klab"), mount, IPC(), PID(init=settings["init"])]
    parts += network_parts(settings["network"], settings["ip"])
    parts += _group(limits.words(settings))
    parts += _users(settings["userns"], isinstance(root, Overlay) and root.image is not None and settings["user"] is not None)
    return Container(*parts, name=name)


def _users(asked: str | None, several: bool) -> list[Part]:
    """Whose ids. An ordinary user's container has his alone; where an image's command is one of `several` users', those that he was granted, too."""
    if asked == "host" or (asked is None and os.geteuid() == 0):
        return []
    if asked is None and several:
        return [User.granted()]
    return [User.subordinate() if asked == "subordinate" else User()]


def _root(path: Path, settings: dict[str, Any]) -> Path | Root | None:
    if settings["layers"]:
        return Overlay(path)
    return None if str(path) == "/" else path


def _group(words: Words) -> list[Part]:
    """A group of its own, so that `klab stats` has something to read; without limits only where the user may make one."""
    group = Cgroup(accounting=True, **words)
    try:
        Plan([group])
    except UsageError:
        return [Cgroup(**words)] if words else []
    return [group]


def network_parts(network: str, address: str | None = None) -> list[Net]:
    """The network that a word means: none for the host's own. Raises UsageError for one that is not known."""
    if address and network in ("none", "host", "user"):
        raise UsageError(f"--ip {address}: an address is given on a bridge, and --network {network} has none; say --network bridge")
    if network == "host":
        return []
    if network == "none":
        return [Net()]
    if network == "user":
        return [Net(Usermode())]
    if network != "bridge" and not network.startswith("klab"):
        raise UsageError(f"--network {network}: there is none, host, bridge, user, and a bridge's name, which begins with klab")
    return [Net(Bridge() if network == "bridge" else Bridge(network), address)]


def _settled(roots: tuple[str, ...], words: tuple[str, ...], terminal: bool, settings: dict[str, Any]) -> Command:
    given = _variables(settings["env"])
    if terminal:
        given.setdefault("TERM", os.environ.get("TERM", "xterm"))
    return commands.settled(
        roots,
        # One word is a program here, not a line to be split: the shell has split it.
        words if len(words) > 1 else (shlex.quote(words[0]),),
        env=given,
        cwd=settings["workdir"],
        user=settings["user"],
        rlimits=dict(_limit(text) for text in settings["ulimit"]),
        terminal=terminal,
    )


def _variables(texts: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE`, or the NAME of one of the caller's own; one that he has not either is left out."""
    found: dict[str, str] = {}
    for name, equals, value in (text.partition("=") for text in texts):
        if equals or name in os.environ:
            found[name] = value if equals else os.environ[name]
        else:
            found.pop(name, None)
    return found


def _limit(text: str) -> tuple[str, tuple[int, int]]:
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    try:
        return name, (int(soft), int(hard or soft))
    except ValueError as error:
        raise UsageError(f"ulimit {text!r}: it is written NAME=SOFT or NAME=SOFT:HARD") from error
