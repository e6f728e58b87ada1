"""One vocabulary, two translations: what is written for each limit in version 1, and in version 2."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab.cgroups import devices, v1, v2
from kernel_lab.cgroups.amounts import UNLIMITED
from kernel_lab.cgroups.limits import Limits
from kernel_lab.kernel.errors import UsageError

M = 1 << 20
EVERYTHING = Limits(
    memory=64 * M,
    swap=16 * M,
    cpus=0.5,
    cpu_weight=300,
    cpuset="0-1",
    pids=64,
    read_bps={"8:0": M},
    write_bps={"8:0": 2 * M, "8:16": UNLIMITED},
    read_iops={"8:16": 10},
    write_iops={"8:0": 20},
    io_weight=200,
    devices=devices.parse(["c 1:3 rwm", "b *:* m"]),
    hugetlb={"2MB": 4 * M},
)
IN_V1 = {
    "memory": [("memory.limit_in_bytes", str(64 * M)), ("memory.memsw.limit_in_bytes", str(80 * M))],
    "cpu": [("cpu.cfs_quota_us", "50000"), ("cpu.shares", "3072")],
    "cpuset": [("cpuset.cpus", "0-1")],
    "pids": [("pids.max", "64")],
    "blkio": [
        ("blkio.throttle.read_bps_device", f"8:0 {M}"),
        ("blkio.throttle.write_bps_device", f"8:0 {2 * M}"),
        ("blkio.throttle.write_bps_device", "8:16 0"),
        ("blkio.throttle.read_iops_device", "8:16 10"),
        ("blkio.throttle.write_iops_device", "8:0 20"),
        ("blkio.bfq.weight", "200"),
    ],
    "devices": [("devices.deny", "a"), ("devices.allow", "c 1:3 rwm"), ("devices.allow", "b *:* m")],
    "hugetlb": [("hugetlb.2MB.limit_in_bytes", str(4 * M))],
    "cpuacct": [],
    "freezer": [],
}
IN_V2 = {
    "memory": [("memory.max", str(64 * M)), ("memory.swap.max", str(16 * M))],
    "cpu": [("cpu.max", "50000 100000"), ("cpu.weight", "300")],
    "cpuset": [("cpuset.cpus", "0-1")],
    "pids": [("pids.max", "64")],
    "io": [("io.max", f"8:0 rbps={M} wbps={2 * M} wiops=20"), ("io.max", "8:16 wbps=max riops=10"), ("io.weight", "200")],
    "hugetlb": [("hugetlb.2MB.max", str(4 * M))],
}
LIFTED = Limits(memory=UNLIMITED, swap=UNLIMITED, cpus=math.inf, pids=UNLIMITED, read_bps={"8:0": UNLIMITED}, hugetlb={"2MB": UNLIMITED})


def in_v1(limits: Limits, controller: str, now: v1.Memory = v1.NEW) -> list[tuple[str, str]]:
    return [(write.file, write.text) for write in v1.writes(limits, controller, now)]


def in_v2(limits: Limits, controller: str) -> list[tuple[str, str]]:
    return [(write.file, write.text) for write in v2.writes(limits, controller)]


@pytest.mark.parametrize("controller", IN_V1)
def test_every_limit_in_version_1(controller: str) -> None:
    assert in_v1(EVERYTHING, controller) == IN_V1[controller]
    assert {(write.version, write.controller) for write in v1.writes(EVERYTHING, controller)} <= {("v1", controller)}
    assert in_v1(Limits(), controller) == []


@pytest.mark.parametrize("controller", IN_V2)
def test_every_limit_in_version_2(controller: str) -> None:
    assert in_v2(EVERYTHING, controller) == IN_V2[controller]
    assert {(write.version, write.controller) for write in v2.writes(EVERYTHING, controller)} <= {("v2", controller)}
    assert in_v2(Limits(), controller) == []


def test_limits_that_are_lifted() -> None:
    assert in_v1(LIFTED, "memory", v1.Memory(64 * M, 80 * M)) == [("memory.memsw.limit_in_bytes", "-1"), ("memory.limit_in_bytes", "-1")]
    assert in_v1(LIFTED, "cpu") == [("cpu.cfs_quota_us", "-1")]
    assert in_v1(LIFTED, "pids") == [("pids.max", "max")]
    assert in_v1(LIFTED, "blkio") == [("blkio.throttle.read_bps_device", "8:0 0")]
    assert in_v1(LIFTED, "hugetlb") == [("hugetlb.2MB.limit_in_bytes", "-1")]
    assert in_v2(LIFTED, "memory") == [("memory.max", "max"), ("memory.swap.max", "max")]
    assert in_v2(LIFTED, "cpu") == [("cpu.max", "max 100000")]
    assert in_v2(LIFTED, "pids") == [("pids.max", "max")]
    assert in_v2(LIFTED, "io") == [("io.max", "8:0 rbps=max")]
    assert in_v2(LIFTED, "hugetlb") == [("hugetlb.2MB.max", "max")]


def test_everything_may_be_allowed() -> None:
    assert in_v1(Limits(devices=devices.parse(["a"])), "devices") == [("devices.deny", "a"), ("devices.allow", "a")]


def test_a_weight_that_only_version_2_has() -> None:
    with pytest.raises(UsageError, match=r"io_weight=1001: in version 1 .* end at 1000"):
        v1.writes(Limits(io_weight=1001), "blkio")
    assert in_v2(Limits(io_weight=1001), "io") == [("io.weight", "1001")]


def test_swap_alone_is_only_limited_in_version_2() -> None:
    with pytest.raises(UsageError, match=r"swap='16M': version 1 limits memory and swap together"):
        v1.writes(Limits(swap=16 * M), "memory")
    assert in_v2(Limits(swap=16 * M), "memory") == [("memory.swap.max", str(16 * M))]


amounts = st.integers(0, 100).map(lambda number: number * M) | st.just(UNLIMITED)
groups = st.tuples(amounts, amounts).map(lambda pair: v1.Memory(min(pair), max(pair)))


class Kernel:
    """The two limits as the kernel keeps them: the second is never below the first (mem_cgroup_resize_max, mm/memcontrol-v1.c)."""

    def __init__(self, now: v1.Memory) -> None:
        self.files = {"memory.limit_in_bytes": now.alone, "memory.memsw.limit_in_bytes": now.both}

    def write(self, file: str, text: str) -> None:
        self.files[file] = UNLIMITED if text == "-1" else int(text)
        assert self.files["memory.limit_in_bytes"] <= self.files["memory.memsw.limit_in_bytes"], f"EINVAL: {file} {text}"


@given(groups, st.none() | amounts, st.none() | amounts)
def test_memory_and_swap_change_in_an_order_that_the_kernel_takes(now: v1.Memory, memory: int | None, swap: int | None) -> None:
    alone = now.alone if memory is None else memory
    kernel, limits = Kernel(now), Limits(memory=memory, swap=swap)
    if alone == UNLIMITED and swap not in (None, UNLIMITED):
        with pytest.raises(UsageError):
            v1.writes(limits, "memory", now)
        return
    for write in v1.writes(limits, "memory", now):
        kernel.write(write.file, write.text)
    had = UNLIMITED if now.both == UNLIMITED else now.both - now.alone
    together = alone + (had if swap is None else swap)
    assert kernel.files == {"memory.limit_in_bytes": alone, "memory.memsw.limit_in_bytes": min(together, UNLIMITED)}
