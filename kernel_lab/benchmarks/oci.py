"""An OCI bundle with what the floor makes, and nothing else: config.json, as runc and crun read it."""

import json
import os
from pathlib import Path

from kernel_lab.benchmarks.contestant import Ground

KINDS = ("user", "uts", "mount", "ipc", "pid")
# All that root has: with fewer, a runtime would have more to do than the others.
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER")


# What contestant.LIMITS says, in the specification's words.
RESOURCES = {"memory": {"limit": 64 << 20}, "pids": {"limit": 64}}
QUOTA = {"cpu": {"quota": 50_000, "period": 100_000}}


def bundle(ground: Ground, folder: Path, network: str | None = None, root: Path | None = None) -> Path:
    """Writes a bundle into `folder`. `network`: the file of a network namespace to join, instead of a new one; `root`: in place of the ground's."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(ground, network, root)))
    return folder


def config(ground: Ground, network: str | None = None, root: Path | None = None) -> dict[str, object]:
    """The same namespaces, maps, host name, root and /proc as everybody's."""
    net = {"type": "network", "path": network} if network else {"type": "network"}
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(ground.command),
            "env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
            "cwd": "/",
            "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        },
        "root": {"path": str(root or ground.root)},
        "hostname": ground.hostname,
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]}],
        "linux": {
            "namespaces": [*({"type": kind} for kind in KINDS), net],
            "uidMappings": [{"containerID": 0, "hostID": os.geteuid(), "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": os.getegid(), "size": 1}],
            **({"resources": RESOURCES | (QUOTA if ground.quota else {})} if ground.layered else {}),
        },
    }
