"""`klab doctor`, `cleanup`, `bench` and `version`."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
from tabulate import tabulate

from kernel_lab import cleanup as cleaning
from kernel_lab.course import doctor as examining


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> int:
    """Each thing that a lab needs: is it there, and what mends it. Ends with 1 if something is lacking."""
    findings = examining.examine()
    click.echo(json.dumps(examining.as_rows(findings), indent=1) if as_json else examining.table(findings))
    return 0 if examining.healthy(findings) else 1


@click.command()
@click.option("--yes", is_flag=True, help="Remove them; without it they are listed only.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def cleanup(yes: bool, as_json: bool) -> None:
    """What the kit has left behind where its creator has died; nothing that lives, and nothing of anybody else's."""
    found = cleaning.leftovers()
    rows = [{"kind": left.kind, "name": left.name, "why": left.why} for left in found]
    if yes:
        cleaning.remove(found)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif not rows:
        click.echo("nothing is left behind")
    else:
        click.echo(tabulate([row.values() for row in rows], ("kind", "name", "why"), disable_numparse=True))
        click.echo("removed" if yes else "nothing has been removed: klab cleanup --yes removes them")


@click.group()
def bench() -> None:
    """Measured comparisons."""


@bench.command()
@click.option("--rounds", default=30, show_default=True, help="Repetitions.")
@click.option("--case", "cases", multiple=True, help="Only this case.")
@click.option("--plot", type=click.Path(dir_okay=False), help="A picture into this file.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def start(rounds: int, cases: tuple[str, ...], plot: str | None, as_json: bool) -> int:
    """How long a container takes from start to end: this kit, the same in C, and other runtimes."""
    from kernel_lab.benchmarks.start import bench_start

    return bench_start(rounds, as_json, plot, cases or None)


@bench.command()
@click.option("--rounds", default=3, show_default=True, help="Repetitions.")
@click.option("--count", default=20, show_default=True, help="Containers in a fleet.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def layers(rounds: int, count: int, as_json: bool) -> None:
    """What a fleet of containers on one root costs in time, disk and page cache: overlay, AUFS, and copies."""
    from kernel_lab.benchmarks.fleet import measure

    report = measure(rounds, count)
    click.echo(report.json() if as_json else str(report))


@bench.command()
@click.option("--count", default=500, show_default=True, help="At most, of each contestant.")
@click.option("--who", multiple=True, help="Only this contestant.")
@click.option("--plot", type=click.Path(dir_okay=False), help="A picture into this file.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with what each next one took.")
def density(count: int, who: tuple[str, ...], plot: str | None, as_json: bool) -> int:
    """How many idle containers or machines fit, and the time and memory of each next one: this kit, other runtimes, QEMU, KVM, Xen."""
    from kernel_lab.benchmarks.density import bench_density

    return bench_density(count, who or None, as_json, plot)


@bench.command()
@click.option("--rounds", default=5, show_default=True, help="Repetitions.")
@click.option("--case", "cases", multiple=True, help="Only this case.")
@click.option("--image", help="One of klab images; without it, Debian's, which is made once.")
@click.option("--into", type=click.Path(path_type=Path), help="Where all is unpacked and written, as /dev/shm; without it, beside klab images.")
@click.option("--plot", type=click.Path(dir_okay=False), help="A picture into this file.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def images(rounds: int, cases: tuple[str, ...], image: str | None, into: Path | None, plot: str | None, as_json: bool) -> int:
    """Unpacking an image, making a layer, copying an image, a first start on one: this kit, tar, umoci, skopeo."""
    from kernel_lab.benchmarks.images_speed import bench_images

    return bench_images(rounds, as_json, plot, cases or None, image, into)


@bench.command()
@click.option("--rounds", default=3, show_default=True, help="Repetitions.")
@click.option("--size", default="1G", show_default=True, help="Of the blob.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def registry(rounds: int, size: str, as_json: bool) -> int:
    """How fast a registry takes and gives a large blob, and in how much memory: this kit's, and docker's own."""
    from kernel_lab.benchmarks.registry_speed import bench_registry
    from kernel_lab.cgroups.amounts import size as amount

    return bench_registry(rounds, as_json, amount(size, "--size"))


@bench.command()
@click.option("--rounds", default=20, show_default=True, help="Repetitions, of containers.")
@click.option("--guest-rounds", default=3, show_default=True, help="Repetitions, of virtual machines.")
@click.option("--crowd", default=100, show_default=True, help="Idle containers to see what the next one takes.")
@click.option("--guests", default=2, show_default=True, help="Idle virtual machines, for the same.")
@click.option("--who", multiple=True, help="Only this row.")
@click.option("--case", "cases", multiple=True, help="Only this column.")
@click.option("--anew", is_flag=True, help="Measure what is there already, too.")
@click.option("--plot", type=click.Path(dir_okay=False), help="A picture into this file, and all numbers as JSON beside it.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def compare(
    rounds: int,
    guest_rounds: int,
    crowd: int,
    guests: int,
    who: tuple[str, ...],
    cases: tuple[str, ...],
    anew: bool,
    plot: str | None,
    as_json: bool,
) -> int:
    """Containers and virtual machines side by side. Each row is kept: an interrupted run goes on where it was."""
    from kernel_lab.benchmarks.compare import Size, bench_compare

    return bench_compare(Size(rounds, guest_rounds, crowd, guests), who or None, cases or None, anew, as_json, plot)


@click.command(name="version")
def version_command() -> None:
    """The kit's version, the kernel's and Python's."""
    try:
        own = version("kernel_lab")
    except PackageNotFoundError:
        own = "from its source"
    click.echo(f"kernel_lab {own}, Linux {platform.release()}, Python {platform.python_version()}")


COMMANDS = (doctor, cleanup, bench, version_command)
