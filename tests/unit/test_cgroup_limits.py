"""What a limit may be: sizes, numbers, disks and devices; and one clear error for everything else, before anything is made."""

import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab.cgroups import devices, limits
from kernel_lab.cgroups.amounts import UNLIMITED, fraction, number, shown, size
from kernel_lab.cgroups.limits import Limits, Words, cpu_list, page_name, weight_of_shares
from kernel_lab.kernel.errors import UsageError


def parsed(**words: Any) -> Limits:
    return Limits.of(Words(**words))  # type: ignore[typeddict-item]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 1 GB, CPUs 0, 1 and 3, huge pages of 2 MB and 1 GB, and the disks /dev/disk and /dev/disk1, of which the second is a partition."""
    (tmp_path / "online").write_text("0-1,3\n")
    for page in ("hugepages-2048kB", "hugepages-1048576kB"):
        (tmp_path / "huge" / page).mkdir(parents=True)
    monkeypatch.setattr(limits, "ONLINE", tmp_path / "online")
    monkeypatch.setattr(limits, "HUGE_PAGES", tmp_path / "huge")
    monkeypatch.setattr(limits.os, "sysconf", {"SC_PHYS_PAGES": 1 << 18, "SC_PAGE_SIZE": 4096}.get)
    nodes = {"/dev/disk": stat.S_IFBLK | 0o660, "/dev/disk1": stat.S_IFBLK | 0o660, "/dev/tty": stat.S_IFCHR | 0o666}

    def look(path: str) -> SimpleNamespace:
        if path not in nodes:
            raise FileNotFoundError(2, "No such file or directory", path)
        return SimpleNamespace(st_mode=nodes[path], st_rdev=os.makedev(8, 1 if path.endswith("1") else 0))

    fake = SimpleNamespace(exists=lambda path: path == "/sys/dev/block/8:1/partition", basename=os.path.basename, dirname=os.path.dirname)
    fake.realpath = lambda path: "/sys/devices/disk/disk1"
    monkeypatch.setattr(devices, "os", SimpleNamespace(stat=look, path=fake, major=os.major, minor=os.minor))


@pytest.mark.parametrize(
    ("text", "amount"),
    [("64M", 64 << 20), ("64m", 64 << 20), ("1.5G", 3 << 29), ("2 kB", 2048), ("3MiB", 3 << 20), ("1T", 1 << 40), ("100b", 100), ("0", 0), (7, 7)],
)
def test_sizes_as_docker_writes_them(text: str | int, amount: int) -> None:
    assert size(text, "memory") == amount


@pytest.mark.parametrize("text", ["", "M", "64X", "-1", "1e3", "0x10", "64 M B", "１M", None, True, 1.5, b"1M", [1], "1M\n"])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(UsageError, match=r"memory=.*a number of bytes"):
        size(text, "memory")


@given(st.integers(0, UNLIMITED - 1))
def test_what_is_shown_is_read_back(amount: int) -> None:
    assert size(shown(amount), "memory") == amount


def test_no_limit_is_written_max() -> None:
    assert size("max", "memory") == UNLIMITED
    assert shown(UNLIMITED) == "max"
    assert number("max", "pids", least=1, most=9, unlimited=True) == UNLIMITED
    assert fraction("max", "cpus", least=0, most=1) == math.inf


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "half", "", None, True, [0.5], float("inf")])
def test_what_is_no_number_of_cpus(value: Any) -> None:
    with pytest.raises(UsageError, match=r"cpus=.*a number, with decimals"):
        fraction(value, "cpus", least=0.01, most=2)


@pytest.mark.usefixtures("machine")
def test_every_word_in_the_kernels_units() -> None:
    found = parsed(
        memory="64M",
        swap=0,
        cpus="0.5",
        cpu_weight=300,
        cpuset="0-1, 3",
        pids="64",
        read_bps={"/dev/disk": "1M"},
        write_iops={"/dev/disk": 100},
        io_weight="200",
        devices=["c 1:3 rwm"],
        hugetlb={"2MB": "4M", "1G": "max"},
    )
    assert (found.memory, found.swap, found.cpus, found.cpu_weight, found.cpuset, found.pids) == (64 << 20, 0, 0.5, 300, "0-1,3", 64)
    assert (found.read_bps, found.write_iops, found.io_weight) == ({"8:0": 1 << 20}, {"8:0": 100}, 200)
    assert found.devices == (devices.Rule("c", 1, 3, "rwm"),)
    assert found.hugetlb == {"2MB": 4 << 20, "1GB": UNLIMITED}
    assert found.write_bps is None and "write_bps" not in found.given


def test_none_says_nothing() -> None:
    assert parsed(memory=None, pids=None) == Limits()


BAD: list[tuple[Mapping[str, Any], str]] = [
    ({"memory": "64 pages"}, r"memory='64 pages': a size is"),
    ({"memory": "5M"}, r"memory='5M': it must be between 6M and 1G"),
    ({"memory": "2G"}, r"memory='2G': it must be between 6M and 1G.*this machine"),
    ({"swap": "x"}, r"swap='x'"),
    ({"cpus": 0}, r"cpus=0: it must be between 0\.01 and 3: 3 CPUs are online"),
    ({"cpus": 3.5}, r"cpus=3\.5: it must be between"),
    ({"cpus": -1}, r"cpus=-1"),
    ({"cpu_weight": 0}, r"cpu_weight=0: it must be between 1 and 10000"),
    ({"cpu_weight": 10_001}, r"cpu_weight=10001"),
    ({"cpu_weight": 1.5}, r"cpu_weight=1\.5: it is a whole number"),
    ({"io_weight": 0}, r"io_weight=0"),
    ({"cpuset": "2"}, r"cpuset='2': CPUs that this machine does not have; online are 0-1,3"),
    ({"cpuset": "0-99999999999"}, r"cpuset='0-99999999999': CPUs that this machine does not have"),
    ({"cpuset": ""}, r"cpuset='': it is a list"),
    ({"cpuset": "0,"}, r"cpuset='0,': it is a list"),
    ({"cpuset": "0_1"}, r"cpuset='0_1': it is a list"),
    ({"cpuset": "3-1"}, r"cpuset='3-1'"),
    ({"cpuset": "a"}, r"cpuset='a': it is a list of CPUs, as 0-1,3"),
    ({"cpuset": 1}, r"cpuset=1: it is a list"),
    ({"pids": 0}, r"pids=0: it must be between 1 and 4194304"),
    ({"pids": "many"}, r"pids='many': it is a whole number from 1 to 4194304, or max"),
    ({"pids": 1 << 23}, r"pids=8388608"),
    ({"read_bps": {"/dev/nowhere": "1M"}}, r"device '/dev/nowhere': No such file"),
    ({"read_bps": {"/dev/tty": "1M"}}, r"device '/dev/tty': not a block device"),
    ({"read_bps": {"/dev/disk1": "1M"}}, r"device '/dev/disk1': a partition; the kernel limits whole disks: /dev/disk"),
    ({"read_bps": {"/dev/disk": "0"}}, r"read_bps\[/dev/disk\]='0'"),
    ({"write_iops": {"/dev/disk": 2**32}}, r"write_iops\[/dev/disk\]=4294967296"),
    ({"write_bps": "1M"}, r"write_bps='1M': it gives a limit for the path of a disk"),
    ({"write_bps": {}}, r"write_bps={}"),
    ({"hugetlb": {"3MB": "6M"}}, r"hugetlb: pages of '3MB': this machine has huge pages of 2MB, 1GB"),
    ({"hugetlb": {"2MB": "3M"}}, r"hugetlb\[2MB\]='3M': a limit is a number of whole pages"),
    ({"devices": "c 1:3 rwm"}, r"devices='c 1:3 rwm': it takes several rules"),
    ({"devices": ["c 1:3"]}, r"devices: 'c 1:3' is no rule"),
    ({"devices": ["x 1:3 r"]}, r"devices: 'x 1:3 r' is no rule"),
    ({"devices": ["c 1:3 rwx"]}, r"is no rule"),
    ({"devices": ["c 1:1048576 r"]}, r"minors at 1048575"),
    ({"devices": ["c 4096:1 r"]}, r"majors end at 4095"),
    ({"devices": ["a 1:3 rwm"]}, r"the kernel takes 'a' for everything"),
    ({"devices": [None]}, r"is no rule"),
    ({"frobnicate": 1}, r"frobnicate: no such limit; there are memory, swap, cpus"),
]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("words", "message"), BAD, ids=[str(words) for words, _ in BAD])
def test_a_bad_limit_is_named_with_the_rule(words: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parsed(**words)


@given(st.sets(st.integers(0, 8191), min_size=1))
def test_a_list_of_cpus_is_read_back(cpus: set[int]) -> None:
    assert cpu_list(",".join(map(str, cpus))) == cpus
    assert cpu_list(f"{min(cpus)}-{max(cpus)}\n") == set(range(min(cpus), max(cpus) + 1))


def test_pages_are_named_as_the_kernel_names_them() -> None:
    assert [page_name(length) for length in (64 << 10, 2 << 20, 512 << 20, 1 << 30, 16 << 30)] == ["64KB", "2MB", "512MB", "1GB", "16GB"]


def test_weights_are_shares_in_the_kernels_proportion() -> None:
    assert [weight_of_shares(shares) for shares in (2, 512, 1024, 2048, 262144)] == [1, 50, 100, 200, 10_000]


def test_rules_of_one_device_become_one() -> None:
    assert devices.parse(["c 1:3 r", "b 1:3 m", "c 1:3 w"]) == (devices.Rule("c", 1, 3, "rw"), devices.Rule("b", 1, 3, "m"))
    assert str(devices.Rule.parse("c 136:* mr")) == "c 136:* rm"


def test_the_usual_devices_are_rules() -> None:
    assert len(devices.parse(devices.USUAL)) == len(devices.USUAL)
