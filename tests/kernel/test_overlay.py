"""A root of layers: what a container sees of them, what it writes, and that neither the layers nor the machine keep a trace of it."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from here import IS_ROOT, busybox, users
from hypothesis import given, settings
from trees import OVERLAY, Directory, File, Link, Node, layers, make, shown
from waiting import soon

from kernel_lab import IPC, PID, Container, KernelError, Mount, Net, Part, UsageError, User, call, cleanup, state
from kernel_lab.kernel import mountinfo, procfs
from kernel_lab.unionfs import overlay, writable
from kernel_lab.unionfs.changes import changes
from kernel_lab.unionfs.overlay import Overlay
from kernel_lab.unionfs.whiteouts import AUFS, convert
from kernel_lab.unionfs.writable import Writable


def _lack() -> bool:
    return "overlay" not in Path("/proc/filesystems").read_text() and not Path(f"/lib/modules/{os.uname().release}/kernel/fs/overlayfs").exists()


pytestmark = [pytest.mark.skipif(_lack(), reason="needs overlay: this kernel has none"), pytest.mark.needs("userns", "busybox")]
SMALL = {"sys": False, "dev": False, "masked": ()}


def box(*lower: str | Path, upper: str | Path | None = None, parts: tuple[Part, ...] = ()) -> Container:
    return Container(*users(), PID(), Mount(Overlay(*lower, upper=upper), **SMALL), *parts)  # type: ignore[arg-type]


def inside(container: Container, script: str) -> str:
    return container.run("sh", "-c", script, check=True).stdout


def written(container: Container) -> Writable:
    """What the running container writes into."""
    made = container.made(next(part for part in container.parts if isinstance(part, Mount)))
    assert isinstance(made, Writable)
    return made


def left() -> list[str]:
    """What this process has in the kit's directory of layers."""
    home = Path(writable.home())
    return [name for name in os.listdir(home) if state.Creator.in_name(name) == state.Creator.this()] if home.exists() else []


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    seen: dict[str, tuple[object, ...]] = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size < 10_000 else b""
        seen[str(path)] = (status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, status.st_ino, content)
    return seen


@pytest.fixture
def layer(tmp_path: Path) -> Callable[..., Path]:
    """Makes a layer of files."""

    def make(name: str, files: dict[str, str]) -> Path:
        for path, text in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / name

    return make


Layer = Callable[..., Path]


@pytest.mark.usefixtures("executor")
def test_layers_are_seen_as_one(layer: Layer) -> None:
    app = layer("app", {"srv/app": "app\n", "etc/motd": "from the app\n"})
    libraries = layer("libraries", {"srv/library": "library\n", "etc/motd": "from the libraries\n"})
    shown = inside(box(app, libraries, busybox()), "cat /srv/app /srv/library /etc/motd; id -un; stat -c %a /; df / | tail -n 1")
    assert shown.split()[:6] == ["app", "library", "from", "the", "app", "root"]
    assert shown.splitlines()[4] == "755" and shown.splitlines()[5].startswith("overlay ")


@pytest.mark.usefixtures("executor")
def test_what_is_written_changes_no_layer_and_is_gone(layer: Layer) -> None:
    base = layer("base", {"etc/motd": "original\n", "etc/passwd": "root:x:0:0::/:/bin/sh\n", "dir/file": "text\n"})
    before = snapshot(base)
    container = box(base, busybox())
    changed = inside(container, "echo new > /etc/motd; echo more >> /dir/file; rm /etc/passwd; rm -r /dir; chmod 700 /etc; ls /etc; cat /etc/motd")
    assert changed.splitlines()[-1] == "new" and "passwd" not in changed
    assert snapshot(base) == before
    assert inside(container, "cat /etc/motd /dir/file; stat -c %a /etc").split() == ["original", "text", "755"]
    assert left() == []


def test_a_whiteout_of_a_layer_hides_what_is_below(layer: Layer) -> None:
    base, top = layer("base", {"a": "", "d/b": "", "d/c": ""}), layer("top", {"d/new": ""})
    OVERLAY.hide(str(top), "a")
    OVERLAY.make_opaque(str(top / "d"))
    assert inside(box(top, base, busybox()), "ls -d /a /d/* 2>/dev/null || true").split() == ["/d/new"]


def test_an_image_layer_with_aufs_marks_is_converted(layer: Layer) -> None:
    """As docker and OCI archive a layer."""
    base = layer("base", {"a": "", "d/b": "", "e/f": "", "g": ""})
    top = layer("top", {".wh.a": "", "d/.wh..wh..opq": "", "d/new": "", ".wh.e": "", "e/own": ""})
    container = box(top, base, busybox())
    assert ".wh.a" in inside(container, "ls -A /")
    convert(top, AUFS, OVERLAY)
    assert inside(container, "ls -d /a /d/* /e/* /g 2>/dev/null || true").split() == ["/d/new", "/e/own", "/g"]
    assert inside(container, "find / -xdev -name '.wh*'") == ""


EACH = """cd /tree; find * 2>/dev/null | while read path; do
    if [ -L $path ]; then echo "/$path -> $(readlink $path)"; elif [ -d $path ]; then echo "/$path/"; else echo "/$path: $(cat $path)"; fi
done"""


def line(path: str, node: Node) -> str:
    match node:
        case Link(target):
            return f"{path} -> {target}"
        case File(content):
            return f"{path}: {content}"
    return f"{path}/"


@given(top=layers, middle=layers, base=layers)
@settings(max_examples=30)
def test_the_kernel_shows_what_the_model_says(top: Directory, middle: Directory, base: Directory, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trees")
    for name, layer in (("top", top), ("middle", middle), ("base", base)):
        (folder / name).mkdir()
        make(layer, str(folder / name / "tree"), OVERLAY)
    seen = inside(box(*map(folder.joinpath, ("top", "middle", "base")), busybox()), EACH)
    assert sorted(seen.splitlines()) == sorted(line(path, node) for path, node in shown(top, middle, base).items())


@pytest.mark.parametrize("release", [None, "6.1.0"])
def test_two_hundred_layers_and_the_topmost_wins(release: str | None, layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an old kernel their paths are more than a page."""
    if release:
        monkeypatch.setattr(overlay.platform, "release", lambda: release)
    layers = [layer(f"layer-{number}", {f"files/{number}": "", "files/all": f"{number}\n"}) for number in range(200)]
    shown = inside(box(*layers, busybox()), "ls /files | wc -l; cat /files/all")
    assert shown.split() == ["201", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("release", [None, "6.1.0"])
def test_as_many_layers_as_the_kernel_takes(release: str | None, layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    if release:
        monkeypatch.setattr(overlay.platform, "release", lambda: release)
    layers = [layer(f"layer-{number}", {f"files/{number}": ""}) for number in range(499)]
    assert inside(box(*layers, busybox()), "ls /files | wc -l").strip() == "499"


@pytest.mark.parametrize("release", [None, "6.1.0"])
@pytest.mark.parametrize("length", [1, 240])
def test_paths_of_any_length_and_letters(length: int, release: str | None, layer: Layer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the calls of a new kernel, and by the one of an old."""
    if release:
        monkeypatch.setattr(overlay.platform, "release", lambda: release)
    names = ("a:b", "c,d", "e\\f", "g h\n", "ü", "/".join("x" * 100 for _ in range(4)))
    layers = [layer(name, {f"files/{number}": ""}) for number, name in enumerate(names)]
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data,:\\" / ("y" * length)))
    upper = layer("up:per,\\" + "z" * length, {"files/upper": ""})
    for container in (box(*layers, busybox()), box(*layers, busybox(), upper=upper)):
        assert inside(container, "touch /files/new; ls /files").split()[:6] == ["0", "1", "2", "3", "4", "5"]
    assert (upper / "files/new").exists()
    calls = [row.call for row in box(*layers).setup]
    assert ("fsopen" in calls) is (release is None)


def test_a_kept_upper_directory_is_given_again(layer: Layer, tmp_path: Path) -> None:
    upper = tmp_path / "changes"
    upper.mkdir()
    container = box(busybox(), upper=upper)
    inside(container, "echo kept > /file; rm /etc/hosts")
    assert (upper / "file").read_text() == "kept\n"
    assert OVERLAY.hides(str(upper / "etc"), "hosts")
    assert inside(container, "cat /file; ls /etc/hosts 2>/dev/null || echo gone").split() == ["kept", "gone"]
    assert sorted(os.listdir(tmp_path)) == ["changes"] and left() == []
    # With other layers below, and then as a layer itself.
    other = layer("other", {"etc/other": ""})
    assert inside(box(other, busybox(), upper=upper), "cat /file; ls /etc/other").split() == ["kept", "/etc/other"]
    assert inside(box(upper, busybox()), "cat /file; ls /etc/hosts 2>/dev/null || echo gone").split() == ["kept", "gone"]


def test_changes_of_a_session(tmp_path: Path) -> None:
    session = """
        mkdir -p /shop/www; echo hello > /shop/www/index; chmod 600 /etc/profile; echo x >> /etc/passwd
        rm /etc/group; rm -r /var/log; rm -r /home; echo file > /home; mv /etc/hosts /etc/names; ln /etc/passwd /etc/users
        rm -r /usr/bin; mkdir /usr/bin; : >> /etc/os-release; ln -s /shop /root/link; echo ready; sleep 1000
    """
    with box(busybox()).start("sh", "-c", session) as container:
        assert soon(lambda: container.logs() == "ready\n")
        listed = [f"{change} ({change.what})" for change in written(container).changes()]
        assert [f"{change} ({change.what})" for change in changes(written(container).upper, [busybox()])] == listed
    assert [line for line in listed if not line.startswith(("D /usr/bin/", "A /usr/bin/"))] == [
        "C /etc (names)",
        "D /etc/group (file)",
        "D /etc/hosts (file)",
        "A /etc/names (file)",
        "C /etc/passwd (content)",
        "C /etc/profile (mode 644 → 600)",
        "A /etc/users (file)",
        "C /home (directory → file)",
        "C /root (names)",
        "A /root/link (symbolic link)",
        "A /shop (directory)",
        "A /shop/www (directory)",
        "A /shop/www/index (file)",
        "C /usr (time)",
        "C /usr/bin (names)",
        "C /var (names)",
        "D /var/log (directory)",
    ]


def test_containers_on_one_base_do_not_see_one_another() -> None:
    first, second = (box(busybox()).start("sh", "-c", f"echo {name} > /name; sleep 1000") for name in ("first", "second"))
    with first, second:
        for container, name in ((first, "first\n"), (second, "second\n")):
            assert soon(lambda container=container, name=name: container.exec("cat", "/name").stdout == name)  # type: ignore[misc]
        assert len(left()) == 2
        assert not (busybox() / "name").exists()
    assert left() == []


@pytest.mark.usefixtures("executor")
def test_one_container_at_a_time_writes_into_a_directory(tmp_path: Path) -> None:
    upper = tmp_path / "changes"
    upper.mkdir()
    with box(busybox(), upper=upper).start("sleep 1000"):
        with pytest.raises(UsageError, match=r"upper .*changes'.*: another container writes there now"):
            box(busybox(), upper=upper).run("true")
        assert len(left()) == 1 and (tmp_path / ".changes.work").exists()
    assert inside(box(busybox(), upper=upper), "echo free").strip() == "free"


def test_a_child_that_holds_the_same_open_directory_holds_no_lock(tmp_path: Path) -> None:
    """Every child that is just being made has copies of its creator's descriptors."""
    upper = tmp_path / "changes"
    upper.mkdir()
    container = box(busybox(), upper=upper).start("sleep 1000")
    [locked] = [descriptor for descriptor, path in procfs.open_files(os.getpid()).items() if path == str(upper)]
    copy = os.dup(locked)
    try:
        container.kill()
        assert inside(box(busybox(), upper=upper), "echo free").strip() == "free"
    finally:
        os.close(copy)


def test_the_host_sees_nothing_of_the_mount() -> None:
    before = Path("/proc/self/mountinfo").read_bytes()
    with box(busybox()).start("sleep 1000") as container:
        assert Path("/proc/self/mountinfo").read_bytes() == before
        made = written(container)
        # Nobody else may come to the programs that a container's root makes.
        assert stat.S_IMODE(os.stat(made.place).st_mode) == 0o700
        root = next(mount for mount in mountinfo.mounts(container.pid) if mount.point == "/")
        options = dict(option.partition("=")[::2] for option in root.super_options.split(","))
        assert (root.kind, root.source, options["lowerdir+"], options["upperdir"]) == ("overlay", "overlay", str(busybox()), made.upper)


def test_nobody_waits_for_the_disk_unless_the_changes_are_kept(tmp_path: Path) -> None:
    (tmp_path / "changes").mkdir()
    for upper, volatile in ((None, True), (tmp_path / "changes", False)):
        with box(busybox(), upper=upper).start("sleep 1000") as container:
            [root] = [mount for mount in mountinfo.mounts(container.pid) if mount.point == "/"]
            assert ("volatile" in root.super_options) is volatile


def test_a_whole_container_on_layers() -> None:
    container = Container(*users(), PID(), IPC(), Net(), Mount(Overlay(busybox()), readonly=True, tmpfs=["/tmp"]))
    assert inside(container, "touch /tmp/x; touch /x 2>/dev/null || echo read-only; ls /dev/null").split() == ["read-only", "/dev/null"]
    assert container.evidence()
    assert left() == []


def test_a_user_that_only_the_upper_layers_know(layer: Layer, tmp_path: Path) -> None:
    users_file = "root:x:0:0::/root:/bin/sh\nada:x:7:8::/:/bin/sh\n"
    top = layer("top", {"etc/passwd": users_file})
    assert box(top, busybox()).command(("id",), user="ada").user == box(busybox(), upper=top).command(("id",), user="ada").user
    if IS_ROOT:
        assert inside_as(box(top, busybox()), "ada") == "uid=7(ada) gid=8"


def inside_as(container: Container, user: str) -> str:
    return container.run("id", user=user, check=True).stdout.strip()


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_modes_do_not_depend_on_the_umask(umask: int, layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    root, top = busybox(), layer("top", {"file": ""})
    top.chmod(0o751)
    before = os.umask(umask)
    try:
        assert inside(box(top, root), "stat -c %a /").strip() == "751"
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(writable.home()).st_mode) == 0o711


def test_a_container_that_has_written_nothing_is_removed_in_a_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    discarded: list[Path] = []
    monkeypatch.setattr(writable.state, "discard", discarded.append)
    inside(box(busybox()), "ls -lR /etc")
    assert left() == [] == discarded


@pytest.mark.needs("root")
def test_the_top_directory_belongs_to_whom_the_layers_does(layer: Layer) -> None:
    top = layer("top", {"file": ""})
    os.chown(top, 12, 13)
    assert inside(box(top, busybox()), "stat -c %u:%g /").strip() == "12:13"


@pytest.mark.needs("root")
def test_root_inside_who_is_another_outside() -> None:
    container = Container(User([(0, 100_000, 65_536)]), PID(), Mount(Overlay(busybox()), **SMALL))  # type: ignore[arg-type]
    with container.start("sh", "-c", "echo x > /file; sleep 1000"):
        made = written(container)
        assert soon(lambda: [str(change) for change in made.changes()] == ["A /file"])
        assert {os.stat(path).st_uid for path in (made.place, made.upper, made.work, f"{made.upper}/file")} == {100_000}
    assert left() == []


@pytest.mark.needs("user", "newuidmap")
def test_files_of_subordinate_users_are_removed_too() -> None:
    container = Container(User.subordinate(), PID(), Mount(Overlay(busybox()), **SMALL))  # type: ignore[arg-type]
    inside(container, "mkdir -p /srv/a; touch /srv/a/file; chown -R 12:12 /srv; chmod 0 /srv/a")
    assert left() == []


def test_what_an_ordinary_user_may_not_open_is_removed(tmp_path: Path) -> None:
    inside(box(busybox()), "mkdir -p /a/b/c; touch /a/b/c/file; chmod 0 /a/b /a")
    assert left() == []


class Refused(Part):
    """A part that the kernel refuses, once the union is mounted."""

    order = 85

    def rows(self, plan):  # type: ignore[no-untyped-def]
        yield call("chdir", "/absent")


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("kept", [False, True])
def test_nothing_is_left_after_a_refused_row(kept: bool, tmp_path: Path) -> None:
    upper = tmp_path / "changes"
    upper.mkdir()
    with pytest.raises(KernelError, match="absent"):
        box(busybox(), upper=upper if kept else None, parts=(Refused(),)).run("true")
    assert left() == [] and os.listdir(tmp_path) == ["changes"]


@pytest.mark.parametrize("step", range(3))
def test_nothing_is_left_when_a_directory_cannot_be_made(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    container = box(busybox())
    container.run("true")
    made: list[str] = []

    def mkdir(path: str, *args: int) -> None:
        if len(made) == step:
            raise OSError(28, "No space left on device", path)
        made.append(path)
        real(path, *args)

    real = os.mkdir
    monkeypatch.setattr(writable.os, "mkdir", mkdir)
    with pytest.raises(OSError, match="No space left"):
        container.run("true")
    monkeypatch.undo()
    assert left() == [] and not any(map(os.path.exists, made))
    assert container.run("true").code == 0


def test_nothing_is_left_when_the_kernel_refuses_the_mount(layer: Layer, tmp_path: Path) -> None:
    """The layer is there when it is looked at, and gone when the kernel looks."""
    container = box(busybox(), layer("base", {"a": ""}))
    container.run("true")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(KernelError, match=r"fsconfig\(overlay, FSCONFIG_SET_STRING, \"lowerdir\+\", .*base.*ENOENT"):
        container.run("true")
    assert left() == []


CREATOR = """
import os, sys, time
from kernel_lab import *
from kernel_lab import rootfs
from kernel_lab.unionfs.overlay import Overlay
box = Container(*([] if os.geteuid() == 0 else [User()]), PID(), Mount(Overlay(rootfs.busybox(), upper=sys.argv[1] or None), dev=False))
box.start("sh", "-c", "mkdir /made; echo x > /made/file; echo written; sleep 1000")
while not box.logs():
    time.sleep(0.01)
print("written", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("kept", [False, True])
def test_a_killed_creator_leaves_nothing(kept: bool, tmp_path: Path) -> None:
    upper = tmp_path / "changes"
    upper.mkdir()
    with subprocess.Popen([sys.executable, "-c", CREATOR, str(upper) if kept else ""], stdout=subprocess.PIPE, text=True) as creator:
        assert creator.stdout and creator.stdout.readline() == "written\n"
        who = state.Creator.of(creator.pid)
        of_it = lambda: [name for name in os.listdir(writable.home()) if state.Creator.in_name(name) == who]  # noqa: E731
        assert len(of_it()) == 1
        creator.send_signal(signal.SIGKILL)
    # Its janitor looks after it.
    assert soon(lambda: not of_it())
    if kept:
        assert inside(box(busybox(), upper=upper), "cat /made/file").strip() == "x"
        assert os.listdir(tmp_path) == ["changes"]


def test_cleanup_finds_what_a_dead_creator_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    with subprocess.Popen(["sleep", "1000"]) as process:
        dead = state.Creator.of(process.pid)
        process.kill()
    inside(box(busybox()), "true")
    lost = Path(writable.home(), f"{dead.stamp}-7")
    (lost / "upper/etc").mkdir(parents=True)
    (lost / "work/work").mkdir(parents=True, mode=0)
    OVERLAY.hide(str(lost / "upper/etc"), "hosts")
    found = [leftover for leftover in cleanup.leftovers() if leftover.name == str(lost)]
    assert len(found) == 1
    cleanup.remove(found)
    assert not lost.exists()


def test_a_directory_deeper_than_a_stack_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    try:
        inside(box(busybox()), "i=0; while [ $i -lt 1200 ]; do mkdir d; cd d; i=$((i+1)); done")
        assert left() == []
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "data"], check=True)
