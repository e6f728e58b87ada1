"""Docker's options for limits, and what they are in the kit's words."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import click

from kernel_lab.cgroups.amounts import UNLIMITED, size
from kernel_lab.cgroups.devices import USUAL
from kernel_lab.cgroups.limits import Words, weight_of_shares
from kernel_lab.kernel.errors import UsageError

OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option("--memory", "-m", help="At most so many bytes of memory: 64M."),
    click.option("--memory-swap", help="Memory and swap together; -1 for as much swap as there is."),
    click.option("--cpus", help="At most so much time, in CPUs: 0.5."),
    click.option("--cpu-shares", "-c", type=click.IntRange(2, 262144), help="Its weight against others, who have 1024."),
    click.option("--cpuset-cpus", help="The CPUs to run on: 0-1,3."),
    click.option("--pids-limit", help="At most so many processes and threads; -1 for no limit."),
    click.option("--device-read-bps", multiple=True, help="DISK:BYTES a second, as /dev/vda:1M"),
    click.option("--device-write-bps", multiple=True, help="DISK:BYTES a second"),
    click.option("--device-read-iops", multiple=True, help="DISK:OPERATIONS a second"),
    click.option("--device-write-iops", multiple=True, help="DISK:OPERATIONS a second"),
    click.option("--device-cgroup-rule", multiple=True, help="A device that may be used besides the usual ones, and then no others: c 10:229 rwm"),
)


def words(settings: dict[str, Any]) -> Words:
    """What has been asked for; nothing where no option was given. Raises UsageError for what cannot be read."""
    found = {
        "memory": settings["memory"],
        "swap": _swap(settings["memory"], settings["memory_swap"]),
        "cpus": settings["cpus"],
        "cpu_weight": weight_of_shares(settings["cpu_shares"]) if settings["cpu_shares"] else None,
        "cpuset": settings["cpuset_cpus"],
        "pids": _or_max(settings["pids_limit"]),
        "read_bps": _by_disk(settings["device_read_bps"]),
        "write_bps": _by_disk(settings["device_write_bps"]),
        "read_iops": _by_disk(settings["device_read_iops"]),
        "write_iops": _by_disk(settings["device_write_iops"]),
        "devices": (*USUAL, *settings["device_cgroup_rule"]) if settings["device_cgroup_rule"] else None,
    }
    return cast(Words, {name: value for name, value in found.items() if value is not None})


def _or_max(text: str | None) -> str | None:
    return "max" if text == "-1" else text


def _swap(memory: str | None, together: str | None) -> int | str | None:
    """Swap alone: docker counts it together with memory."""
    if together is None or together == "-1":
        return _or_max(together)
    if memory is None:
        raise UsageError(f"--memory-swap {together}: it is memory and swap together, and needs --memory")
    swap = size(together, "--memory-swap") - size(memory, "--memory")
    if swap < 0 or size(memory, "--memory") == UNLIMITED:
        raise UsageError(f"--memory-swap {together}: it is memory and swap together, and so not less than --memory {memory}")
    return swap


def _by_disk(texts: Sequence[str]) -> dict[str, str] | None:
    return dict(_disk(text) for text in texts) or None


def _disk(text: str) -> tuple[str, str]:
    disk, colon, rate = text.rpartition(":")
    if not colon or not disk or not rate:
        raise UsageError(f"{text!r}: a limit of a disk is written DISK:LIMIT, as /dev/vda:1M")
    return disk, rate
