"""The controllers that version 2 has left as they were: cpuset and pids."""

from collections.abc import Iterator
from typing import Any

from kernel_lab.cgroups.amounts import UNLIMITED
from kernel_lab.cgroups.files import read, read_number
from kernel_lab.cgroups.limits import Limits
from kernel_lab.cgroups.stats import limit


def cpuset(limits: Limits) -> Iterator[tuple[str, str]]:
    if limits.cpuset is not None:
        yield "cpuset.cpus", limits.cpuset


def pids(limits: Limits) -> Iterator[tuple[str, str]]:
    if limits.pids is not None:
        yield "pids.max", "max" if limits.pids == UNLIMITED else str(limits.pids)


def pids_used(directory: str) -> dict[str, Any]:
    return {"pids": int(read(f"{directory}/pids.current")), "pids_limit": limit(read_number(f"{directory}/pids.max", UNLIMITED))}
