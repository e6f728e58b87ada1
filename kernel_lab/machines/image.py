"""The lab VM's image: a Debian with the kit's Python and packages in a file that QEMU starts from, made once and then kept as it is.

Its name carries a digest of all that made it. It is made under a name of its maker's, and then renamed into place: whoever finds it finds it whole.
"""

import errno
import gzip
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from kernel_lab import bootstrap, state
from kernel_lab.kernel.errors import UsageError

ROOT = Path(__file__).parents[2]
SUITE = "trixie"
INGREDIENTS = ("lab", "requirements.lock", "requirements-fuse.lock", "vm/packages", "vm/provision", "vm/install", "kernel_lab/machines/image.py")
GB = 1 << 30
SIZE = 12 * GB  # of the disk; its file has holes where nothing was written
NEEDED = 6 * GB  # while it is made: the tree, and the disk made of it
ROOM = f"making the image takes {NEEDED // GB} GB: make room, or set KERNEL_LAB_DATA to a directory that has it"
LOG = "build.log"
HOST = "kernel-lab"  # the name that the machine's host key is known by, wherever it answers


class Image(NamedTuple):
    """A directory with the disk, the kernel and what it starts with, and keys: ours for the way in, and the machine's."""

    path: Path

    @property
    def disk(self) -> Path:
        return self.path / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd.img"

    @property
    def hypervisor(self) -> Path:
        """Xen, where there is one for this processor."""
        return self.path / "xen"

    @property
    def key(self) -> Path:
        return self.path / "key"

    @property
    def known_hosts(self) -> Path:
        return self.path / "known_hosts"


def store() -> Path:
    """Where images are, and nothing else."""
    path = state.data_dir() / "vm"
    path.mkdir(mode=0o755, exist_ok=True)
    return path


def current(project: Path = ROOT) -> Image:
    """The image that this checkout wants, whether or not it has been made."""
    digest = hashlib.sha256()
    for name in INGREDIENTS:
        digest.update((project / name).read_bytes())
    return Image(store() / f"image-{digest.hexdigest()[:12]}")


def discard_others(image: Image) -> None:
    """Removes images of earlier lists and scripts, with all that was written in their machines."""
    with state.locked(store() / "lock"):
        for path in store().glob("image-*"):
            # One with a stamp is being made, or klab cleanup's.
            if path != image.path and state.Creator.in_name(path.name) is None:
                state.discard(path)


def build(project: Path = ROOT) -> Image:
    """The image, made now if it is not there. Raises UsageError for what is missing here, and RuntimeError for a step that fails."""
    image = current(project)
    with state.locked(store() / "lock"):
        if not image.path.is_dir():
            _check()
            half = image.path.with_name(f"{image.path.name}.{state.Creator.this().stamp}")
            try:
                half.mkdir(mode=0o700)
                _make(Image(half), project)
                half.rename(image.path)
            except BaseException:
                state.discard(half)
                raise
    return image


def _check() -> None:
    if os.geteuid() != 0:
        raise UsageError("the image is made by root: it holds another system's users and devices (sudo ./lab vm build)")
    for program, package in (("mke2fs", "e2fsprogs"), ("ssh-keygen", "openssh-client")):
        if not shutil.which(program):
            raise UsageError(f"{program}: not found; install Debian's package {package}")
    free = shutil.disk_usage(store()).free
    if free < NEEDED:
        raise UsageError(f"{store()}: {free / GB:.1f} GB are free, and {ROOM}")


def _make(image: Image, project: Path) -> None:
    root = image.path / "root"
    root.mkdir(mode=0o755)
    with open(store() / LOG, "wb", buffering=0) as log:
        try:
            _run(log.fileno(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", HOST, "-f", image.key)
            bootstrap.make(root, bootstrap.recipe(SUITE))
            _run(log.fileno(), *ISOLATED, project / "vm/install", root, image.key)
            _take(root, image)
            _run(log.fileno(), "mke2fs", "-q", "-t", "ext4", "-L", HOST, "-d", root, image.disk, f"{SIZE >> 10}k")
        except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
            raise _told(error) from None
    state.discard(root)


# It ends with us, and what is mounted there, and still runs, with it.
ISOLATED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts", "--propagation", "private")
# What apt and pip inside may know of this machine's environment: the ways to the network.
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")


def _run(log: int, *command: str | Path) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    environment |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, check=True)


def _take(root: Path, image: Image) -> None:
    """The files that QEMU and ssh want to have outside."""
    for name, target in (("vmlinuz", image.kernel), ("initrd.img", image.initrd)):
        (found,) = (root / "boot").glob(f"{name}-*")
        shutil.copyfile(found, target)
    for packed in (root / "boot").glob("xen-*.gz"):  # what QEMU loads is its ELF, and not the archive of it
        image.hypervisor.write_bytes(gzip.decompress(packed.read_bytes()))
    public = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
    image.known_hosts.write_text(f"{HOST} {public[0]} {public[1]}\n")


def _told(error: Exception) -> RuntimeError:
    """The failure in one line: what was being done, and what it said last."""
    log = store() / LOG
    said = str(error) if isinstance(error, RuntimeError) else log.read_text(errors="replace")
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in said:
        return RuntimeError(f"{store()}: the disk is full; {ROOM}")
    log.write_text(said)
    lines = [line for line in said.splitlines() if line.strip()] or [str(error)]
    return RuntimeError(f"the image could not be made: {lines[-1]} (all of it: {log})")
