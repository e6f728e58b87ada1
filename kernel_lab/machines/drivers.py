"""The drivers of a kernel that boots without a distribution around it: its modules, in an order in which insmod(8) takes them.

A module says itself which others it needs, in its section `.modinfo` (modinfo(8)), as a distribution's `modules.dep` says it for all of them.
"""

import lzma
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from kernel_lab.images.compression import Compression, decompressed
from kernel_lab.kernel.errors import UsageError

DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
LARGEST = 64 << 20  # bytes of a module
PLACES = ("lib/modules", "usr/lib/modules")  # the second in packages since Debian 13


def _by_zstd(packed: bytes) -> bytes:
    return b"".join(decompressed(Compression.ZSTD, [packed], LARGEST))


# As distributions pack them: Debian 12, Debian 13, Ubuntu.
READERS: Mapping[str, Callable[[bytes], bytes]] = {".ko": bytes, ".xz": lzma.decompress, ".zst": _by_zstd}


def drivers(kernel: Path, *names: str) -> list[bytes]:
    """The modules of these names of a kernel `…/boot/vmlinuz-VERSION`, each after those that it depends on; nothing for what is built into it.

    Raises UsageError where its modules are not beside it, in `…/lib/modules/VERSION`.
    """
    version = kernel.name.removeprefix("vmlinuz-")
    modules = [path for place in PLACES for path in (kernel.parents[1] / place / version).rglob("*.ko*")]
    if not modules:
        raise UsageError(f"{kernel}: its modules are not at hand, in {kernel.parents[1] / PLACES[0] / version}")
    files = {_named(path.name.partition(".")[0]): path for path in modules}
    found: dict[str, bytes] = {}
    for name in names:
        _add(_named(name), files, found)
    return list(found.values())


def _named(name: str) -> str:
    """A module's name is the same with either stroke (modprobe(8))."""
    return name.replace("-", "_")


def _add(name: str, files: Mapping[str, Path], found: dict[str, bytes]) -> None:
    if name in found or name not in files:
        return
    module = _read(files[name])
    needs = DEPENDS.search(module)
    for other in needs[1].decode().split(",") if needs else ():
        _add(_named(other), files, found)
    found[name] = module


def _read(path: Path) -> bytes:
    reader = READERS.get(path.suffix)
    if reader is None:
        raise UsageError(f"{path}: modules of this compression are not read here")
    return reader(path.read_bytes())
