"""What /proc says of processes in namespaces of their own, made by util-linux's unshare: another tool than ours, so that neither proves itself."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from strangers import as_an_ordinary_user
from waiting import soon

from kernel_lab.kernel import mountinfo, procfs
from kernel_lab.kernel.evidence import Denied, evidence

ROOT = os.geteuid() == 0
FLAGS = {"cgroup": "--cgroup", "ipc": "--ipc", "mnt": "--mount", "net": "--net", "pid": "--pid", "time": "--time", "user": "--user", "uts": "--uts"}
Start = Callable[..., int]

pytestmark = pytest.mark.needs("unshare", "userns")


@contextmanager
def started(*flags: str, script: str = "", words: tuple[str, ...] = ()) -> Iterator[int]:
    """The number of a shell in the namespaces that unshare makes; it has run `script`, and ends with the block."""
    # An ordinary user may make the others only together with a user namespace, and --fork is what gives the first process of a PID namespace.
    rootless = () if ROOT or "--user" in flags else ("--user", "--map-root-user")
    command = ["unshare", "--fork", *rootless, *flags, "sh", "-c", f"{script}\necho ready; read ended", "sh", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outer:
        assert outer.stdin is not None
        assert outer.stdout is not None
        assert outer.stdout.readline() == b"ready\n"
        (shell,) = procfs.children(outer.pid)
        yield shell
        outer.stdin.close()


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as shells:
        yield lambda *flags, **how: shells.enter_context(started(*flags, **how))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.needs(f"namespace:{kind}")) for kind in FLAGS])
def test_each_namespace_alone(kind: str, start: Start) -> None:
    difference = evidence(os.getpid()).differs(evidence(start(FLAGS[kind])))
    expected = {kind} if ROOT else {kind, "user"}
    assert set(difference.differing) == {f"{one} namespace" for one in expected}
    assert difference[f"{kind} namespace"].after == f"{kind}:[B]"


def test_all_of_them_together(start: Start) -> None:
    flags = [flag for kind, flag in FLAGS.items() if kind in procfs.namespaces(os.getpid())]
    difference = evidence(os.getpid()).differs(evidence(start(*flags)))
    assert {change.differs for change in difference.changes} == {"yes"}
    assert len(difference.changes) == len(flags)


def test_two_boxes_have_the_same_table_though_they_are_not_the_same(start: Start) -> None:
    host, one, two = evidence(os.getpid()), evidence(start("--uts", "--net")), evidence(start("--uts", "--net"))
    assert str(host.differs(one)) == str(host.differs(two))
    assert one.namespaces != two.namespaces
    assert {"net namespace", "uts namespace"} <= set(one.differs(two).differing)


def test_root_inside_and_an_ordinary_user_outside(start: Start) -> None:
    box = evidence(start("--user", "--map-root-user"))
    assert box.uid_map == (procfs.IdRange(0, os.geteuid(), 1),)
    facts = dict(box.facts())
    assert facts["user id map"] == f"0 is {os.geteuid()}"
    assert facts["user ids"] == str(os.geteuid()), "the reader's own namespace counts the ids"
    # In its own user namespace it has every capability, whoever it is outside.
    assert facts["capabilities"].startswith("all ")
    assert "but" not in facts["capabilities"]


def test_a_process_in_a_pid_namespace_has_a_number_in_each(start: Start) -> None:
    shell = start("--pid")
    assert evidence(shell).status.pids[-2:] == (shell, 1)


def test_an_ordinary_user_reads_his_own_and_not_anothers(start: Start) -> None:
    theirs = as_an_ordinary_user(lambda: evidence(1))
    assert theirs.namespaces is Denied.NOT_READABLE
    mine = evidence(start("--uts"))
    assert not any(isinstance(value, Denied) for value in vars(mine).values())
    assert {change.differs for change in mine.differs(theirs).changes} == {"not readable"}


SPACES = [b"with space", b" ", b"tab\there", b"line\nend", b"\x0b\x0c\x1c", "\x85\u2028".encode()]
ODD_NAMES = [*SPACES, b"back\\slash", b"\\040", b"#hash", b"\xff\xfe", b"-"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=repr)
def test_mounts_with_odd_names(name: bytes, start: Start, tmp_path: Path) -> None:
    point = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(point)
    source = name.replace(b"\xff\xfe", b"x")
    shell = start("--mount", script='mount -n -t tmpfs -- "$1" "$2"', words=(os.fsdecode(source), os.fsdecode(point)))
    found = [mount for mount in mountinfo.mounts(shell) if mount.point == os.fsdecode(point)]
    assert [(mount.kind, mount.root, mount.source) for mount in found] == [("tmpfs", "/", os.fsdecode(source))]
    assert found[0] == mountinfo.at(os.fsdecode(point) + "/x", mountinfo.mounts(shell))


PROPAGATION = """
mount -n -t tmpfs one "$1" && mount -n --make-private "$1" && cd "$1" && mkdir shared slave both private unbindable
for name in *; do mount -n -t tmpfs "$name" "$name"; mount -n --make-private "$name"; done
mount -n --make-shared shared
mount -n --make-unbindable unbindable
mount -n --bind shared slave && mount -n --make-slave slave
mount -n --bind shared both && mount -n --make-slave both && mount -n --make-shared both
mount -n -o remount,bind,ro private
"""


def test_propagation_and_read_only(start: Start, tmp_path: Path) -> None:
    table = mountinfo.mounts(start("--mount", script=PROPAGATION, words=(str(tmp_path),)))
    found = {name: mountinfo.at(tmp_path / name, table) for name in ("shared", "slave", "both", "private", "unbindable")}
    words = {name: mount and mount.propagation for name, mount in found.items()}
    assert words == {"shared": "shared", "slave": "slave", "both": "slave, shared", "private": "private", "unbindable": "unbindable"}
    shared, slave = found["shared"], found["slave"]
    assert shared and slave
    assert slave.master == shared.shared is not None
    assert {name for name, mount in found.items() if mount and mount.read_only} == {"private"}


def test_a_process_that_ends(start: Start) -> None:
    shell = start("--uts")
    began = procfs.start_time(shell)
    os.kill(shell, 9)
    assert soon(lambda: procfs.start_time(shell) != began)
    with pytest.raises(ProcessLookupError):
        evidence(shell)
