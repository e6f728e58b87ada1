"""The real runtime beside the kit: a command in a container of crun's."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kernel_lab import rootfs
from kernel_lab.course.peers import peer

# With both versions of cgroups mounted crun starts nothing while it sees the second; so it is hidden, for crun alone.
ALONE = "unshare --mount sh -c 'umount -l /sys/fs/cgroup/unified 2> /dev/null; exec {}'"


def crun(*argv: str, hostname: str = "crun", resources: Mapping[str, object] | None = None) -> str:
    """What a command prints in a container of crun's own default configuration, on the busybox root, with a network of its own.

    `resources`: its limits, as the OCI runtime specification has them (linux.resources); without them it has no cgroup.
    One line that says so where crun is not installed or starts nothing, as for an ordinary user on a machine with both versions of cgroups.
    """
    rootless = os.geteuid() != 0
    with tempfile.TemporaryDirectory() as bundle:
        said = peer(f"crun spec --bundle {bundle} {'--rootless' if rootless else ''}")
        if said:
            return said
        file = Path(bundle, "config.json")
        file.write_text(json.dumps(_changed(json.loads(file.read_text()), argv, hostname, resources)))
        manager = "cgroupfs" if resources else "disabled"
        run = f"crun --root {bundle}/state --cgroup-manager={manager} run --bundle {bundle} klab-beside-{os.getpid()}"
        return peer(run if rootless else ALONE.format(run))


def _changed(config: dict, argv: tuple[str, ...], hostname: str, resources: Mapping[str, object] | None) -> dict:  # type: ignore[type-arg]
    namespaces = [each for each in config["linux"]["namespaces"] if each["type"] != "network"]
    return config | {
        "hostname": hostname,
        "root": {"path": str(rootfs.busybox()), "readonly": True},
        "process": config["process"] | {"terminal": False, "args": list(argv)},
        "mounts": [mount for mount in config["mounts"] if "cgroup" not in mount["destination"]],
        "linux": config["linux"] | {"namespaces": [*namespaces, {"type": "network"}], "resources": dict(resources or {})},
    }
