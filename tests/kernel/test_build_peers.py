"""The same Dockerfiles built by the kit and by buildah: the same files, owners, modes and settings.

Both images are unpacked by containers/storage, so that nothing of the kit's reads what is compared. Where buildah differs from docker, or the kit
from both, DIFFERENCES says so.
"""

import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kernel_lab.images.store import Store

DOCKERFILES = Path(__file__).parents[1] / "dockerfiles"
TIME = 1_500_000_000
SETTINGS = ("Env", "Cmd", "Entrypoint", "WorkingDir", "User", "ExposedPorts", "Volumes", "Labels", "StopSignal", "Healthcheck", "OnBuild", "Shell")
OPTIONS = {"02_environment": {"GIVEN": "given"}}
DEBIAN = {"19_python": ["python3-minimal"], "20_static_c": ["tcc", "libc6-dev"]}

pytestmark = pytest.mark.needs("root", "buildah", "skopeo")


class Buildah:
    """In a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.where = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
        self.storage = f"[vfs@{folder / 'root'}+{folder / 'run'}]"

    def __call__(self, *words: str) -> str:
        return said("buildah", *self.where, *words)

    def take(self, store: Store, image: str, name: str) -> None:
        said("skopeo", "copy", "-q", f"oci:{store.path}:{image}", f"containers-storage:{self.storage}{name}")

    def build(self, context: Path, name: str, args: Mapping[str, str]) -> None:
        # Isolation chroot has the host's network alone.
        options = ["--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker", "--no-cache", "--identity-label=false"]
        self("build", *options, *(f"--build-arg={name}={value}" for name, value in args.items()), "-t", name, str(context))

    def root(self, name: str) -> Path:
        return Path(self("mount", self("from", "--pull-never", name).strip()).strip())

    def config(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(said("skopeo", "inspect", "--config", "--raw", f"containers-storage:{self.storage}{name}"))
        return config


def said(*words: str | Path) -> str:
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, f"{' '.join(map(str, words))}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def files(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything of every file, but for times: kind, mode, owner, content or where it leads, attributes, and its other names."""
    found: dict[str, tuple[Any, ...]] = {}
    names: dict[tuple[int, int], str] = {}
    for directory, inner, others in os.walk(os.fsencode(root)):
        for name in [b"", *inner, *others]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            where = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()[:12]
                first = names.setdefault((status.st_dev, status.st_ino), where)
                content = (content, first if status.st_nlink > 1 else None)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif not stat.S_ISDIR(status.st_mode):
                content = status.st_rdev
            attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
            found[where] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, content, attributes)
    return found
