"""The machine that a number was measured on: no number means anything without it."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path


def machine(peers: Mapping[str, str]) -> dict[str, object]:
    """What the measured times depend on, with the versions of those that were measured."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "peers": dict(peers),
    }


def _field(file: str, name: str) -> str | None:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
