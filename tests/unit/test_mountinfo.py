import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel_lab.kernel import mountinfo, procfs
from kernel_lab.kernel.mountinfo import Mount, parse

# From man proc_pid_mountinfo(5).
EXAMPLE = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"


def written(mount: Mount) -> str:
    """The line that the kernel writes (show_mountinfo, fs/proc_namespace.c)."""

    def mangled(text: str, more: str = "") -> str:
        return re.sub(rf"[ \t\n\\{more}]", lambda match: f"\\{ord(match[0]):03o}", text)

    tags = [f"{tag}:{group}" for tag in ("shared", "master", "propagate_from") if (group := getattr(mount, tag)) is not None]
    tags += ["unbindable"] if mount.unbindable else []
    fields = [str(mount.id), str(mount.parent), "{}:{}".format(*mount.device), mangled(mount.root), mangled(mount.point), ",".join(mount.options)]
    return " ".join([*fields, *tags, "-", mangled(mount.kind, "#"), mangled(mount.source, "#"), mangled(mount.super_options)])


# No deadline, and the same examples every time: a busy machine is slow, and a test that fails now and then tells nobody anything.
patiently = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])

numbers = st.integers(0, 2**31 - 1)
groups = st.none() | numbers
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
paths = texts.map(lambda text: f"/{text}")
words = st.text("abcdefghijklmnopqrstuvwxyz_=", min_size=1)
every_mount = st.builds(
    Mount,
    id=numbers,
    parent=numbers,
    device=st.tuples(numbers, numbers),
    root=paths,
    point=paths,
    options=st.lists(words, min_size=1).map(tuple),
    kind=st.from_regex(r"[a-z0-9]+(\.[a-z]+)?", fullmatch=True),
    source=texts,
    super_options=texts.map(lambda text: f"rw,{text}"),
    shared=groups,
    master=groups,
    propagate_from=groups,
    unbindable=st.booleans(),
)


@patiently
@given(every_mount)
def test_what_the_kernel_writes_is_read_back(mount: Mount) -> None:
    assert parse(written(mount)) == mount


@patiently
@given(st.lists(every_mount, max_size=4))
def test_a_whole_table_is_read_back(table: list[Mount]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mountinfo, "read", lambda pid, what: "".join(f"{written(mount)}\n" for mount in table).encode())
        assert mountinfo.mounts() == tuple(table)


def test_the_example_of_the_manual() -> None:
    assert parse(EXAMPLE) == Mount(36, 35, (98, 0), "/mnt1", "/mnt2", ("rw", "noatime"), "ext3", "/dev/root", "rw,errors=continue", master=1)


def test_escapes() -> None:
    mount = parse(r"1 0 0:1 /a\134040b /x\040y\011\012 rw - fuse.ssh\043fs a\134b rw")
    assert (mount.root, mount.point, mount.kind, mount.source) == (r"/a\040b", "/x y\t\n", "fuse.ssh#fs", r"a\b")


def test_an_empty_source_and_a_dash_for_a_source() -> None:
    assert parse("1 0 0:1 / /a rw -  tmpfs rw".replace("-  tmpfs", "- tmpfs ")).source == ""
    assert parse("1 0 0:1 / /a rw shared:2 - tmpfs - rw").source == "-"


def test_tags_that_nobody_knows_yet_are_passed_over() -> None:
    mount = parse("1 0 0:1 / /a rw future:3 shared:2 later - tmpfs t rw")
    assert (mount.shared, mount.master, mount.unbindable) == (2, None, False)


@pytest.mark.parametrize(
    ("tags", "propagation"),
    [("", "private"), ("shared:1 ", "shared"), ("master:2 ", "slave"), ("shared:1 master:2 ", "slave, shared"), ("unbindable ", "unbindable")],
)
def test_propagation_in_the_manuals_words(tags: str, propagation: str) -> None:
    assert parse(f"1 0 0:1 / /a rw {tags}- tmpfs t rw").propagation == propagation


@pytest.mark.parametrize(
    ("own", "whole", "read_only"),
    [("rw", "rw", False), ("ro,nosuid", "rw", True), ("rw", "ro", True), ("rw,nodiratime", "rw,errors=ro", False)],
)
def test_read_only_by_the_mount_or_by_the_file_system(own: str, whole: str, read_only: bool) -> None:
    assert parse(f"1 0 0:1 / /a {own} - tmpfs t {whole}").read_only is read_only


def table(*lines: str) -> list[Mount]:
    """Mounts from "id parent point"."""
    return [parse("{} {} 0:1 / {} rw - tmpfs t rw".format(*line.split())) for line in lines]


def found(path: str, *lines: str) -> int | None:
    mount = mountinfo.at(path, table(*lines))
    return mount.id if mount else None


def test_the_mount_that_a_path_lies_on() -> None:
    lines = ("1 0 /", "2 1 /a", "3 2 /a/b")
    assert [found(path, *lines) for path in ("/", "/x", "/a", "/a/x", "/a/b", "/a/b/c/d", "/ab")] == [1, 1, 2, 2, 3, 3, 1]


def test_the_mount_on_top_counts_in_whatever_order_they_are_listed() -> None:
    lines = ("1 0 /", "2 1 /a", "3 2 /a", "4 3 /a")
    assert found("/a/x", *lines) == found("/a/x", *reversed(lines)) == 4


def test_a_mount_below_a_covered_directory_is_not_found() -> None:
    assert found("/a/b", "1 0 /", "2 1 /a", "3 2 /a/b", "4 2 /a") == 4


def test_a_root_that_was_mounted_over() -> None:
    assert found("/a", "1 0 /", "2 1 /", "3 1 /a") == 2


def test_no_mount_of_a_root_directory() -> None:
    assert found("/a", "5 1 /a") is None


def test_the_kernel_agrees_about_the_mount_of_a_path(tmp_path: Path) -> None:
    for path in map(os.path.realpath, ("/", "/proc", "/proc/sys/kernel", "/sys", "/dev", "/dev/null", "/usr/bin/env", tmp_path)):
        opened = os.open(path, os.O_PATH)
        number = int(re.search(r"mnt_id:\s*(\d+)", Path(f"/proc/self/fdinfo/{opened}").read_text())[1])  # type: ignore[index]
        os.close(opened)
        mount = mountinfo.at(path)
        assert mount is not None
        assert mount.id == number, path


def test_the_mounts_of_a_process_that_is_not_there() -> None:
    with pytest.raises(ProcessLookupError, match="has ended"):
        mountinfo.mounts(2**22 + 1)


def test_every_line_of_this_process_is_a_mount() -> None:
    lines = procfs.read(os.getpid(), "mountinfo").decode().rstrip("\n").split("\n")
    assert [mount.id for mount in mountinfo.mounts()] == [int(line.split()[0]) for line in lines]
