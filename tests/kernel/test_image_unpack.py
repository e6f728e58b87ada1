"""Layers unpacked: the tree that GNU tar makes of the same archive, whiteouts in two ways, and nothing outside the root, whatever an archive says."""

import gzip
import hashlib
import os
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import OVERLAY

from kernel_lab import UsageError
from kernel_lab.images.archive import BLOCK_DEVICE, CHARACTER, DIRECTORY, END, FIFO, LINK, SYMLINK, Entry, encode
from kernel_lab.images.unpack import Rules, Unpacked, unpack, unpack_layer, unpack_root
from kernel_lab.kernel.errors import KernelError
from kernel_lab.unionfs.whiteouts import USER

ROOT = os.geteuid() == 0
MOST = 1 << 24
PAX = ["--format=posix", "--xattrs", "--xattrs-include=*"]


def mine(uid: int, gid: int) -> tuple[int, int]:
    """An ordinary user has one owner to give: itself."""
    return (uid, gid) if ROOT else (os.geteuid(), os.getegid())


LAYER = Rules(MOST, OVERLAY, mine)
OVER = Rules(MOST, None, mine)


def file(name: str, content: bytes = b"", **said: object) -> bytes:
    return encode(Entry(os.fsencode(name), size=len(content))._replace(**said)) + content + bytes(-len(content) % 512)


def node(name: str, kind: bytes, link: str = "", **said: object) -> bytes:
    return encode(Entry(os.fsencode(name), kind, link=os.fsencode(link), mode=0o755)._replace(**said))


def directory(name: str, **said: object) -> bytes:
    return node(name, DIRECTORY, **said)


def layer(*entries: bytes) -> list[bytes]:
    return [*entries, END]


Make = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Unpacks entries as one layer, or, as lists, over one another."""

    def make(*entries: bytes, rules: Rules = LAYER, over: Sequence[Sequence[bytes]] = ()) -> Path:
        path = tmp_path / f"made{len(os.listdir(tmp_path))}"
        if over:
            unpack_root([layer(*one) for one in over], path, OVER)
        else:
            unpack_layer(layer(*entries), path, rules)
        return path

    return make


def seen(root: Path, *, times: bool = True) -> dict[str, tuple[object, ...]]:
    """All that there is to see of a tree, with directories' link counts left out, which file systems count as they like."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        links = 0 if path.is_dir() else status.st_nlink
        owner = status.st_mode, status.st_uid, status.st_gid, status.st_rdev, links
        found[str(path.relative_to(root))] = (*owner, attributes, content, times and status.st_mtime_ns)
    return found


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# What comes out


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """A tree with something of everything."""
    top = tmp_path / "varied"
    for name in ("d", "d/closed", "sticky", "n" * 200, "n" * 200 + "/" + "m" * 200):
        (top / name).mkdir(parents=True)
    (top / "d/file").write_bytes(os.urandom(300_000))
    (top / "d/closed/inside").write_text("inside")
    (top / ("n" * 200) / ("m" * 200) / "long").write_text("long")
    os.link(top / "d/file", top / "sticky/linked")
    os.symlink("../no where", top / "d/symlink")
    os.mkfifo(top / "fifo", 0o640)
    with open(os.fsencode(top) + b"/not utf-8 \xff\xfe", "w") as odd:
        odd.truncate(1 << 20)
    os.setxattr(top / "d/file", "user.mark", b"a\0=\n\xff")
    if ROOT:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
        os.chown(top / "d/file", 123, 3_000_000)
        os.lchown(top / "d/symlink", 5, 6)
        os.setxattr(top / "d/file", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    os.chmod(top / "d/file", 0o6755)
    os.chmod(top / "sticky", 0o1777)
    os.chmod(top / "d/closed", 0o555)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(1, 1_500_000_000_123_456_789 + number), follow_symlinks=False)
    return top


@pytest.mark.needs("tar")
@pytest.mark.parametrize("form", [[], ["--sparse"]])
def test_the_tree_that_gnu_tar_has_packed(form: list[str], varied: Path, tmp_path: Path) -> None:
    packed = subprocess.run(["tar", "-C", varied, "-cf", "-", *form, *PAX, "."], check=True, capture_output=True).stdout
    unpack_layer([gzip.compress(packed)], tmp_path / "made", LAYER)
    assert seen(tmp_path / "made") == seen(varied)


@pytest.mark.needs("root", "tar")
@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "oldgnu"])
def test_the_tree_that_gnu_tar_makes_of_the_same_archive(form: str, varied: Path, tmp_path: Path) -> None:
    if form == "v7":  # has no devices and no fifos
        for name in ("null", "fifo"):
            os.unlink(varied / name)
    os.chown(varied / "d/file", 5, 6)  # where ids of millions do not fit
    os.chmod(varied / "d/file", 0o6755)
    packed = tmp_path / "packed"
    subprocess.run(["tar", "-C", varied, "-cf", packed, f"--format={form}", "--exclude=nnn*", "--exclude=disk", "."], check=True, capture_output=True)
    (tmp_path / "theirs").mkdir()
    subprocess.run(["tar", "--numeric-owner", "-p", "-C", tmp_path / "theirs", "-xf", packed], check=True)
    unpack_layer([packed.read_bytes()], tmp_path / "ours", LAYER)
    assert seen(tmp_path / "ours") == seen(tmp_path / "theirs")


@pytest.mark.needs("root", "bsdtar")
def test_the_tree_that_bsdtar_makes_of_its_own_archive(varied: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    subprocess.run(["bsdtar", "-C", varied, "-cf", packed, "--format=pax", "."], check=True)
    (tmp_path / "theirs").mkdir()
    subprocess.run(["bsdtar", "--numeric-owner", "-p", "-C", tmp_path / "theirs", "-xf", packed], check=True)
    unpack_layer([packed.read_bytes()], tmp_path / "ours", LAYER)
    ours, theirs = seen(tmp_path / "ours"), seen(tmp_path / "theirs")
    assert ours.pop(".") and theirs.pop(".")  # to which it gives no time
    assert ours == theirs


def test_both_digests_are_told(tmp_path: Path) -> None:
    plain = b"".join(layer(file("name", b"text"))) + bytes(5000)
    for number, packed in enumerate([plain, gzip.compress(plain)]):
        found = unpack_layer([packed[:30], packed[30:]], tmp_path / str(number), LAYER)
        digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (packed, plain)]
        assert found == Unpacked(digests[0], len(packed), digests[1], len(plain))


def test_directories_that_an_archive_goes_through_are_made(made: Make) -> None:
    root = made(file("a/b/c", b"text"))
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "a/b")] == [0o755, 0o755]


def test_names_begin_at_the_root(made: Make) -> None:
    assert names(made(file("/absolute"), file("./relative"), file("//x//./y"))) == ["absolute", "relative", "x", "x/y"]


def test_the_roots_own_entry(made: Make) -> None:
    root = made(directory("./", mode=0o711, mtime=5), file("name"))
    assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_mtime_ns) == (0o711, 5)
    with pytest.raises(UsageError, match="is the root of the layer, and no directory"):
        made(file("./"))


def test_the_later_of_two_entries_counts(made: Make) -> None:
    root = made(
        *(file("f", b"long text"), file("f", b"text"), directory("d", mode=0o700), file("d/kept"), directory("d", mode=0o711, mtime=7)),
        *(directory("was"), file("was/inner/deep"), file("was", b"file")),
        *(file("file"), directory("file"), file("file/inner")),
        *(node("link", SYMLINK, "f"), file("link", b"no link")),
    )
    assert names(root) == ["d", "d/kept", "f", "file", "file/inner", "link", "was"]
    assert [(root / name).read_text() for name in ("f", "was", "link")] == ["text", "file", "no link"]
    assert (stat.S_IMODE((root / "d").stat().st_mode), (root / "d").stat().st_mtime_ns) == (0o711, 7)


def test_a_hard_link_to_itself_stays(made: Make) -> None:
    root = made(file("f", b"text"), node("f", LINK, "f"), node("g", LINK, "f"), node("g", LINK, "./f"), file("h"), node("h", LINK, "f"))
    assert {(root / name).stat().st_ino for name in "fgh"} == {(root / "f").stat().st_ino}
    assert (root / "f").read_text() == "text"


def test_a_hard_link_to_a_symlink_is_one_more_symlink(made: Make) -> None:
    root = made(node("link", SYMLINK, "/etc/passwd"), node("hard", LINK, "link"))
    assert os.readlink(root / "hard") == "/etc/passwd"


def test_a_directory_that_shuts_out_can_be_filled(made: Make) -> None:
    root = made(
        directory("a", mode=0o500), directory("a/b", mode=0), file("a/b/c"), directory("a", mode=0o300), directory("a/b", mode=0o100, mtime=3)
    )
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o300
    os.chmod(root / "a", 0o700)
    assert (stat.S_IMODE((root / "a/b").stat().st_mode), (root / "a/b").stat().st_mtime_ns) == (0o100, 3)
    os.chmod(root / "a/b", 0o700)


def test_owners_go_through_a_function(made: Make) -> None:
    asked = []

    def owner(uid: int, gid: int) -> tuple[int, int]:
        asked.append((uid, gid))
        return os.geteuid(), os.getegid()

    root = made(file("f", uid=12, gid=13), directory("d", uid=14), rules=Rules(MOST, OVERLAY, owner))
    assert asked == [(12, 13), (14, 0)]
    assert (root / "f").stat().st_uid == os.geteuid()


# What cannot be made


@pytest.mark.needs("user")
@pytest.mark.parametrize("kind", [CHARACTER, BLOCK_DEVICE])
def test_an_ordinary_user_makes_no_devices(kind: bytes, made: Make) -> None:
    entries = node("dev/null", kind, device=os.makedev(1, 3)), file("after")
    with pytest.raises(UsageError, match=r"dev/null.*only root, outside of every user namespace, makes device nodes"):
        made(*entries)
    told: list[str] = []
    assert names(made(*entries, rules=Rules(MOST, OVERLAY, mine, told.append))) == ["after", "dev"]
    assert len(told) == 1


@pytest.mark.needs("user")
def test_an_ordinary_user_has_no_owners_to_give(made: Make) -> None:
    with pytest.raises(KernelError, match="map owners to your own"):
        made(file("f", uid=0), rules=Rules(MOST, OVERLAY))


@pytest.mark.needs("userns", "unshare")
def test_root_of_a_user_namespace_unpacks_for_itself(tmp_path: Path) -> None:
    """It makes whiteouts and gives owners that are mapped, and no other devices (mknod(2), user_namespaces(7))."""
    entries = file("f", mode=0o4755), file(".wh.gone"), directory("d"), file("d/.wh..wh..opq"), node("null", CHARACTER, device=os.makedev(1, 3))
    (tmp_path / "packed").write_bytes(b"".join(layer(*entries)))
    program = """
import sys
from pathlib import Path
from kernel_lab.images.unpack import Rules, unpack_layer
from kernel_lab.unionfs.whiteouts import USER
unpack_layer([Path(sys.argv[1]).read_bytes()], Path(sys.argv[2]), Rules(1 << 20, USER, skipped=print))
"""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", program, tmp_path / "packed", tmp_path / "made"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}).stdout
    assert told.splitlines() == ["'null': only root, outside of every user namespace, makes device nodes (mknod(2))"]
    assert names(tmp_path / "made") == ["d", "f", "gone"]
    assert USER.hides(str(tmp_path / "made"), "gone") and USER.is_opaque(str(tmp_path / "made/d"))
    assert stat.S_IMODE((tmp_path / "made/f").stat().st_mode) == 0o4755


def test_overlays_attributes_are_not_an_archives(made: Make) -> None:
    """A redirect would show another directory of the layers below (overlayfs.rst)."""
    entry = directory("d", xattrs={f"{OVERLAY.prefix}redirect": b"/etc"})
    with pytest.raises(UsageError, match="overlay would see something else"):
        made(entry)
    told: list[str] = []
    root = made(entry, rules=Rules(MOST, OVERLAY, mine, told.append))
    assert not os.listxattr(root / "d") and len(told) == 1


def test_a_device_that_would_be_a_whiteout_is_refused(made: Make) -> None:
    with pytest.raises(UsageError, match="overlay would take it for a whiteout"):
        made(node("d", CHARACTER))


# Whiteouts


def test_whiteouts_in_a_layers_own_directory(made: Make) -> None:
    root = made(file(".wh.gone"), directory("d"), file("d/.wh..wh..opq"), file("d/new"), file("e/.wh.inner", b"with content"), file(".wh..wh..opq"))
    assert OVERLAY.hides(str(root), "gone") and OVERLAY.hides(str(root / "e"), "inner")
    assert OVERLAY.is_opaque(str(root / "d")) and OVERLAY.is_opaque(str(root))
    assert names(root) == ["d", "d/new", "e", "e/inner", "gone"]


@pytest.mark.parametrize("first", [True, False])
def test_a_whiteout_hides_what_is_below_and_not_its_own_layers(first: bool, made: Make) -> None:
    """In either order: layer.md asks for the whiteout first, and not all writers heed it."""
    entries = [directory("d"), file("d/new"), file("f", b"text"), node("l", SYMLINK, "x")]
    marks = [file(".wh.d"), file(".wh.f"), file(".wh.l")]
    root = made(*(marks + entries if first else entries + marks))
    assert OVERLAY.is_opaque(str(root / "d")) and (root / "d/new").exists()
    assert (root / "f").read_text() == "text"
    assert os.readlink(root / "l") == "x"
    over = made(over=[[file("d/old"), directory("f"), file("f/old")], marks + entries if first else entries + marks])
    assert names(over) == ["d", "d/new", "f", "l"]


def test_whiteouts_delete_in_layers_over_one_another(made: Make) -> None:
    below = [directory("d"), file("d/old"), file("d/sub/old"), file("gone/deep/file"), file("kept")]
    below += [file("e/old"), file("e/sub/old"), file("f/old")]
    above = [
        directory("d"),
        file("d/sub/new"),
        file("d/.wh..wh..opq"),
        file(".wh.gone"),
        file(".wh.absent"),
        file("e/sub/new"),
        file("e/sub/.wh.old"),
    ]
    root = made(over=[below, [*above, file("f/new"), file(".wh.f")]])
    assert names(root) == ["d", "d/sub", "d/sub/new", "e", "e/old", "e/sub", "e/sub/new", "f", "f/new", "kept"]


def test_a_layer_replaces_what_is_below(made: Make) -> None:
    below = [file("file", b"below"), directory("dir", xattrs={"user.old": b"1"}), file("dir/kept"), file("tree/x/y"), node("link", SYMLINK, "dir")]
    above = [directory("file"), directory("dir", mode=0o711), file("tree", b"above"), directory("link"), file("link/inner")]
    root = made(over=[below, above])
    assert names(root) == ["dir", "dir/kept", "file", "link", "link/inner", "tree"]
    assert os.listxattr(root / "dir") == [] and stat.S_IMODE((root / "dir").stat().st_mode) == 0o711


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh...", "d/.wh."])
@pytest.mark.parametrize("over", [True, False])
def test_a_whiteout_of_no_name_is_refused(name: str, over: bool, made: Make) -> None:
    with pytest.raises(UsageError, match="which is the name of no file"):
        made(directory("d"), file(name), rules=OVER if over else LAYER)


def test_what_aufs_keeps_for_itself_is_left_out(made: Make) -> None:
    assert names(made(directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file(".wh..wh.aufs"), file("f"))) == ["f"]


def test_nothing_is_below_a_whiteout(made: Make) -> None:
    for entries in ([file(".wh.d/file")], [file("d"), node("hard", LINK, ".wh.d")]):
        with pytest.raises(UsageError, match=r"whiteout|no file's name"):
            made(*entries)


def test_a_tree_deeper_than_any_path_is_deleted(made: Make) -> None:
    """Links make it possible: each leads to the end of what is there."""
    deep = "/".join("d" * 1000)
    below = [
        file(f"top/{deep}/end"),
        node("a", SYMLINK, f"top/{deep}"),
        file(f"a/{deep}/end"),
        node("b", SYMLINK, f"a/{deep}"),
        file(f"b/{deep}/end"),
    ]
    assert made(over=[below, [file(".wh.top"), file(".wh.a"), file(".wh.b"), file("new")]]).joinpath("new").exists()


# Nothing outside


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the root that stays as it is."""
    place = tmp_path / "outside"
    (place / "d").mkdir(parents=True)
    (place / "secret").write_text("secret")
    (place / "d/inner").write_text("inner")
    before = seen(place)
    yield place
    assert seen(place) == before


@pytest.mark.parametrize("name", ["..", "../outside/x", "a/../../outside/x", "/../outside/x", "a/..", "a/../b"])
def test_a_name_that_goes_up_is_refused(name: str, made: Make, outside: Path) -> None:
    for entry in (file(name), directory(name), node("hard", LINK, name), file(f"{name}/.wh.secret"), node(name, SYMLINK, "x")):
        with pytest.raises(UsageError, match=r"goes up by '\.\.'"):
            made(entry)


def test_a_link_that_leads_out_leads_to_the_roots_own(made: Make, outside: Path) -> None:
    for target in (str(outside), "../outside", "../../../../../../.." + str(outside)):
        inner = str(outside).lstrip("/") if target != "../outside" else "outside"
        root = made(directory(inner), node("link", SYMLINK, target), file("link/secret", b"mine"), file("link/.wh.d"), file("link/.wh..wh..opq"))
        assert (root / inner / "secret").read_text() == "mine"


def test_a_link_of_a_lower_layer_leads_to_the_roots_own(made: Make, outside: Path) -> None:
    below = [node("link", SYMLINK, str(outside)), directory(str(outside)), file(f"{outside}/d/x")]
    root = made(over=[below, [file("link/secret", b"mine"), file("link/.wh.d"), directory("link/sub", mode=0o700)]])
    assert sorted(os.listdir(f"{root}{outside}")) == ["secret", "sub"]


def test_a_link_that_leads_nowhere_is_no_directory(made: Make, outside: Path) -> None:
    with pytest.raises(KernelError, match=r"unpack 'link/x': EEXIST: .* in place of a directory"):
        made(node("link", SYMLINK, str(outside)), file("link/x"))


@pytest.mark.needs("userns", "unshare")
def test_a_mount_inside_the_root_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(b"".join(layer(file("d/f"))))
    (tmp_path / "root/d").mkdir(parents=True)
    program = """
import os, subprocess, sys
from pathlib import Path
from kernel_lab.images.unpack import Rules, unpack
packed, root = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "none", root / "d"], check=True)
try:
    unpack([packed.read_bytes()], os.open(root, os.O_RDONLY), Rules(1 << 20))
finally:
    print(os.listdir(root / "d"))
"""
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", program, tmp_path / "packed", tmp_path / "root"]
    told = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert told.stdout == "[]\n" and "unpack 'd/f': EXDEV" in told.stderr


def test_the_last_component_is_never_followed(made: Make, outside: Path) -> None:
    secret = str(outside / "secret")
    for entry in (
        file("l", b"mine", mode=0o777),
        directory("l", mode=0o777),
        node("l", FIFO),
        node("l", SYMLINK, "x"),
        file(".wh.l"),
        node("l", LINK, "f"),
    ):
        made(file("f"), node("l", SYMLINK, secret), entry)
        made(over=[[file("f"), node("l", SYMLINK, secret)], [file("f"), entry]])
        made(file("f"), node("l", SYMLINK, str(outside / "d")), entry)


def test_a_hard_link_to_what_is_outside_is_none(made: Make, outside: Path) -> None:
    for target in (str(outside / "secret"), "l/secret"):
        with pytest.raises(KernelError, match=r"There is no .* for the hard link"):
            made(node("l", SYMLINK, str(outside)), node("hard", LINK, target))


def test_a_directory_that_was_open_and_is_a_link_now_is_looked_up_again(made: Make, outside: Path) -> None:
    """Its descriptor is kept from one entry to the next."""
    root = made(directory("other"), directory("d"), file("d/one"), node("d", SYMLINK, "other"), file("d/two"))
    assert names(root) == ["d", "other", "other/two"]
    with pytest.raises(KernelError):
        made(directory("d"), file("d/one"), node("d", SYMLINK, str(outside)), file("d/secret"))
    # The link that leads to the parent is replaced through itself.
    root = made(directory("d"), node("d/self", SYMLINK, "."), file("d/self/a"), directory("d/self/self"), file("d/self/b"))
    assert names(root) == ["d", "d/a", "d/self", "d/self/b"]


def test_a_directory_that_is_a_link_at_the_end_gives_nothing_away(made: Make, outside: Path) -> None:
    root = made(directory("d", mode=0o777, mtime=1), directory("other", mode=0o750, mtime=2), node("d", SYMLINK, "other"))
    assert (stat.S_IMODE((root / "other").stat().st_mode), (root / "other").stat().st_mtime_ns) == (0o750, 2)
    made(directory("d", mode=0o777, mtime=1), node("d", SYMLINK, str(outside)))
    made(directory("a/d", mode=0o777, mtime=1), node("a", SYMLINK, str(outside)))


_names = st.sampled_from(["a", "b", "a/b", "a/b/c", "b/a", "a/..", "../outside", "/a", ".", "a/./b", "b/secret", "a/d/inner"])
_marks = st.sampled_from([".wh.a", "a/.wh.b", ".wh..", ".wh...", "a/.wh...", "a/.wh..wh..opq", ".wh..wh..opq", "b/.wh.secret", "b/.wh.d", ".wh."])
_targets = st.sampled_from(
    ["a", "b", ".", "..", "/", "../outside", "../outside/d", "OUTSIDE", "OUTSIDE/secret", "a/b", "../a", "/proc/self/root/tmp"]
)
_hostile = st.one_of(
    st.builds(file, _names | _marks, st.sampled_from([b"", b"content"])),
    st.builds(directory, _names | _marks),
    st.tuples(_names, st.sampled_from([SYMLINK, LINK]), _targets),
    st.builds(node, _names, st.just(FIFO)),
)


@pytest.mark.parametrize("rules", [LAYER, OVER], ids=["layer", "over"])
@given(layers=st.lists(st.lists(_hostile, max_size=8), min_size=1, max_size=3))
def test_no_archive_changes_anything_outside(
    rules: Rules, layers: list[list[bytes | tuple[str, bytes, str]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = tmp_path_factory.mktemp("hostile")
    place = top / "outside"
    (place / "d").mkdir(parents=True)
    (place / "secret").write_text("secret")
    (place / "d/inner").write_text("inner")
    before = seen(place)
    (top / "root").mkdir()
    root = os.open(top / "root", os.O_RDONLY)
    for listed in layers:
        entries = [entry if isinstance(entry, bytes) else node(*entry[:2], entry[2].replace("OUTSIDE", str(place))) for entry in listed]
        # Each alone too: so the later ones are tried where one is refused.
        for tried in (*([entry] for entry in entries), entries):
            try:
                unpack(layer(*tried), root, rules)
            except (UsageError, KernelError) as error:
                assert str(error)
    os.close(root)
    assert sorted(os.listdir(top)) == ["outside", "root"]
    assert seen(place) == before


# Bounds, and what is left of a failure


@pytest.mark.parametrize(
    ("words", "entries"),
    [
        ("a path of 4999 bytes", [file("/".join(["n" * 99] * 50))]),
        ("ENAMETOOLONG", [file("n" * 256)]),
        ("a file of 17179869184 bytes with its holes", [file("f", size=1 << 34, segments=())]),
        ("truncated", [file("f", b"x" * 600)[:700]]),
        ("goes up", [file("first", b"text"), file("..")]),
        ("more than 3 files", [file(str(number)) for number in range(4)]),
        ("more than 3 files", [file("a/b/c/d")]),
        ("larger", [file("f", bytes(MOST))]),
    ],
)
def test_after_a_failure_nothing_is_left(words: str, entries: list[bytes], tmp_path: Path) -> None:
    few = 3 if "3 files" in words else 100
    chunks = entries if words == "truncated" else layer(*entries)
    with pytest.raises((UsageError, KernelError), match=words):
        unpack_layer(chunks, tmp_path / "layer", Rules(MOST, OVERLAY, mine, most_entries=few))
    assert os.listdir(tmp_path) == []


def test_paths_that_are_remembered_have_the_same_bound(tmp_path: Path) -> None:
    """A link makes new paths of all that is behind it, and no new directories."""
    deep = "/".join("d" * 40)
    entries = [directory(deep), *(node(f"l{number}", SYMLINK, ".") for number in range(5))]
    paths = [file(f"l{number}/{deep}/f") for number in range(5)]
    for most, refused in ((150, True), (300, False)):
        with pytest.raises(UsageError, match="more than 150 files") if refused else nullcontext():
            unpack_root([layer(*entries, *paths)], tmp_path / "root", Rules(MOST, None, mine, most_entries=most))
    assert os.listdir(tmp_path) == ["root"]


def test_another_digest_is_refused(tmp_path: Path) -> None:
    for wanted in ({"digest": "sha256:0"}, {"diff_id": "sha256:0"}):
        with pytest.raises(UsageError, match="sha256:0 was asked for"):
            unpack_layer(layer(file("f")), tmp_path / "layer", LAYER, **wanted)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        unpack_layer(layer(file("f")), tmp_path, LAYER)
    assert os.listdir(tmp_path) == []


def test_no_descriptor_is_left_open(made: Make) -> None:
    before = len(os.listdir("/proc/self/fd"))
    made(*(file(f"{number}/a/b") for number in range(100)), *(node(f"h{number}", LINK, f"{number}/a/b") for number in range(100)))
    with pytest.raises(UsageError):
        made(*(file(f"{number}/a") for number in range(50)), file(".."))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        for number in range(20_000):
            yield directory(f"{number % 100}/d{number}")
        yield encode(Entry(b"large", size=1 << 28))
        yield from [bytes(1 << 20)] * 256
        yield END

    tracemalloc.start()
    unpack_layer(chunks(), tmp_path / "layer", Rules(1 << 30, OVERLAY, mine))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20
