"""Images by this kit, tar, umoci and skopeo: all make the same, each is measured or says why not, and nothing is left. No test asserts a time."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab import UsageError, state
from kernel_lab.benchmarks import images_speed
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.benchmarks.images_speed import COPY, FIRST, KIT, MAKE, NEXT, TRIALS, UNPACK, Ground, Turn, bench_images, measure, spend
from kernel_lab.images import base, owners, store
from kernel_lab.images.compression import Compression
from kernel_lab.images.image import Image
from kernel_lab.images.pack import pack

pytestmark = [pytest.mark.slow, pytest.mark.needs("userns", "busybox", "bash")]
UNPACKING = [(form, who) for form, case in UNPACK.items() for who in TRIALS[case,]]


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Image]:
    """A small one among the user's own; and nothing else is there in the end."""
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    yield base.make("busybox", store.local(), "small")
    assert not list(state.data_dir().glob("images-*"))


@pytest.fixture
def place(image: Image, tmp_path: Path) -> Iterator[Ground]:
    folder = tmp_path / "ground"
    folder.mkdir(mode=0o755)
    yield images_speed.ground(image, folder)
    state.discard(folder)


def turn(place: Ground, folder: Path, number: int = 0) -> Turn:
    folder.mkdir()
    return Turn(place, number, folder)


def content(tree: Path) -> str:
    return hashlib.sha256(b"".join(pack(tree, None, owner=owners.in_archive()))).hexdigest()


@pytest.mark.parametrize(("form", "who"), UNPACKING, ids=lambda value: getattr(value, "name", value))
def test_everybody_unpacks_the_same_files(place: Ground, tmp_path: Path, form: Compression, who: str) -> None:
    try:
        spend(TRIALS[UNPACK[form],][who](turn(place, tmp_path / "turn")))
    except Absent as absent:
        pytest.skip(str(absent))
    roots = [found.parent for found in (tmp_path / "turn").glob("**/bin")]
    assert content(min(roots, key=lambda path: len(path.parts))) == content(place.trees[0])


@pytest.mark.needs("tar", "sha256sum", "gzip", "zstd")
@pytest.mark.parametrize("form", UNPACK, ids=lambda form: form.name)
def test_the_digests_that_are_made_beside_tar_are_those_of_the_layer(place: Ground, tmp_path: Path, form: Compression) -> None:
    words = TRIALS[UNPACK[form],][images_speed.TAR_HASHED](turn(place, tmp_path / "turn"))
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    (layer,) = place.images[form].layers
    assert {f"sha256:{line.split()[0]}" for line in (done.stdout + done.stderr).splitlines()} == {layer.blob.digest, layer.diff_id}


def test_the_three_forms_are_compressed_so(place: Ground) -> None:
    heads = {form: (place.store / "blobs" / image.layers[0].blob.digest.replace(":", "/")).read_bytes()[:4] for form, image in place.images.items()}
    assert heads[Compression.GZIP].startswith(b"\x1f\x8b") and heads[Compression.ZSTD] == b"\x28\xb5\x2f\xfd"
    assert len({image.layers[0].diff_id for image in place.images.values()}) == 1


def test_every_contestant_has_times_or_says_why_not(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_images(2, json=True, image="small") == 0
    rows = {(row["case"], row["who"]): row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == [(case, who) for trial, ways in TRIALS.items() for who in ways for case in trial]
    for (case, who), row in rows.items():
        assert (row["median_ms"] is None) == (not row["facts"]), row
        assert row["note"], row
        if who == KIT:
            assert row["median_ms"] > 0 and 10 < row["facts"]["peak_mb"] < 64, row
        elif row["median_ms"] is None:
            assert row["note"].startswith(("not installed: ", "failed: ")), row
        if case == MAKE and row["facts"]:
            assert row["facts"]["layer_mb"] > 0
    assert rows[MAKE, KIT]["facts"]["different_layers"] == 1
    assert rows[FIRST, KIT]["median_ms"] > rows[NEXT, KIT]["median_ms"]  # which has nothing to unpack


def test_who_is_not_installed_is_a_row_that_says_so(image: Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for program in ("cp", "bash"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program) or "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    report = measure(1, ["unpack", COPY], "small")
    for row in report.rows:
        assert (row.median_ms is not None) == (row.who == KIT), row
        assert row.who == KIT or row.note.startswith("not installed: "), row


def test_who_fails_is_out_and_not_asked_again(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fails_the_second_time(turn: Turn) -> list[str]:
        asked.append(turn.number)
        return ["sh", "-c", f"echo 'sh: no: not this time' >&2; exit {len(asked) - 1}"]

    monkeypatch.setattr(images_speed, "TRIALS", {(COPY,): {"failing": fails_the_second_time, KIT: TRIALS[COPY,][KIT]}})
    report = measure(3, image="small")
    row = report.row(COPY, "failing")
    assert asked == [0, 1] and row.median_ms is None and row.note == "failed: not this time"
    assert len(report.times[COPY, KIT]) == 3 and (COPY, "failing") not in report.times


def test_what_is_asked_for_alone_is_measured_where_it_is_asked_for(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into, seen = tmp_path / "into", []
    into.mkdir()

    def looks(turn: Turn) -> list[str]:
        seen.append(turn.folder)
        return ["true"]

    monkeypatch.setattr(images_speed, "TRIALS", {(COPY,): {"looking": looks}, (FIRST, NEXT): TRIALS[FIRST, NEXT]})
    report = measure(1, [COPY], "small", into)
    assert [(row.case, row.who) for row in report.rows] == [(COPY, "looking")]
    assert seen[0].is_relative_to(into) and not list(into.iterdir())


def test_memory_is_that_of_the_command_and_not_of_its_maker(place: Ground) -> None:
    ballast = bytearray(100 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    assert spend(["sleep", "0.1"]).peak < 50 << 20
    needy = f"exec {sys.executable} -Ic 'import time; held = b\"x\" * (150 << 20); time.sleep(0.1)'"
    assert spend(["sh", "-c", f"({needy}) & wait"]).peak > 150 << 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_an_interrupt(image: Image, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "kernel_lab.cli", "bench", "images", "--rounds", "1000", "--image", "small"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as bench:
        assert soon(lambda: list(state.data_dir().glob("images-*/turn/*")))
        (folder,) = state.data_dir().glob("images-*")
        bench.send_signal(number)
        _, said = bench.communicate(timeout=60)
    assert bench.returncode == 130, said
    assert not folder.exists() and not mentioning(folder)


def test_a_command_that_is_interrupted_leaves_no_process(tmp_path: Path) -> None:
    """Not in the background of a shell either, where SIGINT is ignored."""
    waits = [shutil.which("tail"), "-f", str(tmp_path / "never")]
    (tmp_path / "never").touch()
    code = f"from kernel_lab.benchmarks.images_speed import spend; spend(['sh', '-c', '{' '.join(map(str, waits))} & wait'])"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as bench:
        assert soon(lambda: len(mentioning(tmp_path / "never")) == 3)
        bench.send_signal(signal.SIGINT)
        _, said = bench.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert soon(lambda: not mentioning(tmp_path / "never"))  # an orphan is reaped by somebody else


def mentioning(path: Path) -> list[str]:
    """The processes whose command line has this path in it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [str(file)] if os.fsencode(path) in file.read_bytes() else []
    return found


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"rounds": 0}, "at least one"),
        ({"cases": ["sideways"]}, "there is 'unpack gzip'"),
        ({"image": "large"}, "no image of this name"),
        ({"into": Path("/no/such")}, "no such directory"),
    ],
)
def test_what_cannot_be_measured_is_said_before(image: Image, arguments: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        measure(**arguments)  # type: ignore[arg-type]
