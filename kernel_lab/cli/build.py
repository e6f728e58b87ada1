"""`klab build`: an image from a Dockerfile, with docker's options."""

import os
import sys
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any

import click

from kernel_lab import state
from kernel_lab.cli import limits
from kernel_lab.cli.running import network_parts
from kernel_lab.images import store
from kernel_lab.images.build import BuildError
from kernel_lab.images.build import build as built
from kernel_lab.images.build_context import Context, from_stream, workplace
from kernel_lab.images.build_output import Output, automatic
from kernel_lab.images.descriptor import Platform
from kernel_lab.images.dockerfile import Dockerfile
from kernel_lab.kernel.errors import UsageError

STDIN = "-"


@click.command()
@click.option("--tag", "-t", "tags", multiple=True, help="What the image is called: NAME or NAME:TAG. May be given several times.")
@click.option("--file", "-f", "file", help="The Dockerfile; - for one on the standard input.  [default: PATH/Dockerfile]")
@click.option("--build-arg", "args", multiple=True, help="NAME=VALUE for an ARG, or the NAME of a variable of yours.")
@click.option("--target", help="The stage to be built.")
@click.option("--label", "labels", multiple=True, help="NAME=VALUE, added to the image.")
@click.option("--platform", help="What the image is for: linux/arm64.")
@click.option("--no-cache", is_flag=True, help="Make every step anew.")
@click.option("--pull", is_flag=True, help="Ask the registry for newer base images.")
@click.option("--network", default="none", help="Of every RUN: none (loopback alone), host, bridge, a bridge's name, or user.")
@click.option("--secret", "secrets", multiple=True, help="For RUN --mount=type=secret: id=NAME,src=FILE or id=NAME,env=VARIABLE.")
@click.option("--quiet", "-q", is_flag=True, help="Print the id alone.")
@click.option("--iidfile", type=click.Path(path_type=Path, dir_okay=False), help="A file for the image's id.")
@click.option("--progress", type=click.Choice(["auto", "plain"]), default="auto", help="auto: with a bar in a terminal.")
@click.argument("context", metavar="PATH|-")
def build(
    tags: tuple[str, ...],
    file: str | None,
    args: tuple[str, ...],
    target: str | None,
    labels: tuple[str, ...],
    platform: str | None,
    no_cache: bool,
    pull: bool,
    network: str,
    secrets: tuple[str, ...],
    quiet: bool,
    iidfile: Path | None,
    progress: str,
    context: str,
    **settings: Any,
) -> int:
    """Build an image from a Dockerfile.

    PATH is the directory that COPY takes files from. - reads the standard input: a Dockerfile, and then there are no files; or an archive of a
    directory.
    """
    if iidfile:
        iidfile.unlink(missing_ok=True)  # that of a build before is not this one's
    printed = StringIO()
    with ExitStack() as until:
        try:
            made = built(
                _context(context, file, until),
                tags=tags,
                args=dict(filter(None, map(_argument, args))),
                target=target,
                platform=platform,
                labels=dict(_label(text) for text in labels),
                cache=not no_cache,
                fetch=_fetch,
                pull=pull,
                network=next(iter(network_parts(network)), None),
                limits=limits.words(settings),
                secrets=dict(_secret(text) for text in secrets),
                output=Output(printed) if quiet else automatic() if progress == "auto" else Output(sys.stdout),
            )
        except BuildError as error:
            click.echo(printed.getvalue(), nl=False, err=True)
            click.echo(f"klab: {error}", err=True)
            return error.code
    if iidfile:
        iidfile.write_text(made.image.id)
    if quiet:
        click.echo(made.image.id)
    return 0


for option in reversed(limits.OPTIONS):
    build = option(build)
COMMANDS = (build,)


def _context(path: str, file: str | None, until: ExitStack) -> Context:
    if path != STDIN:
        return Context.read(path, Dockerfile.parse(_stdin()) if file == STDIN else file)
    if file == STDIN:
        raise UsageError("-f - and - both read the standard input: a Dockerfile comes from there, or a context")
    directory = workplace(store.local())
    until.callback(state.discard, directory)
    return from_stream(sys.stdin.buffer, directory, file)


def _stdin() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


def _fetch(name: str, platform: Platform | None) -> object:
    from kernel_lab.registry.pull import pull

    return pull(name, platform=platform)


def _argument(text: str) -> tuple[str, str] | None:
    """Of a NAME alone the caller's own variable, or none: then the ARG has its default."""
    name, equals, value = text.partition("=")
    if not name:
        raise UsageError(f"--build-arg {text!r}: it is written NAME=VALUE, or NAME for a variable of yours")
    if equals:
        return name, value
    return (name, os.environ[name]) if name in os.environ else None


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise UsageError(f"--label {text!r}: it is written NAME=VALUE")
    return name, value


def _secret(text: str) -> tuple[str, bytes]:
    fields = dict(word.partition("=")[::2] for word in text.split(","))
    name, file, variable = fields.get("id"), fields.get("src") or fields.get("source"), fields.get("env")
    if name and variable is not None:
        return name, os.environb.get(os.fsencode(variable), b"")
    if not name or not file:
        raise UsageError(f"--secret {text!r}: it is written id=NAME,src=FILE or id=NAME,env=VARIABLE")
    try:
        return name, Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"--secret {text!r}: {file}: {error.strerror}") from error
