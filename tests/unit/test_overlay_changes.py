"""What an upper directory changes of the layers below it, against a model of what is seen with it and without."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from trees import OVERLAY, Directory, File, Gone, Link, Node, Shown, layers, make, shown

from kernel_lab import UsageError
from kernel_lab.unionfs.changes import Change, changes
from kernel_lab.unionfs.whiteouts import AUFS, Notation

BASE = Directory(
    {
        "etc": Directory({"passwd": File("root"), "group": File("wheel")}),
        "bin": Directory({"sh": File("#!"), "tool": Link("sh")}),
        "tmp": Directory(),
    }
)


def listed(top: Directory, *below: Directory, folder: Path, notation: Notation = OVERLAY) -> list[str]:
    """The changes of the topmost layer, each as one line."""
    paths = [str(folder / str(number)) for number in range(1 + len(below))]
    for layer, path in zip((top, *below), paths, strict=True):
        make(layer, path, notation)
    return [f"{change} ({change.what})" for change in changes(paths[0], paths[1:], notation)]


def differ(mine: Node, before: Node) -> bool:
    if isinstance(mine, Directory) and isinstance(before, Directory):
        return mine.mode != before.mode
    return mine != before


def expected(before: Shown, after: Shown) -> list[str]:
    added, deleted = set(after) - set(before), set(before) - set(after)
    of_directories = {os.path.dirname(path) for path in added | deleted}
    changed = {
        path
        for path in set(before) & set(after)
        if differ(after[path], before[path])
        or (path in of_directories and isinstance(before[path], Directory) and isinstance(after[path], Directory))
    }
    # What is inside something that has gone, or is no directory any more, goes without saying.
    tops = {path for path in deleted if isinstance(after.get(os.path.dirname(path), Directory()), Directory) and os.path.dirname(path) not in deleted}
    return [
        f"{kind} {path}"
        for path, kind in sorted([*((path, "A") for path in added), *((path, "C") for path in changed), *((path, "D") for path in tops)])
    ]


@pytest.mark.slow
@given(top=layers, middle=layers, base=layers)
@settings(max_examples=200)
@pytest.mark.parametrize("notation", [OVERLAY, AUFS])
def test_changes_are_the_difference_of_what_is_seen(
    notation: Notation, top: Directory, middle: Directory, base: Directory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trees")
    stack = [str(folder / name) for name in ("top", "middle", "base")]
    for layer, path in zip((top, middle, base), stack, strict=True):
        make(layer, path, notation)
    assert [str(change) for change in changes(stack[0], stack[1:], notation)] == expected(shown(middle, base), shown(top, middle, base))


def test_nothing_written_is_no_change(tmp_path: Path) -> None:
    assert listed(Directory(), BASE, folder=tmp_path) == []


def test_what_docker_diff_would_list(tmp_path: Path) -> None:
    top = Directory({"etc": Directory({"passwd": Gone(), "shadow": File("x")}), "srv": Directory({"www": Directory()}), "tmp": Gone()})
    assert listed(top, BASE, folder=tmp_path) == [
        "C /etc (names)",
        "D /etc/passwd (file)",
        "A /etc/shadow (file)",
        "A /srv (directory)",
        "A /srv/www (directory)",
        "D /tmp (directory)",
    ]


def test_content_and_mode_and_target(tmp_path: Path) -> None:
    top = Directory(
        {"etc": Directory({"passwd": File("roots"), "group": File("wheel", 0o600)}), "bin": Directory({"tool": Link("bash")}, mode=0o700)}
    )
    assert listed(top, BASE, folder=tmp_path) == [
        "C /bin (mode 755 → 700)",
        "C /bin/tool (content)",
        "C /etc/group (mode 644 → 600)",
        "C /etc/passwd (content)",
    ]


def test_a_copy_of_the_same_is_no_change(tmp_path: Path) -> None:
    """A file that was opened for writing and not written has been copied up all the same."""
    assert listed(Directory({"etc": Directory({"passwd": File("root")})}), BASE, folder=tmp_path) == []


def test_the_same_size_and_time_do_not_hide_another_content(tmp_path: Path) -> None:
    assert listed(Directory({"etc": Directory({"passwd": File("toor")})}), BASE, folder=tmp_path) == ["C /etc/passwd (content)"]


def test_something_of_another_kind_in_its_place(tmp_path: Path) -> None:
    top = Directory({"etc": File("now"), "bin": Directory({"sh": Directory({"inner": File()}), "tool": File()})})
    assert listed(top, BASE, folder=tmp_path) == [
        "C /bin/sh (file → directory)",
        "A /bin/sh/inner (file)",
        "C /bin/tool (symbolic link → file)",
        "C /etc (directory → file)",
    ]


def test_an_opaque_directory_deletes_what_it_does_not_have(tmp_path: Path) -> None:
    top = Directory({"etc": Directory({"group": File("wheel"), "new": File()}, opaque=True)})
    assert listed(top, BASE, folder=tmp_path) == ["C /etc (names)", "A /etc/new (file)", "D /etc/passwd (file)"]


def test_what_is_in_a_directory_that_is_put_in_the_place_of_another(tmp_path: Path) -> None:
    base = Directory({"d": Directory({"inner": Directory({"old": File()}), "file": File()})})
    top = Directory({"d": Directory({"inner": Directory({"new": File()})}, opaque=True)})
    expect = ["C /d (names)", "D /d/file (file)", "C /d/inner (names)", "A /d/inner/new (file)", "D /d/inner/old (file)"]
    (tmp_path / "overlay").mkdir()
    assert listed(top, base, folder=tmp_path / "overlay") == expect
    # In AUFS's notation a layer may hide a directory and have another of the same name.
    (tmp_path / "aufs").mkdir()
    top = Directory({"d": Directory({"inner": Directory({"new": File()})}), ".wh.d": File()})
    assert listed(top, base, folder=tmp_path / "aufs", notation=AUFS) == expect


def test_what_a_layer_between_hides_was_not_there(tmp_path: Path) -> None:
    middle = Directory({"etc": Directory({"passwd": Gone()}), "tmp": Gone()})
    top = Directory({"etc": Directory({"passwd": File("new"), "group": Gone()}), "tmp": Directory()})
    assert listed(top, middle, BASE, folder=tmp_path) == ["C /etc (names)", "D /etc/group (file)", "A /etc/passwd (file)", "A /tmp (directory)"]


def test_a_whiteout_of_what_is_not_there_is_no_change(tmp_path: Path) -> None:
    assert listed(Directory({"ghost": Gone(), "etc": Directory({"ghost": Gone()})}), BASE, folder=tmp_path) == []


def test_owner_attributes_and_time(tmp_path: Path) -> None:
    for name, path in (("base", tmp_path / "base"), ("top", tmp_path / "top")):
        make(Directory({"file": File("text"), "late": File(), "link": Link("file")}), str(path), OVERLAY)
        os.setxattr(path / "file", "user.note", name.encode())
    os.utime(tmp_path / "top/late", (1, 1))
    os.setxattr(tmp_path / "top/late", "user.overlay.origin", b"overlay's own, and no change")
    found = [f"{change} ({change.what})" for change in changes(tmp_path / "top", [tmp_path / "base"], OVERLAY)]
    assert found == ["C /file (attributes)", "C /late (time)"]
    if os.geteuid() == 0:
        os.chown(tmp_path / "top/link", 12, 13, follow_symlinks=False)
        assert Change("/link", "C", "owner 0:0 → 12:13") in changes(tmp_path / "top", [tmp_path / "base"], OVERLAY)


def test_names_of_one_file(tmp_path: Path) -> None:
    """A file that is changed by one of its names is another from then on; one that gets a name more is itself no other."""
    make(Directory({"a": File("text"), "c": File("more")}), str(tmp_path / "base"), OVERLAY)
    os.link(tmp_path / "base/a", tmp_path / "base/b")
    make(Directory({"a": File("changed"), "c": File("more")}), str(tmp_path / "top"), OVERLAY)
    os.link(tmp_path / "top/c", tmp_path / "top/d")
    assert [str(change) for change in changes(tmp_path / "top", [tmp_path / "base"], OVERLAY)] == ["C /a", "A /d"]


def test_a_directory_deeper_than_a_stack(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    # Python's own ways to make and remove directories go down by calling themselves, and come no deeper.
    subprocess.run(["mkdir", "-p", tmp_path / "top" / "/".join("d" * 1200)], check=True)
    try:
        assert len(changes(tmp_path / "top", [tmp_path / "base"], OVERLAY)) == 1200
    finally:
        subprocess.run(["rm", "-r", tmp_path / "top"], check=True)


def test_a_table_of_changes(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    make(Directory({"file": File()}), str(tmp_path / "top"), OVERLAY)
    found = changes(tmp_path / "top", [tmp_path / "base"], OVERLAY)
    assert repr(found).splitlines()[-1].split() == ["A", "/file", "file"]
    assert "<td>/file" in found._repr_html_()
    assert found == (Change("/file", "A", "file"),)


def test_layers_that_are_none(tmp_path: Path) -> None:
    for upper, lower in ((tmp_path / "absent", tmp_path), (tmp_path, tmp_path / "absent")):
        with pytest.raises(UsageError, match=r"absent.*: cannot be found"):
            changes(upper, [lower])
