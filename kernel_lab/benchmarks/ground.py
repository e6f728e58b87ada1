"""Where the containers of a benchmark are made: a root that nobody else uses, and a bridge."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kernel_lab import rootfs, state
from kernel_lab.benchmarks.contestant import Ground, Network
from kernel_lab.networks.bridge import Bridge

COMMAND = ("/bin/true",)


@contextmanager
def ground(bridged: bool, command: tuple[str, ...] = COMMAND, layered: bool = False, quota: bool = True, disk: bool = False) -> Iterator[Ground]:
    """A ground, with a bridge if it is `bridged`; nothing of either is left afterwards."""
    with ExitStack() as made:
        folder = Path(tempfile.mkdtemp(prefix=f"bench-{state.Creator.this().stamp}-", dir=state.data_dir()))
        made.callback(state.discard, folder)
        # A copy, since runc and crun leave files in its /dev.
        root = shutil.copytree(rootfs.busybox(), folder / "root", symlinks=True)
        network = made.enter_context(_bridge()) if bridged else None
        (folder / "layers").mkdir()
        yield Ground(root, folder, command, network, layered=layered, quota=quota, disk=disk)


@contextmanager
def _bridge() -> Iterator[Network]:
    with Bridge(f"klab-b{os.getpid()}", nat=False) as bridge:
        subnet = bridge.subnet
        # Far from the first ones, which the kit gives to its own containers.
        yield Network(bridge.name, f"{subnet.broadcast_address - 1}/{subnet.prefixlen}", bridge.address)
