"""A comparison: every row kept as it comes, a stored one shown as such, and what is found inside true. No test asserts a time."""

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_lab import UsageError
from kernel_lab.benchmarks import columns, compare, compiled, hostcalls, rows
from kernel_lab.benchmarks.columns import Cell, Setting
from kernel_lab.benchmarks.compare import Size, measure
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.benchmarks.ground import ground
from kernel_lab.benchmarks.guests import Emulated
from kernel_lab.benchmarks.rows import Measured
from kernel_lab.benchmarks.runners import Kit, Plain

pytestmark = [pytest.mark.slow, pytest.mark.needs("userns", "busybox", "cc")]
SMALL = Size(1, 1, 2, 1)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Rows of this test's own, and none that the kit brings along."""
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(rows, "STORED", tmp_path / "stored")
    tmp_path.chmod(0o755)
    (tmp_path / "stored").mkdir()
    return tmp_path


def setting_of(one: Kit | Plain) -> Iterator[Setting]:
    with ground(False, layered=True, quota=False) as made:
        (made.root / "bin/work").write_bytes(compiled.work().read_bytes())
        (made.root / "bin/work").chmod(0o755)
        with one.ready(made) as boxes, Plain().ready(made) as plain:
            yield Setting(boxes, plain, 1, 2)


@pytest.fixture
def inside() -> Iterator[Setting]:
    yield from setting_of(Kit())


@pytest.mark.parametrize("column", [columns.first_instruction, columns.shell, columns.stop, columns.computing, columns.calling, columns.disk])
def test_times_are_taken_in_turns_with_a_plain_process(column: columns.Column, inside: Setting) -> None:
    cell = column(inside)
    assert len(cell.times) == len(cell.floor) == 1 and min(*cell.times, *cell.floor) > 0
    assert cell.short.endswith(" ×)")


def test_what_is_measured_of_a_container_is_that_it_has_the_hosts_kernel(inside: Setting) -> None:
    facts = columns.isolation(inside).facts
    assert facts["shared"] == facts["of"] == len(columns.GROWING)
    assert facts["calls"] > 100 and "panics_alone" not in facts


@pytest.mark.needs("unshare")
def test_the_calls_that_are_tried_leave_nothing_in_the_kernel() -> None:
    alone = ["unshare", "--ipc", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    script = f"{compiled.work()} probe && tail -q -n +2 /proc/sysvipc/*"
    done = subprocess.run([*alone, "sh", "-c", script], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["answered", "forbidden", "absent"]


def test_other_counters_are_another_kernels(inside: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_own_kernel", lambda setting, cell: cell)
    parsed = columns._parsed
    monkeypatch.setattr(columns, "_parsed", lambda text: {name: value / 2 for name, value in parsed(text).items()})
    monkeypatch.setattr(columns, "_counters", lambda: parsed("".join(Path("/proc", name).read_text() for name in ("stat", "vmstat", "uptime"))))
    assert columns.isolation(inside).facts["shared"] == 0


def test_a_program_that_says_nothing_is_no_time(inside: Setting) -> None:
    with pytest.raises(Absent, match="store: refused: nowhere/file"):
        columns._worked("store", "nowhere/file", "1")(inside.boxes)


@pytest.mark.needs("qemu-system-x86_64")
def test_a_guest_has_a_kernel_of_its_own_and_panics_alone() -> None:
    with ground(False) as made:
        (made.root / "bin/work").write_bytes(compiled.work().read_bytes())
        (made.root / "bin/work").chmod(0o755)
        try:
            with Emulated().ready(made) as boxes, Plain().ready(made) as plain:
                cell = columns.isolation(Setting(boxes, plain, 1))
        except Absent as absent:
            pytest.skip(f"no guest here: {absent}")
    assert cell.facts["shared"] == 0 and cell.facts["panics_alone"] == 1
    assert os.geteuid() or 5 < cell.facts["host_calls"] < 200


@pytest.mark.needs("qemu-system-x86_64")
def test_an_emulator_is_not_started_in_an_emulator(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "systemd-detect-virt").write_text("#!/bin/sh\necho qemu\n")
    (place / "systemd-detect-virt").chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=":")
    (row,) = measure(SMALL, ["QEMU, emulation"], ["stop"]).rows
    assert row.median_ms is None and row.note.startswith("this processor is emulated itself")


@pytest.mark.needs("root", "qemu-system-x86_64", "mke2fs", "ip")
def test_a_guest_has_a_disk_of_its_own_and_is_plugged_into_the_bridge() -> None:
    said = "pwd; cat /proc/mounts; ping -c 3 -q"
    with ground(True, disk=True) as made:
        assert made.network
        try:
            with Emulated().ready(made) as boxes, boxes.output("/bin/sh", "-c", f"{said} {made.network.gateway}") as lines:
                told = "".join(lines)
        except Absent as absent:
            pytest.skip(f"no guest here: {absent}")
        assert told.startswith("/mnt\n") and "/dev/vda /mnt ext4 rw" in told
        assert re.search(r" [1-3] packets received", told), told
        assert not list(Path("/sys/class/net", made.network.bridge, "brif").iterdir())


@pytest.mark.needs("root")
def test_calls_are_counted_of_the_threads_that_are_asked_for() -> None:
    try:
        with hostcalls.counting() as made:
            with subprocess.Popen(["sh", "-c", "read line; cd /proc; exit"], stdin=subprocess.PIPE) as process:
                threads = hostcalls.threads([process.pid])
            assert {80, 231} <= made(threads) if os.uname().machine == "x86_64" else made(threads)  # chdir, exit_group
    except UsageError as error:
        pytest.skip(f"no tracing here: {error}")


def test_rows_are_kept_and_an_interrupted_run_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(setting: Setting) -> Cell:
        raise KeyboardInterrupt

    cases = ["first instruction", "stop"]
    monkeypatch.setitem(compare.COLUMNS, "stop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(SMALL, ["kit"], cases)
    monkeypatch.setitem(compare.COLUMNS, "first instruction", interrupted)
    monkeypatch.setitem(compare.COLUMNS, "stop", lambda setting: Cell([2.0], [1.0]))
    found = measure(SMALL, ["kit"], cases)
    assert [row.median_ms is not None for row in found.rows] == [True, True]
    assert found.row("stop", "kit").times_floor == 2.0


def test_who_cannot_be_had_says_why_or_is_shown_as_stored_elsewhere(place: Path) -> None:
    (absent,) = measure(SMALL, ["Xen"], ["stop"]).rows
    if absent.median_ms is not None:
        pytest.skip("Xen is here")
    assert "Xen" in absent.note or "xl" in absent.note
    cells = {"stop": Cell([500.0], [0.5], short="500 ms (1,000 ×)")}
    stored = Measured("Xen", "a guest", "4.17", "2026-01-02", {"cpu": "some processor", "kernel": "6.1"}, cells)
    (place / "stored/elsewhere.json").write_text(json.dumps([dataclasses.asdict(stored)]))
    found = measure(SMALL, ["Xen"], ["stop"])
    assert found.rows[0].median_ms == 500.0 and found.rows[0].note == "stored: some processor, Linux 6.1, 2026-01-02"
    assert "Xen*" in repr(found) and "stored: some processor" in found._repr_html_()


def test_the_rows_of_another_machine_are_shown_as_a_whole(place: Path) -> None:
    cells = {"stop": Cell([5.0], [1.0], short="5 ms")}
    rows_there = [Measured(who, "", None, "2026-01-02", {"cpu": "some processor"}, cells) for who in ("kit", "Xen")]
    (place / "stored/there.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows_there]))
    found = compare.stored("there")
    assert [one.who for one in found.measured] == ["kit", "Xen"] and found.row("stop", "kit").times_floor == 5.0
    assert "cpu some processor" in repr(found)
    with pytest.raises(UsageError, match="'nowhere': no rows"):
        compare.stored("nowhere")


def test_the_numbers_are_beside_the_picture(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.bench_compare(SMALL, ["plain process", "kit"], ["first instruction", "memory"], plot=place / "all.png") == 0
    assert (place / "all.png").read_bytes().startswith(b"\x89PNG")
    said = json.loads((place / "all.json").read_text())
    assert [row["who"] for row in said["rows"]] == ["plain process", "kit"] * 2 and said["measured"][1]["cells"]["memory"]["facts"]["first_mb"]
    assert "kit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "who", "cases", "said"),
    [(Size(rounds=0), None, None, "at least one"), (SMALL, ["VMware"], None, "who 'VMware'"), (SMALL, None, ["beauty"], "case 'beauty'")],
)
def test_what_there_is_not_is_refused(size: Size, who: list[str] | None, cases: list[str] | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        measure(size, who, cases)
