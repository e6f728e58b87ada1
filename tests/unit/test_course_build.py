"""From a lab's source to its two notebooks: executed, identical in every build, and compared without executing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.course_lab import EXERCISES, PARTS, code, prose, write

from kernel_lab.course import build, exercises, lint, run
from kernel_lab.course.notebook import LABS, Lab, choose, find, make, read, tags
from kernel_lab.kernel.errors import UsageError


@pytest.fixture(autouse=True)
def exercises_of_99(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercises, "EXERCISES", {})
    exec(EXERCISES, {})


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab, built once for this file."""
    labs = tmp_path_factory.mktemp("once") / "labs"
    exec(EXERCISES, {})
    assert build.build(write(labs)) == []
    return labs


@pytest.fixture
def built(once: Path, tmp_path: Path) -> Lab:
    shutil.copytree(once, tmp_path / "labs")
    (lab,) = find(labs=tmp_path / "labs")
    return lab


def change(path: Path, edit: Callable[[dict], object]) -> None:
    notebook = json.loads(path.read_text())
    edit(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def main(lab: Lab, *more: str) -> int:
    return build.main(["--folder", str(lab.source.parents[1]), *more])


PAIR = """class A:
    def rows(self):
        # solution
        yield 1
        yield 2
        # blank
        yield ...
        # end

b = A()"""
HEAD = "class A:\n    def rows(self):\n"


@pytest.mark.parametrize(
    ("source", "solved", "blank"),
    [
        (PAIR, HEAD + "        yield 1\n        yield 2\n\nb = A()", HEAD + "        yield ...\n\nb = A()"),
        ("if x:\n    # solution\n    y()\n    # end\nz", "if x:\n    y()\nz", "if x:\n    ...\nz"),
        ("# solution\na = 1\n# blank\na = ...", "a = 1", "a = ..."),
        ("# solution\na\n# end\n# solution\nb\n# blank\nc\n# end\nd", "a\nb\nd", "...\nc\nd"),
        ("# a solution\nx", "# a solution\nx", "# a solution\nx"),
    ],
)
def test_each_notebook_gets_its_side(source: str, solved: str, blank: str) -> None:
    assert choose(source, solved=True) == solved
    assert choose(source, solved=False) == blank


@pytest.mark.parametrize("source", ["# blank\nx\n# end", "# end", "# solution\na\n# blank\nb\n# blank\nc\n# end"])
def test_a_marker_without_its_pair_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="without its pair"):
        choose(source, solved=True)


def test_the_learner_gets_blanks_and_the_solutions_pass(built: Lab) -> None:
    learner, solved = read(built.learner), read(built.solved)
    said = ["".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])) for notebook in (learner, solved)]
    assert said[0].count("○ 99.") == said[1].count("✓ 99.") == 2
    assert [cell.id for cell in learner.cells] == [cell.id for cell in solved.cells]
    assert not any("Trap" in cell.source for cell in [*learner.cells, *solved.cells])
    assert "answer = ..." in built.learner.read_text() and "answer = ..." not in built.solved.read_text()


def test_what_jupyter_and_nbval_must_know_is_in_the_tags(built: Lab) -> None:
    found = {tuple(tags(cell)) for cell in read(built.learner).cells}
    assert found == {(), ("exercise", "raises-exception"), ("measured", "nbval-ignore-output"), ("fails",)}


@pytest.mark.slow
def test_two_builds_are_identical_and_measured_again_only_when_asked(built: Lab) -> None:
    before = [path.read_bytes() for path in (built.learner, built.solved)]
    assert main(built) == 0
    assert [path.read_bytes() for path in (built.learner, built.solved)] == before
    assert main(built, "--fresh") == 0
    assert built.learner.read_bytes() != before[0]
    assert main(built, "--check") == 0


def test_a_fresh_check_finds_nothing_and_executes_nothing(built: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("kernel_lab.course.execute.execute", lambda *_, **__: pytest.fail("executed"))
    assert main(built, "--check") == 0
    assert capsys.readouterr().out == "99_ten: ok\n"


DIFFERENT = {
    "a cell's source": lambda notebook: notebook["cells"][0]["source"].append("\nmore"),
    "a cell's tags": lambda notebook: notebook["cells"][2]["metadata"].update(tags=["fails"]),
    "a cell's id": lambda notebook: notebook["cells"][3].update(id="other"),
    "the number of cells": lambda notebook: notebook["cells"].pop(0),
    "the metadata": lambda notebook: notebook["metadata"].update(more=1),
    "no execution count": lambda notebook: notebook["cells"][2].update(execution_count=None),
    "an error": lambda notebook: notebook["cells"][2]["outputs"].append({"output_type": "error", "ename": "E", "evalue": "e", "traceback": []}),
    "a warning": lambda notebook: notebook["cells"][2]["outputs"].append({"output_type": "stream", "name": "stderr", "text": ["oh"]}),
    "a plot": lambda notebook: notebook["cells"][2]["outputs"].append({"output_type": "display_data", "data": {"image/png": "AA=="}, "metadata": {}}),
}


@pytest.mark.parametrize("what", DIFFERENT)
@pytest.mark.parametrize("which", ["learner", "solved"])
def test_check_sees_a_difference(which: str, what: str, built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    path = getattr(built, which)
    change(path, DIFFERENT[what])
    assert main(built, "--check") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith(f"labs/{path.relative_to(built.source.parents[1])}: "), errors


def test_check_sees_another_way_of_writing(built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    built.learner.write_text(json.dumps(json.loads(built.learner.read_text())))
    assert main(built, "--check") == 1
    assert "not written the way" in capsys.readouterr().err


def test_check_sees_a_missing_notebook_and_one_without_a_source(built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    built.solved.rename(built.solved.with_name("98_nine.ipynb"))
    assert main(built, "--check") == 1
    assert capsys.readouterr().err.splitlines() == [
        "labs/solutions/98_nine.ipynb: no source in labs/src makes it",
        "labs/solutions/99_ten.ipynb: missing; python -m kernel_lab.course.build 99 makes it",
    ]


def test_check_sees_a_changed_source(built: Lab) -> None:
    write(built.source.parents[1], real=prose("## Against the real thing") + code("print(11)"))
    assert main(built, "--check") == 1


def test_an_unknown_lab_is_named(built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(built, "42") == 2
    assert "no lab 42" in capsys.readouterr().err


BROKEN = {
    "few cells": ({"more": ""}, "21 cells in the learner's notebook"),
    "many cells": ({"more": "".join(prose(f"Step {count}.") for count in range(30))}, "51 cells in the learner's notebook"),
    "minutes": ({"head": PARTS["head"].replace("20 minutes", "five hours")}, "takes None minutes"),
    "too long": ({"head": PARTS["head"].replace("20 minutes", "90 minutes")}, "takes 90 minutes"),
    "a part is missing": ({"break": code("with fails(ZeroDivisionError):\n    10 / 0", "fails") + prose("x")}, "no heading `## Break it first`"),
    "another order": ({"see": PARTS["predict"], "predict": PARTS["see"]}, "no heading `## See it`"),
    "instructor": ({"instructor": prose("**Ask** and **Demo**. It takes Minutes.", "instructor")}, "instructor cells lack Trap"),
    "first cell": ({"first": code("import os")}, 'its first code cell does not call lab("99")'),
    "last cell": ({"clean": prose("## Clean up and prove it") + code("print()")}, "its last code cell does not call audit()"),
    "an unknown tag": ({"real": prose("## Against the real thing") + code("1", "mesured")}, "unknown tag mesured"),
    "fails without fails": ({"real": prose("## Against the real thing") + code("1", "fails")}, "has no `with fails():`"),
    "a long cell": ({"real": prose("## Against the real thing") + code("1\n" * 13)}, "has 13 lines"),
    "a semicolon": ({"real": prose("## Against the real thing") + code("1;")}, "ends in a semicolon"),
    "one exercise": ({"build": prose("## Build it") + code('check("99.1", ...)', "exercise") + prose("x")}, "1 exercises; at least 2"),
    "never asked": ({"build": prose("## Build it") + code('check("99.1", ...)', "exercise") + prose("x")}, "exercise 99.2 is never asked"),
    "no check": ({"real": prose("## Against the real thing") + code('check("99.3", ...)', "exercise")}, "exercise 99.3 has no check"),
    "an untagged exercise": ({"build": PARTS["build"].replace(":tags: [exercise]\n\n", "")}, "is not tagged `exercise`"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_lint_sees_a_broken_rule(what: str, tmp_path: Path) -> None:
    parts, problem = BROKEN[what]
    found = lint.of_source(write(tmp_path / "labs", **parts))
    assert any(problem in line and line.startswith("labs/src/99_ten.md: ") for line in found), found


def test_lint_finds_nothing_in_a_good_lab(tmp_path: Path) -> None:
    assert lint.of_source(write(tmp_path / "labs")) == []


@pytest.mark.slow
def test_a_lab_that_fails_is_not_written(built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    write(built.source.parents[1], real=prose("## Against the real thing") + code("10 / 0"))
    before = built.learner.read_bytes()
    assert main(built) == 1
    assert built.learner.read_bytes() == before
    assert "cell 19: ZeroDivisionError: division by zero" in capsys.readouterr().err


@pytest.mark.slow
def test_a_solution_that_is_wrong_is_not_written(built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    write(built.source.parents[1], build=PARTS["build"].replace("answer = 10", "answer = 9"))
    before = built.solved.read_bytes()
    assert main(built) == 1
    assert built.solved.read_bytes() == before
    assert "raised AssertionError: ✗ 99.1 not yet: it is 9. Look at what comes after nine." in capsys.readouterr().err


def test_a_run_reports_and_writes_nothing(built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    labs = built.source.parents[1]
    before = {path: path.read_bytes() for path in labs.rglob("*") if path.is_file()}
    assert run.main(["--folder", str(labs), "--json", "--solutions", "99"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    del report["seconds"]
    assert report == {"lab": "99_ten", "minutes": 20, "cells": 29, "checks": {"○": 0, "✗": 0, "✓": 2}, "result": "ok"}
    assert {path: path.read_bytes() for path in labs.rglob("*") if path.is_file()} == before


LOOP = EXERCISES.replace("lambda answer: isinstance(answer, int))", "loops, seconds=0.2)")
LOOP = LOOP.replace("HINTS =", "def loops(_):\n    while True: pass\n\nHINTS =")


def learners(number: str, source: str) -> Callable[[dict], object]:
    """What a learner wrote into the exercise of that number."""

    def edit(notebook: dict) -> None:
        (cell,) = [cell for cell in notebook["cells"] if f'check("{number}"' in "".join(cell["source"])]
        cell["source"] = [source]

    return edit


@pytest.mark.slow
def test_a_learners_mistakes_do_not_stop_a_run(built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """One exercise has an error of syntax; the other's check never comes back."""
    write(built.source.parents[1], exercises=code(LOOP))
    change(built.learner, lambda notebook: next(cell for cell in notebook["cells"] if "HINTS" in "".join(cell["source"])).update(source=[LOOP]))
    change(built.learner, learners("99.1", "answer = = 10\ncheck('99.1', answer)"))
    change(built.learner, learners("99.2", "check('99.2', 4)"))
    assert run.main(["--folder", str(built.source.parents[1])]) == 0
    told = capsys.readouterr()
    assert "○ 0  ✗ 2  ✓ 0  ok" in told.out
    assert "99_ten" in told.err


@pytest.mark.slow
def test_a_run_that_fails_names_the_cell(built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    change(built.learner, lambda notebook: notebook["cells"][2].update(source=["import os\nos._exit(1)"]))
    assert run.main(["--folder", str(built.source.parents[1]), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["result"] == "cell 3: Kernel died"


@pytest.mark.slow
def test_an_unsolved_solution_fails_a_run(built: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    change(built.solved, learners("99.1", 'check("99.1", 4)'))
    assert run.main(["--folder", str(built.source.parents[1]), "--json", "--solutions"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert report["checks"] == {"○": 0, "✗": 1, "✓": 1}
    assert report["result"].startswith("✗ 99.1 not yet")


def test_a_run_of_a_lab_that_is_not_built_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "labs")
    assert run.main(["--folder", str(tmp_path / "labs"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["result"] == "no notebook: labs/build 99 makes it"


def test_no_kernel_or_socket_outlives_a_run(built: Lab, tmp_path: Path) -> None:
    note = f"""
import os, ipykernel
print(os.getpid(), ipykernel.get_connection_file(), file=open({str(tmp_path / "note")!r}, "w"))
"""
    change(built.learner, lambda notebook: notebook["cells"][2].update(source=[note]))
    run.main(["--folder", str(built.source.parents[1])])
    pid, connection = (tmp_path / "note").read_text().split()
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(connection).parent.exists()


def test_ids_differ_even_where_sources_do_not(tmp_path: Path) -> None:
    lab = write(tmp_path / "labs", more=prose("Step.") * 8)
    ids = [cell.id for cell in make(lab, solved=False).cells]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_nbval_compares_what_was_built_and_leaves_out_what_the_machine_lacks(built: Lab) -> None:
    """The cell whose tool is missing has another output than it would have; the measured one, too."""
    labs = built.source.parents[1]
    shutil.copy(LABS / "conftest.py", labs)
    change(built.learner, lambda notebook: notebook["cells"][18]["metadata"].update(tags=["needs:klab-no-such-tool"]))
    change(built.learner, lambda notebook: notebook["cells"][18].update(source=["print(11)"]))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "--nbval", "--nbval-cell-timeout=120", str(labs)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(LABS.parent)})
    assert done.returncode == 0, done.stdout
    assert "needs klab-no-such-tool: apt-get install klab-no-such-tool" in done.stdout
    assert "23 passed, 1 skipped" in done.stdout


@pytest.mark.slow
def test_nbval_sees_an_output_that_changed(built: Lab) -> None:
    shutil.copy(LABS / "conftest.py", built.learner.parent)
    change(built.learner, lambda notebook: notebook["cells"][18].update(source=["print(11)"]))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "--nbval-cell-timeout=120", str(built.learner)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(LABS.parent)})
    assert "1 failed, 11 passed" in done.stdout, done.stdout
