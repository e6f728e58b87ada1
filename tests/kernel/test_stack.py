"""The layers of a running container's root, by overlay and by AUFS: the picture says what the container sees."""

from pathlib import Path

import pytest
from here import users

from kernel_lab import PID, Aufs, Branch, Container, Mount, Overlay, UsageError, rootfs
from kernel_lab.course.stack import Stack
from kernel_lab.namespaces.root import Root
from kernel_lab.unionfs.aufs import lacking

pytestmark = pytest.mark.needs("userns", "busybox")

SCRIPT = "echo mine > etc/hosts; rm etc/group; touch home/me; rm -r var; mkdir -p var/log"
STATES = {
    "etc/hosts": ["shown", "hidden"],
    "etc/group": ["whiteout", "hidden"],
    "etc/passwd": ["", "shown"],
    "home/me": ["shown", ""],
    "var/log": ["shown", "hidden"],
    "var/tmp": ["opaque", "hidden"],
    "never": ["", ""],
}


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    upper = tmp_path / "upper"
    upper.mkdir()
    return upper


def check(root: Root) -> None:
    """What a container has changed is drawn as it sees it, while it runs."""
    with Container(*users(), PID(), Mount(root)).start("sleep", "1000") as box:
        drawn = Stack.of(box, *STATES)
        assert [layer.name for layer in drawn.layers] == ["upper", rootfs.busybox().name]
        assert drawn.states("etc/group") == ["", "shown"]
        box.exec("sh", "-c", SCRIPT, check=True)
        assert {path: drawn.states(path) for path in STATES} == STATES
        for path, states in STATES.items():
            assert (box.exec("test", "-e", path).code == 0) is ("shown" in states), path


def test_of_overlay(upper: Path) -> None:
    check(Overlay(rootfs.busybox(), upper=upper))


@pytest.mark.skipif(lacking() is not None, reason=f"AUFS cannot be mounted: {(lacking() or [None])[0]}")
def test_of_aufs(upper: Path) -> None:
    check(Aufs(Branch(str(upper)), Branch(str(rootfs.busybox()), "ro")))


@pytest.mark.skipif(lacking() is not None, reason=f"AUFS cannot be mounted: {(lacking() or [None])[0]}")
def test_other_branches_are_drawn_when_they_have_been_changed(upper: Path) -> None:
    fix = upper.parent / "fix"
    fix.mkdir()
    with Aufs(Branch(str(upper)), Branch(str(rootfs.busybox()), "ro")) as tree, Container(*users(), PID(), Mount(tree)) as box:
        box.start("sleep", "1000")
        tree.insert(1, Branch(str(fix), "ro"))
        assert [layer.name for layer in Stack.of(box, "etc").layers] == ["upper", "fix", rootfs.busybox().name]


@pytest.mark.parametrize("mount", [Mount(), Mount(rootfs.busybox())])
def test_a_root_without_layers_has_no_picture(mount: Mount) -> None:
    with Container(*users(), PID(), mount).start("sleep", "1000") as box, pytest.raises(UsageError, match="no stack"):
        Stack.of(box, "etc")
