"""`klab save`, `load`, `import` and `export`: images and containers as tar archives."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import click

from kernel_lab import records, state
from kernel_lab.cli.change import OPTION, changed
from kernel_lab.cli.containers import Target, opened
from kernel_lab.images import platforms, store
from kernel_lab.images.exporting import export_image, export_root
from kernel_lab.images.image import Image
from kernel_lab.images.importing import import_ as imported
from kernel_lab.images.loading import load as loaded
from kernel_lab.images.reference import familiar
from kernel_lab.images.saving import save as saved
from kernel_lab.kernel.errors import UsageError

CHUNK = 1 << 18
_OUTPUT = click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="A file; without it, standard output.")


@click.command()
@_OUTPUT
@click.argument("names", nargs=-1, required=True)
def save(output: Path | None, names: tuple[str, ...]) -> None:
    """Write images into an archive, which docker, podman and skopeo read, too."""
    _write(output, saved(store.local(), names))


@click.command()
@click.option("--input", "-i", "source", type=click.Path(path_type=Path), help="A file; without it, standard input.")
@click.option("--quiet", "-q", is_flag=True, help="No word of what has come.")
def load(source: Path | None, quiet: bool) -> None:
    """Read images from an archive: of docker's in every age, or of OCI's."""
    kept = store.local()
    with _chunks(source) as chunks:
        found = loaded(kept, chunks)
    for one in found if not quiet else ():
        for name in one.names:
            click.echo(f"Loaded image: {familiar(name)}")
        if not one.names:
            click.echo(f"Loaded image ID: {Image.find(kept, one.image.digest).id}")


@click.command(name="import")
@OPTION
@click.option("--message", "-m", default="", help="A line for its history.")
@click.option("--platform", help="What it runs on; without it, this machine's: linux/arm64.")
@click.argument("source", metavar="FILE|-")
@click.argument("name", required=False)
def import_(lines: tuple[str, ...], message: str, platform: str | None, source: str, name: str | None) -> None:
    """Make an image of an archive of files, its only layer."""
    runs_on = platforms.parse(platform) if platform else None
    settings = changed(lines, {})
    with _chunks(None if source == "-" else Path(source)) as chunks:
        click.echo(imported(store.local(), chunks, name, settings=settings, message=message, platform=runs_on).id)


@click.command()
@_OUTPUT
@click.argument("name", metavar="CONTAINER|IMAGE")
def export(output: Path | None, name: str) -> None:
    """Write the files of a running container, or of an image, into an archive: no layers, and nothing that is mounted in it."""
    skipped = partial(click.echo, err=True)
    if any(name in (record.name, record.id) for record in records.all()):
        with opened(name) as target:
            _write(output, _to_the_end(target, export_root(target.pid, skipped=skipped)))
    else:
        _write(output, export_image(Image.find(store.local(), name), skipped=skipped))


def _to_the_end(target: Target, chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield from chunks
    # Its layer goes when it ends, and what was read after that was the image's alone.
    if not target.record.alive():
        raise UsageError(f"{target.record.name}: it has ended meanwhile, and what has been written is not all of it")


def _write(output: Path | None, chunks: Iterable[bytes]) -> None:
    """Into a file that is there whole or not at all; a terminal would take the bytes for commands."""
    if output is None:
        if sys.stdout.isatty():
            raise UsageError("an archive is nothing for a terminal: name a file with --output, or redirect the output")
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    output = Path(os.path.realpath(output))
    if output.exists() and not output.is_file():
        raise UsageError(f"--output {output}: is no file, and would be replaced by one; leave the option away, and redirect the output")
    half = output.with_name(f".{output.name}.{state.Creator.this().stamp}")
    try:
        # A tree has files in it that only some may read.
        with open(half, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            for chunk in chunks:
                file.write(chunk)
        os.replace(half, output)
    finally:
        half.unlink(missing_ok=True)


@contextmanager
def _chunks(source: Path | None) -> Iterator[Iterator[bytes]]:
    file: BinaryIO = sys.stdin.buffer if source is None else open(source, "rb")  # noqa: SIM115
    if source is None and file.isatty():
        raise UsageError("an archive is read from a file, which --input names, or from a pipe")
    try:
        yield iter(partial(file.read, CHUNK), b"")
    finally:
        if source is not None:
            file.close()


COMMANDS = (save, load, import_, export)
