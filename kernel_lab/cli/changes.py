"""`klab inspect`, `diff` and `commit`: what a container is, what it has written, and an image made of that."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import click

from kernel_lab import records
from kernel_lab.cgroups.group import Group
from kernel_lab.cli import containers, images
from kernel_lab.cli.change import OPTION, changed
from kernel_lab.images import store
from kernel_lab.images.commit import commit as committed
from kernel_lab.images.image import Image
from kernel_lab.kernel.errors import UsageError
from kernel_lab.records import Record
from kernel_lab.unionfs.changes import changes


@click.command()
@click.option("--type", "kind", type=click.Choice(["container", "image"]), help="Only one of these.")
@click.argument("names", nargs=-1, required=True)
def inspect(kind: str | None, names: tuple[str, ...]) -> None:
    """All that is known of containers or images, as JSON."""
    click.echo(json.dumps([_described(name, kind) for name in names], indent=4))


def _described(name: str, kind: str | None) -> dict[str, object]:
    if kind != "image":
        try:
            return containers.described(records.find(name))
        except UsageError:
            if kind:
                raise
    return images.described(Image.find(store.local(), name))


@click.command()
@click.argument("container")
def diff(container: str) -> None:
    """What a running container has changed of its image: A added, C changed, D deleted."""
    record = _writing(container)
    click.echo("".join(f"{change}\n" for change in changes(record.layers[0], record.layers[1:])), nl=False)


@click.command()
@click.option("--author", "-a", default="", help="Who has made it.")
@click.option("--message", "-m", "comment", default="", help="What for.")
@OPTION
@click.option("--pause/--no-pause", "-p", default=True, help="Its processes stand still meanwhile, where it has a control group.")
@click.argument("container")
@click.argument("name", required=False)
def commit(author: str, comment: str, lines: tuple[str, ...], pause: bool, container: str, name: str | None) -> None:
    """Make an image of what a running container has written, on top of the image that it was started from."""
    record = _writing(container)
    if not record.image_id:
        raise UsageError(f"{container}: was started from directories and no image, and what it has written lies on nothing that has a name")
    parent = Image.find(store.local(), record.image_id)
    settings = changed(lines, parent.settings)
    said = {"created_by": " ".join(record.command), "author": author, "comment": comment}
    with _paused(record) if pause else nullcontext():
        made = committed(record.layers[0], parent, name, settings=settings, check=lambda: _check_running(record), **said)
    click.echo(made.id)


def _check_running(record: Record) -> None:
    # Its layer goes when it ends.
    if not record.alive():
        raise UsageError(f"{record.name}: it has ended meanwhile, and its layer may not have been read whole; no image has been made")


@contextmanager
def _paused(record: Record) -> Iterator[None]:
    try:
        group = Group.of(record.pid)
    except UsageError:  # it is in none of its own
        yield
        return
    group.freeze()
    try:
        yield
    finally:
        group.thaw()


def _writing(name: str) -> Record:
    """A running container that writes into a layer of its own."""
    record = records.find(name)
    if not record.alive():
        raise UsageError(f"{name}: has ended, and what it has written is gone with it")
    if not record.writes:
        raise UsageError(f"{name}: writes into no layer of its own: start it from an image, or with --layers")
    return record


COMMANDS = (inspect, diff, commit)
