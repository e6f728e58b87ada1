"""`klab registry`: a registry of one's own, and what goes when nobody needs it."""

import json
import signal
from pathlib import Path

import click

from kernel_lab import state
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry.collect import GRACE, collect
from kernel_lab.registry.repositories import Repositories
from kernel_lab.registry.server import LOOPBACK, Registry

PORT = 5000  # docker's
ENDS = (signal.SIGINT, signal.SIGTERM)

_DATA = click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="The registry's folder.  [default: a folder of the kit's]")
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def registry() -> None:
    """A registry of images, as the OCI distribution specification has it."""


@registry.command()
@click.option("--address", default=LOOPBACK, show_default=True, help="Where it listens.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="0 takes one that is free.")
@_DATA
@click.option("--htpasswd", type=_FILE, help="The users: a file that htpasswd -B has made. Without it, everybody may do everything.")
@click.option("--private", multiple=True, metavar="PATTERN", help="Repositories that only users may pull: 'lab/*', or '*' for all.")
@click.option("--public", multiple=True, metavar="PATTERN", help="Exceptions from --private.")
@click.option("--tls-cert", type=_FILE, help="A certificate, in PEM.")
@click.option("--tls-key", type=_FILE, help="Its key.")
@click.option("--quiet", "-q", is_flag=True, help="Without a line for each request.")
def serve(
    address: str,
    port: int,
    data: Path | None,
    htpasswd: Path | None,
    private: tuple[str, ...],
    public: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    quiet: bool,
) -> None:
    """Serve a registry until SIGTERM or SIGINT."""
    # Blocked in all threads from now on. To a handler the main thread comes only when it wakes up, and another one may have got the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    serving = Registry(
        _folder(data),
        address=address,
        port=port,
        users=htpasswd,
        private=private,
        public=public,
        certificate=tls_cert,
        key=tls_key,
        shown=None if quiet else lambda answered: click.echo(str(answered)),
    )
    with serving:
        click.echo(f"serving {serving.path} at {serving.url}", err=True)
        if htpasswd and not tls_cert and address not in (LOOPBACK, "localhost", "::1"):
            click.echo("without --tls-cert, whoever is on the way can read the users' passwords", err=True)
        signal.sigwait(ENDS)


@registry.command(name="garbage-collect")
@_DATA
@click.option("--grace", default=GRACE, show_default=True, type=click.FloatRange(0), help="Seconds that something stays though nothing needs it yet.")
@click.option("--untagged", is_flag=True, help="Manifests without a tag, too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def garbage_collect(data: Path | None, grace: float, untagged: bool, as_json: bool) -> None:
    """Remove what no manifest needs, and uploads that nobody goes on with. The registry may serve meanwhile."""
    folder = _folder(data)
    if not folder.exists():
        raise UsageError(f"{folder}: there is no registry")
    gone = collect(Repositories(folder), grace, untagged)
    if as_json:
        click.echo(json.dumps(gone._asdict(), indent=1))
        return
    for kind in ("manifests", "blobs", "uploads"):
        for name in getattr(gone, kind):
            click.echo(f"{kind.removesuffix('s')} {name}")
    click.echo(f"{gone.size} bytes are free again")


def _folder(data: Path | None) -> Path:
    return data or state.data_dir() / "registry"


COMMANDS = (registry,)
