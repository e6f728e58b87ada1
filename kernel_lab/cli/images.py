"""`klab image …` and docker's shorter words for the same: the images that are kept here."""

import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click
from tabulate import tabulate

from kernel_lab import records
from kernel_lab.cli.lazy import Lazy
from kernel_lab.cli.words import ago, size
from kernel_lab.images import base, build_cache, platforms, snapshots, store
from kernel_lab.images.descriptor import Descriptor
from kernel_lab.images.image import Image, Step, images
from kernel_lab.images.reference import Reference, familiar
from kernel_lab.images.store import Store, name_of
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry import partial
from kernel_lab.unionfs.changes import difference

NONE = "<none>"
LONGEST_LINE = 60


@click.group(cls=Lazy, modules={"archives": "save load import", "build": "build", "remote": "pull push"})
def image() -> None:
    """Images: what containers are started from."""


@image.command()
@click.option("--suite", help="Of Debian's; without it, this machine's own.")
@click.option("--tag", "-t", "name", help="What it is called; without it busybox, or debian:SUITE.")
@click.argument("what", type=click.Choice(["busybox", "debian"]))
def make(suite: str | None, name: str | None, what: str) -> None:
    """Make an image of this machine's packages, without a registry. Debian takes a minute."""
    made = base.make(what, store.local(), name, suite)
    click.echo(made.id)


@click.command(name="ls")
@click.option("--quiet", "-q", is_flag=True, help="Ids alone.")
@click.option("--no-trunc", is_flag=True, help="Ids whole.")
@click.option("--digests", is_flag=True, help="Digests of the manifests, too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--all", "-a", "everything", is_flag=True, help="Those of a build's steps, too, which have no name and are its cache.")
@click.argument("name", required=False)
def list_images(quiet: bool, no_trunc: bool, digests: bool, as_json: bool, everything: bool, name: str | None) -> None:
    """List images, the latest first, or only those of one repository. SIZE: as they travel, compressed."""
    rows = sorted(_rows(store.local(), name, everything), key=lambda row: row["created"] or "", reverse=True)
    if quiet:
        click.echo("".join(f"{row['id'] if no_trunc else _short(row['id'])}\n" for row in rows), nl=False)
    elif as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        headers = ["REPOSITORY", "TAG", *(["DIGEST"] if digests else []), "IMAGE ID", "CREATED", "SIZE"]
        click.echo(_table([_cells(row, no_trunc, digests) for row in rows], headers))


def _rows(kept: Store, repository: str | None, everything: bool) -> Iterable[dict[str, Any]]:
    asked = Reference.parse(repository).name if repository else None
    hidden = set() if everything else build_cache.intermediate(kept)
    for descriptor in kept.images():
        if descriptor.digest in hidden:
            continue
        name = name_of(descriptor)
        reference = _reference(name)
        if asked and (reference is None or reference.name != asked):
            continue
        try:
            found = Image.find(kept, descriptor.digest)
        except UsageError as error:
            click.echo(f"klab: {name or descriptor.digest}: {error}", err=True)
            continue
        yield {
            "repository": reference.familiar_name if reference else name,
            "tag": reference.tag if reference else None,
            "digest": descriptor.digest,
            "id": found.id,
            "created": found.config.created,
            "size": found.size,
        }


def _reference(name: str | None) -> Reference | None:
    try:
        return Reference.parse(name) if name else None
    except UsageError:  # what another program has written there
        return None


def _cells(row: dict[str, Any], whole: bool, digests: bool) -> list[str]:
    digest = [row["digest"] if whole else row["digest"][:19]] if digests else []
    name = [row["repository"] or NONE, row["tag"] or NONE]
    return [*name, *digest, row["id"] if whole else _short(row["id"]), _created(row["created"]), size(row["size"])]


@click.command()
@click.option("--platform", help="Of an index, the image for this one: linux/arm64.")
@click.argument("names", nargs=-1, required=True)
def inspect(platform: str | None, names: tuple[str, ...]) -> None:
    """All that is known of images, as JSON in docker's words."""
    click.echo(json.dumps([described(_find(name, platform)) for name in names], indent=4))


def described(found: Image) -> dict[str, Any]:
    """An image in docker's words, and its layers by all three digests."""
    references = [reference for name in found.names if (reference := _reference(name))]
    config = found.config
    return {
        "Id": found.id,
        "RepoTags": [reference.familiar for reference in references],
        "RepoDigests": sorted({f"{reference.familiar_name}@{found.descriptor.digest}" for reference in references}),
        "Comment": next((step.line["comment"] for step in reversed(found.history) if step.line.get("comment")), ""),
        "Created": config.created,
        "Author": config.author or "",
        "Config": dict(config.config),
        "Architecture": config.architecture,
        "Variant": config.variant or "",
        "Os": config.os,
        "Size": found.size,
        "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
        "Descriptor": found.descriptor.json(),
        "Layers": [{"DiffID": layer.diff_id, "ChainID": layer.chain_id, "Blob": layer.blob.json()} for layer in found.layers],
    }


@click.command()
@click.option("--no-trunc", is_flag=True, help="Lines and digests whole.")
@click.option("--quiet", "-q", is_flag=True, help="DiffIDs alone.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.argument("name")
def history(no_trunc: bool, quiet: bool, as_json: bool, name: str) -> None:
    """How an image came to be, the latest step first. SIZE: of the step's layer, compressed."""
    steps = list(reversed(_find(name).history))
    if quiet:
        click.echo("".join(f"{step.layer.diff_id}\n" for step in steps if step.layer), nl=False)
    elif as_json:
        click.echo(json.dumps([_step(step) for step in steps], indent=1))
    else:
        rows = [
            (
                (step.layer.diff_id if no_trunc else _short(step.layer.diff_id)) if step.layer else "",
                _created(step.line.get("created")),
                _line(step, no_trunc),
                size(step.layer.blob.size if step.layer else 0),
                step.line.get("comment", ""),
            )
            for step in steps
        ]
        click.echo(_table(rows, ["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"]))


@click.command()
@click.argument("source")
@click.argument("name")
def tag(source: str, name: str) -> None:
    """Give an image one more name."""
    kept = store.local()
    kept.tag(kept.resolve(source), name)


@click.command()
@click.option("--force", "-f", is_flag=True, help="Also one of several names, or that a running container was started from: it goes on.")
@click.argument("names", nargs=-1, required=True)
def rm(force: bool, names: tuple[str, ...]) -> None:
    """Remove names, and with an image's last one the image, and what no other image needs of it."""
    kept = store.local()
    for name in names:
        found = kept.resolve(name)
        before = _names(kept, found)
        if not force:
            _check_removal(kept, name, found, before)
        gone = kept.remove(name)
        for called in sorted(before - _names(kept, found)):
            click.echo(f"Untagged: {familiar(called)}")
        click.echo("".join(f"Deleted: {digest}\n" for digest in gone), nl=False)
    snapshots.beside(kept).prune(kept)


def _names(kept: Store, descriptor: Descriptor) -> set[str]:
    return {name for other in kept.images() if other.digest == descriptor.digest and (name := name_of(other))}


def _check_removal(kept: Store, name: str, descriptor: Descriptor, names: set[str]) -> None:
    named = bool(kept.named(name))
    if named and len(names) > 1:
        return  # the image stays, under another name
    if not named and len(names) > 1:
        raise UsageError(f"{name}: has several names: {', '.join(sorted(map(familiar, names)))}; remove these one by one, or all with --force")
    for found in images(kept, descriptor):
        if users := _users(found):
            raise UsageError(f"{name}: container {users[0]} runs on it; stop that first, or say --force")


def _users(found: Image) -> list[str]:
    """The names of the running containers that were started from an image."""
    return [record.name for record in records.all() if record.image_id == found.id and record.alive()]


@image.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Those with a name, too.")
@click.option("--force", "-f", is_flag=True, help="Do not ask.")
def prune(everything: bool, force: bool) -> None:
    """Remove images that have no name, unless a running container was started from them, and what is left of others."""
    what = "All images" if everything else "All images that have no name"
    if not force and not click.confirm(f"{what} will be removed, but for those that a running container was started from. Go on?"):
        return
    kept = store.local()
    used = {descriptor.digest for descriptor in kept.images() if any(map(_users, images(kept, descriptor)))}
    for digest in {descriptor.digest for descriptor in kept.images()} - used if everything else ():
        with suppress(UsageError):  # somebody else has removed it just now
            kept.remove(digest)
    partial.discard_old(kept.path, 0)
    gone = kept.prune(unnamed=True, but=used)
    unpacked = snapshots.beside(kept).prune(kept)
    click.echo("".join(f"Deleted: {name}\n" for name in (*gone.digests, *unpacked)), nl=False)


@image.command()
@click.argument("name")
@click.argument("other", required=False)
def diff(name: str, other: str | None) -> None:
    """What an image's topmost layer changes of those below it; with OTHER, what OTHER has that the first one has not, and the other way round."""
    unpacked = snapshots.beside(store.local())
    old, new = unpacked.directories(_find(name)), unpacked.directories(_find(other)) if other else ()
    pair = (new, old) if other else (old, old[1:])
    click.echo("".join(f"{change}\n" for change in difference(*pair)), nl=False)


def _step(step: Step) -> dict[str, Any]:
    layer = {"diff_id": step.layer.diff_id, "size": step.layer.blob.size} if step.layer else {}
    return dict(step.line) | layer


def _line(step: Step, whole: bool) -> str:
    text = " ".join(str(step.line.get("created_by", "")).split())
    return text if whole or len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


def _find(name: str, platform: str | None = None) -> Image:
    return Image.find(store.local(), name, platforms.parse(platform) if platform else None)


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def _created(text: str | None) -> str:
    """How long ago; nothing for a time that says nothing, as of reproducible images, or is none."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return ""
    return ago((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _table(rows: Iterable[Iterable[str]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True)


for command in (list_images, inspect, rm, tag, history):
    image.add_command(command)
images_command = click.Command("images", callback=list_images.callback, params=list_images.params, help=list_images.help)
rmi = click.Command("rmi", callback=rm.callback, params=rm.params, help=rm.help)
COMMANDS = (image, images_command, rmi, tag, history)
