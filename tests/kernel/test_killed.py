"""After a `kill -9` of the process that made containers, nothing of them is left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from here import gone
from waiting import soon

KINDS = {
    "with a PID namespace": "PID(), UTS('a')",
    "with a reaper": "PID(init=True), UTS('a')",
    "without a PID namespace": "UTS('a'), IPC()",
    "with mounts": "Mount(rootfs.busybox()), PID(), Net()",
}
CREATOR = """
import os, sys, time
from kernel_lab import *
from kernel_lab import rootfs
box = Container(*([] if os.geteuid() == 0 else [User()]), {parts})
box.start("sh", "-c", "(trap '' TERM HUP; setsid sleep 1000 &) ; setsid sleep 1000 & echo $$; exec sleep 1000")
while not box.logs():
    time.sleep(0.01)
print(box.pid, box.id, flush=True)
time.sleep(1000)
"""


def members(pid: int) -> set[int]:
    """The processes that share a UTS or mount namespace with `pid`, which has its own."""
    found = set()
    own = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("uts", "mnt")}
    new = {kind for kind, name in own.items() if name != os.readlink(f"/proc/self/ns/{kind}")}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any(os.readlink(f"/proc/{name}/ns/{kind}") == own[kind] for kind in new):
                found.add(int(name))
        except OSError:
            continue
    return found


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_creator_leaves_nothing(kind: str, run_directory: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CREATOR.format(parts=KINDS[kind])], stdout=subprocess.PIPE, text=True) as creator:
        assert creator.stdout
        words = creator.stdout.readline().split()
        pid, identifier = int(words[0]), words[1]
        assert soon(lambda: len(members(pid)) >= 3)
        inside = members(pid)
        os.kill(creator.pid, signal.SIGKILL)
        creator.wait()
    assert soon(lambda: all(map(gone, inside)))
    assert soon(lambda: not list((run_directory / "containers").glob(f"{identifier}*")))
    assert soon(lambda: not list((run_directory / "logs").glob(f"{identifier}*")))


@pytest.mark.usefixtures("executor")
def test_a_creator_that_ends_takes_its_containers_along() -> None:
    code = "import os\nfrom kernel_lab import *\nbox = Container(*([] if os.geteuid() == 0 else [User()]), PID()).start('sleep 1000')\nprint(box.pid)"
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout)
    assert soon(lambda: gone(pid))
