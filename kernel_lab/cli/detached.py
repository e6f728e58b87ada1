"""`klab run -d`: nothing outlives its creator, so a container in the background has a creator in the background, which keeps its log and its end."""

import dataclasses
import os
import signal
import subprocess
import sys

import click

from kernel_lab import records, state
from kernel_lab.command import Command
from kernel_lab.container import Container

VARIABLE = "KERNEL_LAB_MONITOR"


def told() -> int | None:
    """The descriptor on which the foreground waits for the container's id, in the process that is its background."""
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return None
    os.set_inheritable(int(number), False)
    return int(number)


def monitored(arguments: list[str], tell: int | None, container: Container, command: Command, keep: bool) -> int:
    """The same command line again, as a process in the background that becomes the container's creator; prints the container's id."""
    if tell is not None:
        _monitor(tell, container, command, keep)
        return 0
    answer, question = os.pipe()
    with open(answer, encoding="utf-8") as told:
        try:
            monitor = subprocess.Popen(
                [sys.executable, "-m", "kernel_lab.cli", *arguments],
                env=os.environ | {VARIABLE: str(question)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[question],
                start_new_session=True,
            )
        finally:
            os.close(question)
        identifier = told.read()
    if identifier:
        click.echo(identifier)
        monitor.returncode = 0  # it goes on; nobody here waits for it
        return 0
    assert monitor.stderr
    click.echo(monitor.stderr.read().decode(errors="replace"), nl=False, err=True)
    return monitor.wait()


def _monitor(tell: int, container: Container, command: Command, keep: bool) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: container.signal(signal.SIGKILL))
    container.start_command(command)
    identifier = container.id
    with open(tell, "w", encoding="utf-8") as answer:
        answer.write(identifier)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    code = container.wait()
    if keep:
        _keep(container, code)
    container.kill()


def _keep(container: Container, code: int) -> None:
    """Its log under a name that is nobody's, and its record with its exit code, until `klab rm`."""
    record = records.find(container.id)
    assert record.log
    kept = state.folder("logs") / f"{record.id}.log"
    os.replace(record.log, kept)
    container.keep(dataclasses.replace(record, log=str(kept), code=code))
