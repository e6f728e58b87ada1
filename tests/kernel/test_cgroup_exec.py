"""A command that joins a container is in the container's groups, and does not draw its creator into what becomes of them."""

from pathlib import Path

import pytest
from groups import wants

from kernel_lab import PID, UTS, Cgroup, Container, joining
from kernel_lab.cgroups.group import Group

pytestmark = pytest.mark.needs("root")


def test_it_is_in_the_groups_of_the_container(executor: str) -> None:
    wants("pids")
    part = Cgroup(pids=10)
    with Container(part, UTS("box"), PID()).start("sleep 1000") as box:
        group = box.made(part)
        assert isinstance(group, Group)
        inside = box.exec("cat", "/proc/self/cgroup").stdout.splitlines()
        assert inside == Path(f"/proc/{box.pid}/cgroup").read_text().splitlines()
        assert box.exec("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done").code != 0
        assert group.events()["pids.max"] > 0
        group.kill()


@pytest.mark.parametrize(("limits", "alone"), [({"memory": "32M"}, True), ({"pids": 10}, False)])
def test_where_memory_is_limited_it_shares_none_of_its_creators(limits: dict[str, str], alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wants("memory")
    monkeypatch.delenv("KERNEL_LAB_EXECUTOR", raising=False)
    asked = []
    own = joining.with_own_memory
    monkeypatch.setattr(joining, "with_own_memory", lambda: asked.append(1) or own())
    with Container(Cgroup(**limits), PID()).start("sleep 1000") as box:
        assert box.exec("echo joined").stdout == "joined\n"
    assert bool(asked) is alone
