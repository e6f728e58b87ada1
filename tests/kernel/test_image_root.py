"""Containers on images: what they see and may do, for root and for an ordinary user, and what becomes of the layers meanwhile."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import directory, file, layer, link, made, node
from here import IS_ROOT, users

from kernel_lab import PID, Container, Mount, Part, UsageError, User
from kernel_lab.images import base, snapshots
from kernel_lab.images.archive import CHARACTER
from kernel_lab.images.draft import Draft, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.root import ImageRoot
from kernel_lab.images.snapshots import MOUNT_POINTS, Snapshots
from kernel_lab.images.store import Store
from kernel_lab.kernel.errors import KernelError
from kernel_lab.unionfs import overlay

pytestmark = pytest.mark.needs("busybox", "userns")

# Starts a container on an image, and says so.
CREATOR = """
import sys, time
from kernel_lab import *
from kernel_lab.images.image import Image
from kernel_lab.images.root import ImageRoot
from kernel_lab.images.store import Store
from kernel_lab.kernel.errors import KernelError
box = Container(*([User()] if sys.argv[2] == "user" else []), PID(), Mount(ImageRoot(Image.find(Store(sys.argv[1]), "image"))))
box.start("sleep", "1000")
print("started", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.fixture
def busybox(store: Store) -> Image:
    return base.make("busybox", store)


@pytest.fixture
def image(store: Store, busybox: Image) -> Callable[..., Image]:
    """An image of layers on busybox."""

    def on_busybox(*layers: bytes) -> Image:
        with store.adding() as adding:
            draft = Draft.on(busybox)
            for archive in layers:
                draft = draft.with_layer(put_layer(adding, [archive]))
            return draft.put(adding, "image")

    return on_busybox


def box(image: Image, *parts: Part, upper: Path | None = None) -> Container:
    return Container(*(parts or users()), PID(), Mount(ImageRoot(image, upper)))


def inside(container: Container, script: str, **said: object) -> str:
    ran = container.run("sh", "-c", script, **said)  # type: ignore[arg-type]
    assert (ran.code, ran.stderr) == (0, "")
    return ran.stdout


@pytest.mark.usefixtures("executor")
def test_a_container_runs_on_an_image(image: Callable[..., Image]) -> None:
    container = box(image(layer(file("hello", b"hello\n")), layer(file("etc/.wh.profile"))))
    assert inside(container, "cat /hello; test ! -e /etc/profile; test -c /dev/null; test -d /proc/1; test -d /sys/kernel") == "hello\n"


def test_what_it_writes_is_its_own_and_goes(image: Callable[..., Image]) -> None:
    container = box(image(layer(file("file", b"image\n"))))
    assert inside(container, "echo written >> /file; cat /file") == "image\nwritten\n"
    assert inside(container, "cat /file") == "image\n"


def test_a_kept_directory_is_given_again(image: Callable[..., Image], tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    container = box(image(layer()), upper=tmp_path / "upper")
    inside(container, "echo kept > /file; rm /etc/profile")
    assert inside(container, "cat /file; test ! -e /etc/profile") == "kept\n"


def test_an_image_that_has_no_place_to_mount_on(store: Store, busybox: Image) -> None:
    """The mount points lie below the image, and a container has changed nothing by being started."""
    program = (snapshots.beside(store).directories(busybox)[0] / "bin/busybox").read_bytes()
    bare = made(store, "bare", layer(file("bin/sh", program, mode=0o755)))
    container = box(bare)
    with container.start("/bin/sh", "-c", "read x < /dev/zero"):
        mount = next(part for part in container.parts if isinstance(part, Mount))
        assert os.listdir(container.made(mount).upper) == []  # type: ignore[attr-defined]


def test_an_image_without_layers_has_a_root_that_anybody_may_walk(store: Store) -> None:
    before = os.umask(0o077)
    try:
        root = ImageRoot(made(store, None))
    finally:
        os.umask(before)
    assert Container(*users(), Mount(root)).plan.roots == root.layers
    assert os.stat(root.lower[0]).st_mode & 0o777 == 0o755


@pytest.mark.parametrize("parts", [(), (User(),)], ids=["root", "User()"])
def test_what_a_layer_hides_is_hidden_in_every_user_namespace(parts: tuple[Part, ...], image: Callable[..., Image]) -> None:
    if not parts and not IS_ROOT:
        pytest.skip("needs root: this is an ordinary user")
    lower = layer(directory("d/"), file("d/hidden"), file("d/gone"), directory("e/"), file("e/hidden"))
    upper = layer(directory("d/"), file("d/.wh..wh..opq"), file("d/new"), file(".wh.e"), directory("e/"))
    container = Container(*parts, PID(), Mount(ImageRoot(image(lower, upper))))
    assert inside(container, "ls -A /d /e").split() == ["/d:", "new", "/e:"]


def test_an_archive_without_parents_leaves_them_as_they_are(image: Callable[..., Image]) -> None:
    owner = {"uid": 12, "gid": 34} if IS_ROOT else {}
    lower = layer(directory("secret/", mode=0o700, **owner), directory("secret/in/", mode=0o2750, **owner))
    shown = inside(box(image(lower, layer(file("secret/in/file", uid=5)))), "stat -c '%a %u %g' / /tmp /secret /secret/in")
    ids = "12 34" if IS_ROOT else "0 0"
    assert shown.splitlines() == ["755 0 0", "1777 0 0", f"700 {ids}", f"2750 {ids}"]


@pytest.mark.needs("root", "dash", "ldd")
def test_a_program_has_its_owners_rights_inside(image: Callable[..., Image]) -> None:
    """One that does not give them up, as busybox does: dash with -p."""
    dash = os.path.realpath("/bin/dash")
    listed = subprocess.run(["ldd", dash], capture_output=True, check=True, text=True).stdout.split()
    libraries = [word for word in listed if word.startswith("/")]
    copies = [file(path.lstrip("/"), Path(path).read_bytes(), mode=0o755) for path in libraries]
    secret = file("secret", b"secret\n", mode=0o600, uid=7)
    container = box(image(layer(file("bin/dash", Path(dash).read_bytes(), mode=0o4755, uid=7), secret, *copies)))
    assert container.run("dash", "-p", "-c", "read x < /secret; echo $x", user="33").stdout == "secret\n"
    assert container.run("sh", "-c", "read x < /secret", user="33").code != 0


@pytest.mark.needs("root")
def test_a_user_of_the_image(image: Callable[..., Image]) -> None:
    passwd = b"root:x:0:0::/:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n"
    container = box(image(layer(file("etc/passwd", passwd), directory("srv/", uid=33, gid=34, mode=0o700))))
    assert inside(container, "id -u; id -g; touch /srv/mine; stat -c %u /srv/mine", user="web").split() == ["33", "34", "33"]
    assert container.run("ls", "/srv", user="35").code != 0


def test_devices_of_an_image(image: Callable[..., Image]) -> None:
    """Root has them; an ordinary user can have none, and the image works all the same."""
    container = box(image(layer(node("zero", CHARACTER, device=os.makedev(1, 5), mode=0o666))))
    assert inside(container, "test -c /zero && echo there || echo not there").strip() == ("there" if IS_ROOT else "not there")


def test_links_that_lead_out_lead_to_the_images_own(image: Callable[..., Image], tmp_path: Path) -> None:
    """Also those that are read before there is a mount."""
    (tmp_path / "outside").write_text("root:x:0:0::/:/bin/sh\noutsider:x:7:7::/:/bin/sh\n")
    up = "../" * 20 + str(tmp_path).lstrip("/")
    hostile = image(layer(link("etc/passwd", f"{up}/outside"), link("etc/group", f"{tmp_path}/outside"), link("data", up)))
    container = box(hostile)
    with pytest.raises(UsageError, match="user 'outsider': not in"):
        container.run("true", user="outsider")
    assert container.run("ls", "/data/outside").code != 0


@pytest.mark.parametrize("place", ["dev", "proc", "sys"])
def test_nothing_is_mounted_outside_for_a_link_in_place_of_a_mount_point(place: str, image: Callable[..., Image], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    with pytest.raises(KernelError, match=rf"mount\(.*{place}"):
        box(image(layer(link(place, f"{tmp_path}/outside")))).run("true")
    assert os.listdir(tmp_path / "outside") == []


def test_a_fifo_in_place_of_a_file_of_users_is_not_waited_for(image: Callable[..., Image]) -> None:
    with pytest.raises(UsageError, match="not in"):
        box(image(layer(node("etc/passwd", b"6")))).run("true", user="nobody")


@pytest.mark.parametrize("release", [None, "6.1.0"])
def test_an_image_of_a_hundred_and_thirty_layers(release: str | None, image: Callable[..., Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """More than docker's 127; on an older kernel all their paths are more than mount(2) takes."""
    if release:
        monkeypatch.setattr(overlay.platform, "release", lambda: release)
    many = image(*(layer(file(f"layers/{number}", b""), file("all", str(number).encode())) for number in range(130)))
    assert inside(box(many), "ls /layers | wc -l; cat /all").split() == ["130", "129"]


def test_an_image_with_the_same_layer_many_times(image: Callable[..., Image]) -> None:
    same = layer(file("same", b"same\n"), file(".wh.profile"))
    assert inside(box(image(same, layer(file(".wh.same")), same, layer(), b"", same)), "cat /same") == "same\n"


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_modes_do_not_depend_on_the_umask(umask: int, image: Callable[..., Image]) -> None:
    before = os.umask(umask)
    try:
        shown = inside(box(image(layer(file("new/file")))), "stat -c %a / /new /new/file")
    finally:
        os.umask(before)
    assert shown.split() == ["755", "755", "644"]


# Who goes together


@pytest.mark.needs("root")
@pytest.mark.parametrize("maps", [[(0, 100_000, 65_536)], [(0, 0, 1), (1, 100_000, 65_535)]])
def test_ids_that_are_others_outside_are_refused(maps: list[tuple[int, int, int]], busybox: Image) -> None:
    with pytest.raises(UsageError, match=r"busybox:latest: its layers would belong to other users in this user namespace; take User\(\) or none"):
        box(busybox, User(maps))


@pytest.mark.needs("root")
def test_roots_own_user_namespace_has_the_same_ids(image: Callable[..., Image]) -> None:
    every = User([(0, 0, 65_536)])
    shown = inside(box(image(layer(file("f", uid=33, gid=34))), every), "stat -c '%u %g' /f; touch /new; chown 5:6 /new; stat -c '%u %g' /new")
    assert shown.splitlines() == ["33 34", "5 6"]


@pytest.mark.needs("user", "newuidmap")
def test_an_ordinary_user_with_more_ids(busybox: Image) -> None:
    assert inside(box(busybox, User.subordinate()), "touch /new; chown 5:6 /new; stat -c '%u %g' /new /etc").split() == ["5", "6", "0", "0"]


def test_it_says_what_it_is(busybox: Image, tmp_path: Path) -> None:
    assert repr(ImageRoot(busybox)) == "ImageRoot('busybox:latest')"
    (tmp_path / "upper").mkdir()
    assert repr(ImageRoot(busybox, tmp_path / "upper")) == f"ImageRoot('busybox:latest', upper='{tmp_path}/upper')"


# The layers meanwhile


def test_layers_of_a_running_container_stay_and_go_with_it(store: Store, image: Callable[..., Image]) -> None:
    found = image(layer(file("file", b"there\n")))
    unpacked = snapshots.beside(store)
    container = box(found)
    with container.start("sleep", "1000"):
        store.remove("image")
        assert unpacked.prune(store) == ()
        assert container.exec("cat", "/file").stdout == "there\n"
    assert len(unpacked.prune(store)) == 1
    with pytest.raises(UsageError, match="cannot be found"):
        container.run("true")
    assert not [name for name in os.listdir(unpacked.path) if name.startswith(".standing")]


def test_layers_of_a_container_whose_creator_is_killed_are_free(store: Store, image: Callable[..., Image]) -> None:
    image(layer(file("file")))
    unpacked = snapshots.beside(store)
    command = [sys.executable, "-c", CREATOR, str(store.path), "root" if IS_ROOT else "user"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as creator:
        assert creator.stdout and creator.stdout.readline() == "started\n"
        assert unpacked.prune() == ()
        creator.kill()
    assert len(unpacked.prune()) == 2 and sorted(os.listdir(unpacked.path)) == [".lock", ".unpacking", MOUNT_POINTS]


def test_a_layer_removed_before_the_start_is_named(store: Store, busybox: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removes it after the container was checked, and before it holds its layers."""
    container = box(busybox)
    container.run("true")
    unpacked = snapshots.beside(store)
    standing_on = Snapshots.standing_on

    def too_late(self: Snapshots, *directories: object) -> object:
        unpacked.prune()
        return standing_on(self, *directories)  # type: ignore[arg-type]

    monkeypatch.setattr(Snapshots, "standing_on", too_late)
    with pytest.raises(UsageError, match="this layer has been removed since; ask the image for its directories again"):
        container.run("true")


def test_containers_at_once_on_one_image(store: Store, image: Callable[..., Image]) -> None:
    found = image(layer(file("file", b"same\n")))
    boxes = [box(found) for _ in range(5)]
    for container in boxes:
        container.start("sleep", "1000")
    assert [container.exec("cat", "/file").stdout for container in boxes] == ["same\n"] * 5
    for container in boxes:
        container.kill()
