"""What a lab or a cell needs from the machine: a word for each, whether it is here, and what brings it."""

import os
import shutil

# The Debian package of a command, where its name is another.
PACKAGES = {
    "busybox": "busybox-static",
    "ip": "iproute2",
    "newuidmap": "uidmap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "pasta": "passt",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "unshare": "util-linux",
}


def missing(*needs: str) -> dict[str, str]:
    """Of these needs ("root", or the name of a command), those that are not here, each with what brings it."""
    return {need: _mend(need) for need in needs if not _here(need)}


def _here(need: str) -> bool:
    return os.geteuid() == 0 if need == "root" else shutil.which(need) is not None


def _mend(need: str) -> str:
    return "run it as root" if need == "root" else f"apt-get install {PACKAGES.get(need, need)}"
