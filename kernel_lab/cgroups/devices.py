"""Devices in the words of a limit: who may open which (`c 1:3 rwm`), and which disk a path names."""

import os
import re
import stat
from collections.abc import Iterable
from typing import NamedTuple

from kernel_lab.kernel.errors import UsageError

RULE = re.compile(r"([abc]) ([0-9]+|\*):([0-9]+|\*) ([rwm]+)")
MAJORS, MINORS = 1 << 12, 1 << 20
# What every program expects, with the terminals of /dev/pts; and any node may be made, since it cannot be opened for that (runc's list).
USUAL = ("c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm")


class Rule(NamedTuple):
    """What is allowed: of `kind` (b: block, c: character, a: both), with these numbers (None: any), to r(ead), w(rite) and m(ake with mknod(2))."""

    kind: str
    major: int | None
    minor: int | None
    access: str

    def __str__(self) -> str:
        return "{} {}:{} {}".format(self.kind, *("*" if number is None else number for number in (self.major, self.minor)), self.access)

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """`TYPE MAJOR:MINOR ACCESS` as devices.allow has it; `a` alone is everything. Raises UsageError for anything else."""
        found = RULE.fullmatch("a *:* rwm" if text == "a" else text) if isinstance(text, str) else None
        if not found:
            raise UsageError(f"devices: {text!r} is no rule: it is written TYPE MAJOR:MINOR ACCESS, as 'c 1:3 rwm'; TYPE is b or c, * any number")
        kind, access = found[1], "".join(letter for letter in "rwm" if letter in found[4])
        major, minor = (None if number == "*" else int(number) for number in found.group(2, 3))
        if kind == "a" and (major, minor, access) != (None, None, "rwm"):
            raise UsageError(f"devices: {text!r}: the kernel takes 'a' for everything, whatever stands behind it; write one rule for b and one for c")
        if (major or 0) >= MAJORS or (minor or 0) >= MINORS:
            raise UsageError(f"devices: {text!r}: majors end at {MAJORS - 1}, minors at {MINORS - 1} (kdev_t.h in the kernel)")
        return cls(kind, major, minor, access)


def parse(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Rules, those of one device put together, as the kernel does (dev_exception_add, security/device_cgroup.c)."""
    if isinstance(texts, str):
        raise UsageError(f"devices={texts!r}: it takes several rules: ({texts!r},)")
    joined: dict[tuple[str, int | None, int | None], str] = {}
    for kind, major, minor, access in map(Rule.parse, texts):
        joined[kind, major, minor] = "".join(letter for letter in "rwm" if letter in joined.get((kind, major, minor), "") + access)
    return tuple(Rule(*device, access) for device, access in joined.items())


def disk(path: str) -> str:
    """`MAJOR:MINOR` of the disk behind a path like /dev/vda. Raises UsageError where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"device {path!r}: {getattr(error, 'strerror', None) or error}; limits of io are for disks, as lsblk lists them") from None
    if not stat.S_ISBLK(status.st_mode):
        raise UsageError(f"device {path!r}: not a block device; limits of io are for disks, as lsblk lists them")
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    # blkg_conf_open_bdev (block/blk-cgroup.c) answers ENODEV for a partition.
    if os.path.exists(f"/sys/dev/block/{number}/partition"):
        whole = os.path.basename(os.path.dirname(os.path.realpath(f"/sys/dev/block/{number}")))
        raise UsageError(f"device {path!r}: a partition; the kernel limits whole disks: /dev/{whole}")
    return number


def name(number: str) -> str:
    """/dev/vda for 254:0; the number itself where the disk is gone."""
    try:
        return f"/dev/{os.path.basename(os.readlink(f'/sys/dev/block/{number}'))}"
    except OSError:
        return number
