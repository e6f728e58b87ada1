"""`klab pull`, `push`, `login`, `logout`: images from and to registries, in docker's words."""

import sys

import click

from kernel_lab.images.reference import DOCKER_HUB, Reference
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry import credentials
from kernel_lab.registry.client import Client
from kernel_lab.registry.credentials import Credential
from kernel_lab.registry.progress import Progress, automatic
from kernel_lab.registry.pull import pull as fetch
from kernel_lab.registry.pull import pull_all
from kernel_lab.registry.push import push as send
from kernel_lab.registry.push import push_all


@click.command()
@click.option("--all-tags", "-a", is_flag=True, help="All tagged images of the repository.")
@click.option("--platform", help="OS/ARCHITECTURE[/VARIANT]; without it, this machine's.")
@click.option("--all-platforms", is_flag=True, help="The whole index, with the images of all platforms.")
@click.option("--quiet", "-q", is_flag=True, help="The image's name alone.")
@click.argument("name")
def pull(all_tags: bool, platform: str | None, all_platforms: bool, quiet: bool, name: str) -> None:
    """Fetch an image from a registry."""
    if all_tags and all_platforms:
        raise UsageError("--all-tags and --all-platforms: one tag at a time with all its platforms")
    progress = _progress(quiet)
    if all_tags:
        for pulled in pull_all(name, platform=platform, progress=progress):
            click.echo(pulled.reference)
    else:
        click.echo(fetch(name, platform=platform, all_platforms=all_platforms, progress=progress).reference)


@click.command()
@click.option("--all-tags", "-a", is_flag=True, help="All tagged images of the repository.")
@click.option("--quiet", "-q", is_flag=True, help="The image's name alone.")
@click.argument("name")
def push(all_tags: bool, quiet: bool, name: str) -> None:
    """Send an image to a registry."""
    progress = _progress(quiet)
    for pushed in push_all(name, progress=progress) if all_tags else [send(name, progress=progress)]:
        if quiet:
            click.echo(pushed.reference)


@click.command()
@click.option("--username", "-u", help="Its user.")
@click.option("--password", "-p", help="Seen by everybody who lists processes.")
@click.option("--password-stdin", is_flag=True, help="The password is read from standard input.")
@click.argument("server", default=DOCKER_HUB)
def login(username: str | None, password: str | None, password_stdin: bool, server: str) -> None:
    """Log in to a registry; without one, to docker.io."""
    if password is not None and password_stdin:
        raise UsageError("--password and --password-stdin are mutually exclusive")
    if password_stdin and not username:
        raise UsageError("--password-stdin: say with --username whose password it is")
    if password is not None:
        click.echo("WARNING! Using --password via the CLI is insecure. Use --password-stdin.", err=True)
    registry = _registry(server)
    username = username or click.prompt("Username")
    if password_stdin:
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    elif password is None:
        password = click.prompt("Password", hide_input=True)
    if not username or not password:
        raise UsageError("a name and a password are needed")
    credential = Credential(username, password)
    with Client(registry, credential) as client:
        client.ping()
    place = credentials.store(registry, credential)
    if not place.startswith("docker-credential-"):
        click.echo(f"WARNING! Your password is stored unencrypted in {place}. A credential helper keeps it better (docker login).", err=True)
    click.echo("Login Succeeded")


@click.command()
@click.argument("server", default=DOCKER_HUB)
def logout(server: str) -> None:
    """Forget a registry's password; without a registry, docker.io's."""
    registry = _registry(server)
    click.echo(f"Removing login credentials for {registry}" if credentials.erase(registry) else f"Not logged in to {registry}")


def _progress(quiet: bool) -> Progress:
    return Progress() if quiet else automatic(click.echo)


def _registry(server: str) -> str:
    """docker's help says URL; most people type a host, and some the Hub's old address."""
    host = server.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return Reference(host, "any/name").registry


COMMANDS = (pull, push, login, logout)
