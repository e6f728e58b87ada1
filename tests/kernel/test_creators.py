"""Creators of all kinds: threads that outlive the main one, forks, threads that take back at once or change ids, creators that do not hear of their
children, or may make no devices; and roots that mean harm."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from here import busybox, users
from waiting import at_once

from kernel_lab import PID, UTS, Container, Mount, Time, User
from kernel_lab.kernel.calls import dumpable

PARTS = "*([] if os.geteuid() == 0 else [User()])"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", "import os\nfrom kernel_lab import *\n" + code], capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_a_thread_that_works_on_after_the_main_one() -> None:
    code = f"""
import threading, time
def work():
    time.sleep(0.3)
    print(Container({PARTS}, PID()).run("echo first").stdout, end="")
    print(Container({PARTS}, PID()).run("echo second").stdout, end="")
threading.Thread(target=work).start()
"""
    assert python(code) == "first\nsecond\n"


@pytest.mark.parametrize("root", ["", ", Mount(rootfs.busybox())"])
def test_a_fork_whose_parent_has_ended(root: str) -> None:
    code = f"""
import select, sys
from kernel_lab import rootfs
box = Container({PARTS}, PID(){root})
box.run("echo parent")
mine = os.pidfd_open(os.getpid())
if os.fork():
    os._exit(0)
select.select([mine], [], [], 30)
print(box.run("echo child").stdout, end="", flush=True)
"""
    assert python(code) == "child\n"


def test_two_threads_that_kill_at_once() -> None:
    for _ in range(5):
        assert at_once(Container(*users(), PID()).start("sleep 1000").kill, 2) == []


def _many(starts: list[Callable[[], int]]) -> list[object]:
    """What is wrong with these starts, each again and again in a thread of its own."""
    wrong: list[object] = []

    def work(start: Callable[[], int]) -> None:
        for _ in range(10):
            try:
                if code := start():
                    wrong.append(code)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.needs("user", "newuidmap")
def test_threads_of_an_ordinary_user_that_map_change_and_join_at_once() -> None:
    own, range_of_ids = User(), User.subordinate()
    another = User([(0, *range_of_ids.uids[1][1:])], [(0, *range_of_ids.gids[1][1:])])
    with Container(own, PID()).start("sleep 1000") as box:
        starts: list[Callable[[], int]] = [
            lambda: Container(own, UTS("a")).run("true").code,
            lambda: Container(own, Time(boottime=60), PID()).run("true").code,
            lambda: Container(range_of_ids, PID()).run("true").code,
            lambda: Container(range_of_ids, PID()).run("true", user="7:7").code,
            lambda: Container(another, PID()).run("true").code,
            lambda: box.exec("true").code,
        ]
        assert _many([*starts, starts[0], starts[-1]]) == []
    assert dumpable()


DEAF = {
    "ignores SIGCHLD": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "waits for any child": "threading.Thread(target=wait_for_any, daemon=True).start()",
}
TAKEN = "the exit code has been taken: this process ignores SIGCHLD"
REMEMBERED = tuple(map(int, os.uname().release.partition("-")[0].split(".")[:2])) >= (6, 15)
_DEAF = f"""
import signal, threading, time
from kernel_lab.kernel import exits
def wait_for_any():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.001)
def tell(ask):
    try:
        print(ask())
    except KernelError as error:
        print(error)
class Refused(Part):
    def rows(self, plan):
        yield call("chdir", "/no/such")
users = [{PARTS}]
"""


def knows(shown: str, *codes: int) -> bool:
    """Whether these are the codes that a creator has told, or where the kernel does not remember them, that it cannot know."""
    lines = shown.splitlines()
    return len(lines) == len(codes) and all(line == str(code) or (not REMEMBERED and TAKEN in line) for line, code in zip(lines, codes, strict=True))


@pytest.mark.parametrize("how", DEAF)
@pytest.mark.usefixtures("executor")
def test_a_creator_that_does_not_hear_of_its_children_knows_how_they_ended(how: str) -> None:
    shown = python(f"""
{_DEAF}
{DEAF[how]}
for parts in ([PID(init=True)], [UTS("a")]):
    box = Container(*users, *parts)
    tell(lambda: box.run("sh -c 'exit 7'").code)
    tell(lambda: box.run("sh -c 'kill -9 $$'").code)
    tell(lambda: box.run("/no/such").code)
    with box.start("sleep 1000"):
        box.signal(signal.SIGTERM)
        tell(box.wait)
    with box.start("true"):
        tell(box.wait)
""")
    assert knows(shown, *(7, 137, 127, 143, 0) * 2), shown


@pytest.mark.parametrize("how", DEAF)
def test_and_how_those_ended_that_joined(how: str) -> None:
    shown = python(f"""
{_DEAF}
{DEAF[how]}
with Container(*users, PID()).start("sleep 1000") as box:
    tell(lambda: box.exec("sh -c 'read line; exit 5'", input="line\\n").code)
    tell(lambda: box.exec("sh -c 'read line; kill -9 $$'", input="line\\n").code)
""")
    assert knows(shown, 5, 137), shown


def test_a_code_that_nobody_remembers_is_not_made_up() -> None:
    shown = python(f"""
{_DEAF}
Container(*users, PID()).run("true")
exits.PIDFD_GET_INFO = 0  # as before Linux 6.15
{DEAF["ignores SIGCHLD"]}
box = Container(*users, PID())
tell(lambda: box.run("true").code)
tell(lambda: box.run("/no/such").code)
tell(lambda: Container(*users, UTS("a"), Refused()).run("true").code)
with box.start("sleep 1000"):
    pid = box.pid
print(os.path.exists(f"/proc/{{pid}}"), box.running)
""")
    taken, missing, refused, left = shown.splitlines()
    assert TAKEN in taken and missing == "127" and "chdir" in refused and "ENOENT" in refused and left == "False False"


LOOK = "test -c /dev/null && echo > /dev/null && head -c1 /dev/zero | wc -c"


@pytest.mark.needs("setpriv", "root")
def test_root_without_the_right_to_make_devices() -> None:
    klab = (sys.executable, "-m", "kernel_lab.cli", "run", "busybox", "sh", "-c", LOOK)
    done = subprocess.run(["setpriv", "--bounding-set=-mknod", *klab], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.needs("unshare", "userns")
def test_root_of_a_user_namespace_only(tmp_path: Path) -> None:
    klab = (sys.executable, "-m", "kernel_lab.cli", "run", "busybox", "sh", "-c", LOOK)
    command = ["unshare", "--user", "--map-root-user", "--net", *klab]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"KERNEL_LAB_DATA": str(tmp_path)})
    assert done.stdout == "1\n", done.stderr


def test_what_is_hidden_is_looked_for_in_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("proc", "sys", "dev", "bin"):
        (root / name).mkdir(parents=True)
    (root / "secret").write_text("top secret\n")
    (root / "bin/busybox").write_bytes((busybox() / "bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    box = Container(*users(), PID(), Mount(root, masked=["/secret", "/etc/hostname"]))
    assert box.run("/bin/busybox", "cat", "/secret", check=True).stdout == ""
    for left_out in ({"proc": False}, {"sys": False}):
        assert Container(*users(), PID(), Mount(root, **left_out)).run("/bin/busybox", "true").code == 0


def test_a_roots_passwd_that_is_no_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    user = Container(Mount(tmp_path)).command(("true",), user="12:13").user
    assert user is not None and (user.uid, user.gid) == (12, 13)
    (tmp_path / "etc/passwd").unlink()
    (tmp_path / "etc/passwd").symlink_to("/etc/passwd")  # leads to itself, inside
    assert Container(Mount(tmp_path)).command(("true",), user="12").user is not None
