"""`./lab vm compare`: the rows of two boots in one list. The machines themselves are booted where it is run."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kernel_lab.benchmarks.columns import Cell
from kernel_lab.benchmarks.rows import Measured
from kernel_lab.course.vm_compare import compare, write

ROW = Measured("", "as ever", "1", "2026-01-02", {"cpu": "EPYC"}, {"stop": Cell([5.0], [1.0])})


class Machine:
    """Answers the benchmark's command line with a row for each that it asks for."""

    def __init__(self, xen: bool, absent: str = "", code: int = 0) -> None:
        self.xen, self.absent, self.code = xen, absent, code

    def run(self, command: str, *, capture: bool) -> "subprocess.CompletedProcess[str]":
        words = shlex.split(command)
        assert capture and words[:6] == ["./lab", "klab", "bench", "compare", "--json", "--rounds"]
        who = [words[place + 1] for place, word in enumerate(words) if word == "--who"]
        assert ("Xen" in who) == self.xen != ("KVM" in who)
        rows = [asdict(replace(ROW, who=one, absent="no such thing" if one == self.absent else "")) for one in who]
        return subprocess.CompletedProcess(words, self.code, json.dumps({"measured": rows}))


def measured(**how: object) -> list[Measured]:
    booted = []

    @contextmanager
    def boot(xen: bool) -> Iterator[Machine]:
        booted.append(xen)
        yield Machine(xen, **how)  # type: ignore[arg-type]

    rows = compare(boot, ["--rounds", "3"], ", emulated")  # type: ignore[arg-type]
    assert booted == [False, True]
    return rows


def test_every_row_is_there_and_says_on_what(tmp_path: Path) -> None:
    rows = measured()
    assert [row.who for row in rows] == ["plain process", "kit", "LXC", "crun", "runc", "KVM", "plain process in Xen's dom0", "Xen", "Xen, PVH"]
    assert {row.machine["cpu"] for row in rows} == {"EPYC, emulated"}
    write(rows, tmp_path / "rows.json")
    assert [Measured.of(row) for row in json.loads((tmp_path / "rows.json").read_text())] == rows


def test_what_cannot_be_had_there_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="LXC: not to be had in the lab VM: no such thing"):
        measured(absent="LXC")
    with pytest.raises(RuntimeError, match=r"klab bench compare .*: exit 1 in the lab VM"):
        measured(code=1)
