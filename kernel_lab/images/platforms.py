"""Which of an index's images is for this machine, in Go's words: linux/amd64, linux/arm64, linux/arm/v7 (image-index.md)."""

import platform as machine
import re
from collections.abc import Iterable

from kernel_lab.images.descriptor import Descriptor, Platform
from kernel_lab.kernel.errors import UsageError

ARCHITECTURES = {  # as uname(2) has them; the variants are those that Go's programs take for the default
    "x86_64": ("amd64", None),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", None),
    "i586": ("386", None),
    "ppc64le": ("ppc64le", None),
    "s390x": ("s390x", None),
    "riscv64": ("riscv64", None),
    "loongarch64": ("loong64", None),
}
OLDER_ARM = ("v8", "v7", "v6", "v5")  # an Arm processor runs what was made for those before it
_WORDS = re.compile(r"(?:([a-z0-9]+)/)?([a-z0-9_]+)(?:/([a-z0-9.]+))?")


def here() -> Platform:
    """This machine's."""
    architecture, variant = ARCHITECTURES.get(machine.machine(), (machine.machine(), None))
    return Platform(architecture, "linux", variant)


def parse(text: str) -> Platform:
    """`linux/arm64`, `linux/arm/v7`, or an architecture alone. Raises UsageError for anything else."""
    known = {name for name, _ in ARCHITECTURES.values()}
    if not (found := _WORDS.fullmatch(text.lower())):
        raise UsageError(f"platform {text!r}: it is written OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, as in linux/arm64")
    os, architecture, variant = found[1], *ARCHITECTURES.get(found[2], (found[2], None))
    if os is None and architecture not in known:
        raise UsageError(f"platform {text!r}: an architecture alone is one of {', '.join(sorted(known))}; or write OS/ARCHITECTURE")
    return Platform(architecture, os or "linux", found[3] or variant)


def words(platform: Platform) -> str:
    """As `--platform` takes it; the one variant of 64-bit Arm is left out."""
    variant = None if (platform.architecture, platform.variant) == ("arm64", "v8") else platform.variant
    return "/".join(filter(None, (platform.os, platform.architecture, variant)))


def choose(offered: Iterable[Descriptor], wanted: Platform) -> Descriptor | None:
    """The first of those that run best on a platform. One without a platform is taken when there is no other."""
    offered = list(offered)
    fitting = [(rank, descriptor) for descriptor in offered if descriptor.platform and (rank := _rank(descriptor.platform, wanted)) is not None]
    if fitting:
        return min(fitting, key=lambda pair: pair[0])[1]
    return offered[0] if len(offered) == 1 and offered[0].platform is None else None


def _rank(offered: Platform, wanted: Platform) -> int | None:
    """How far it is from what is wanted; None: it does not run there."""
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    if wanted.architecture == "arm":
        # Without a variant it is v7 (containerd's platforms, Normalize).
        mine, theirs = (OLDER_ARM.index(variant) if variant in OLDER_ARM else 1 for variant in (wanted.variant, offered.variant))
        return theirs - mine if theirs >= mine else None
    default = ARCHITECTURES["aarch64"][1] if wanted.architecture == "arm64" else None
    return 0 if (offered.variant or default) == (wanted.variant or default) else None if wanted.variant else 1
