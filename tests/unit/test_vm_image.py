"""The lab VM's image: when it is made anew, and that one half made is none. The making itself is tests/kernel/test_lab_vm.py's."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import at_once

from kernel_lab import bootstrap
from kernel_lab.kernel.errors import UsageError
from kernel_lab.machines import image
from kernel_lab.machines.image import INGREDIENTS, Image


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    for name in INGREDIENTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image.ROOT / name, folder / name)
    return folder


@pytest.fixture
def makings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where an image was made, in place of the making."""
    made: list[Path] = []

    def make(half: Image, project: Path) -> None:
        made.append(half.path)
        half.disk.write_text("a disk")

    monkeypatch.setattr(image, "_make", make)
    monkeypatch.setattr(image, "_check", lambda: None)
    return made


def listed(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "vm").iterdir() if path.name not in ("lock", "build.log"))


@pytest.fixture
def bootstraps(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Has the first step of the making fail, after it has begun to fill the directory."""

    def fails(error: Exception) -> None:
        def make(root: Path, recipe: object) -> None:
            (root / "half").write_text("made")
            raise error

        monkeypatch.setattr(bootstrap, "make", make)
        monkeypatch.setattr(bootstrap, "recipe", lambda suite: None)
        monkeypatch.setattr(image, "_check", lambda: None)

    return fails


@pytest.mark.parametrize("name", INGREDIENTS)
def test_whatever_made_it_asks_for_another_when_it_changes(checkout: Path, name: str) -> None:
    before = image.current(checkout)
    with open(checkout / name, "a") as file:
        file.write("\n")
    assert image.current(checkout) != before


def test_it_is_made_once(checkout: Path, makings: list[Path]) -> None:
    first, second = image.build(checkout), image.build(checkout)
    assert first == second == image.current(checkout)
    assert len(makings) == 1
    assert first.disk.read_text() == "a disk"


def test_two_at_once_make_one(checkout: Path, makings: list[Path]) -> None:
    assert at_once(lambda: image.build(checkout), 4) == []
    assert len(makings) == 1


def test_another_place_of_the_same_checkout_has_the_same(checkout: Path, tmp_path: Path) -> None:
    shutil.copytree(checkout, tmp_path / "elsewhere")
    assert image.current(tmp_path / "elsewhere") == image.current(checkout)


@pytest.mark.needs("ssh-keygen")
def test_what_fails_leaves_nothing(checkout: Path, data: Path, bootstraps: Callable[[Exception], None]) -> None:
    bootstraps(RuntimeError("mmdebstrap: failed:\nE: no such suite\n"))
    with pytest.raises(RuntimeError, match=r"^the image could not be made: E: no such suite \(all of it: .*/build.log\)$"):
        image.build(checkout)
    assert listed(data) == []


@pytest.mark.needs("ssh-keygen")
def test_a_full_disk_is_one_line(checkout: Path, data: Path, bootstraps: Callable[[Exception], None]) -> None:
    bootstraps(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(RuntimeError, match="the disk is full; making the image takes 6 GB: make room") as raised:
        image.build(checkout)
    assert "\n" not in str(raised.value)
    assert listed(data) == []


@pytest.mark.needs("root", "mke2fs")
def test_too_little_room_is_told_beforehand(checkout: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10 << 30, 9 << 30, 1 << 30))
    with pytest.raises(UsageError, match=r"1\.0 GB are free, and making the image takes 6 GB"):
        image.build(checkout)
    assert listed(data) == []


def test_an_older_image_goes_and_one_in_the_making_stays(checkout: Path, data: Path, makings: list[Path]) -> None:
    wanted = image.build(checkout)
    in_the_making = data / "vm/image-0123.p1t1"
    for path in (data / "vm/image-0123", in_the_making):
        path.mkdir()
    image.discard_others(wanted)
    assert listed(data) == sorted([wanted.path.name, in_the_making.name])


def test_the_script_that_makes_it_is_sound_shell() -> None:
    for name in ("install", "provision", "serve"):
        assert subprocess.run(["sh", "-n", image.ROOT / "vm" / name], check=False).returncode == 0
