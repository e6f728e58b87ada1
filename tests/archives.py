"""Images for tests: layers as archives that are written entry by entry, and what lies in a tree as root of a container sees it."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernel_lab.images.archive import DIRECTORY, END, SYMLINK, Entry, encode
from kernel_lab.images.descriptor import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Config, Descriptor, Manifest, digest_of
from kernel_lab.images.image import Image
from kernel_lab.images.store import Store
from kernel_lab.state import as_their_root

SECOND = 10**9


def file(name: str, content: bytes = b"", **said: Any) -> bytes:
    return encode(Entry(os.fsencode(name), size=len(content))._replace(**said)) + content + bytes(-len(content) % 512)


def node(name: str, kind: bytes, link: str = "", **said: Any) -> bytes:
    return encode(Entry(os.fsencode(name), kind, link=os.fsencode(link), mode=0o755)._replace(**said))


def directory(name: str, **said: Any) -> bytes:
    return node(name, DIRECTORY, **said)


def link(name: str, to: str) -> bytes:
    return node(name, SYMLINK, to)


def layer(*entries: bytes) -> bytes:
    return b"".join((*entries, END))


def made(
    store: Store, name: str | None, *layers: bytes, settings: Mapping[str, Any] | None = None, diff_ids: Sequence[str] | None = None, **platform: str
) -> Image:
    """An image of these archives; `diff_ids`: other ones than theirs."""
    with store.adding() as adding:
        blobs = tuple(adding.put(gzip.compress(archive, 1, mtime=0), OCI_LAYER_GZIP) for archive in layers)
        runs_on = {"architecture": "amd64", "os": "linux"} | platform
        config = Config(diff_ids=tuple(diff_ids or map(digest_of, layers)), config=settings or {}, **runs_on)  # type: ignore[arg-type]
        return Image(store, store.tag(adding.put(Manifest(adding.put(config.raw, OCI_CONFIG), blobs).raw, OCI_MANIFEST), name))


def put_manifest(store: Store, raw: bytes, *blobs: bytes, name: str | None = None) -> Descriptor:
    """A manifest as it is written here, and the blobs that it needs."""
    with store.adding() as adding:
        for blob in blobs:
            adding.put(blob)
        return store.tag(adding.put(raw, OCI_MANIFEST), name)


_LISTING = """
import hashlib, json, os, stat, sys
found = {}
for top, directories, files in os.walk(sys.argv[1]):
    for name in (".", *files, *directories):
        path = os.path.join(top, name)
        if name == "." and top != sys.argv[1]:
            continue
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            # Overlay lists a whiteout in a directory that lies on nothing.
            found[os.path.relpath(path, sys.argv[1])] = ["nothing"]
            continue
        content = ""
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(open(path, "rb").read()).hexdigest()
        attributes = {key: os.getxattr(path, key, follow_symlinks=False).hex() for key in os.listxattr(path, follow_symlinks=False)}
        attributes = {key: value for key, value in attributes.items() if not key.startswith(("user.umoci", "user.rootlesscontainers"))}
        mtime = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
        found[os.path.relpath(path, sys.argv[1])] = (oct(status.st_mode), status.st_uid, status.st_gid, status.st_rdev, content, mtime, attributes)
print(json.dumps(found))
"""
_UNION = """
import os, subprocess, sys
options = "userxattr," if sys.argv[1] == "user" else ""
subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options + "lowerdir=" + ":".join(sys.argv[3:]), "/mnt"], check=True)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], "/mnt"])
"""

Seen = dict[str, list[Any]]


def seen(tree: Path) -> Seen:
    """All that there is to see of a tree, but for the times of directories."""
    return _seen([*as_their_root(), sys.executable, "-c", _LISTING, str(tree)])


def union(directories: Iterable[Path], user_namespace: bool = os.geteuid() != 0) -> Seen:
    """The same of what overlay shows, mounted by root inside or outside of a user namespace."""
    unshare = ["unshare", "--mount", *(["--user", "--map-root-user"] if user_namespace else [])]
    mode = "user" if user_namespace else "root"
    return _seen([*unshare, sys.executable, "-c", _UNION, mode, _LISTING, *map(str, directories)])


def _seen(command: list[str]) -> Seen:
    shown: Seen = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return shown


def unpacked_by_umoci(store: Store, tag: str, bundle: Path) -> Seen | None:
    """What umoci makes of an image; None where it refuses."""
    ran = subprocess.run(
        ["umoci", "unpack", *(["--rootless"] if os.geteuid() else []), "--image", f"{store.path}:{tag}", str(bundle)], capture_output=True, text=True
    )
    return seen(bundle / "rootfs") if ran.returncode == 0 else None
