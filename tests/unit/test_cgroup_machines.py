"""Where controllers are on machines of all kinds, and what a group with limits becomes there. The machines are directories and two tables."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_lab.cgroups import delegation, hierarchies, limits
from kernel_lab.cgroups.hierarchies import Hierarchy, controllers, find, need, unified
from kernel_lab.cgroups.layout import Directory, layout
from kernel_lab.cgroups.limits import Limits, Words
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.cgroups.subsystems import subsystems
from kernel_lab.kernel import mountinfo, procfs
from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.procfs import CgroupLine

V1 = ["cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "net_cls", "perf_event", "pids"]


class Machine:
    """The mounts, this process's groups, and the directories behind them."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.mounts: list[mountinfo.Mount] = []
        self.lines: list[CgroupLine] = []
        self.known = top / "known"
        self.say(dict.fromkeys(V1, True))

    def say(self, known: dict[str, bool]) -> None:
        """What /proc/cgroups says."""
        rows = [f"{name}\t0\t1\t{int(on)}" for name, on in known.items()]
        self.known.write_text("\n".join(["#subsys_name\thierarchy\tnum_cgroups\tenabled", *rows, ""]))

    def v1(self, *names: str, own: str = "/", root: str = "/", files: tuple[str, ...] = ()) -> Path:
        """A hierarchy with these controllers, at a directory with their names; returns the directory of this process's group."""
        point = self.top / ",".join(names)
        self._mount(point, root, "cgroup", ",".join(("rw", *names)))
        self.lines.append(CgroupLine(len(self.lines) + 1, names, own))
        directory = point / os.path.relpath(own, root)
        directory.mkdir(parents=True, exist_ok=True)
        for file in ("cgroup.procs", *files):
            (directory / file).write_text("")
        return directory

    def v2(self, *names: str, own: str = "/", handed: tuple[str, ...] | None = None) -> Path:
        """The one of version 2."""
        point = self.top / "unified"
        self._mount(point, "/", "cgroup2", "rw")
        self.lines.append(CgroupLine(0, (), own))
        directory = point / own.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        (point / "cgroup.controllers").write_text(" ".join(names))
        for group in {point, directory}:
            for file in ("cgroup.procs", "cgroup.subtree_control", "cpuset.cpus.effective"):
                (group / file).write_text("0-1\n" if file.startswith("cpuset") else "")
        if directory != point:
            (directory / "cgroup.controllers").write_text(" ".join(names if handed is None else handed))
            (directory / "cgroup.type").write_text("domain\n")
        return directory

    def _mount(self, point: Path, root: str, kind: str, options: str) -> None:
        point.mkdir(parents=True, exist_ok=True)
        line = f"{30 + len(self.mounts)} 25 0:{len(self.mounts)} {root} {point} rw,relatime - {kind} {kind} {options}"
        self.mounts.append(mountinfo.parse(line))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path)
    monkeypatch.setattr(hierarchies, "KNOWN", made.known)
    monkeypatch.setattr(mountinfo, "mounts", lambda: tuple(made.mounts))
    monkeypatch.setattr(procfs, "cgroups", lambda pid: tuple(made.lines))
    monkeypatch.setattr(limits, "ONLINE", tmp_path / "online")
    (tmp_path / "online").write_text("0-3\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    hierarchies.hierarchies.cache_clear()
    yield made
    hierarchies.hierarchies.cache_clear()


Ordinary = Callable[..., None]


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> Ordinary:
    """Makes the caller an ordinary user who owns what is below these directories."""

    def become(*owned: Path) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(os, "access", lambda path, mode: any(Path(path).is_relative_to(mine) for mine in owned))

    return become


def planned(accounting: bool = False, **words: Any) -> dict[str, Directory]:
    """The directories of a group, by the name of their hierarchy's own."""
    return {os.path.basename(one.hierarchy.point): one for one in layout(Limits.of(Words(**words)), accounting)}  # type: ignore[typeddict-item]


def texts(directory: Directory) -> list[tuple[str, str]]:
    return [(write.file, write.text) for write in directory.writes]


def test_a_hybrid_machine_is_read_controller_by_controller(machine: Machine) -> None:
    machine.v1("memory")
    machine.v1("cpu", "cpuacct")
    machine.v1("name=systemd")
    machine.v2("pids", "hugetlb")
    last = hierarchies.hierarchies()[-1]
    assert (last.version, os.path.basename(last.point), last.controllers) == (2, "unified", ("pids", "hugetlb"))
    assert [found.version if (found := find(name)) else None for name in ("memory", "cpu", "cpuacct", "pids", "blkio")] == [1, 1, 1, 2, None]
    table = {row.controller: (row.version, os.path.basename(row.mounted_at)) for row in controllers()}
    assert table["cpuacct"] == ("v1", "cpu,cpuacct") and table["pids"] == ("v2", "unified") and table["net_cls"] == ("", "nowhere")
    assert set(table) == {*V1, "hugetlb"}


def test_what_is_missing_is_looked_for_again(machine: Machine) -> None:
    machine.v1("memory")
    with pytest.raises(UsageError, match=r"cpus: it needs the controller cpu, and cpu is mounted nowhere"):
        need("cpu", of="cpus")
    machine.v1("cpu")
    assert need("cpu", of="cpus").controllers == ("cpu",)


@pytest.mark.parametrize(
    ("known", "why"),
    [({"cpu": True}, r"this kernel has no memory"), ({"memory": False}, r"memory has been switched off: see cgroup_disable in /proc/cmdline")],
)
def test_why_a_controller_is_missing(machine: Machine, known: dict[str, bool], why: str) -> None:
    machine.say(known)
    with pytest.raises(UsageError, match=why):
        planned(memory="64M")


def test_a_kernel_without_version_1_has_no_list_of_it(machine: Machine) -> None:
    machine.known.unlink()
    machine.v2("memory")
    assert [row.controller for row in controllers()] == ["memory"]


def test_a_controller_that_two_words_need_has_one_directory(machine: Machine) -> None:
    parent = machine.v1("memory", own="/user", files=("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"))
    machine.v2()
    found = planned(memory="64M", swap="0")
    assert set(found) == {"memory", "unified"}
    assert found["memory"].parent == str(parent)
    assert texts(found["memory"]) == [("memory.limit_in_bytes", "67108864"), ("memory.memsw.limit_in_bytes", "67108864")]


def test_controllers_that_are_mounted_together_have_one_directory(machine: Machine) -> None:
    machine.v1("cpu", "cpuacct", files=("cpu.cfs_quota_us",))
    machine.v1("freezer")
    assert {name: one.controllers for name, one in planned(cpus=1).items()} == {"cpu,cpuacct": ("cpu", "cpuacct"), "freezer": ("freezer",)}


def test_a_cpuset_that_is_mounted_with_another_is_filled_even_without_a_limit(machine: Machine) -> None:
    machine.v2()
    parent = machine.v1("cpuset", "pids")
    (parent / "cpuset.cpus").write_text("0-3\n")
    (parent / "cpuset.mems").write_text("0\n")
    assert texts(planned(pids=3)["cpuset,pids"]) == [("cpuset.cpus", "0-3"), ("cpuset.mems", "0"), ("pids.max", "3")]


def test_inside_a_container_the_own_group_is_below_what_is_mounted(machine: Machine) -> None:
    machine.v2()
    parent = machine.v1("pids", own="/docker/0a1b/inner", root="/docker/0a1b")
    assert planned(pids=3)["pids"].parent == os.path.normpath(parent)
    assert os.path.basename(parent) == "inner"


def test_an_own_group_that_is_out_of_sight(machine: Machine) -> None:
    machine.v2()
    machine.v1("pids", own="/docker/0a1b", root="/docker/0a1b")
    machine.lines[-1] = machine.lines[-1]._replace(path="/elsewhere")
    with pytest.raises(UsageError, match=r"pids: this process is in /elsewhere, of which nothing is seen at"):
        planned(pids=3)


def test_a_cpuset_of_version_1_takes_both_lists_from_above(machine: Machine) -> None:
    machine.v2()
    parent = machine.v1("cpuset")
    (parent / "cpuset.cpus").write_text("0-2\n")
    (parent / "cpuset.mems").write_text("0\n")
    assert texts(planned(cpuset="1")["cpuset"]) == [("cpuset.cpus", "0-2"), ("cpuset.mems", "0"), ("cpuset.cpus", "1")]
    with pytest.raises(UsageError, match=r"cpuset='3': the group above it may use only 0-2"):
        planned(cpuset="3")


def test_a_file_that_this_kernel_lacks(machine: Machine) -> None:
    machine.v2()
    machine.v1("memory", files=("memory.limit_in_bytes",))
    assert planned(memory="64M")
    with pytest.raises(UsageError, match=r"memory: .*/memory is v1, and this kernel has no memory.memsw.limit_in_bytes in it"):
        planned(memory="64M", swap="0")


def test_version_2_has_all_in_one_directory(machine: Machine) -> None:
    point = machine.v2("cpu", "io", "memory", "pids")
    found = planned(memory="64M", cpus=0.5, pids=9, devices=["c 1:3 rwm"])
    assert set(found) == {"unified"}
    assert found["unified"].controllers == ("memory", "cpu", "pids") and found["unified"].parent == str(point)
    assert texts(found["unified"]) == [("memory.max", "67108864"), ("cpu.max", "50000 100000"), ("pids.max", "9")]
    assert found["unified"].program and "c 1:3 rwm" in str(found["unified"].program)


def test_another_group_tells_what_this_kernel_lacks(machine: Machine) -> None:
    point = machine.v2("cpu", "memory")
    system = point / "system.slice"
    system.mkdir()
    (system / "cgroup.controllers").write_text("memory")
    (system / "memory.max").write_text("max\n")
    assert planned(memory="64M", cpus=1)
    with pytest.raises(UsageError, match=r"memory: .*/unified is v2, and this kernel has no memory.swap.max in it"):
        planned(swap="0")


def test_version_1_limits_devices_where_it_has_them(machine: Machine) -> None:
    machine.v1("devices", files=("devices.deny", "devices.allow"))
    machine.v2()
    found = planned(devices=["c 1:3 rwm"])
    assert texts(found["devices"]) == [("devices.deny", "a"), ("devices.allow", "c 1:3 rwm")]
    assert found["unified"].program is None


def test_devices_where_neither_version_has_them(machine: Machine) -> None:
    machine.v1("freezer")
    machine.v1("cpuacct")
    with pytest.raises(UsageError, match=r"devices: it needs the controller devices, and devices is mounted nowhere"):
        planned(devices=["a"])


def test_accounting_takes_what_counts_and_is_there(machine: Machine) -> None:
    machine.v1("memory")
    machine.v1("blkio")
    machine.v2("pids")
    found = {name: one.controllers for name, one in planned(accounting=True).items()}
    assert found == {"memory": ("memory",), "blkio": ("blkio",), "unified": ("pids",)}


def test_without_version_2_the_freezer_holds_a_group_together(machine: Machine) -> None:
    machine.v1("freezer")
    machine.v1("cpuacct")
    assert set(planned()) == {"freezer", "cpuacct"}


def test_a_group_of_nothing_but_version_2(machine: Machine) -> None:
    machine.v2()
    assert planned()["unified"].controllers == ()


def test_version_1_is_roots_alone(machine: Machine, ordinary: Ordinary) -> None:
    machine.v1("memory", files=("memory.limit_in_bytes",))
    ordinary(machine.v2(own="/user/scope"))
    with pytest.raises(UsageError, match=r"memory: in v1 at .*/memory, where user 1000 may not make groups: only root may"):
        planned(memory="64M")
    assert set(planned()) == {"unified"}


def test_an_ordinary_user_has_the_part_that_was_delegated(machine: Machine, ordinary: Ordinary) -> None:
    own = machine.v2("cpu", "memory", "pids", own="/user/scope", handed=("memory", "pids"))
    (own / "pids.max").write_text("max\n")
    ordinary(own)
    assert planned(pids=9)["unified"].parent == str(own)
    with pytest.raises(UsageError, match=r"cpu: .*/user/scope has been handed memory pids .*delegate.conf"):
        planned(cpus=1)
    with pytest.raises(UsageError, match=r"devices: in v2 .* only root"):
        planned(devices=["a"])
    assert delegation.look(["memory"]) == (True, f"groups are made in {own}", "")
    there, detail, mend = delegation.look()
    assert not there and "cpu, cpuset, io" in detail and "user@.service.d" in mend


def test_who_has_been_moved_aside_still_makes_groups_in_the_delegated_one(machine: Machine, ordinary: Ordinary) -> None:
    own = machine.v2("pids", own=f"/user/scope/{delegation.CREATORS}").parent
    for file in ("cgroup.procs", "cgroup.subtree_control", "cgroup.type", "pids.max"):
        (own / file).write_text("")
    (own / "cgroup.controllers").write_text("pids")
    ordinary(own)
    assert planned(pids=9)["unified"].parent == str(own)


def test_an_ordinary_user_to_whom_nothing_was_delegated(machine: Machine, ordinary: Ordinary) -> None:
    machine.v2("memory", own="/user/session")
    ordinary()
    with pytest.raises(UsageError, match=r"/user/session, where this process is, has not been delegated to user 1000: systemd-run --user"):
        planned(memory="64M")
    there, _, mend = delegation.look()
    assert not there and mend.startswith("systemd-run --user")


def test_a_machine_of_version_1_delegates_nothing(machine: Machine, ordinary: Ordinary) -> None:
    machine.v1("memory")
    assert delegation.look().there
    ordinary()
    assert delegation.look() == (False, "no cgroup v2 is mounted, and in v1 only root makes groups", delegation.BOOT)


def test_a_tree_that_not_even_root_may_write_to(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.v2("memory")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"not even root may write to .*/unified: mount -o remount,rw .*/unified"):
        planned(memory="64M")
    assert delegation.look()[::2] == (False, f"mount -o remount,rw {machine.top}/unified")


def test_a_group_hands_on_what_it_does_not_yet(machine: Machine) -> None:
    point = machine.v2("cpu", "memory")
    (point / "cgroup.procs").write_text("1\n2\n")
    (point / "cgroup.subtree_control").write_text("memory\n")
    delegation.hand_on(str(point), ["memory"])
    assert (point / "cgroup.subtree_control").read_text() == "memory\n"
    delegation.hand_on(str(point), ["cpu", "memory"])
    assert (point / "cgroup.subtree_control").read_text().startswith("+cpu")
    assert not (point / delegation.CREATORS).exists(), "the topmost group may hold processes and hand on"


def test_where_the_ten_subsystems_are(machine: Machine) -> None:
    machine.v1("cpu", "cpuacct")
    machine.v2("memory", "io")
    table = {row.name: row.here for row in subsystems()}
    assert list(table) == ["blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "net_cls", "ns", "perf_event"]
    v1, v2 = str(hierarchies.hierarchies()[0]), str(unified())
    assert (table["cpu"], table["cpuacct"], table["memory"], table["blkio"]) == (v1, v1, v2, v2)
    assert table["freezer"] == table["devices"] == f"{v2}, as on the right"
    assert table["net_cls"] == "net_cls is mounted nowhere"
    assert table["ns"] == "in no kernel since Linux 3.0"


def test_the_part_shows_its_writes_and_its_rows_before_anything_is_made(machine: Machine) -> None:
    machine.v1("memory", files=("memory.limit_in_bytes",))
    machine.v2("pids")
    part = Cgroup(memory="64M", pids=9, swap=None)
    assert repr(part) == "Cgroup(memory='64M', pids=9)"
    assert [tuple(row) for row in part.writes()] == [("v1", "memory", "memory.limit_in_bytes", "67108864"), ("v2", "pids", "pids.max", "9")]
    assert "memory.limit_in_bytes  67108864" in str(part.writes())
    assert [handle.name for handle in part.handles] == ["memory group"]
    assert [str(row) for row in part.rows(None)] == ['write(memory group, "0", 1)']  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("point", "root", "group", "directory"),
    [
        ("/cg", "/", "/", "/cg"),
        ("/cg", "/", "/a/b", "/cg/a/b"),
        ("/cg", "/a", "/a/b", "/cg/b"),
        ("/cg", "/a", "/a", "/cg"),
        ("/cg", "/a", "/ab", None),
        ("/cg", "/a", "/", None),
    ],
)
def test_where_a_group_is(point: str, root: str, group: str, directory: str | None) -> None:
    assert Hierarchy(1, point, root, ()).directory(group) == directory
