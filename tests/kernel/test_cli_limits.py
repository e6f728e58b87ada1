"""Limits, layers and `klab stats` from a shell, in docker's words."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab import rootfs
from kernel_lab.cgroups.group import Group

IS_ROOT = os.geteuid() == 0
pytestmark = [pytest.mark.slow, pytest.mark.needs("userns", "busybox")]


def klab(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "kernel_lab.cli", *words], capture_output=True, text=True, check=False)


def test_what_is_written_goes_into_a_layer_and_with_it() -> None:
    done = klab("run", "--layers", "busybox", "sh", "-c", "echo changed > /etc/motd; rm /etc/group; cat /etc/motd; ls /etc")
    assert (done.returncode, done.stderr) == (0, "")
    motd, *names = done.stdout.split()
    assert motd == "changed" and "group" not in names and "passwd" in names
    assert not (rootfs.busybox() / "etc/motd").exists() and (rootfs.busybox() / "etc/group").exists()


@pytest.mark.needs("root")
def test_each_option_is_a_limit_of_the_container() -> None:
    limits = ["-m", "64m", "--memory-swap", "96m", "--cpus", "0.5", "-c", "512", "--cpuset-cpus", "0", "--pids-limit", "20"]
    with running(*limits) as name:
        stats = Group.of(pid_of(name)).stats()
        paths = Group.of(pid_of(name)).paths()
    assert (stats.memory_limit, stats.pids_limit) == (64 << 20, 20)
    assert {"memory", "cpu", "cpuset", "pids"} <= paths.keys()


@pytest.mark.needs("root")
def test_a_device_that_is_allowed_is_one_more_than_the_usual_ones() -> None:
    usual = "for name in null zero; do : < /dev/$name && echo $name; done"
    others = "mknod /tmp/fuse c 10 229; mknod /tmp/kvm c 10 232; for name in fuse kvm; do (: < /tmp/$name) 2>&1; done"
    done = klab("run", "--layers", "--device-cgroup-rule", "c 10:229 r", "busybox", "sh", "-c", f"{usual}; {others}")
    assert done.stdout.splitlines()[:2] == ["null", "zero"] and "fuse" not in done.stdout
    assert "can't open /tmp/kvm: Operation not permitted" in done.stdout


@pytest.mark.needs("root")
def test_stats_shows_who_burns_and_who_sleeps() -> None:
    with running("-m", "64m", command="while :; do :; done") as burner, running() as sleeper:
        lines = {line["name"]: line for line in json.loads(klab("stats", "--json").stdout)}
        table = klab("stats", "--no-stream", burner).stdout.splitlines()
    assert lines[burner]["cpu"] > 10 * max(lines[sleeper]["cpu"], 0.1)
    assert lines[burner]["memory_limit"] == 64 << 20 and lines[sleeper]["memory_limit"] is None
    assert table[0].split()[:2] == ["CONTAINER", "ID"] and len(table) == 2 and burner in table[1] and "64M" in table[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-m", "64q"), "memory='64q': a size is"),
        (("-m", "1k"), "memory='1k': it must be between"),
        (("-m", "999t"), "memory='999t': it must be between"),
        (("--memory-swap", "64m"), "--memory-swap 64m: it is memory and swap together, and needs --memory"),
        (("-m", "64m", "--memory-swap", "32m"), "--memory-swap 32m: it is memory and swap together, and so not less"),
        (("--cpus", "9999"), "cpus='9999': it must be between"),
        (("--cpus", "half"), "cpus='half': it is a number"),
        (("--cpuset-cpus", "9999"), "cpuset='9999': CPUs that this machine does not have"),
        (("--pids-limit", "0"), "pids='0': it must be between 1"),
        (("--device-read-bps", "1M"), "'1M': a limit of a disk is written DISK:LIMIT"),
        (("--device-write-iops", "/dev/nothing:5"), "device '/dev/nothing'"),
        (("--device-write-iops", "/dev/null:5"), "/dev/null"),
        (("--device-cgroup-rule", "everything"), "everything"),
    ],
)
def test_a_wrong_limit_is_one_line_and_nothing_is_made(words: tuple[str, ...], says: str) -> None:
    done = klab("run", *words, "busybox", "true")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert says in done.stderr


class running:
    """A container in the background, by its name; a shell that sleeps, or does what `command` says."""

    count = 0

    def __init__(self, *options: str, command: str = "exec sleep 1000") -> None:
        running.count += 1
        self.name = f"limited{running.count}"
        self.words = ("run", "-d", "--name", self.name, *options, "busybox", "sh", "-c", command)

    def __enter__(self) -> str:
        done = klab(*self.words)
        assert done.returncode == 0, done.stderr
        return self.name

    def __exit__(self, *error: object) -> None:
        pid = pid_of(self.name)
        assert klab("rm", "-f", self.name).returncode == 0
        assert soon(lambda: not Path(f"/proc/{pid}").exists())


def pid_of(name: str) -> int:
    return int(json.loads(klab("inspect", name).stdout)[0]["pid"])


@pytest.fixture(autouse=True)
def no_group_is_left() -> Iterator[None]:
    before = groups()
    yield
    assert soon(lambda: groups() <= before)


def groups() -> set[str]:
    return {str(path) for depth in ("*", "*/*", "*/*/*") for path in Path("/sys/fs/cgroup").glob(f"{depth}/klab-*")}
