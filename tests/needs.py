"""What a test needs of the machine, and the reason it is skipped for where the machine lacks it."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# The administrator's tools are not on an ordinary user's PATH everywhere.
SEARCH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def _root() -> str | None:
    return None if os.geteuid() == 0 else "this is an ordinary user"


def _ordinary_user() -> str | None:
    return "this is root" if os.geteuid() == 0 else None


def _mounted(filesystem: str) -> str | None:
    mounts = (line.partition(" - ")[2].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return None if filesystem in mounts else f"no {filesystem} file system is mounted"


def _user_namespaces() -> str | None:
    limit = int(Path("/proc/sys/user/max_user_namespaces").read_text())
    if not limit:
        return "user.max_user_namespaces is 0"
    if os.geteuid() == 0:
        return None
    for switch, refusing in (("unprivileged_userns_clone", "0"), ("apparmor_restrict_unprivileged_userns", "1")):
        file = Path("/proc/sys/kernel", switch)
        if file.exists() and file.read_text().strip() == refusing:
            return f"kernel.{switch} is {refusing}"
    return None


def _namespace(kind: str) -> str | None:
    return None if Path("/proc/self/ns", kind).exists() else f"this kernel has no {kind} namespaces"


def _module(name: str) -> str | None:
    return None if importlib.util.find_spec(name) else "this Python module is not installed"


def _machine(name: str) -> str | None:
    return None if platform.machine() == name else f"this machine is {platform.machine()}"


def _tool(name: str) -> str | None:
    return None if shutil.which(name, path=SEARCH) else "not on the PATH"


@cache
def lack(name: str) -> str | None:
    """Why the machine does not have `name`, or None if it does. Any word that is not explained here is a command."""
    match name.partition(":"):
        case ("root", _, ""):
            return _root()
        case ("user", _, ""):
            return _ordinary_user()
        case ("cgroup1", _, ""):
            return _mounted("cgroup")
        case ("cgroup2", _, ""):
            return _mounted("cgroup2")
        case ("userns", _, ""):
            return _user_namespaces()
        case ("x86_64" | "aarch64", _, ""):
            return _machine(name)
        case ("namespace", ":", kind):
            return _namespace(kind)
        case ("module", ":", module):
            return _module(module)
    return _tool(name)


def reason(names: Iterable[str]) -> str | None:
    """The first lack among `names` in words: `needs crun: not on the PATH`."""
    return next((f"needs {name}: {why}" for name in names if (why := lack(name))), None)
