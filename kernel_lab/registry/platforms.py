"""Which of an index's images runs on a machine: docker's words, `linux/arm64/v8`, and containerd's order of what else will do."""

import platform as machine
import re
from collections.abc import Sequence

from kernel_lab.images.descriptor import Descriptor, Platform
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry.oneline import one_line

OTHER_WORDS = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386", "armhf": "arm", "loongarch64": "loong64"}
IMPLIED = {"arm64": "v8", "amd64": "v1", "arm": "v7"}  # the variant that is meant where none is said (containerd, platforms)


def parse(text: str) -> Platform:
    """OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT. Raises UsageError for anything else."""
    parts = text.lower().split("/")
    if not 2 <= len(parts) <= 3 or not all(re.fullmatch("[a-z0-9_.-]+", part) for part in parts):
        raise UsageError(f"{text!r} is no platform: an operating system, an architecture, and perhaps its variant, as in linux/amd64 or linux/arm/v7")
    return Platform(OTHER_WORDS.get(parts[1], parts[1]), parts[0], parts[2] if parts[2:] else None)


def here() -> Platform:
    """This machine's."""
    name = machine.machine().lower()
    if found := re.fullmatch("armv([5-8]).*", name):  # a 32 bit kernel calls itself armv7l
        return Platform("arm", "linux", f"v{min(int(found[1]), 7)}")
    return Platform(OTHER_WORDS.get(name, name), "linux")


def shown(platform: Platform) -> str:
    """In docker's words."""
    return one_line("/".join(filter(None, (platform.os, platform.architecture, platform.variant))))


def choose(manifests: Sequence[Descriptor], asked: Platform) -> Descriptor | None:
    """The manifest for a platform: of the same architecture, its own variant or else the highest below it."""
    fitting = [manifest for manifest in manifests if manifest.platform is not None and fits(manifest.platform, asked)]
    return max(fitting, key=lambda manifest: _level(manifest.platform), default=None)


def fits(offered: Platform, asked: Platform) -> bool:
    """Whether an image runs on a machine."""
    return (offered.os, offered.architecture) == (asked.os, asked.architecture) and _level(offered) <= _level(asked)


def _level(platform: Platform | None) -> int:
    variant = platform and (platform.variant or IMPLIED.get(platform.architecture))
    found = re.fullmatch("v([0-9]+).*", variant or "")
    return int(found[1]) if found else 0
