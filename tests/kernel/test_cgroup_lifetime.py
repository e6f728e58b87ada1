"""A group comes whole or not at all, and goes with its container, however that ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from groups import handed_on, wants
from here import gone
from strangers import nobodys_python
from waiting import soon

from kernel_lab import PID, UTS, Container, KernelError
from kernel_lab.cgroups import delegation, hierarchies, making, processes
from kernel_lab.cgroups.layout import CONTROLLERS, layout
from kernel_lab.cgroups.limits import Limits
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.cleanup import leftovers, remove
from kernel_lab.kernel import inventory, procfs
from kernel_lab.state import Creator

pytestmark = pytest.mark.needs("root")
TOP = "/sys/fs/cgroup"


def groups(stamp: str) -> list[str]:
    """The directories that a creator has made."""
    return [name for name in inventory.cgroups("klab") if stamp in name]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The machine's own tree of version 2 is put back."""
    with handed_on():
        yield


def limited() -> Cgroup:
    """A limit for each of some controllers that the machine has."""
    words: dict[str, Any] = {"memory": "64M", "cpus": 1, "pids": 9, "cpuset": str(min(os.sched_getaffinity(0))), "hugetlb": {"2MB": "4M"}}
    return Cgroup(**{word: value for word, value in words.items() if hierarchies.find(CONTROLLERS[word][0])})


def test_none_of_its_files_stays_open_and_it_can_be_entered_all_the_same(executor: str) -> None:
    with Container(UTS("box"), PID(), limited()).start("sleep 1000") as box:
        assert not [path for path in procfs.open_files(os.getpid()).values() if path.startswith(TOP)]
        assert Creator.this().stamp in box.exec("cat /proc/self/cgroup").stdout
        assert groups(Creator.this().stamp)
    assert not groups(Creator.this().stamp)


class Fails:
    """An os function that fails at the n-th call about a group."""

    def __init__(self, real: Callable[..., Any], steps: "Steps") -> None:
        self.real, self.steps = real, steps

    def __call__(self, path: Any, *args: Any, **options: Any) -> Any:
        if str(path).startswith(TOP):
            self.steps.next()
        return self.real(path, *args, **options)


class Steps:
    """Counts steps, and fails at one of them."""

    def __init__(self, fatal: int, error: type[BaseException]) -> None:
        self.fatal, self.error, self.done = fatal, error, 0

    def next(self) -> None:
        self.done += 1
        if self.done == self.fatal:
            raise self.error(28, "injected") if self.error is OSError else self.error("injected")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_at_any_step_leaves_nothing(error: type[BaseException]) -> None:
    box = Container(PID(), limited())
    assert box.run("true").code == 0
    mine = Creator.this().stamp
    fatal, finished = 1, False
    while not finished:
        steps = Steps(fatal, error)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("mkdir", "open"):
                patch.setattr(os, name, Fails(getattr(os, name), steps))
            try:
                assert box.run("true").code == 0
                finished = True
            except error as caught:
                assert "injected" in str(caught) or isinstance(caught, KernelError)
        assert groups(mine) == []
        fatal += 1
    assert fatal > 4, "nothing has been injected"
    assert steps.done < fatal


def test_a_limit_that_the_kernel_refuses_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wants("pids")
    [*others] = layout(Limits(pids=5))
    bad = [one for one in others if "pids" in one.controllers]
    object.__setattr__(bad[0], "writes", (bad[0].writes[0]._replace(text="nonsense"),))
    with pytest.raises(KernelError, match=r'write\(".*/pids.max", "nonsense"\): EINVAL'), making.made(others):
        raise AssertionError("it was made")
    assert groups(Creator.this().stamp) == []


def test_what_outlives_the_first_process_ends_with_its_group() -> None:
    """Without a namespace of its own a daemon in a session of its own is known by nothing but its group."""
    box = Container(Cgroup()).start("sh", "-c", "setsid sleep 1000 & exec sleep 1000")
    part = box.parts[0]
    group: Any = box.made(part)
    assert soon(lambda: len(group.processes()) == 2)
    inside = group.processes()
    box.kill()
    assert soon(lambda: all(map(gone, inside)))
    assert groups(Creator.this().stamp) == []


def test_groups_that_were_made_inside_go_too() -> None:
    part = Cgroup()
    with Container(UTS("box"), part).start("sleep 1000") as box:
        group: Any = box.made(part)
        control = group.paths().get("v2") or group.paths()["freezer"]
        os.makedirs(f"{control}/a/b")
        os.mkdir(f"{control}/c")
        with subprocess.Popen(["sleep", "1000"]) as stranger:
            Path(f"{control}/a/b/cgroup.procs").write_text(str(stranger.pid))
            assert group.processes() == sorted([box.pid, stranger.pid])
            group.kill()
            assert stranger.wait(20) == -signal.SIGKILL
    assert groups(Creator.this().stamp) == []


def test_who_is_still_in_a_group_that_cannot_go_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchy = hierarchies.unified() or hierarchies.need("freezer", of="this test")
    directory = f"{hierarchy.point}/klab-{Creator.this().stamp}-stays"
    os.mkdir(directory)
    with subprocess.Popen(["sleep", "1000"]) as stays:
        try:
            Path(directory, "cgroup.procs").write_text(str(stays.pid))
            with pytest.raises(KernelError, match=rf"rmdir {directory}: EBUSY: after 0.1 s there are still {stays.pid} \(sleep, S\)"):
                processes.remove(directory, patience=0.1)
        finally:
            processes.end(directory)
            stays.wait()
    processes.end(directory)  # another cleanup may have been faster


CREATOR = """
import os, sys, time
from kernel_lab.cgroups import making
from kernel_lab.cgroups.layout import CONTROLLERS, layout
from kernel_lab.cgroups.limits import Limits
with making.made(layout(Limits(), accounting=True)) as group:
    print(*dict.fromkeys(group.paths().values()), flush=True)
    time.sleep(1000)
"""


def test_what_a_killed_creator_has_left_is_found_and_removed() -> None:
    with subprocess.Popen([sys.executable, "-c", CREATOR], stdout=subprocess.PIPE, text=True) as creator:
        assert creator.stdout
        paths = creator.stdout.readline().split()
        assert paths and all(map(os.path.isdir, paths))
        assert not [one for one in leftovers() if one.kind == "cgroup" and one.name in paths], "its creator lives"
        creator.kill()
    found = [one for one in leftovers() if one.kind == "cgroup" and any(one.name == path or one.name.startswith(f"{path}/") for path in paths)]
    assert set(paths) <= {one.name for one in found}
    remove(found)
    assert not any(map(os.path.exists, paths))


JANITORED = """
import time
from kernel_lab import *
from kernel_lab.cgroups.part import Cgroup
part = Cgroup(accounting=True)
box = Container(PID(), part).start("sleep 1000")
print(*dict.fromkeys(box.made(part).paths().values()), flush=True)
time.sleep(1000)
"""


def test_a_killed_creators_janitor_removes_its_groups() -> None:
    with subprocess.Popen([sys.executable, "-c", JANITORED], stdout=subprocess.PIPE, text=True) as creator:
        assert creator.stdout
        paths = creator.stdout.readline().split()
        assert paths and all(map(os.path.isdir, paths))
        creator.kill()
    assert soon(lambda: not any(map(os.path.exists, paths)))


@pytest.fixture
def delegated() -> Iterator[str]:
    """A group of version 2 that belongs to an ordinary user, as systemd hands one over, with the controllers that the machine has there."""
    hierarchy = hierarchies.unified()
    if not hierarchy:
        pytest.skip("needs cgroup2: no cgroup2 file system is mounted")
    directory = f"{hierarchy.point}/klab-tests-delegated-{os.getpid()}"
    with handed_on("cpu", "hugetlb", "memory", "pids"):
        os.mkdir(directory)
        for file in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(os.path.join(directory, file), 65534, 65534)
        yield directory
        processes.end(directory)


ORDINARY = """
import os
from kernel_lab import *
from kernel_lab.cgroups import delegation, hierarchies
from kernel_lab.cgroups.part import Cgroup
words = {"cpu": {"cpus": 0.5}, "hugetlb": {"hugetlb": {"2MB": "4M"}}, "memory": {"memory": "64M"}, "pids": {"pids": 9}}
handed = [name for name in delegation.handed_to(hierarchies.unified().own()) if name in words]
limits = {word: value for name in handed for word, value in words[name].items()}
for _ in range(2):
    part = Cgroup(**limits)
    with Container(User(), PID(), part).start("sleep 1000") as box:
        group = box.made(part)
        group.freeze()
        limited = sorted(group.paths().keys() - {"v2"})
        print(os.path.dirname(group.paths()["v2"]), group.processes() == [box.pid], group.events()["frozen"], limited == sorted(handed))
print(delegation.look(handed).there, *handed)
"""


def as_nobody(code: str, directory: str, place: Path) -> "subprocess.CompletedProcess[str]":
    place.mkdir()
    os.chown(place, 65534, 65534)
    for parent in place.parents:
        if parent.stat().st_mode & 0o1 == 0:
            parent.chmod(parent.stat().st_mode | 0o1)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KERNEL_LAB", "XDG"))}
    script = 'echo $$ > "$0/cgroup.procs" && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
    own = {"HOME": str(place), "KERNEL_LAB_RUN": f"{place}/run", "KERNEL_LAB_DATA": f"{place}/data", "PYTHONDONTWRITEBYTECODE": "1"}
    with nobodys_python() as python:
        command = ["sh", "-c", script, directory, python, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=inherited | own, cwd="/")


@pytest.mark.needs("userns", "setpriv")
def test_an_ordinary_user_makes_groups_in_what_was_delegated(delegated: str, tmp_path: Path) -> None:
    done = as_nobody(ORDINARY, delegated, tmp_path / "nobody")
    *lines, last = done.stdout.splitlines() or [""]
    there, *handed = last.split()
    assert lines == [f"{delegated} True 1 True"] * 2 and there == "True", done.stderr
    assert os.path.isdir(f"{delegated}/{delegation.CREATORS}") == bool(handed), "only who hands a controller on has to be empty"


UNTOLD = """
from kernel_lab import *
from kernel_lab.cgroups.part import Cgroup
try:
    Container(User(), Cgroup())
except UsageError as error:
    print(error)
"""


@pytest.mark.needs("userns", "setpriv", "cgroup2")
def test_an_ordinary_user_without_delegation_is_told_how_to_get_it(tmp_path: Path) -> None:
    hierarchy = hierarchies.unified()
    assert hierarchy
    done = as_nobody(UNTOLD, hierarchy.own(), tmp_path / "nobody")
    assert "has not been delegated to user 65534: systemd-run --user --scope -p Delegate=yes" in done.stdout, done.stderr
