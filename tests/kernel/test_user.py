"""Root inside, nobody outside: from both sides."""

import os
import shutil
from pathlib import Path

import pytest
from here import IS_ROOT, busybox

from kernel_lab import PID, UTS, Container, KernelError, Mount, Part, UsageError, User, call
from kernel_lab.kernel import procfs
from kernel_lab.kernel.calls import dumpable, set_dumpable

pytestmark = pytest.mark.usefixtures("executor")


def test_root_inside_is_the_caller_outside(tmp_path: Path) -> None:
    box = Container(User(), UTS("box"))
    assert box.run("sh", "-c", f"id -u; id -g; touch {tmp_path}/file; stat -c %u {tmp_path}/file").stdout.split() == ["0", "0", "0"]
    assert (tmp_path / "file").stat().st_uid == os.geteuid()
    with box.start("sleep 1000"):
        assert [tuple(line) for line in procfs.uid_map(box.pid)] == [(0, os.geteuid(), 1)]
        assert Path(f"/proc/{box.pid}/setgroups").read_text() == "deny\n"


@pytest.mark.needs("root")
def test_root_inside_is_nobody_outside() -> None:
    with Container(User([(0, 100_000, 1000)]), PID()).start("sleep 1000") as box:
        assert os.stat(f"/proc/{box.pid}").st_uid == 100_000
        status = procfs.status(box.pid)
        assert set(status.uids) == {100_000} and status.groups == ()
        assert box.exec("sh", "-c", "id -u; cat /proc/self/uid_map").stdout.split() == ["0", "0", "100000", "1000"]
        assert box.exec("sh", "-c", "cat /root/.profile").code != 0


@pytest.mark.needs("root")
def test_an_id_that_is_not_zero_and_no_root_inside() -> None:
    box = Container(User([(1000, 100_000, 1)]), UTS("box"))
    assert box.run("sh -c 'id -u'", user="1000:1000").stdout == "1000\n"
    with box.start("sleep 1000", user="1000:1000"):
        assert os.stat(f"/proc/{box.pid}").st_uid == 100_000


def test_capabilities_count_inside_only() -> None:
    box = Container(User(), UTS("box"))
    assert box.run("hostname other").code == 0
    assert Container(User()).run("hostname other").code != 0  # the host's UTS namespace belongs to the host's users
    with box.start("sleep 1000"):
        assert len(procfs.status(box.pid).capabilities.effective) > 30


@pytest.mark.needs("user", "newuidmap")
def test_subordinate_ids_by_newuidmap() -> None:
    box = Container(User.subordinate(), PID(), Mount(busybox()))
    assert box.run("sh -c 'id -u; id -u'", user="0").stdout.split() == ["0", "0"]
    assert box.run("id -u", user="1:1").stdout == "1\n"


@pytest.mark.needs("user", "newuidmap")
def test_root_inside_is_one_of_the_subordinate_ids() -> None:
    ids = User.subordinate().uids[1]
    with Container(User([(0, *ids[1:])])).start("sleep 1000") as box:  # no PID namespace: its creator has to open the others
        assert os.stat(f"/proc/{box.pid}").st_uid == ids[1]


@pytest.mark.needs("user", "newuidmap")
def test_ids_that_were_not_granted_are_refused_before_the_command() -> None:
    with pytest.raises(UsageError, match="subuid"):
        Container(User([(0, 0, 1)])).run("true")


@pytest.mark.needs("root")
def test_the_creator_stays_open_after_children_changed_their_ids() -> None:
    set_dumpable(True)  # another test's children may have closed it
    Container(User([(0, 100_000, 10)])).run("true")
    assert dumpable()
    Container(UTS("a")).run("true", user="12")
    assert dumpable()
    Container(UTS("a"), OtherUser()).run("true")
    assert dumpable()


class OtherUser(Part):
    def rows(self, plan):  # type: ignore[no-untyped-def]
        yield call("setresuid", 12, 12, 12)


class OtherGroups(Part):
    order = 45

    def rows(self, plan):  # type: ignore[no-untyped-def]
        yield call("setgroups", 0, None, why="drops them")


def test_groups_cannot_be_dropped_with_a_map_that_the_child_wrote() -> None:
    with pytest.raises(KernelError, match=r"setgroups.*EPERM.*setgroups is `allow`"):
        Container(User(), OtherGroups()).run("true")


@pytest.mark.skipif(IS_ROOT, reason="needs user: this is root")
def test_without_a_user_namespace_an_ordinary_user_is_told_what_to_add() -> None:
    with pytest.raises(KernelError, match=r"clone3.*EPERM.*User\(\)"):
        Container(UTS("box")).run("true")


@pytest.mark.skipif(not IS_ROOT, reason="needs root: this is an ordinary user")
def test_tools_of_the_host_see_the_same() -> None:
    if shutil.which("lsns"):
        with Container(User(), UTS("box")).start("sleep 1000") as box:
            import subprocess

            listed = subprocess.run(["lsns", "--noheadings", "-o", "TYPE", "-p", str(box.pid)], capture_output=True, text=True).stdout
            assert {"user", "uts"} <= set(listed.split())
