"""Which of an index's images is for a machine, in Go's words: linux/amd64, linux/arm64, linux/arm/v7 (image-index.md)."""

import platform as machine
import re
from collections.abc import Iterable

from kernel_lab.images.descriptor import Descriptor, Platform
from kernel_lab.kernel.errors import UsageError

ARCHITECTURES = ("386", "amd64", "arm", "arm64", "loong64", "ppc64le", "riscv64", "s390x")
OTHER_WORDS = {  # of uname(2), of Debian, and of images made by hand
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "i386": ("386", None),
    "i586": ("386", None),
    "i686": ("386", None),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armhf": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "loongarch64": ("loong64", None),
}
IMPLIED = {"amd64": "v1", "arm": "v7", "arm64": "v8"}  # the variant that is meant where none is said (containerd's platforms)
_WORDS = re.compile(r"(?:([a-z0-9]+)/)?([a-z0-9_-]+)(?:/([a-z0-9.]+))?")
_VERSION = re.compile(r"v?(\d+)(?:\.(\d+))?")


def here() -> Platform:
    """This machine's."""
    architecture, variant = _in_go(machine.machine().lower())
    return Platform(architecture, "linux", variant)


def parse(text: str) -> Platform:
    """`linux/arm64`, `linux/arm/v7`, or an architecture alone. Raises UsageError for anything else."""
    if not (found := _WORDS.fullmatch(text.lower())):
        raise UsageError(f"platform {text!r}: it is written OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, as in linux/arm64")
    first, second, third = found.groups()
    if (first or second) not in (*ARCHITECTURES, *OTHER_WORDS):
        if first is None:
            raise UsageError(f"platform {text!r}: an architecture alone is one of {', '.join(ARCHITECTURES)}; or write OS/ARCHITECTURE")
        return _platform(first, second, third)
    if third is not None:
        raise UsageError(f"platform {text!r}: {first} is an architecture; before it stands the system, as in linux/{first}")
    # `arm/v7` has the form of a system and an architecture.
    return _platform("linux", *((first, second) if first else (second, None)))


def words(platform: Platform) -> str:
    """As `--platform` takes it; the one variant of 64-bit Arm is left out."""
    variant = None if (platform.architecture, platform.variant) == ("arm64", "v8") else platform.variant
    return "/".join(filter(None, (platform.os, platform.architecture, variant)))


def fits(offered: Platform, wanted: Platform) -> bool:
    """Whether an image runs on a platform: made for the same architecture, and no later variant."""
    mine, theirs = _platform(wanted.os, wanted.architecture, wanted.variant), _platform(offered.os, offered.architecture, offered.variant)
    if (mine.os, mine.architecture) != (theirs.os, theirs.architecture):
        return False
    return mine.variant == theirs.variant or () < _level(theirs) <= _level(mine)


def choose(offered: Iterable[Descriptor], wanted: Platform) -> Descriptor | None:
    """The first of those that run best on a platform. One without a platform is taken when there is no other."""
    offered = list(offered)
    fitting = [descriptor for descriptor in offered if descriptor.platform and fits(descriptor.platform, wanted)]
    best = max(fitting, key=lambda descriptor: _level(descriptor.platform), default=None)
    return best or (offered[0] if len(offered) == 1 and offered[0].platform is None else None)


def _in_go(architecture: str) -> tuple[str, str | None]:
    return OTHER_WORDS.get(architecture, (architecture, None))


def _platform(os: str, architecture: str, variant: str | None) -> Platform:
    """With Go's words, and the variant as it is written by most: `v7` and not `7`."""
    architecture, implied = _in_go(architecture)
    return Platform(architecture, os, (f"v{variant}" if variant.isdigit() else variant) if variant else implied)


def _level(platform: Platform | None) -> tuple[int, ...]:
    """The variant as a number to compare; none for an architecture that counts them in no such way."""
    found = platform and _VERSION.fullmatch(platform.variant or IMPLIED.get(platform.architecture, ""))
    return (int(found[1]), int(found[2] or 0)) if found else ()
