"""What a benchmark reports, and what it refuses; nothing is started here."""

import json
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.benchmarks import oci
from kernel_lab.benchmarks.burden import burden
from kernel_lab.benchmarks.contestant import Ground
from kernel_lab.benchmarks.machine import machine
from kernel_lab.benchmarks.report import Report, Row
from kernel_lab.benchmarks.start import CASES, CONTESTANTS, bench_start, measure

TIMES = {("a", "floor"): [1.0, 2.0, 3.0], ("a", "kit"): [3.0, 5.0, 4.0]}
ROWS = (
    Row.of("a", "floor", TIMES["a", "floor"], TIMES["a", "floor"]),
    Row.of("a", "kit", TIMES["a", "kit"], TIMES["a", "floor"]),
    Row("a", "<absent>", note="not installed"),
)
REPORT = Report(ROWS, 3, machine({"tool": "1.2"}), TIMES, {"kit": "all of it"})


def resident_megabytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 >> 20


def test_a_row_is_the_median_the_95th_percentile_and_the_ratio_of_the_medians() -> None:
    row = Row.of("case", "who", [float(number) for number in range(101)], [25.0, 20.0, 30.0])
    assert (row.median_ms, row.p95_ms, row.times_floor) == (50.0, 95.0, 2.0)


def test_one_round_and_no_floor_are_enough_for_a_row() -> None:
    row = Row.of("case", "who", [4.0], ())
    assert (row.median_ms, row.p95_ms, row.times_floor) == (4.0, 4.0, None)


@given(st.lists(st.floats(0.001, 1e6), min_size=1))
def test_the_percentile_lies_between_the_median_and_the_largest(times: list[float]) -> None:
    row = Row.of("case", "who", times, times)
    assert row.median_ms is not None and row.p95_ms is not None
    assert row.median_ms <= row.p95_ms <= round(max(times), 3)
    assert row.times_floor == 1.0


def test_json_has_the_rows_and_the_machine() -> None:
    said = json.loads(REPORT.json())
    assert [list(row) for row in said["rows"]] == [["case", "who", "median_ms", "p95_ms", "times_floor", "note", "facts"]] * 3
    assert said["rows"][1] == {"case": "a", "who": "kit", "median_ms": 4.0, "p95_ms": 4.9, "times_floor": 2.0, "note": "", "facts": {}}
    assert said["rows"][2]["median_ms"] is None and said["rows"][2]["note"] == "not installed"
    assert said["rounds"] == 3
    assert {"cpu", "cores", "memory_mb", "kernel", "python", "peers"} <= set(said["machine"])
    assert said["machine"]["peers"] == {"tool": "1.2"}


def test_the_machine_is_this_one() -> None:
    found = machine({})
    assert isinstance(found["cores"], int) and found["cores"] >= 1
    assert isinstance(found["memory_mb"], int) and found["memory_mb"] > 100
    assert found["kernel"] == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert found["cpu"]


def test_the_table_shows_every_row_the_machine_and_what_was_counted() -> None:
    lines = repr(REPORT).splitlines()
    assert lines[3].split() == ["a", "kit", "4.00", "4.90", "2.00"]
    assert lines[4].split() == ["a", "<absent>", "–", "–", "–", "not", "installed"]
    assert "kit: all of it" in lines
    assert "3 rounds on: " in lines[-2] and lines[-1] == "beside: tool 1.2"


class Cells(HTMLParser):
    """The texts of a table's cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag in ("td", "p")

    def handle_data(self, data: str) -> None:
        if self.inside and data.strip():
            self.found.append(data.strip())


def test_a_notebook_gets_the_same_as_a_table() -> None:
    cells = Cells(REPORT._repr_html_()).found
    assert cells[5:10] == ["a", "kit", "4.00", "4.90", "2.00"]
    assert "<absent>" in cells and "kit: all of it" in cells


@pytest.mark.parametrize("name", ["times.png", "times.svg", "times.pdf"])
def test_the_picture_is_written(tmp_path: Path, name: str) -> None:
    REPORT.plot(tmp_path / name)
    assert (tmp_path / name).read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_the_picture_has_every_time_under_its_own_name() -> None:
    (panel,) = REPORT.plot().axes
    drawn = [([float(x) for x in line.get_xdata()], set(line.get_ydata())) for line in panel.lines]
    assert ([3.0, 5.0, 4.0], {"kit"}) in drawn and ([1.0, 2.0, 3.0], {"floor"}) in drawn
    assert [text.get_text() for text in panel.texts] == ["1.0 ×", "2.0 ×"]


def test_a_report_without_any_time_has_an_empty_picture(tmp_path: Path) -> None:
    Report((Row("a", "b", note="not installed"),), 1, {}).plot(tmp_path / "empty.png")
    assert (tmp_path / "empty.png").exists()


@pytest.mark.parametrize("rounds", [0, -3])
def test_no_round_is_refused(rounds: int) -> None:
    with pytest.raises(UsageError, match=f"rounds={rounds}: at least one"):
        measure(rounds)


def test_an_unknown_case_is_refused_by_name_and_told_the_others() -> None:
    with pytest.raises(UsageError, match="case 'seven': there is 'six namespaces' and 'veth into a bridge'"):
        measure(1, ["six", "seven"])


@pytest.mark.parametrize(("name", "rule"), [("times.exe", "a picture ends in .pdf, .png, .svg"), ("missing/times.png", "there is no directory")])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rule: str
) -> None:
    monkeypatch.setattr("kernel_lab.benchmarks.start.measure", lambda *_: pytest.fail("it measured first"))
    with pytest.raises(UsageError, match=rule):
        bench_start(plot=tmp_path / name)


def test_the_command_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("kernel_lab.benchmarks.start.measure", lambda *_: REPORT)
    assert bench_start() == 0
    assert capsys.readouterr().out == f"{REPORT!r}\n"
    assert bench_start(json=True, plot=tmp_path / "times.png") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(REPORT.json())
    assert (tmp_path / "times.png").exists()


def test_the_burden_is_memory_in_use_and_threads_and_both_end() -> None:
    before, threads = resident_megabytes(), threading.active_count()
    with burden(megabytes=64, threads=12):
        assert resident_megabytes() - before >= 60
        assert threading.active_count() == max(12, threads)
    assert threading.active_count() == threads
    assert resident_megabytes() - before < 60


def test_a_bundle_asks_for_six_namespaces_and_nothing_more(tmp_path: Path) -> None:
    config = json.loads((oci.bundle(Ground(tmp_path, tmp_path, ("/bin/true",)), tmp_path / "new") / "config.json").read_text())
    kinds = {one["type"]: one.get("path") for one in config["linux"]["namespaces"]}
    assert kinds == dict.fromkeys(("user", "uts", "mount", "ipc", "pid", "network"))
    assert [mount["destination"] for mount in config["mounts"]] == ["/proc"]
    assert "resources" not in config["linux"]


def test_a_bundle_can_join_a_network_instead(tmp_path: Path) -> None:
    config = json.loads((oci.bundle(Ground(tmp_path, tmp_path), tmp_path / "new", "/some/file") / "config.json").read_text())
    assert {"type": "network", "path": "/some/file"} in config["linux"]["namespaces"]


def test_everybody_has_a_name_of_its_own_and_says_what_a_start_includes() -> None:
    assert len({one.who for one in CONTESTANTS}) == len(CONTESTANTS)
    assert all(one.includes for one in CONTESTANTS)
    assert list(CASES) == ["six namespaces", "veth into a bridge", "overlay and limits"]
