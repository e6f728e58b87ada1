"""Whiteouts and opaque directories: each notation on disk, and from one to the other and back."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from trees import OVERLAY, Directory, File, Gone, Link, layers, make, shown

from kernel_lab import UsageError
from kernel_lab.unionfs.merged import lookup, names
from kernel_lab.unionfs.whiteouts import AUFS, TRUSTED, USER, Listing, Notation, convert

LAYER = Directory(
    {
        "kept": File("text"),
        "gone": Gone(),
        "link": Link("kept"),
        "new": Directory({"inner": File(), "gone too": Gone()}),
        "opaque": Directory({"own": File()}, opaque=True),
    }
)


@pytest.fixture(scope="module", autouse=True)
def attributes(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        OVERLAY.make_opaque(str(tmp_path_factory.mktemp("attributes")))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("needs extended attributes: the file system for temporary files has none")


Made = Callable[[Directory, Notation], str]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    def make_one(layer: Directory, notation: Notation) -> str:
        path = str(tmp_path / f"layer{len(os.listdir(tmp_path))}")
        make(layer, path, notation)
        return path

    return make_one


def found(path: str) -> dict[str, tuple[object, ...]]:
    """Everything in a directory, as any program would see it: no notation is understood here."""
    seen: dict[str, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(path):
        for name in (*directories, *files, "."):
            place = f"{directory}/{name}"
            status = os.lstat(place)
            attributes = {key: os.getxattr(place, key, follow_symlinks=False) for key in os.listxattr(place, follow_symlinks=False)}
            is_mark = stat.S_ISCHR(status.st_mode) or name.startswith(".wh.")  # which has a time of its own
            content = os.readlink(place) if stat.S_ISLNK(status.st_mode) else Path(place).read_bytes() if stat.S_ISREG(status.st_mode) else b""
            seen[os.path.relpath(place, path)] = (status.st_mode, status.st_rdev, is_mark or status.st_mtime_ns, content, attributes)
    return seen


def test_overlays_marks_are_the_kernels(made: Made) -> None:
    path = made(LAYER, OVERLAY)
    device = os.lstat(f"{path}/gone")
    assert stat.S_ISCHR(device.st_mode) and device.st_rdev == 0
    assert os.getxattr(f"{path}/opaque", f"{OVERLAY.prefix}opaque") == b"y"
    assert OVERLAY.read(path) == Listing(frozenset({"kept", "link", "new", "opaque"}), frozenset({"gone"}), False)
    assert OVERLAY.is_opaque(f"{path}/opaque") and not OVERLAY.is_opaque(f"{path}/new")
    assert {TRUSTED.prefix, USER.prefix} == {"trusted.overlay.", "user.overlay."}


@pytest.mark.needs("root")
def test_a_device_is_no_whiteout(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert OVERLAY.read(str(tmp_path)) == Listing(frozenset({"null"}), frozenset(), False)


def test_aufs_marks_are_files(made: Made) -> None:
    path = made(LAYER, AUFS)
    assert set(os.listdir(path)) == {"kept", "link", "new", "opaque", ".wh.gone"}
    assert set(os.listdir(f"{path}/opaque")) == {"own", ".wh..wh..opq"}
    assert os.listdir(f"{path}/new").count(".wh.gone too") == 1
    assert AUFS.read(f"{path}/opaque") == Listing(frozenset({"own"}), frozenset(), True)


@pytest.mark.parametrize("notation", [OVERLAY, AUFS])
def test_one_name_is_asked_for(notation: Notation, made: Made) -> None:
    path = made(LAYER, notation)
    assert [notation.has(path, name) for name in ("kept", "gone", "new", "absent")] == [True, False, True, False]
    assert [notation.hides(path, name) for name in ("kept", "gone", "new", "absent")] == [False, True, False, False]
    notation.reveal(path, "gone")
    assert not notation.hides(path, "gone")


def test_an_attribute_makes_a_whiteout_where_the_directory_says_so(made: Made) -> None:
    """What tools write for an overlay on an overlay (overlayfs.rst)."""
    path = made(Directory({"gone": File(), "full": File("text"), "plain": File()}), OVERLAY)
    for name in ("gone", "full"):
        os.setxattr(f"{path}/{name}", f"{OVERLAY.prefix}whiteout", b"y")
    assert OVERLAY.read(path).whiteouts == frozenset()
    os.setxattr(path, f"{OVERLAY.prefix}opaque", b"x")
    assert OVERLAY.read(path) == Listing(frozenset({"full", "plain"}), frozenset({"gone"}), False)
    convert(path, OVERLAY, AUFS)
    assert set(os.listdir(path)) == {".wh.gone", "full", "plain"}
    assert os.listxattr(path) == []


@pytest.mark.slow
@given(layer=layers)
def test_there_and_back_is_the_same_layer(layer: Directory, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trees")
    for first, second in ((OVERLAY, AUFS), (AUFS, OVERLAY)):
        path, other = str(folder / f"to {type(second).__name__}"), str(folder / f"made by {type(second).__name__}")
        make(layer, path, first)
        make(layer, other, second)
        before = found(path)
        convert(path, first, second)
        assert found(path) == found(other)
        convert(path, second, first)
        assert found(path) == before


@given(top=layers, base=layers)
@pytest.mark.parametrize("notation", [OVERLAY, AUFS])
def test_what_layers_show_together(notation: Notation, top: Directory, base: Directory, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trees")
    stack = (str(folder / "top"), str(folder / "base"))
    for layer, path in zip((top, base), stack, strict=True):
        make(layer, path, notation)
    assert _walked(stack, notation) == set(shown(top, base))


def _walked(directories: tuple[str, ...], notation: Notation, path: str = "") -> set[str]:
    seen = set()
    for name in names(directories, notation):
        place = lookup(directories, name, notation)
        assert place
        seen.add(f"{path}/{name}")
        if os.path.isdir(place[0]) and not os.path.islink(place[0]):
            seen |= _walked(place, notation, f"{path}/{name}")
    return seen


def test_a_name_that_is_new_and_hides_what_is_below(tmp_path: Path) -> None:
    """In a docker image a layer may delete a directory and make another of the same name."""
    for name in ("file", "directory"):
        (tmp_path / f".wh.{name}").touch()
    (tmp_path / "file").write_text("new")
    (tmp_path / "directory").mkdir()
    assert AUFS.read(str(tmp_path)).whiteouts == {"file", "directory"}
    assert lookup([str(tmp_path), str(tmp_path)], "directory", AUFS) == (f"{tmp_path}/directory",)
    convert(tmp_path, AUFS, OVERLAY)
    assert OVERLAY.is_opaque(f"{tmp_path}/directory")
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]


def test_what_aufs_keeps_for_itself_goes(tmp_path: Path) -> None:
    (tmp_path / ".wh..wh.plnk").mkdir()
    (tmp_path / ".wh..wh.plnk/12.34").touch()
    (tmp_path / ".wh..wh.aufs").touch()
    (tmp_path / "file").touch()
    convert(tmp_path, AUFS, OVERLAY)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq", ".wh."])
@pytest.mark.parametrize("node", [File(), Gone(), Directory()])
def test_aufs_names_can_be_nobodys(name: str, node: File | Gone | Directory, made: Made) -> None:
    path = made(Directory({"a": Gone(), "d": Directory({name: node})}), OVERLAY)
    before = found(path)
    with pytest.raises(UsageError, match=r"no file of a layer can have a name that begins with '\.wh\.'"):
        convert(path, OVERLAY, AUFS)
    assert found(path) == before


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh..."])
def test_a_whiteout_of_no_name_is_refused(name: str, tmp_path: Path) -> None:
    """One of `..` would lead out of the layer."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / name).touch()
    with pytest.raises(UsageError, match="which is the name of no file"):
        convert(tmp_path, AUFS, OVERLAY)
    assert os.listdir(tmp_path / "inner") == [name]


@pytest.mark.parametrize("meaning", ["redirect", "metacopy"])
def test_what_only_overlay_can_say_is_refused(meaning: str, made: Made) -> None:
    path = made(LAYER, OVERLAY)
    os.setxattr(f"{path}/new/inner", f"{OVERLAY.prefix}{meaning}", b"/elsewhere")
    with pytest.raises(UsageError, match=f"new/inner: has {OVERLAY.prefix}{meaning}: only overlay can say"):
        convert(path, OVERLAY, AUFS)
    assert OVERLAY.hides(path, "gone")
