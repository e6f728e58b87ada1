"""Layers that do not go together are refused before anything is made; and the table that puts them together."""

import os
from pathlib import Path

import pytest

from kernel_lab import PID, Container, Mount, UsageError, User
from kernel_lab.kernel import mountinfo
from kernel_lab.plan import Plan
from kernel_lab.unionfs import overlay
from kernel_lab.unionfs.overlay import Overlay


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three directories beside one another."""
    paths = [tmp_path / "layers" / name for name in ("app", "libraries", "base")]
    for path in paths:
        path.mkdir(parents=True)
    return paths


def refused(root: Overlay, words: str, *parts: User) -> None:
    with pytest.raises(UsageError, match=words):
        Plan((*parts, Mount(root)))


def test_layers_beside_one_another_go_together(layers: list[Path], tmp_path: Path, data: Path) -> None:
    (tmp_path / "layers/app-2").mkdir()  # begins like another, and is not inside it
    plan = Plan((Mount(Overlay(*layers, tmp_path / "layers/app-2")),))
    assert plan.roots == tuple(map(str, (*layers, tmp_path / "layers/app-2")))
    assert not data.exists()


def test_none_is_refused_and_so_are_too_many(tmp_path: Path) -> None:
    refused(Overlay(), "0 lower layers; it takes 1 to 500")
    refused(Overlay(*[tmp_path / str(number) for number in range(501)]), "501 lower layers")


def test_a_missing_one(layers: list[Path]) -> None:
    refused(Overlay(layers[0], layers[0].parent / "absent"), "layer .*absent.*: cannot be found: No such file or directory")
    refused(Overlay("/proc/self/fd/a\0b"), "cannot be found: embedded null")
    with pytest.raises(UsageError, match="an empty path is no directory"):
        Overlay("")


def test_no_directory(layers: list[Path]) -> None:
    (layers[0] / "file").touch()
    refused(Overlay(layers[0] / "file"), "layer .*file'.*: not a directory")
    refused(Overlay(layers[1], upper=layers[0] / "file"), "upper .*file'.*: not a directory")


def test_a_directory_twice_by_any_spelling(layers: list[Path]) -> None:
    app, libraries, base = layers
    (app.parent / "link").symlink_to(app)
    for again in (app, f"{app}/", f"{base}/../app", app.parent / "link"):
        refused(Overlay(app, libraries, again), "layer .*: it is there already, as .*app'; a directory is a layer once")


@pytest.mark.parametrize("order", [1, -1])
def test_one_inside_another(order: int, layers: list[Path]) -> None:
    inner = layers[0] / "deep/inner"
    inner.mkdir(parents=True)
    refused(Overlay(*[layers[0], layers[1], inner][::order]), "layer .*inner'.*: it is inside the layer .*app'")


@pytest.mark.parametrize("upper", ["app", "app/inner", "."])
def test_an_upper_directory_and_a_layer_in_one_another(upper: str, layers: list[Path]) -> None:
    (layers[0] / "inner").mkdir()
    refused(Overlay(*layers, upper=layers[0].parent / upper), "upper .* and layer .*app'.*: one is inside the other")


def test_the_kits_own_directories_inside_a_layer(tmp_path: Path, layers: list[Path]) -> None:
    refused(Overlay(tmp_path), "the kit's directory .*data/layers' and layer .*: one is inside the other")


def test_a_work_directory_inside_a_layer(layers: list[Path], tmp_path: Path) -> None:
    work = tmp_path / ".changes.work"
    (tmp_path / "changes").mkdir()
    work.mkdir()
    refused(Overlay(work, upper=tmp_path / "changes"), "work directory .*: one is inside the other")


def test_somebody_elses_files_in_the_work_directory(layers: list[Path], tmp_path: Path) -> None:
    (tmp_path / "changes").mkdir()
    (tmp_path / ".changes.work").mkdir()
    (tmp_path / ".changes.work/thesis").touch()
    refused(Overlay(*layers, upper=tmp_path / "changes"), "overlay would work in .*, where somebody keeps 'thesis'")
    (tmp_path / ".changes.work/thesis").unlink()
    (tmp_path / ".changes.work/work").mkdir()
    Plan((Mount(Overlay(*layers, upper=tmp_path / "changes")),))


def test_an_upper_directory_is_known_by_its_real_path(layers: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(layers[0])
    assert Overlay(layers[1], upper=tmp_path / "link").upper == str(layers[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="needs user: root may write everywhere")
def test_a_place_where_nothing_can_be_made_beside_it(layers: list[Path]) -> None:
    upper = layers[0] / "upper"
    upper.mkdir()
    layers[0].chmod(0o555)
    refused(Overlay(layers[1], upper=upper), "you may not write in")
    layers[0].chmod(0o755)


def test_a_mount_point_as_upper_directory(layers: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    table = [mountinfo.parse("1 0 0:1 / / rw - ext4 x rw"), mountinfo.parse(f"2 1 0:2 / {layers[2]} rw - tmpfs x rw")]
    monkeypatch.setattr(mountinfo, "mounts", lambda: tuple(table))
    refused(Overlay(*layers[:2], upper=layers[2]), "a mount point; overlay needs a directory beside it on the same mount")
    (layers[2] / "below").mkdir()
    Plan((Mount(Overlay(*layers[:2], upper=layers[2] / "below")),))


@pytest.mark.parametrize("kind", ["overlay", "fuse.sshfs", "nfs4", "vfat"])
def test_a_file_system_that_overlay_cannot_write_on(kind: str, layers: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    table = [mountinfo.parse(f"1 0 0:1 / / rw - {kind} x rw")]
    monkeypatch.setattr(mountinfo, "mounts", lambda: tuple(table))
    refused(Overlay(*layers[:2]), f"the kit's directory .*: on a file system of type {kind.partition('.')[0]}")
    refused(Overlay(*layers[:2], upper=layers[2]), "upper .*: on a file system of type")


def test_who_is_root_inside(layers: list[Path]) -> None:
    refused(Overlay(*layers), "no id is root in a user namespace with the map", User([(1000, os.geteuid(), 1)], [(0, os.getegid(), 1)]))


@pytest.mark.needs("user", "newuidmap")
def test_root_inside_is_the_caller(layers: list[Path]) -> None:
    refused(Overlay(*layers), "root inside must be you", User([(0, 100_000, 1000)]))


def test_a_root_says_what_it_is_made_of(layers: list[Path]) -> None:
    app, _, base = map(str, layers)
    assert repr(Mount(Overlay(app, upper=base))).startswith(f"Mount(root=Overlay({app!r}, upper={base!r})")
    assert Overlay(app, upper=base).layers == (base, app)


def lowers(root: Overlay) -> list[object]:
    return [row.args[3] for row in Container(Mount(root)).setup if row.call == "fsconfig" and row.args[2] == "lowerdir+"]


def test_layers_are_added_from_the_top(layers: list[Path]) -> None:
    assert lowers(Overlay(*layers)) == list(map(str, layers))


def test_a_path_that_is_too_long_is_the_working_directory(tmp_path: Path, layers: list[Path]) -> None:
    long = tmp_path / ("x" * 200) / ("y" * 200)
    long.mkdir(parents=True)
    assert lowers(Overlay(layers[0], long)) == [str(layers[0]), "."]
    assert ("chdir", (str(long),)) in [(row.call, row.args) for row in Container(Mount(Overlay(layers[0], long))).setup]


@pytest.mark.parametrize(
    ("release", "one_by_one"), [("6.18.1-fc", True), ("6.8", True), ("6.7.12", False), ("6.1.0-18-amd64", False), ("7.0-rc1", True)]
)
def test_which_kernel_takes_layers_one_by_one(release: str, one_by_one: bool, layers: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay.platform, "release", lambda: release)
    assert ("fsopen" in [row.call for row in Container(Mount(Overlay(*layers))).setup]) is one_by_one


def test_an_older_kernel_takes_a_page_of_options_and_links_in_place_of_long_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [tmp_path / ("x" * 100 + str(number)) for number in range(40)]
    for path in many:
        path.mkdir()
    monkeypatch.setattr(overlay.platform, "release", lambda: "6.1.0")
    rows = [row for paths in (many[:20], many) for row in Container(Mount(Overlay(*paths))).setup]
    some, all_of_them = (str(row.args[4]) for row in rows if row.call == "mount" and row.args[2] == "overlay")
    assert f"lowerdir={many[0]}:{many[1]}:" in some
    assert "lowerdir=0:1:2:" in all_of_them and ":38:39,upperdir" in all_of_them


def test_an_older_kernel_gets_what_it_takes_for_a_separator_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay.platform, "release", lambda: "6.1.0")
    for name in ("a:b", "c,d", "e\\f"):
        (tmp_path / name).mkdir()
    [options] = [
        row.args[4] for row in Container(Mount(Overlay(*[tmp_path / name for name in ("a:b", "c,d", "e\\f")]))).setup if row.args[0] == "overlay"
    ]
    lower = rf"lowerdir={tmp_path}/a\:b:{tmp_path}/c\,d:{tmp_path}/e\\f,upperdir=upper,workdir=work,redirect_dir=nofollow"
    assert str(options).startswith(lower)


def test_options(layers: list[Path], tmp_path: Path) -> None:
    def options(*parts: User, upper: Path | None = None) -> set[object]:
        rows = Container(*parts, PID(), Mount(Overlay(layers[0], upper=upper))).setup
        return {row.args[2] for row in rows if row.call == "fsconfig"} - {"source", "lowerdir+", "upperdir", "workdir", None}

    assert options(User()) == {"redirect_dir", "index", "userxattr", "volatile"}
    assert options(User(), upper=layers[1]) == {"redirect_dir", "index", "userxattr"}
    if os.geteuid() == 0:
        assert options() == {"redirect_dir", "index", "volatile"}
