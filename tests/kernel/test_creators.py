"""Creators of all kinds: threads that outlive the main one, forks, threads that take back at once; and roots that mean harm."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from here import busybox, users

from kernel_lab import PID, Container, Mount

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
        box = Container(*users(), PID()).start("sleep 1000")
        errors: list[BaseException] = []
        barrier = threading.Barrier(2)

        def kill(box: Container = box, barrier: threading.Barrier = barrier, errors: list[BaseException] = errors) -> None:
            barrier.wait()
            try:
                box.kill()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=kill) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors


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
