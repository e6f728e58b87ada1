"""What a container has written becomes an image that shows the same; for an ordinary user also what belongs to others in there."""

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from archives import directory, layer, made, seen, union, unpacked_by_umoci
from here import IS_ROOT, users
from hypothesis import given, settings
from trees import OVERLAY, Directory, layers, make

from kernel_lab import PID, Container, Mount, Part, UsageError, User
from kernel_lab.images import base, snapshots
from kernel_lab.images.commit import commit
from kernel_lab.images.image import Image
from kernel_lab.images.root import ImageRoot
from kernel_lab.images.store import Store
from kernel_lab.kernel.errors import KernelError
from kernel_lab.unionfs.whiteouts import TRUSTED, USER

pytestmark = pytest.mark.needs("busybox", "userns")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.fixture
def busybox(store: Store) -> Image:
    return base.make("busybox", store)


def written(image: Image, upper: Path, script: str, parts: Sequence[Part] = users()) -> Path:
    """The directory that a container with this script has written into."""
    upper.mkdir()
    ran = Container(*parts, PID(), Mount(ImageRoot(image, upper))).run("sh", "-ec", script)
    assert (ran.code, ran.stderr) == (0, "")
    return upper


def inside(image: Image, script: str, parts: Sequence[Part] = users()) -> str:
    ran = Container(*parts, PID(), Mount(ImageRoot(image))).run("sh", "-ec", script)
    assert (ran.code, ran.stderr) == (0, "")
    return ran.stdout


def archive(image: Image) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(image.store.open(image.layers[-1].blob).read()))


def test_what_was_written_is_in_the_image(busybox: Image, tmp_path: Path) -> None:
    script = "echo new > /new; rm /etc/profile; rm -r /home; mkdir /home; touch /home/x; chmod 1755 /mnt; ln -s new /link; ln new hard; mkfifo /fifo"
    image = commit(written(busybox, tmp_path / "upper", script), busybox, "changed")
    assert [layer.diff_id for layer in image.layers[:-1]] == [layer.diff_id for layer in busybox.layers]
    script = "cat /link /hard; test ! -e /etc/profile; ls -A /home; stat -c %a /mnt; stat -c %h /new; test -p /fifo; test -f /etc/passwd"
    assert inside(image, script).split() == ["new", "new", "x", "1755", "2"]
    assert image.store.verify() == {} and "docker.io/library/changed:latest" in image.names


def test_gnu_tar_lists_what_was_written(busybox: Image, tmp_path: Path) -> None:
    image = commit(written(busybox, tmp_path / "upper", "echo new > /etc/new; rm /etc/profile; rm -r /home; mkdir /home"), busybox)
    blob = image.store._layout.blob(image.layers[-1].blob.digest)
    listed = subprocess.run(["tar", "-tzf", blob], capture_output=True, check=True, text=True).stdout.split()
    assert sorted(listed) == ["./", "etc/", "etc/.wh.profile", "etc/new", "home/", "home/.wh..wh..opq"]
    assert {(entry.uid, entry.gid) for entry in archive(image) if ".wh." not in entry.name} == {(0, 0)}


@pytest.mark.needs("umoci")
def test_umoci_shows_what_the_container_showed(store: Store, busybox: Image, tmp_path: Path) -> None:
    script = "mkdir -m 700 /d; echo x > /d/x; rm -r /etc; mkdir /etc; echo y > /etc/y; rm /bin/vi; chmod 600 /mnt"
    upper = written(busybox, tmp_path / "upper", script)
    ours = union((upper, *snapshots.beside(store).directories(busybox)))
    commit(upper, busybox, "changed")
    theirs = unpacked_by_umoci(store, "docker.io/library/changed:latest", tmp_path / "bundle")
    assert theirs and {path: what for path, what in ours.items() if path not in theirs} == {}
    for path, what in theirs.items():
        if not stat.S_ISLNK(int(str(what[0]), 8)):
            assert what == ours[path], path


def test_a_commit_of_a_commit(busybox: Image, tmp_path: Path) -> None:
    first = commit(written(busybox, tmp_path / "a", "mkdir /d; touch /d/one /two"), busybox)
    second = commit(written(first, tmp_path / "b", "rm -r /d /two; mkdir /d; touch /d/three"), first)
    assert inside(second, "ls -A /d; test ! -e /two").split() == ["three"]
    assert len(second.layers) == 3 and len(second.config.history) == 3


def test_settings_and_history(busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "touch /x")
    image = commit(upper, busybox, settings={"Cmd": ["ls"], "User": "1"}, created_by="touch /x", author="me", comment="why")
    assert image.settings == busybox.settings | {"Cmd": ["ls"], "User": "1"}
    line = dict(image.config.history[-1])
    assert line.pop("created") == image.config.created
    assert line == {"created_by": "touch /x", "author": "me", "comment": "why"} and image.config.author == "me"
    assert image.names == () and image.store.resolve(image.id)


def test_nothing_written_is_a_layer_of_nothing(busybox: Image, tmp_path: Path) -> None:
    image = commit(written(busybox, tmp_path / "upper", "true"), busybox)
    assert [entry.name for entry in archive(image)] == ["."] and inside(image, "ls /bin/busybox").strip() == "/bin/busybox"


def test_the_same_upper_is_the_same_layer(busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "touch /x")
    assert commit(upper, busybox).layers == commit(upper, busybox).layers


def test_sockets_are_left_out(busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "touch /x; (nc -l -U /socket > /dev/null 2>&1 & sleep 0.2); true")
    if not (upper / "socket").exists():  # busybox's nc has no such sockets everywhere
        os.mknod(upper / "socket", stat.S_IFSOCK | 0o600)
    assert sorted(entry.name for entry in archive(commit(upper, busybox))) == [".", "x"]


def test_what_may_not_have_been_read_whole_is_no_image(store: Store, busybox: Image, tmp_path: Path) -> None:
    def ended() -> None:
        raise UsageError("it has ended")

    before = sorted(path.name for path in store.path.rglob("*") if path.is_file())
    with pytest.raises(UsageError, match="it has ended"):
        commit(written(busybox, tmp_path / "upper", "echo new > /new"), busybox, "half", check=ended)
    assert sorted(path.name for path in store.path.rglob("*") if path.is_file()) == before and not store.named("half")


def test_it_is_committed_while_it_runs(busybox: Image, tmp_path: Path) -> None:
    box = Container(*users(), PID(), Mount(ImageRoot(busybox)))
    with box.start("sh", "-c", "echo running > /file; exec sleep 1000"):
        while not box.exec("cat", "/file").stdout:
            pass
        made_ = box.made(next(part for part in box.parts if isinstance(part, Mount)))
        image = commit(made_.upper, busybox)  # type: ignore[attr-defined]
    assert inside(image, "cat /file") == "running\n"


# Whose files


@pytest.mark.needs("root")
def test_owners_and_capabilities_stay(busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "touch /mine /capable; chown 33:34 /mine; chmod 6755 /mine")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(upper / "capable", "security.capability", capability)
    image = commit(upper, busybox)
    assert inside(image, "stat -c '%u %g %a' /mine").split() == ["33", "34", "6755"]
    top = snapshots.beside(image.store).directories(image)[0]
    assert os.getxattr(top / "capable", "security.capability") == capability


@pytest.mark.needs("user", "newuidmap")
def test_ids_of_etc_subuid_are_the_containers_in_the_archive(busybox: Image, tmp_path: Path) -> None:
    """Which this user may neither read nor walk through."""
    parts = [User.subordinate()]
    upper = written(busybox, tmp_path / "upper", "mkdir -m 700 /d; echo secret > /d/s; chmod 600 /d/s; chown -R 33:34 /d; rm /etc/profile", parts)
    with pytest.raises(PermissionError):
        os.listdir(upper / "d")
    image = commit(upper, busybox)
    assert {entry.name: (entry.uid, entry.gid) for entry in archive(image)}["d/s"] == (33, 34)
    assert inside(image, "cat /d/s; test ! -e /etc/profile", parts) == "secret\n"
    subprocess.run(["unshare", "--user", "--map-root-user", "--map-auto", "rm", "-r", str(upper)], check=True)


def test_files_that_shut_their_own_user_out(busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "echo secret > /shadow; chmod 0 /shadow; mkdir -m 0 /closed; touch /closed/x")
    image = commit(upper, busybox)
    assert inside(image, "cat /shadow; ls /closed; stat -c %a /shadow /closed").split() == ["secret", "x", "0", "0"]
    (upper / "closed").chmod(0o700)


@pytest.mark.needs("root")
@pytest.mark.parametrize("parts", [(), (User(),)], ids=["root", "User()"])
def test_opaque_directories_of_either_kind_of_mount(parts: tuple[Part, ...], busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "rm -r /etc; mkdir /etc; touch /etc/new", parts)
    notations = [notation.is_opaque(str(upper / "etc")) for notation in (TRUSTED, USER)]
    assert notations == [not parts, bool(parts)]
    image = commit(upper, busybox)
    assert inside(image, "ls -A /etc", parts) == inside(image, "ls -A /etc", ()) == "new\n"


@pytest.mark.needs("root")
def test_attributes_of_a_container_in_the_container_are_none_of_this_layers(store: Store, busybox: Image, tmp_path: Path) -> None:
    """An opaque directory below is whiteouts, so that no attribute of it is copied up, and taken for the upper one's."""
    lower = commit(written(busybox, tmp_path / "a", "mkdir /d; touch /d/one"), busybox)
    middle = commit(written(lower, tmp_path / "b", "rm -r /d; mkdir /d; touch /d/two"), lower)
    upper = commit(written(middle, tmp_path / "c", "touch /d/three"), middle)
    assert inside(upper, "ls -A /d").split() == ["three", "two"]


@pytest.mark.slow
@settings(max_examples=40)
@given(lower=layers, upper=layers)
def test_any_upper_directory_shows_the_same_as_an_image(lower: Directory, upper: Directory, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    store = Store(folder / "images")
    parent = made(store, None, layer(directory("./")))
    make(lower, str(folder / "lower"), OVERLAY)
    first = commit(folder / "lower", parent)
    make(upper, str(folder / "upper"), OVERLAY)
    second = commit(folder / "upper", first)
    unpacked = snapshots.beside(store)
    before, after = union((folder / "upper", *unpacked.directories(first))), union(unpacked.directories(second))
    # Where a whiteout hides nothing, the image has none.
    assert {path: what for path, what in before.items() if what != ["nothing"]} == after


# What is wrong


def images(store: Store) -> tuple[int, int]:
    return len(store.images()), sum(1 for _ in store.path.glob("blobs/*/*"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "Not A Name"}, "Not A Name"),
        ({"settings": {"Cmd": "ls"}}, "settings: config: Cmd"),
        ({"upper": "nowhere"}, "upper .*nowhere.*cannot be found"),
        ({"upper": "file"}, "upper .*file.*not a directory"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_made(wrong: dict[str, object], words: str, busybox: Image, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "upper").mkdir()
    before = images(busybox.store)
    arguments: dict[str, object] = {"name": None, "upper": "upper", **wrong}
    with pytest.raises(UsageError, match=words):
        commit(tmp_path / str(arguments.pop("upper")), busybox, **arguments)  # type: ignore[arg-type]
    assert images(busybox.store) == before


def test_a_name_that_turns_out_to_be_anothers_leaves_nothing(busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "touch /x")
    before = images(busybox.store)
    with pytest.raises(UsageError, match="the name of another image"):
        commit(upper, busybox, f"name@{busybox.descriptor.digest}")
    assert images(busybox.store) == before


def test_what_a_layer_cannot_say_is_refused_and_nothing_is_left(busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "echo > /.wh.x; head -c 3000000 /dev/zero > /a")
    before = images(busybox.store)
    with pytest.raises(UsageError, match=r"\.wh\.x.*no file of a layer can have a name that begins with '\.wh\.'"):
        commit(upper, busybox)
    assert images(busybox.store) == before


def test_a_parent_that_is_not_whole_is_refused(busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "touch /x")
    busybox.store._layout.blob(busybox.layers[0].blob.digest).unlink()
    before = images(busybox.store)
    with pytest.raises(UsageError, match="busybox:latest: not all that it is made of is in its store any more"):
        commit(upper, busybox)
    assert images(busybox.store) == before


@pytest.mark.needs("user")
def test_what_nobody_in_there_may_read_is_named(busybox: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upper = written(busybox, tmp_path / "upper", "touch /x")
    # Somebody else's directory in its place.
    (upper / "x").unlink()
    (upper / "x").symlink_to("/root")
    assert [entry.linkname for entry in archive(commit(upper, busybox)) if entry.name == "x"] == ["/root"]
    with pytest.raises((UsageError, KernelError)):
        commit(Path("/root"), busybox)


def test_a_container_that_is_removed_by_its_user_leaves_the_image(busybox: Image, tmp_path: Path) -> None:
    upper = written(busybox, tmp_path / "upper", "echo kept > /kept")
    image = commit(upper, busybox, "kept")
    busybox.store.remove("busybox")
    snapshots.beside(image.store).prune(image.store)
    assert inside(image, "cat /kept") == "kept\n"
    assert IS_ROOT or seen(upper)["kept"][1] == 0
