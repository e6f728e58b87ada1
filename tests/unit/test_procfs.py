import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from strangers import as_an_ordinary_user
from waiting import soon

from kernel_lab.kernel import procfs
from kernel_lab.kernel.procfs import CgroupLine, IdRange

NEVER = 2**22 + 1  # one above the highest number that a process can have (PID_MAX_LIMIT)


class Child:
    """A process that waits for its input to end."""

    def __init__(self, before: str = "", **options: object) -> None:
        code = f"import sys\n{before}\nprint('ready', flush=True)\nsys.stdin.read()"
        self.process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
        assert self.process.stdout.readline() == b"ready\n"
        self.pid: int = self.process.pid

    def zombie(self) -> None:
        self.process.kill()
        assert soon(lambda: procfs.process(self.pid).state == "Z")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.end()


@pytest.mark.parametrize("name", [b"a) R 1 (b", b"((", b")", b" x ", b"a\nb", b"\\n", b"tab\there", b"a\rb\x0bc", b"9 9 9 9 9"])
def test_any_name_is_read_whole_and_moves_no_field(name: bytes) -> None:
    child = Child(f"open('/proc/self/comm', 'wb').write({name!r})")
    try:
        found = procfs.process(child.pid)
        assert found.name == name.decode()
        assert (found.pid, found.parent, found.group, found.session) == (child.pid, os.getpid(), os.getpgid(child.pid), os.getsid(child.pid))
        assert found.state in "RS"
        # The same moment as told by the directory's own age: a start that was read from another field is nowhere near.
        seconds = found.started / os.sysconf("SC_CLK_TCK")
        with open("/proc/uptime") as uptime:
            assert 0 <= float(uptime.read().split()[0]) - seconds < 300
        assert procfs.status(child.pid).name == name.decode()
    finally:
        child.end()


def test_a_process_lives_until_it_has_ended(child: Child) -> None:
    started = procfs.start_time(child.pid)
    assert started is not None
    assert procfs.alive(child.pid, started)
    assert not procfs.alive(child.pid, started + 1), "another process that got the number later"
    child.zombie()
    assert not procfs.alive(child.pid, started)
    assert procfs.start_time(child.pid) == started, "a zombie still has its number"


READERS = [
    procfs.process,
    procfs.status,
    procfs.namespaces,
    procfs.uid_map,
    procfs.gid_map,
    procfs.cgroups,
    procfs.open_files,
    procfs.children,
    procfs.environ,
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_process_that_is_not_there_is_an_error_with_its_number(reader) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ProcessLookupError, match=rf"process {NEVER} has ended, or never was"):
        reader(NEVER)


def test_none_and_false_for_a_process_that_is_not_there() -> None:
    assert procfs.start_time(NEVER) is None
    assert not procfs.alive(NEVER, 0)


def test_the_number_of_a_zombie_leads_to_no_namespaces(child: Child) -> None:
    child.zombie()
    with pytest.raises(ProcessLookupError, match=str(child.pid)):
        procfs.namespaces(child.pid)


@pytest.mark.parametrize("reader", [procfs.namespaces, procfs.open_files, procfs.environ], ids=lambda reader: reader.__name__)
def test_another_users_process_is_refused_in_words(reader) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PermissionError, match=r"/proc/1/\w+ is not readable for user [1-9]\d*: process 1 is another user's"):
        as_an_ordinary_user(lambda: reader(1))


def test_what_everyone_may_read_of_another_users_process() -> None:
    assert as_an_ordinary_user(lambda: procfs.status(1)).uids.real == os.stat("/proc/1").st_uid
    assert as_an_ordinary_user(lambda: procfs.process(1)).pid == 1


def test_the_own_credentials() -> None:
    status = procfs.status(os.getpid())
    assert status.uids[:3] == os.getresuid()
    assert status.gids[:3] == os.getresgid()
    assert sorted(status.groups) == sorted(os.getgroups())
    assert status.pids[0] == os.getpid()
    assert not status.no_new_privileges


def test_no_new_privileges_are_seen() -> None:
    child = Child("import ctypes; ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)")
    try:
        assert procfs.status(child.pid).no_new_privileges
    finally:
        child.end()


def a_status(monkeypatch: pytest.MonkeyPatch, **fields: str) -> procfs.Status:
    lines = {"Name": "x", "State": "S (sleeping)", "Uid": "1\t2\t3\t4", "Gid": "5\t6\t7\t8", "Groups": "4 24 ", "NSpid": "70\t1"}
    lines |= {f"Cap{name}": "0000000000000000" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} | {"NoNewPrivs": "1", "Seccomp": "2"} | fields
    text = "".join(f"{name}:\t{value}\n" for name, value in lines.items() if value)
    monkeypatch.setattr(procfs, "read", lambda pid, what: text.encode())
    return procfs.status(70)


def test_a_status_is_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    status = a_status(monkeypatch)
    assert (status.name, status.state, status.groups, status.pids, status.seccomp) == ("x", "S", (4, 24), (70, 1), "filter")
    assert status.uids == (1, 2, 3, 4)
    assert status.gids._asdict() == {"real": 5, "effective": 6, "saved": 7, "filesystem": 8}


def test_a_kernel_without_seccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    assert a_status(monkeypatch, Seccomp="").seccomp == "disabled"


def test_capabilities_have_the_names_of_their_bits_and_each_set_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # The numbers are those of linux/capability.h.
    bits = {"CapEff": (0, 12), "CapPrm": (21, 40), "CapInh": (5,), "CapBnd": (45,), "CapAmb": ()}
    status = a_status(monkeypatch, **{name: f"{sum(1 << bit for bit in ones):016x}" for name, ones in bits.items()})
    assert status.capabilities._asdict() == {
        "effective": {"chown", "net_admin"},
        "permitted": {"sys_admin", "checkpoint_restore"},
        "inheritable": {"kill"},
        "bounding": {"45"},
        "ambient": set(),
    }


def test_namespaces_are_those_that_the_links_name() -> None:
    found = procfs.namespaces(os.getpid())
    assert set(found) == set(os.listdir("/proc/self/ns")) - {"pid_for_children", "time_for_children"}
    for kind, namespace in found.items():
        assert str(namespace) == os.readlink(f"/proc/self/ns/{kind}")
        assert namespace.device == os.stat(f"/proc/self/ns/{kind}").st_dev


def test_id_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "read", lambda pid, what: b"         0     100000      65536\n     65536       1000          1\n")
    assert procfs.uid_map(1) == procfs.gid_map(1) == (IdRange(0, 100000, 65536), IdRange(65536, 1000, 1))


def test_the_own_id_maps_hold_the_own_ids() -> None:
    assert any(one.inside <= os.getuid() < one.inside + one.length for one in procfs.uid_map(os.getpid()))
    assert any(one.inside <= os.getgid() < one.inside + one.length for one in procfs.gid_map(os.getpid()))


def test_cgroups_of_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "read", lambda pid, what: b"12:cpu,cpuacct:/a b\n1:name=systemd:/x:y\x0bz\n0::/klab/box\n")
    assert procfs.cgroups(1) == (
        CgroupLine(0, (), "/klab/box"),
        CgroupLine(1, ("name=systemd",), "/x:y\x0bz"),
        CgroupLine(12, ("cpu", "cpuacct"), "/a b"),
    )
    assert [line.v2 for line in procfs.cgroups(1)] == [True, False, False]


def test_open_files_are_those_of_the_process(child: Child, tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert procfs.open_files(child.pid)[0].startswith("pipe:[")
    with open(tmp_path / "one file", "w") as file:
        assert procfs.open_files(os.getpid())[file.fileno()] == str(tmp_path / "one file")


def test_the_own_open_files_are_all_still_open() -> None:
    for descriptor in procfs.open_files(os.getpid()):
        os.fstat(descriptor)


def test_children_are_found_until_they_are_waited_for(child: Child) -> None:
    other = Child()
    assert {child.pid, other.pid} <= set(procfs.children(os.getpid()))
    other.zombie()
    assert other.pid in procfs.children(os.getpid())
    other.end()
    assert other.pid not in procfs.children(os.getpid())
    assert procfs.children(child.pid) == ()


def test_a_process_that_ends_while_all_are_listed_is_left_out(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda path: [str(NEVER), str(child.pid), "self"])
    assert set(procfs.processes()) == {child.pid}


def test_all_processes(child: Child) -> None:
    found = procfs.processes()
    assert {1, os.getpid(), child.pid} <= set(found)
    assert found[child.pid].parent == os.getpid()
    assert found[child.pid].identity == (child.pid, procfs.start_time(child.pid))


def test_the_environment_that_a_process_was_started_with() -> None:
    child = Child(env={"ONE": "a=b\nc", "EMPTY": ""})
    try:
        assert procfs.environ(child.pid).items() >= {"ONE": "a=b\nc", "EMPTY": ""}.items()
    finally:
        child.end()


def test_a_stopped_process_is_alive(child: Child) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    assert soon(lambda: procfs.process(child.pid).state == "T")
    assert procfs.alive(child.pid, procfs.process(child.pid).started)
