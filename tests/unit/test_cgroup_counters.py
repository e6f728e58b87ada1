"""What a group has used, as both versions write it down, in the same words; and what a refused write means."""

from collections.abc import Callable
from errno import EACCES, EBUSY, EINVAL, ENODEV, ENOENT, EPERM
from pathlib import Path
from typing import Any

import pytest

from kernel_lab.cgroups import devices, files, v1, v2
from kernel_lab.cgroups.group import Group, Place
from kernel_lab.cgroups.stats import IO, Stall, Stats
from kernel_lab.kernel.errors import UsageError

IN_V1 = {
    "memory.usage_in_bytes": "4096\n",
    "memory.max_usage_in_bytes": "8192\n",
    "memory.limit_in_bytes": "67108864\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
    "memory.failcnt": "7\n",
    "cpu.stat": "nr_periods 10\nnr_throttled 3\nthrottled_time 1500000000\n",
    "cpuacct.usage": "1500000000\n",
    "cpuacct.usage_user": "2500000\n",
    "cpuacct.usage_sys": "500000\n",
    "pids.current": "5\n",
    "pids.max": "64\n",
    "pids.events": "max 4\n",
    "blkio.throttle.io_service_bytes_recursive": "8:0 Read 512\n8:0 Write 1024\n8:0 Sync 1536\n8:0 Total 1536\n8:16 Read 1\nTotal 1537\n",
    "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
    "freezer.state": "THAWED\n",
    "cgroup.procs": "",
}
IN_V2 = {
    "memory.current": "4096\n",
    "memory.peak": "8192\n",
    "memory.max": "67108864\n",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\n",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1250000\nsystem_usec 250000\nnr_periods 10\nnr_throttled 3\nthrottled_usec 1500000\n",
    "pids.current": "5\n",
    "pids.max": "64\n",
    "pids.events": "max 4\n",
    "io.stat": "8:0 rbytes=512 wbytes=1024 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=0 rios=0 wios=0\n",
    "cgroup.events": "populated 0\nfrozen 1\n",
    "cgroup.procs": "",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=2500000\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    "io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
}
V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "blkio", "freezer")
V2_CONTROLLERS = ("memory", "cpu", "pids", "io")
USED = Stats(
    cpu_user=1.25,
    cpu_system=0.25,
    throttled=3,
    throttled_seconds=1.5,
    memory=4096,
    memory_peak=8192,
    memory_limit=64 << 20,
    oom_kills=2,
    pids=5,
    pids_limit=64,
    io={"/dev/sda": IO(512, 1024, 1, 2), "/dev/sdb": IO(1, 0, 0, 0)},
)


@pytest.fixture(autouse=True)
def disks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"8:0": "/dev/sda", "8:16": "/dev/sdb"}
    for version in (v1, v2):
        monkeypatch.setattr(version, "disk_name", names.get)


Make = Callable[..., Group]


@pytest.fixture
def group(tmp_path: Path) -> Make:
    """A group of one directory with these files."""

    def make(version: int, contents: dict[str, str], *controllers: str) -> Group:
        directory = tmp_path / f"v{version}"
        directory.mkdir(exist_ok=True)
        for name, text in contents.items():
            (directory / name).write_text(text)
        return Group([Place(version, controllers, str(directory), str(directory))])

    return make


def test_both_versions_say_the_same(group: Make) -> None:
    assert group(1, IN_V1, *V1_CONTROLLERS).stats() == USED
    assert group(2, IN_V2, *V2_CONTROLLERS).stats() == USED
    assert USED.cpu_seconds == 1.5


def test_without_a_tick_in_the_kernel_all_time_is_the_users(group: Make) -> None:
    stats = group(1, IN_V1 | {"cpuacct.usage_user": "0\n", "cpuacct.usage_sys": "0\n"}, "cpuacct").stats()
    assert (stats.cpu_user, stats.cpu_system) == (1.5, 0.0)


def test_what_happened(group: Make) -> None:
    counted = {"memory.max": 7, "memory.oom_kill": 2, "pids.max": 4, "populated": 0}
    in_v1 = group(1, IN_V1, *V1_CONTROLLERS).events()
    in_v2 = group(2, IN_V2, *V2_CONTROLLERS).events()
    assert counted.items() <= in_v1.items() and counted.items() <= in_v2.items()
    assert (in_v1["frozen"], in_v1["memory.under_oom"], in_v2["frozen"], in_v2["memory.oom"]) == (0, 1, 1, 2)


def test_a_kernel_that_counted_where_a_fork_was_refused(group: Make, tmp_path: Path) -> None:
    counted = group(2, IN_V2 | {"pids.events": "max 0\n"}, "pids")
    (tmp_path / "v2/inside").mkdir()
    (tmp_path / "v2/inside/pids.events").write_text("max 4\n")
    assert counted.events()["pids.max"] == 4


def test_what_nobody_counts_is_none(group: Make) -> None:
    assert group(2, IN_V2).stats() == Stats(cpu_user=1.25, cpu_system=0.25)


@pytest.mark.parametrize(("version", "file", "text"), [(1, "memory.limit_in_bytes", str(2**63 - 4096)), (2, "memory.max", "max")])
def test_a_limit_that_is_not_set_is_none(group: Make, version: int, file: str, text: str) -> None:
    contents = IN_V1 if version == 1 else IN_V2
    assert group(version, contents | {file: f"{text}\n", "pids.max": "max\n"}, "memory", "pids", "cpuacct").stats().memory_limit is None
    assert group(version, {}, "memory", "pids", "cpuacct").stats().pids_limit is None


def test_a_kernel_before_memory_peak(group: Make, tmp_path: Path) -> None:
    old = group(2, IN_V2, "memory")
    (tmp_path / "v2/memory.peak").unlink()
    assert old.stats().memory_peak is None and old.stats().memory == 4096


def test_pressure(group: Make) -> None:
    pressed = group(2, IN_V2).pressure()
    assert pressed["cpu"].some == Stall(1.5, 0.25, 0.0, 2.5) and pressed["cpu"].full is None
    assert pressed["memory"].full == Stall(0.0, 0.0, 0.0, 0.000001)


def test_pressure_that_nobody_measures(group: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"pressure: only groups of version 2 have it"):
        group(1, IN_V1, "freezer").pressure()
    pressed = group(2, IN_V2)
    (tmp_path / "v2/io.pressure").unlink()
    with pytest.raises(UsageError, match=r"does not count that of io \(CONFIG_PSI"):
        pressed.pressure()

    def refused(path: str) -> str:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "read", refused)
    with pytest.raises(UsageError, match=r"booted with psi=1"):
        pressed.pressure()


def test_it_is_printed_in_units() -> None:
    printed = str(USED)
    for line in ("cpu user           1.250 s", "memory             4k", "memory limit       64M", "oom kills          2"):
        assert line in printed
    assert "io /dev/sda        512 read bytes, 1024 write bytes, 1 reads, 2 writes" in printed
    assert "<table" in USED._repr_html_() and "memory" not in str(Stats(0.0, 0.0))


def test_a_limit_of_a_controller_that_the_group_is_not_in(group: Make) -> None:
    with pytest.raises(UsageError, match=r"cpus: the container is in no group of the controller cpu; start it with this limit, 'max' if need be"):
        group(1, IN_V1, "memory").set(memory="64M", cpus=1)


def test_limits_are_changed_where_they_are(group: Make, tmp_path: Path) -> None:
    group(2, {"memory.max": "", "cpu.max": "", "pids.max": ""}, "memory", "cpu", "pids").set(memory="64M", cpus=0.5, pids=None)
    assert [(tmp_path / "v2" / file).read_text() for file in ("memory.max", "cpu.max", "pids.max")] == ["67108864", "50000 100000", ""]


@pytest.mark.parametrize(
    ("file", "errno", "words"),
    [
        ("memory.limit_in_bytes", EBUSY, "the group uses more than that"),
        ("memory.memsw.limit_in_bytes", EINVAL, "never below that of memory"),
        ("cpu.cfs_quota_us", EINVAL, "no group may have more than the one above it"),
        ("cpuset.cpus", EACCES, "only CPUs and memory nodes that the one above it has"),
        ("devices.allow", EPERM, "cannot allow what the one above it denies"),
        ("blkio.throttle.read_bps_device", ENODEV, "whole disks"),
        ("io.max", ENODEV, "whole disks"),
        ("io.weight", ENOENT, "built without that limit"),
        ("cgroup.subtree_control", EBUSY, "a v2 cgroup holds processes or hands controllers on"),
        ("cgroup.procs", EACCES, "a permission is missing"),
    ],
)
def test_a_refused_write_is_explained(tmp_path: Path, file: str, errno: int, words: str) -> None:
    group = tmp_path / "cgroup"
    group.mkdir()
    error = files.refused(f"{group}/{file}", "1", errno)
    assert error.errno == errno and words in str(error)
    assert str(error).startswith(f'write("{group}/{file}", "1"): E')


def test_a_disk_that_has_gone_keeps_its_number() -> None:
    assert devices.name("4095:1") == "4095:1"


def test_a_file_without_numbers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a 1\nname b\n\n")
    found: dict[str, Any] = files.numbers(str(tmp_path / "file"))
    assert found == {"a": 1}
