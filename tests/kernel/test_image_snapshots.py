"""Layers as directories: overlay shows what umoci makes of the same image; and nobody finds half of one, or loses one that he stands on."""

import itertools
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from archives import SECOND, Seen, directory, file, layer, link, made, node, seen, union, unpacked_by_umoci
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trees import Directory, Link, layers, make
from trees import shown as trees_shown

from kernel_lab import UsageError
from kernel_lab.cleanup import leftovers
from kernel_lab.images import pack as packing
from kernel_lab.images import snapshots
from kernel_lab.images.archive import BLOCK_DEVICE, CHARACTER, DIRECTORY, Archive, encode
from kernel_lab.images.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Config, Manifest, digest_of
from kernel_lab.images.image import Image
from kernel_lab.images.snapshots import MOUNT_POINTS, Snapshots, beside
from kernel_lab.images.store import Store, local
from kernel_lab.kernel.errors import KernelError
from kernel_lab.state import Creator
from kernel_lab.unionfs.whiteouts import AUFS

ROOT = os.geteuid() == 0
TIME = 1_500_000_000 * SECOND
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")

# Unpacks an image, for ever removing what it has unpacked, or until it has been done so many times.
WORKER = """
import sys
from pathlib import Path
from kernel_lab import UsageError
from kernel_lab.images.image import Image
from kernel_lab.images.snapshots import Snapshots
from kernel_lab.images.store import Store, local

store, snapshots, what, times = Store(sys.argv[1]), Snapshots(Path(sys.argv[2])), sys.argv[3], int(sys.argv[4])
image = Image.find(store, "worked")
for number in range(times):
    if what == "prune":
        snapshots.prune()
    else:
        print([path.name for path in snapshots.directories(image)], flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.fixture
def unpacked(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots")


def shown(unpacked: Snapshots, image: Image, **how: bool) -> Seen:
    """What a container would see, without the mount points."""
    return union(unpacked.directories(image), **how)


def names(unpacked: Snapshots) -> list[str]:
    return sorted(entry.name for entry in os.scandir(unpacked.path) if entry.is_dir())


def only_ours(tree: Seen) -> Seen:
    return {path: what for path, what in tree.items() if path not in ("dev", "proc", "sys")}


# What is seen


@pytest.mark.needs("umoci", "userns", "unshare")
def test_the_tree_that_umoci_makes_of_the_same_image(store: Store, unpacked: Snapshots, tmp_path: Path) -> None:
    owner = {"uid": 33, "gid": 5} if ROOT else {}
    lower = layer(
        directory("./", mtime=TIME),
        directory("etc/", mtime=TIME),
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\n", mtime=TIME + 123),
        file("etc/gone", b"x", mtime=TIME),
        directory("var/", mode=0o711, **owner),
        directory("var/mail/", mode=0o2775, **owner),
        file("var/mail/you", b"?", mode=0o660, mtime=TIME, **owner),
        file("var/mail/me", b"!", mode=0o600, mtime=TIME),
        directory("tmp/", mode=0o1777),
        file("bin/su", b"program", mode=0o4755, mtime=TIME, xattrs={"user.mark": b"m"}),
        link("bin/sh", "su"),
        directory("whole/", mode=0o700),
        file("whole/a", b"a", mtime=TIME),
        file("file", b"will be a directory", mtime=TIME),
        directory("directory/"),
        file("directory/x", b"", mtime=TIME),
    )
    upper = layer(
        file("etc/.wh.gone"),
        file("var/mail/new", b"without its parents", mtime=TIME),
        file("whole/.wh..wh..opq"),
        file("whole/b", b"b", mtime=TIME),
        directory("file/", mode=0o750),
        file("file/inside", b"", mtime=TIME),
        file("directory", b"is a file now", mtime=TIME),
    )
    image = made(store, None, lower, upper, lower, upper)
    with store.adding():
        store.tag(image.descriptor, "tree")
    ours = only_ours(shown(unpacked, image))
    theirs = unpacked_by_umoci(store, "docker.io/library/tree:latest", tmp_path / "bundle")
    assert theirs is not None
    for tree in (ours, theirs):
        # A symlink of which an archive says no time; ours has 1970.
        tree["bin/sh"][5] = 0
    assert ours == theirs
    assert not {"etc/gone", "whole/a", "directory/x"} & set(ours) and {"whole/b", "file/inside", "var/mail/me"} <= set(ours)
    # Of the directories that the upper archive only goes through nothing is changed.
    assert ours["var/mail"][0] == oct(stat.S_IFDIR | 0o2775) and ours["var"][0] == oct(stat.S_IFDIR | 0o711)


def archived(tree: Directory, place: Path, bare: bool) -> bytes:
    """The archive of a layer; a bare one has nothing of directories in which it has something."""
    make(tree, str(place), AUFS)
    whole = b"".join(packing.pack(place, AUFS, owner=lambda uid, gid: (0, 0)))
    if not bare:
        return whole
    archive = Archive([whole])
    entries = [(entry, b"".join(archive.data(entry.size))) for entry in archive]
    real = [entry.name for entry, _ in entries if b".wh." not in entry.name]
    needed = [
        pair for pair in entries if pair[0].kind != DIRECTORY or not any(name.startswith(pair[0].name) for name in real if name != pair[0].name)
    ]
    return layer(*(encode(entry) + content + bytes(-len(content) % 512) for entry, content in needed))


def goes_through_links(stack: list[tuple[Directory, bool]]) -> bool:
    """Whether a bare layer has a directory where a link lies below. umoci, which unpacks one layer over the other, follows it; others replace it."""
    trees = [tree for tree, _ in stack]
    for number, (tree, bare) in enumerate(stack):
        below = trees_shown(*reversed(trees[:number]))
        if bare and any(isinstance(node, Directory) and isinstance(below.get(path), Link) for path, node in trees_shown(tree).items()):
            return True
    return False


@pytest.mark.slow
@pytest.mark.needs("umoci", "userns", "unshare")
@settings(max_examples=40)
@given(st.lists(st.tuples(layers, st.booleans()), min_size=2, max_size=4))
def test_any_image_is_the_tree_that_umoci_makes_of_it(stack: list[tuple[Directory, bool]]) -> None:
    assume(not goes_through_links(stack))
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        store = Store(folder / "images")
        archives = [archived(tree, folder / f"layer{number}", bare) for number, (tree, bare) in enumerate(stack)]
        image = made(store, "any", *archives)
        theirs = unpacked_by_umoci(store, "docker.io/library/any:latest", folder / "bundle")
        unpacked = Snapshots(folder / "snapshots")
        if theirs is not None:
            assert only_ours(shown(unpacked, image)) == theirs
            if ROOT:
                assert only_ours(shown(unpacked, image, user_namespace=True)) == theirs


@pytest.mark.needs("userns", "unshare")
def test_what_is_opaque_is_so_inside_and_outside_of_a_user_namespace(store: Store, unpacked: Snapshots) -> None:
    """Root's own containers and those with User() stand on the same directories."""
    lower = layer(directory("d/"), file("d/hidden"), directory("d/both/"), file("d/both/hidden"), file("d/kept"), directory("e/"), file("e/hidden"))
    upper = layer(directory("d/both/"), file("d/both/new"), file("d/.wh..wh..opq"), file("d/kept"), file(".wh.e"), directory("e/"))
    image = made(store, None, lower, upper)
    for user_namespace in (True, *([False] if ROOT else [])):
        assert sorted(only_ours(shown(unpacked, image, user_namespace=user_namespace))) == [".", "d", "d/both", "d/both/new", "d/kept", "e"]
    attributes = [name for path in unpacked.path.rglob("*") for name in os.listxattr(path, follow_symlinks=False)]
    assert not [name for name in attributes if "overlay" in name]


@pytest.mark.needs("userns", "unshare")
def test_a_link_to_an_opaque_directory_hides_what_is_below_that(store: Store, unpacked: Snapshots) -> None:
    lower = layer(directory("d/"), file("d/hidden"), directory("l/"), file("l/shown"))
    upper = layer(directory("d/"), link("x", "d"), file("x/.wh..wh..opq"))
    assert sorted(only_ours(shown(unpacked, made(store, None, lower, upper)))) == [".", "d", "l", "l/shown", "x"]


@pytest.mark.needs("userns", "unshare")
def test_an_opaque_root_hides_all_but_the_mount_points(store: Store, unpacked: Snapshots) -> None:
    image = made(store, None, layer(directory("a/"), file("b")), layer(file(".wh..wh..opq"), file("c")))
    assert sorted(shown(unpacked, image)) == [".", "c", "dev", "proc", "sys"]


@pytest.mark.needs("root")
def test_owners_attributes_and_devices_are_the_images(store: Store, unpacked: Snapshots) -> None:
    entries = [
        directory("d/", uid=1000, gid=1001, mode=0o750),
        file("d/ping", b"p", uid=5, gid=6, mode=0o755, xattrs={"security.capability": CAPABILITY, "trusted.mark": b"t"}),
        node("null", CHARACTER, device=os.makedev(1, 3), mode=0o666),
        node("disk", BLOCK_DEVICE, device=os.makedev(8, 0)),
    ]
    top = unpacked.directories(made(store, None, layer(*entries), layer(file("d/more"))))[1]
    assert os.getxattr(top / "d/ping", "security.capability") == CAPABILITY and os.getxattr(top / "d/ping", "trusted.mark") == b"t"
    assert (top / "d/ping").stat().st_uid == 5 and os.lstat(top / "null").st_rdev == os.makedev(1, 3)
    upper = unpacked.directories(made(store, None, layer(*entries), layer(file("d/more"))))[0]
    assert ((upper / "d").stat().st_uid, (upper / "d").stat().st_gid, stat.S_IMODE((upper / "d").stat().st_mode)) == (1000, 1001, 0o750)


@pytest.mark.needs("user")
def test_an_ordinary_users_files_are_all_that_users(store: Store, unpacked: Snapshots) -> None:
    entries = [
        directory("d/", uid=1000, gid=1001, mode=0o555),
        file("d/shadow", b"p", uid=5, gid=6, mode=0, xattrs={"security.capability": CAPABILITY, "user.mark": b"m"}),
        node("d/null", CHARACTER, device=os.makedev(1, 3)),
    ]
    top = unpacked.directories(made(store, None, layer(*entries)))[0]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in (top, *top.rglob("*"))} == {(os.geteuid(), os.getegid())}
    assert sorted(path.name for path in top.rglob("*")) == ["d", "shadow"]
    assert os.listxattr(top / "d") == []


def test_what_overlay_would_misunderstand_is_left_out(store: Store, unpacked: Snapshots) -> None:
    entry = file("d", xattrs={"user.overlay.redirect": b"/etc", "trusted.overlay.opaque": b"y", "user.mark": b"m"})
    assert os.listxattr(unpacked.directories(made(store, None, layer(entry)))[0] / "d") == ["user.mark"]


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_modes_do_not_depend_on_the_umask(umask: int, store: Store, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        unpacked = Snapshots(tmp_path / "deep" / "snapshots")
        directories = unpacked.directories(made(store, None, layer(file("new/file", mode=0o666))))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o755}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (directories[-1]).iterdir()} == {0o755}
    assert stat.S_IMODE((directories[0] / "new").stat().st_mode) == 0o755 and stat.S_IMODE((directories[0] / "new/file").stat().st_mode) == 0o666
    assert stat.S_IMODE(unpacked.path.stat().st_mode) == 0o700


@pytest.mark.needs("root", "setpriv")
def test_nobody_else_runs_a_program_in_it(store: Store, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        unpacked = Snapshots(Path(directory) / "snapshots")
        top = unpacked.directories(made(store, None, layer(file("su", b"#!/bin/sh\n", mode=0o4755))))[0]
        assert stat.S_IMODE((top / "su").stat().st_mode) == 0o4755
        ran = subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", f"cd {top} || cat {top}/su || {top}/su"], capture_output=True)
        assert ran.returncode and ran.stderr.count(b"ermission denied") + ran.stderr.count(b"can't cd") == 3


# Which directories


def test_a_layer_is_unpacked_once_for_all_images_on_it(store: Store, unpacked: Snapshots) -> None:
    base, one, two = layer(file("base")), layer(file("one")), layer(file("two"))
    first, second = (unpacked.directories(made(store, None, base, upper)) for upper in (one, two))
    assert first[1:] == second[1:] and first[0] != second[0] and first[-1].name == MOUNT_POINTS
    assert len(names(unpacked)) == 4
    before = first[0].stat().st_ctime_ns
    assert unpacked.directories(made(store, None, base, one)) == first and first[0].stat().st_ctime_ns == before


def test_the_same_layer_twice_is_two_directories(store: Store, unpacked: Snapshots) -> None:
    same = layer(file("same"))
    directories = unpacked.directories(made(store, None, same, same))
    assert len(set(directories)) == 3 and all((path / "same").exists() for path in directories[:2])


@pytest.mark.parametrize("empty", [b"", layer(), bytes(10240)], ids=["no bytes", "an archive of nothing", "and its padding"])
def test_a_layer_of_nothing_is_an_empty_directory(empty: bytes, store: Store, unpacked: Snapshots) -> None:
    top, base, _ = unpacked.directories(made(store, None, layer(file("base")), empty))
    assert os.listdir(top) == [] and os.listdir(base) == ["base"]


def test_an_image_without_layers_has_its_mount_points(store: Store, unpacked: Snapshots) -> None:
    (only,) = unpacked.directories(made(store, None))
    assert sorted(os.listdir(only)) == ["dev", "proc", "sys"]


def test_digests_of_the_other_algorithm(store: Store, unpacked: Snapshots) -> None:
    content = layer(file("file"))
    with store.adding() as adding:
        blob = adding.put(content, OCI_LAYER, digest_of(content, "sha512"))
        config = adding.put(Config("amd64", "linux", (digest_of(content, "sha512"),)).raw, OCI_CONFIG)
        image = Image(store, store.tag(adding.put(Manifest(config, (blob,)).raw, OCI_MANIFEST), None))
    assert os.listdir(unpacked.directories(image)[0]) == ["file"]


def test_more_layers_than_overlay_takes_are_refused_at_once(store: Store, unpacked: Snapshots) -> None:
    image = made(store, None, *[layer()] * 500)
    with pytest.raises(UsageError, match="has 500 layers; overlay takes 500"):
        unpacked.directories(image)
    assert names(unpacked) == []


# What is wrong


def test_a_layer_that_is_another_is_refused(store: Store, unpacked: Snapshots) -> None:
    image = made(store, None, layer(file("good")), layer(file("bad")), diff_ids=[digest_of(layer(file("good"))), digest_of(b"")])
    with pytest.raises(UsageError, match=f"has the DiffID {digest_of(layer(file('bad')))}, and {digest_of(b'')} was asked for"):
        unpacked.directories(image)
    assert names(unpacked) == [image.layers[0].chain_id.replace(":", "-")]


def test_a_damaged_blob_is_refused(store: Store, unpacked: Snapshots) -> None:
    image = made(store, None, layer(file("good", os.urandom(5000))))
    blob = store._layout.blob(image.layers[0].blob.digest)
    blob.write_bytes(blob.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"truncated|damaged|cannot be read"):
        unpacked.directories(image)
    blob.unlink()
    with pytest.raises(UsageError, match="missing"):
        unpacked.directories(image)
    assert names(unpacked) == []


def test_a_layer_that_grows_too_large_is_refused(store: Store, unpacked: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "FLOOR", 1 << 20)
    with pytest.raises(UsageError, match="larger, once it is decompressed"):
        unpacked.directories(made(store, None, layer(*(file(f"zeros{number}", bytes(1 << 20)) for number in range(4)))))
    monkeypatch.setattr(snapshots, "MOST_FILES", 5)
    with pytest.raises(UsageError, match="a layer of more than 5 files"):
        unpacked.directories(made(store, None, layer(*(file(str(number)) for number in range(6)))))
    lower = layer(directory("d/"), *(file(f"d/{number}") for number in range(4)))
    with pytest.raises(UsageError, match="a layer of more than 5 files"):  # whiteouts are files too
        unpacked.directories(made(store, None, lower, layer(directory("d/"), file("d/.wh..wh..opq"), file("e"))))
    assert names(unpacked) == [digest_of(lower).replace(":", "-")]


def test_a_layer_that_goes_through_a_file_is_refused(store: Store, unpacked: Snapshots) -> None:
    with pytest.raises(KernelError, match="ENOTDIR"):
        unpacked.directories(made(store, None, layer(file("f"), file("f/x"))))
    assert names(unpacked) == []


@pytest.mark.needs("userns", "unshare")
def test_links_of_a_lower_layer_lead_nowhere_while_a_layer_is_unpacked(store: Store, unpacked: Snapshots, tmp_path: Path) -> None:
    """As with docker: what an archive goes through is a directory, in place of a link below."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o701)
    before = seen(outside)
    lower = layer(link("out", str(outside)), link("up", "../../outside"), directory("d/", mode=0o711), link("in", "d"))
    upper = layer(file("out/x"), file("up/.wh..wh..opq"), file("in/new"), file("out/.wh.y"))
    tree = shown(unpacked, made(store, None, lower, upper))
    assert seen(outside) == before
    assert {tree[name][0] for name in ("out", "up", "in")} == {oct(stat.S_IFDIR | 0o755)}


# Several at once


@contextmanager
def working(store: Store, unpacked: Snapshots, *jobs: tuple[str, int]) -> Iterator[list["subprocess.Popen[str]"]]:
    started = []
    try:
        for what, times in jobs:
            command = [sys.executable, "-c", WORKER, str(store.path), str(unpacked.path), what, str(times)]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.fixture
def worked(store: Store) -> Image:
    """Three layers, each of which needs the one below."""
    lower = layer(*(directory(f"d{number}/", mode=0o2711) for number in range(50)))
    return made(store, "worked", lower, *(layer(*(file(f"d{number}/{each}", b"x" * 3000) for number in range(50))) for each in "ab"))


def whole(unpacked: Snapshots, image: Image) -> bool:
    """Whether all directories are as one process alone would have made them."""
    tops = unpacked.directories(image)[:-1]
    modes = {stat.S_IMODE((top / f"d{number}").stat().st_mode) for top in tops for number in range(50)}
    return modes == {0o2711} and [len(list(top.rglob("*"))) for top in tops] == [100, 100, 50]


def test_processes_that_unpack_one_image_at_once_unpack_it_once(store: Store, unpacked: Snapshots, worked: Image) -> None:
    with working(store, unpacked, *[("unpack", 1)] * 4) as processes:
        ended = [process.communicate(timeout=60) for process in processes]
    assert len(set(ended)) == 1 and not ended[0][1]
    assert whole(unpacked, worked) and len(names(unpacked)) == 4


@pytest.mark.slow
def test_a_layer_on_one_that_is_being_removed_is_what_it_always_is(store: Store, unpacked: Snapshots, worked: Image) -> None:
    """Without its lower layers it would have other modes, and keep them."""
    with working(store, unpacked, ("unpack", 60), ("unpack", 60), ("prune", 400)) as processes:
        for _ in range(20):
            assert whole_or_gone(unpacked, worked)
        ended = [process.communicate(timeout=120)[1] for process in processes]
    assert ended == [""] * 3
    assert whole(unpacked, worked)


def whole_or_gone(unpacked: Snapshots, image: Image) -> bool:
    with unpacked._held([layer.chain_id.replace(":", "-") for layer in image.layers]):
        return whole(unpacked, image)


@pytest.mark.slow
@pytest.mark.needs("strace")
@pytest.mark.parametrize("what", ["unpack", "prune"])
@pytest.mark.parametrize("call", ["mkdir,mkdirat", "rename,renameat2", "unlink,unlinkat", "rmdir", "syncfs", "flock"])
def test_whoever_is_killed_nobody_finds_half_a_layer(what: str, call: str, store: Store, tmp_path: Path) -> None:
    """strace kills the process as it enters the call for the n-th time."""
    image = made(store, "worked", layer(directory("d/", mode=0o2711), file("d/x")), layer(file("d/y")))
    killed = 0
    for number in itertools.count(1):
        unpacked = Snapshots(tmp_path / f"{what}{number}")
        if what == "prune":
            unpacked.directories(image)
        inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        # -B: Python's own files would be among those that are renamed.
        worker = [sys.executable, "-B", "-c", WORKER, str(store.path), str(unpacked.path), what, "1"]
        ran = subprocess.run([*inject, *worker], capture_output=True, timeout=60)
        for name in names(unpacked):
            if name.startswith("sha256-") and not Creator.in_name(name):
                assert sorted(os.listdir(unpacked.path / name / "d")) == (["x"] if name.endswith(image.layers[0].diff_id[7:]) else ["y"])
        top, base, _ = unpacked.directories(image)
        assert os.listdir(top / "d") == ["y"] and os.listdir(base / "d") == ["x"]
        assert stat.S_IMODE((top / "d").stat().st_mode) == 0o2711
        assert unpacked.prune(store) == ()
        assert sorted(os.listdir(unpacked.path)) == sorted({".lock", ".unpacking", MOUNT_POINTS, top.name, base.name})
        if not ran.returncode:
            break
        killed += 1
    assert killed or (what, call) in (("prune", "syncfs"), ("prune", "mkdir,mkdirat"), ("unpack", "unlink,unlinkat"), ("unpack", "rmdir"))


# What goes


def test_what_no_image_needs_goes(store: Store, unpacked: Snapshots, tmp_path: Path) -> None:
    base, one, two = layer(file("base")), layer(file("one")), layer(file("two"))
    first, second = made(store, "first", base, one), made(store, "second", base, two)
    elsewhere = made(Store(tmp_path / "elsewhere"), "third", two)
    directories = [unpacked.directories(image) for image in (first, second, elsewhere)]
    assert unpacked.prune(store, elsewhere.store) == ()
    store.remove("second")
    assert unpacked.prune(store, elsewhere.store) == (directories[1][0].name,)
    assert unpacked.prune(store) == (directories[2][0].name,)
    assert unpacked.prune() == tuple(sorted(path.name for path in directories[0][:-1]))
    assert names(unpacked) == [MOUNT_POINTS]
    assert unpacked.directories(first) == directories[0]


def test_nobody_removes_what_somebody_stands_on(store: Store, unpacked: Snapshots) -> None:
    image = made(store, "image", layer(file("base")), layer(file("top")))
    directories = unpacked.directories(image)
    with unpacked.standing_on(directories[1:]):
        assert Snapshots(unpacked.path).prune() == (directories[0].name,)
    assert unpacked.prune() == (directories[1].name,)
    with pytest.raises(UsageError, match=f"{directories[1]}: this layer has been removed since"), unpacked.standing_on(directories[1:]):
        pass
    assert sorted(os.listdir(unpacked.path)) == [".lock", ".unpacking", MOUNT_POINTS]


def test_what_the_dead_have_held_is_free_and_what_they_have_left_goes(store: Store, unpacked: Snapshots) -> None:
    (top, _) = unpacked.directories(made(store, "image", layer(file("top"))))
    with subprocess.Popen(["sleep", "1000"]) as dead:
        stamp = Creator.of(dead.pid).stamp
        (unpacked.path / f".standing.{stamp}.00").write_text(f"{top.name}\n")
        (unpacked.path / f"sha256-half.{stamp}.00").mkdir()
        assert unpacked.prune() == ()
        dead.kill()
    assert unpacked.prune() == (top.name,)
    assert sorted(os.listdir(unpacked.path)) == [".lock", ".unpacking", MOUNT_POINTS]


def test_cleanup_finds_what_a_killed_process_has_left(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    with subprocess.Popen(["sleep", "1000"]) as dead:
        half = beside(local()).path / f"sha256-half.{Creator.of(dead.pid).stamp}.00"
        half.mkdir()
        (half / "file").touch()
        dead.kill()
    assert [leftover.name for leftover in leftovers() if str(half) in leftover.name] == [str(half)]
    for leftover in leftovers():
        if leftover.name == str(half):
            leftover.remove()
    assert not half.exists()


def test_a_removal_waits_for_no_unpacking(store: Store, unpacked: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    image = made(store, "image", layer(file("base")), layer(file("top")))
    pruned: list[tuple[str, ...]] = []
    unpack = snapshots.unpack_layer

    def unpack_and_prune(*args: object, **said: object) -> object:
        pruned.append(Snapshots(unpacked.path).prune())
        return unpack(*args, **said)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshots, "unpack_layer", unpack_and_prune)
    assert len(unpacked.directories(image)) == 3 and pruned == [(), ()]


def test_a_stranger_in_the_folder_is_no_layer_that_is_there(store: Store, unpacked: Snapshots) -> None:
    """A file in a layer's place is not taken for one."""
    image = made(store, None, layer(file("x")))
    (unpacked.path / image.layers[0].chain_id.replace(":", "-")).touch()
    with pytest.raises(UsageError, match="exists"):
        unpacked.directories(image)


def test_an_entry_is_told_by_name(store: Store, unpacked: Snapshots) -> None:
    with pytest.raises(UsageError, match=r"'\.\./x'"):
        unpacked.directories(made(store, None, layer(file("../x"))))
