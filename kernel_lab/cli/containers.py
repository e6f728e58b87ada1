"""`klab ps`, `logs`, `inspect`, `stop`, `kill`, `wait`, `rm`: the containers that any process of this user has started."""

import dataclasses
import json
import os
import re
import select
import signal as signals
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
from tabulate import tabulate

from kernel_lab import records
from kernel_lab.cli.words import ago
from kernel_lab.kernel.errors import UsageError
from kernel_lab.records import Record

GRACE = 10.0
PATIENCE = 5.0
REAL_TIME = re.compile(r"RT(MIN|MAX)([+-]\d+)?")


@dataclass(frozen=True)
class Target:
    """A running container of anybody's: its record, and its first process, held by a descriptor."""

    record: Record
    pidfd: int

    @property
    def pid(self) -> int:
        """The first process's number."""
        return self.record.pid


@contextmanager
def opened(name: str) -> Iterator[Target]:
    """The running container of that name or id. Raises UsageError when there is none."""
    record = records.find(name)
    pidfd = -1
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(record.pid)
    try:
        if pidfd < 0 or not record.alive():  # asked after the descriptor was opened: from here on the number is nobody else's
            raise UsageError(f"{record.name}: it is not running")
        yield Target(record, pidfd)
    finally:
        if pidfd >= 0:
            os.close(pidfd)


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Those that have ended, too.")
@click.option("--quiet", "-q", is_flag=True, help="Ids alone.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def ps(everything: bool, quiet: bool, as_json: bool) -> None:
    """List containers."""
    found = [record for record in records.all() if record.alive() or (everything and record.code is not None)]
    if quiet:
        for record in found:
            click.echo(record.id)
    elif as_json:
        click.echo(json.dumps([described(record) for record in found], indent=1))
    else:
        rows = [(record.id, record.image or "", " ".join(record.command)[:40], ago(record.created), _state(record), record.name) for record in found]
        click.echo(tabulate(rows, ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAME"), tablefmt="plain", disable_numparse=True))


def _state(record: Record) -> str:
    return "Up" if record.alive() else f"Exited ({record.code})"


def described(record: Record) -> dict[str, object]:
    """All that is recorded of a container, and whether it runs."""
    return {**dataclasses.asdict(record), "state": "running" if record.alive() else "exited"}


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on until it ends.")
@click.argument("container")
def logs(follow: bool, container: str) -> None:
    """What a container in the background has written."""
    record = records.find(container)
    if record.log is None:
        raise UsageError(f"{record.name}: it is in the foreground of a terminal or a notebook, and has no log")
    with Path(record.log).open("rb") as log:
        while True:
            alive = record.alive()  # asked before reading: what it writes last must not be missed
            click.echo(log.read(), nl=False)
            if not (follow and alive):
                return
            time.sleep(0.1)


@click.command()
@click.option("--time", "-t", "grace", default=GRACE, type=click.FloatRange(0, 1e6), help="Seconds between SIGTERM and SIGKILL.")
@click.argument("names", nargs=-1, required=True)
def stop(grace: float, names: tuple[str, ...]) -> None:
    """Ask containers to end, and kill those that do not."""
    for name in names:
        with opened(name) as target:
            _send(target, _stop_signal(target.record))
            if not _ended(target, grace):
                _send(target, signals.SIGKILL)
                _ended(target, None)
            click.echo(name)


@click.command()
@click.option("--signal", "-s", "number", default="KILL", help="Its name or number.")
@click.argument("names", nargs=-1, required=True)
def kill(number: str, names: tuple[str, ...]) -> None:
    """Send containers a signal."""
    for name in names:
        with opened(name) as target:
            _send(target, _signal(number))
            click.echo(name)


@click.command()
@click.argument("container")
def wait(container: str) -> None:
    """Wait for the end of a container, and print its exit code."""
    record = records.find(container)
    with suppress(UsageError), opened(record.id) as target:
        _ended(target, None)
    record = _written_down(record)
    if record.code is None:
        raise UsageError(f"{record.name}: it has ended; only the process that made it knows how")
    click.echo(record.code)


@click.command()
@click.option("--force", "-f", is_flag=True, help="Kill it first if it runs.")
@click.argument("names", nargs=-1, required=True)
def rm(force: bool, names: tuple[str, ...]) -> None:
    """Forget containers that have ended."""
    for name in names:
        record = records.find(name)
        if record.alive() and not force:
            raise UsageError(f"{record.name}: it runs; klab stop {record.name} ends it first")
        if record.alive():
            with suppress(UsageError), opened(record.id) as target:
                _send(target, signals.SIGKILL)
                _ended(target, None)
        with suppress(UsageError):  # it was not to be kept, and has gone by itself
            records.drop(_written_down(record).id)
        click.echo(name)


def _written_down(record: Record) -> Record:
    """The record of one that has ended, once its creator has had time to write how it did."""
    end = time.monotonic() + PATIENCE
    while record.code is None and record.creator.alive() and time.monotonic() < end:
        time.sleep(0.02)
        record = records.find(record.id)
    return record


def _send(target: Target, number: int) -> None:
    with suppress(ProcessLookupError):
        signals.pidfd_send_signal(target.pidfd, number)


def _ended(target: Target, seconds: float | None) -> bool:
    return bool(select.select([target.pidfd], [], [], seconds)[0])


def _stop_signal(record: Record) -> int:
    """What its image asks for; SIGTERM for what is no signal here: a container must end."""
    try:
        return _signal(record.stop_signal or "TERM")
    except UsageError:
        return signals.SIGTERM


def _signal(text: str) -> int:
    # systemd's own, SIGRTMIN+3, has no name of its own (signal(7)).
    if found := REAL_TIME.fullmatch(text.upper().removeprefix("SIG")):
        number = (signals.SIGRTMIN if found[1] == "MIN" else signals.SIGRTMAX) + int(found[2] or 0)
        if signals.SIGRTMIN <= number <= signals.SIGRTMAX:
            return number
    try:
        if text.isdecimal() and not 1 <= int(text) <= 64:
            raise UsageError(f"signal {text}: signals are numbered 1 to 64")
        return int(text) if text.isdecimal() else signals.Signals["SIG" + text.upper().removeprefix("SIG")]
    except KeyError as error:
        raise UsageError(f"signal {text!r}: kill -l lists their names") from error


COMMANDS = (ps, logs, stop, kill, wait, rm)
