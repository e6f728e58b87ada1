"""What the labs need of this machine: is it there, what is it for, and the command that mends it."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from kernel_lab.cgroups import delegation
from kernel_lab.cgroups.hierarchies import hierarchies
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.executors import available, trial
from kernel_lab.machines.qemu import EMULATORS
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User
from kernel_lab.plan import Plan
from kernel_lab.starting import standing
from kernel_lab.unionfs import aufs_kernel
from kernel_lab.unionfs.aufs import lacking

OK, LACKING, OPTIONAL = "ok", "lacking", "optional"
KVM = "/dev/kvm"
OLDEST = (5, 12)  # mount_setattr(2)
KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
# command, package, what needs it, whether a lab cannot do without
COMMANDS = (
    ("busybox", "busybox-static", "the root filesystem of every lab", True),
    ("newuidmap", "uidmap", "user namespaces of more than one id, for an ordinary user", False),
    ("ip", "iproute2", "lab 07, beside the kit", False),
    ("nft", "nftables", "lab 07: a way out for a bridge", True),
    ("unshare", "util-linux", "every lab, beside the kit", False),
    ("tcpdump", "tcpdump", "lab 07: packets on their way", False),
    ("mmdebstrap", "mmdebstrap", "a Debian root filesystem", False),
    ("cc", "gcc", "klab bench: the C program", False),
    ("crun", "crun", "every lab, beside the kit", False),
    ("runc", "runc", "klab bench", False),
    ("lxc-start", "lxc", "lab 17, beside the kit", False),
    ("bwrap", "bubblewrap", "klab bench", False),
)


@dataclass(frozen=True)
class Finding:
    """One thing: its state (ok, lacking, or optional for what is not there and can be done without), what it is for, and what mends it."""

    thing: str
    state: str
    detail: str
    needed_for: str
    mend: str = ""


def examine() -> list[Finding]:
    """Everything that a lab needs, looked for now."""
    return [finding for look in LOOKS for finding in look()]


def _kernel() -> Iterator[Finding]:
    release = platform.release()
    version = tuple(int(word) for word in release.split("-")[0].split(".")[:2])
    good = version >= OLDEST
    yield Finding("kernel", OK if good else LACKING, release, "everything", "" if good else "use a machine with Linux 5.12 or newer")


def _executors() -> Iterator[Finding]:
    for name, purpose in (("loop", "fast starts"), ("helper", "starts where there is no loop, and entering time namespaces")):
        works, why = trial(name)
        state = OK if works else OPTIONAL if available() else LACKING
        chosen = "works, in use" if works and available()[0] == name else why
        yield Finding(f"executor {name}", state, chosen, purpose, "" if works else "see what it says")


def _namespaces() -> Iterator[Finding]:
    missing = [kind for kind in KINDS if not Path("/proc/self/ns", kind).exists()]
    detail = "all eight kinds" if not missing else f"no {', '.join(missing)}"
    yield Finding("namespaces", LACKING if missing else OK, detail, "labs 02 to 07", "a kernel built with them" if missing else "")


def _rights() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("rights", OK, "root", "everything")
        return
    yield Finding("rights", OK, "an ordinary user: containers get a user namespace", "everything but bridges")


def _user_namespaces() -> Iterator[Finding]:
    parts = [User(), PID()]
    try:
        with standing(Plan(parts)):
            yield Finding("user namespaces", OK, "one was made", "lab 05, and everything for an ordinary user")
    except (KernelError, UsageError) as error:
        look = getattr(error, "look", "") or str(error)
        yield Finding("user namespaces", LACKING, getattr(error, "rule", "") or "refused", "lab 05, and everything for an ordinary user", look)


def _commands() -> Iterator[Finding]:
    for command, package, purpose, needed in COMMANDS:
        path = shutil.which(command) or shutil.which(command, path="/usr/sbin:/sbin")
        state = OK if path else LACKING if needed else OPTIONAL
        yield Finding(command, state, "installed" if path else "not on the PATH", purpose, "" if path else f"apt-get install {package}")


def _subordinate_ids() -> Iterator[Finding]:
    if os.geteuid() == 0:
        return
    purpose = "--userns subordinate, a Debian root, lab 05"
    try:
        User.subordinate()
        yield Finding("ids of your own", OK, "granted by /etc/subuid and /etc/subgid", purpose)
    except UsageError as error:
        detail, _, mend = str(error).partition(": ")
        yield Finding("ids of your own", OPTIONAL, detail, purpose, mend)


def _usermode() -> Iterator[Finding]:
    found = [name for name in ("pasta", "slirp4netns") if shutil.which(name)]
    detail = ", ".join(found) or "neither pasta nor slirp4netns"
    mend = "" if found else "apt-get install passt, or slirp4netns"
    yield Finding("user-mode network", OK if found else OPTIONAL, detail, "lab 07 for an ordinary user", mend)


def _cgroups() -> Iterator[Finding]:
    versions = sorted({f"v{one.version}" for one in hierarchies()})
    mend = "" if versions else "mount -t cgroup2 none /sys/fs/cgroup"
    yield Finding("cgroups", OK if versions else OPTIONAL, " and ".join(versions) or "none mounted", "lab 08, limits, klab stats", mend)
    if versions:
        found = delegation.look()
        yield Finding("groups of your own", OK if found.there else OPTIONAL, found.detail, "limits for an ordinary user", found.mend)


def _unions() -> Iterator[Finding]:
    known = Path("/proc/filesystems").read_text().split()
    there = "overlay" in known or Path(f"/lib/modules/{platform.release()}/kernel/fs/overlayfs").exists()
    detail, mend = ("known", "") if there else ("not in this kernel", "a kernel built with it")
    yield Finding("overlay", OK if there else OPTIONAL, detail, "lab 09, --layers", mend)
    lacks = lacking()
    detail, mend = lacks or ("by the kernel" if aufs_kernel.is_there() else "in user space", "")
    yield Finding("AUFS", OPTIONAL if lacks else OK, detail, "lab 09", mend)


def _machines() -> Iterator[Finding]:
    try:
        os.close(os.open(KVM, os.O_RDWR | os.O_CLOEXEC))  # a node can stand there with nothing behind it
        yield Finding(KVM, OK, "opens", "lab 01: a machine in a page of Python")
    except PermissionError as error:
        yield Finding(KVM, OPTIONAL, error.strerror or "", "lab 01", "usermod --append --groups kvm USER, and a new login")
    except OSError as error:
        yield Finding(KVM, OPTIONAL, error.strerror or "", "lab 01", "enable virtualisation, perhaps nested, and modprobe kvm")
    emulator = EMULATORS.get(platform.machine())
    if emulator:
        path = shutil.which(emulator.program)
        mend = "" if path else f"apt-get install {emulator.package}"
        yield Finding("QEMU", OK if path else OPTIONAL, "installed" if path else "not on the PATH", "labs 01 and 17, ./lab vm", mend)


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _kernel,
    _rights,
    _executors,
    _namespaces,
    _user_namespaces,
    _cgroups,
    _unions,
    _commands,
    _subordinate_ids,
    _usermode,
    _machines,
)


def table(findings: list[Finding]) -> str:
    """The findings for the eye."""
    rows = [(finding.thing, finding.state, finding.detail, finding.needed_for, finding.mend) for finding in findings]
    headers = ("thing", "state", "what was found", "needed for", "what mends it")
    return tabulate(rows, headers, maxcolwidths=[None, None, 44, 34, 44], disable_numparse=True)


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing is lacking that a lab cannot do without."""
    return all(finding.state != LACKING for finding in findings)


def as_rows(findings: list[Finding]) -> list[dict[str, str]]:
    """The findings for a program."""
    return [asdict(finding) for finding in findings]
