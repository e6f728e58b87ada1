"""Limits that hold, what is counted, and all processes at once: observed from outside, in the kernel's own files."""

import os
import sys
from collections.abc import Callable, Iterator
from errno import EBUSY
from pathlib import Path

import pytest
from groups import handed_on, wants
from here import busybox
from waiting import soon

from kernel_lab import IPC, PID, UTS, CgroupNS, Container, KernelError, Mount, Net, UsageError, User
from kernel_lab.cgroups import hierarchies, layout, processes
from kernel_lab.cgroups.devices import USUAL
from kernel_lab.cgroups.group import Group
from kernel_lab.cgroups.limits import Words, cpu_list
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.kernel import procfs

pytestmark = pytest.mark.needs("root")

# Whatever goes wrong, each ends by itself.
HOG = "kept = []\nwhile True: kept.append(bytearray(1 << 20))"
FORKS = """
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except OSError as error:
    print(made, error.strerror, flush=True)
    time.sleep(60)
"""
BURN = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
USES = """
import os, resource, sys
while os.times().user < 0.3: pass
while os.times().system < 0.1: os.stat("/")
used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(sum(one.ru_utime for one in used), sum(one.ru_stime for one in used), flush=True)
"""
# Always another process: each makes the next one and ends.
HOPPER = "import os, time\nend = time.monotonic() + 60\nwhile time.monotonic() < end:\n    if os.fork(): os._exit(0)"


def python(code: str) -> tuple[str, str, str]:
    return sys.executable, "-c", code


class Gate:
    """A command that waits until the test has taken its container's group: that can be asked for only as long as something runs."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, *command: str) -> tuple[str, ...]:
        return "sh", "-c", 'until [ -e "$0" ]; do sleep 0.01; done; exec "$@"', str(self.file), *command

    def open(self) -> None:
        self.file.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "go")


def group_of(box: Container, part: Cgroup) -> Group:
    made = box.made(part)
    assert isinstance(made, Group)
    return made


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The machine's own tree of version 2 is put back."""
    with handed_on():
        yield


@pytest.fixture
def without_v2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has mounted no cgroup v2."""
    if not all(map(hierarchies.find, ("freezer", "cpuacct"))):
        pytest.skip("needs the v1 controllers freezer and cpuacct: this machine has version 2")
    only = tuple(one for one in hierarchies.hierarchies() if one.version == 1)
    monkeypatch.setattr(hierarchies, "hierarchies", lambda: only)
    monkeypatch.setattr("kernel_lab.cgroups.group.hierarchies", lambda: only)


@pytest.mark.usefixtures("executor")
def test_the_first_process_is_in_its_groups_and_its_creator_is_not() -> None:
    wants("memory")
    wants("pids")
    before = procfs.cgroups(os.getpid())
    part = Cgroup(memory="64M", pids=64)
    with Container(User(), PID(), part).start("sleep 1000") as box:
        group = group_of(box, part)
        lines = {name: line.path for line in procfs.cgroups(box.pid) for name in (line.controllers or ("v2",))}
        for name, path in group.paths().items():
            if name in lines:
                assert os.path.basename(path) in lines[name].split("/")
            assert Path(path, "cgroup.procs").exists()
        assert {"memory", "pids"} <= group.paths().keys()
        assert group.processes() == [box.pid]
        assert Group.of(box.pid).paths() == group.paths()
    assert procfs.cgroups(os.getpid()) == before
    assert not any(map(os.path.exists, group.paths().values()))


def test_a_group_that_has_gone_with_its_container() -> None:
    wants("pids")
    part = Cgroup(pids=9)
    with Container(PID(), part).start("sleep 1000") as box:
        group = group_of(box, part)
    asked: list[Callable[[], object]] = [group.stats, group.events] + ([group.pressure] if "v2" in group.paths() else [])
    for ask in asked:
        with pytest.raises(UsageError, match="the group is gone: its container has ended"):
            ask()
    for change in (lambda: group.set(pids=5), group.freeze, group.thaw):
        with pytest.raises(KernelError, match="the group is gone: its container has ended"):
            change()
    group.kill()
    assert group.processes() == []


def test_a_process_in_no_group_of_the_kits() -> None:
    with pytest.raises(UsageError, match=rf"process {os.getpid()} is in no group of the kit's"):
        Group.of(os.getpid())


def test_an_allocation_over_the_limit_is_killed_and_counted(gate: Gate) -> None:
    wants("memory")
    part = Cgroup(memory="32M", swap="0")
    with Container(PID(), part).start(*gate(*python(HOG))) as box:
        group = group_of(box, part)
        gate.open()
        assert box.wait(60) == 137
        stats, events = group.stats(), group.events()
        assert stats.oom_kills == events["memory.oom_kill"] == 1 and "memory.max" in events
        assert stats.memory_limit == 32 << 20 and 16 << 20 < (stats.memory_peak or 0) <= 32 << 20


@pytest.mark.usefixtures("executor")
def test_the_smallest_memory_is_enough_for_a_whole_container() -> None:
    """The kernel would otherwise kill whoever shares the child's memory: this very process."""
    wants("memory")
    parts = Cgroup(memory="6M"), User(), UTS("box"), IPC(), PID(), Net(), Mount(busybox(), tmpfs=["/mnt", "/home"])
    assert Container(*parts).run("true").code == 0


def test_a_fork_bomb_stops_at_the_limit() -> None:
    wants("pids")
    part = Cgroup(pids=10)
    with Container(PID(), part).start(*python(FORKS)) as box:
        assert soon(lambda: box.logs())
        assert box.logs() == "9 Resource temporarily unavailable\n"
        group = group_of(box, part)
        assert (group.stats().pids, group.stats().pids_limit) == (10, 10)
        assert len(group.processes()) == 10 and group.events()["pids.max"] >= 1


@pytest.mark.slow
def test_two_burners_share_a_cpu_by_weight() -> None:
    wants("cpu")
    wants("cpuset")
    cpu = str(min(cpu_list(f"{','.join(map(str, os.sched_getaffinity(0)))}")))
    heavy, light = (Cgroup(cpuset=cpu, cpu_weight=weight, accounting=True) for weight in (300, 100))
    with Container(PID(), heavy).start(*python(BURN)) as first, Container(PID(), light).start(*python(BURN)) as second:
        groups = group_of(first, heavy), group_of(second, light)
        assert [Path(f"/proc/{box.pid}/status").read_text().split("Cpus_allowed_list:\t")[1].split()[0] for box in (first, second)] == [cpu, cpu]
        # From when both have begun.
        assert soon(lambda: all(group.stats().cpu_seconds > 0.05 for group in groups))
        before = [group.stats().cpu_seconds for group in groups]

        def used() -> list[float]:
            return [group.stats().cpu_seconds - start for group, start in zip(groups, before, strict=True)]

        assert soon(lambda: sum(used()) > 2, patience=60)
        many, few = used()
        assert 2 < many / few < 4.5


def test_time_used_agrees_with_getrusage(gate: Gate) -> None:
    part = Cgroup()
    with Container(PID(), part).start(*gate(*python(USES))) as box:
        group = group_of(box, part)
        gate.open()
        assert box.wait(60) == 0
        user, system = map(float, box.logs().split())
        stats = group.stats()
        # The group also counts what a process does to end.
        assert abs(stats.cpu_seconds - (user + system)) < 0.15
        assert stats.cpu_user > 0.2 and stats.cpu_system > 0.05


def test_a_quota_throttles() -> None:
    wants("cpu")
    part = Cgroup(cpus=0.05)
    with Container(PID(), part).start(*python(BURN)) as box:
        group = group_of(box, part)
        assert soon(lambda: (group.stats().throttled or 0) > 2)
        assert soon(lambda: (group.stats().throttled_seconds or 0) > 0)


def _freezes(part: Cgroup) -> None:
    with Container(PID(), part).start(*python(BURN)) as box:
        group = group_of(box, part)
        assert soon(lambda: group.stats().cpu_seconds > 0.02)
        group.freeze()
        try:
            assert group.events()["frozen"] == 1
            stopped = group.stats().cpu_seconds
            Container(PID()).run("true")  # time passes
            assert group.stats().cpu_seconds == stopped
        finally:
            group.thaw()
        assert group.events()["frozen"] == 0
        assert soon(lambda: group.stats().cpu_seconds > stopped)


def test_freezing_stops_all_progress_and_thawing_resumes_it() -> None:
    _freezes(Cgroup())


@pytest.mark.usefixtures("without_v2")
def test_freezing_by_the_freezer_of_version_1() -> None:
    _freezes(Cgroup())


@pytest.mark.needs("cgroup2")
def test_a_frozen_container_can_be_ended() -> None:
    part = Cgroup()
    with Container(PID(), part).start("sh", "-c", "while :; do sleep 0.001; done") as box:
        group_of(box, part).freeze()
    assert not box.running


def _kills(part: Cgroup) -> None:
    script = 'setsid sleep 1000 & setsid "$0" -c "$1" & exec sleep 1000'
    with Container(UTS("box"), part).start("sh", "-c", script, sys.executable, HOPPER) as box:
        group = group_of(box, part)
        seen = set[int]()
        assert soon(lambda: seen.update(group.processes()) or len(seen) > 20)
        group.kill()
        assert group.processes() == [] and group.events()["populated"] == 0
        assert box.wait(20) == 137


def test_killing_empties_the_group() -> None:
    _kills(Cgroup())


@pytest.mark.usefixtures("without_v2")
def test_killing_by_the_freezer_of_version_1() -> None:
    _kills(Cgroup())


@pytest.mark.needs("cgroup2")
def test_killing_before_there_was_a_file_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    exists = os.path.exists
    monkeypatch.setattr(processes.os.path, "exists", lambda path: not str(path).endswith("cgroup.kill") and exists(path))
    _kills(Cgroup())


def test_killing_where_nothing_can_be_frozen() -> None:
    wants("pids")
    part = Cgroup(pids=20)
    with Container(PID(), part).start(*python(FORKS)) as box:
        group = group_of(box, part)
        assert soon(lambda: len(group.processes()) == 20)
        processes.kill(group.paths()["pids"])
        assert group.processes() == []


@pytest.fixture(params=["controller", "program"])
def device_limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of limiting devices: the controller of version 1, and a program of version 2."""
    way: str = request.param
    if way == "controller":
        wants("devices")
    elif not hierarchies.unified():
        pytest.skip("needs cgroup2: no cgroup2 file system is mounted")
    else:
        monkeypatch.setattr(layout, "find", lambda name: None if name == "devices" else hierarchies.find(name))
    return way


def opened(box: Container, *names: str) -> list[str]:
    return [name for name in names if box.run("sh", "-c", f"true < /dev/{name}").code == 0]


def test_devices_are_refused_and_allowed(device_limits: str) -> None:
    assert opened(Container(PID(), Cgroup(devices=["c 1:3 rwm", "c 1:7 w"])), "null", "zero", "full") == ["null"]
    assert opened(Container(PID(), Cgroup(devices=[])), "null", "zero") == []
    assert opened(Container(PID(), Cgroup(devices=["a"])), "null", "zero") == ["null", "zero"]
    part = Cgroup(devices=["c 1:3 rw"])
    refused = Container(PID(), part).run("sh", "-c", "echo a > /dev/null && cat /dev/zero")
    assert "/dev/zero: Operation not permitted" in refused.stderr
    assert (part.device_program is not None) == (device_limits == "program")


@pytest.mark.usefixtures("device_limits")
def test_the_usual_devices_are_enough_for_a_root() -> None:
    box = Container(PID(), Mount(busybox()), Cgroup(devices=USUAL))
    assert box.run("sh", "-c", "head -c 1 /dev/zero | wc -c; echo a > /dev/null; ls /dev/pts").code == 0


def test_devices_of_a_running_container_change(device_limits: str) -> None:
    part = Cgroup(devices=["c 1:3 rwm"])
    script = "until true < /dev/zero; do sleep 0.01; done; true < /dev/null || echo null is refused now"
    with Container(PID(), part).start("sh", "-c", script) as box:
        group = group_of(box, part)
        if device_limits == "program":
            Group(place for place in group.places if "devices" not in place.controllers).set(devices=["c 1:5 r"])
        else:
            group.set(devices=["c 1:5 r"])
        assert box.wait(20) == 0
        assert "null is refused now" in box.logs()


def disk_of(path: Path) -> str:
    """The whole disk that a path lies on, or a skip."""
    number = f"{os.major(path.stat().st_dev)}:{os.minor(path.stat().st_dev)}"
    place = Path(f"/sys/dev/block/{number}")
    if not place.exists() or (place / "partition").exists():
        pytest.skip(f"needs a whole disk under {path}")
    return f"/dev/{place.resolve().name}"


def test_limits_of_io_are_in_the_files_and_io_is_counted(tmp_path: Path, gate: Gate) -> None:
    wants("blkio", "io")
    disk = disk_of(tmp_path)
    status = os.stat(disk)
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    part = Cgroup(read_bps={disk: "1M"}, write_iops={disk: 1000}, accounting=True)
    with Container(PID(), part).start(*gate("dd", "if=/dev/zero", f"of={tmp_path}/file", "bs=4096", "count=8", "oflag=direct")) as box:
        group = group_of(box, part)
        gate.open()
        assert box.wait(60) == 0, box.logs()
        paths, counted = group.paths(), group.stats().io[disk]
        if "blkio" in paths:
            assert Path(paths["blkio"], "blkio.throttle.read_bps_device").read_text() == f"{number} {1 << 20}\n"
            assert Path(paths["blkio"], "blkio.throttle.write_iops_device").read_text() == f"{number} 1000\n"
        else:
            assert Path(paths["io"], "io.max").read_text() == f"{number} rbps={1 << 20} wbps=max riops=max wiops=1000\n"
        assert counted.write_bytes >= 8 * 4096 and counted.writes >= 8


def test_huge_pages() -> None:
    wants("hugetlb")
    if not Path("/sys/kernel/mm/hugepages/hugepages-2048kB").exists():
        pytest.skip("needs huge pages of 2 MB: this machine has others")
    part = Cgroup(hugetlb={"2MB": "4M"})
    with Container(PID(), part).start("sleep 1000") as box:
        [write] = part.writes()
        group = group_of(box, part)
        assert Path(group.paths()["hugetlb"], write.file).read_text() == f"{4 << 20}\n"
        assert group.processes() == [box.pid] and Group.of(box.pid).paths() == group.paths()


def test_nobody_above_can_take_a_controller_away() -> None:
    """Who tidies up above, as systemd does, would take the limit away with it."""
    unified = hierarchies.unified()
    name = next((name for name in ("pids", "memory", "hugetlb") if unified and name in unified.controllers), None)
    if unified is None or name is None:
        pytest.skip("needs the controller pids, memory or hugetlb in version 2: it has none of them")
    words: dict[str, Words] = {"pids": {"pids": 9}, "memory": {"memory": "64M"}, "hugetlb": {"hugetlb": {"2MB": "4M"}}}
    with Container(PID(), Cgroup(**words[name])).start("sleep 1000"), pytest.raises(OSError) as caught:
        Path(unified.point, "cgroup.subtree_control").write_text(f"-{name}")
    assert caught.value.errno == EBUSY


def test_limits_of_a_running_container_change() -> None:
    for name in ("memory", "cpu", "pids"):
        wants(name)
    part = Cgroup(memory="64M", swap="16M", cpus=0.5, pids=64)
    with Container(PID(), part).start("sleep 1000") as box:
        group = group_of(box, part)
        for memory, swap in (("32M", "0"), ("128M", "64M"), ("256M", None), ("max", "max"), ("16M", "1M")):
            group.set(memory=memory, swap=swap)
        group.set(pids="max", cpus=1)
        stats = group.stats()
        assert (stats.memory_limit, stats.pids_limit) == (16 << 20, None)
        in_v1, in_v2 = (Path(group.paths()["memory"], file) for file in ("memory.memsw.limit_in_bytes", "memory.swap.max"))
        assert in_v1.read_text() == f"{17 << 20}\n" if in_v1.exists() else in_v2.read_text() == f"{1 << 20}\n"
        with pytest.raises(UsageError, match=r"memory='1M': it must be between 6M"):
            group.set(memory="1M", pids=1)
        assert group.stats().pids_limit is None


@pytest.mark.needs("cgroup2")
def test_pressure_is_counted_or_it_is_said_why_not() -> None:
    part = Cgroup()
    with Container(PID(), part).start(*python(BURN)) as box:
        group = group_of(box, part)
        try:
            assert set(group.pressure()) == {"cpu", "memory", "io"}
            assert soon(lambda: group.pressure()["cpu"].some.total >= 0)
        except UsageError as error:
            assert "pressure" in str(error)


@pytest.mark.needs("namespace:cgroup")
def test_in_a_cgroup_namespace_the_own_group_is_the_root() -> None:
    wants("pids")
    lines = Container(CgroupNS(), Cgroup(pids=9)).run("cat /proc/self/cgroup").stdout.splitlines()
    assert {line.rpartition(":")[2] for line in lines if ":pids:" in line or line.startswith("0:")} == {"/"}


def test_many_containers_with_limits_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    wants("pids")
    box = Container(PID(), Cgroup(pids=5))
    with ThreadPoolExecutor(4) as threads:
        assert {result.code for result in threads.map(lambda _: box.run("true"), range(20))} == {0}
