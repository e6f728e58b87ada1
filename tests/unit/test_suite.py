"""./lab test: it counts what ran, goes on after a failure, ends red for one, and lets no skip pass unnoticed."""

import os
from collections import Counter
from pathlib import Path

import pytest

from kernel_lab.course import suite
from kernel_lab.course.outcomes import Finished, Outcome

SKIPPED = Finished("unit", Outcome(1, 0, Counter({"needs crun: not on the PATH": 2})), 1.0)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # none is needed, and they take seconds to load
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "tests").mkdir()
    return tmp_path


def outcome(project: Path, test: str) -> Outcome:
    """What a project with this one file of tests comes to."""
    (project / "tests/test_it.py").write_text(f"import os, pytest\n{test}\n")
    return suite.Suite(project, project).pytest("tests")


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("def test_a(): pass\ndef test_b(): pass", Outcome(2)),
        ("def test_a(): pass\ndef test_b(): assert 0", Outcome(1, 1)),
        ("@pytest.mark.parametrize('n', [1, 2, 3])\ndef test_a(n): assert n < 3", Outcome(2, 1)),
        ("def test_a(): pytest.skip('no  crun\\nhere')\ndef test_b(): pass", Outcome(1, 0, Counter({"no crun here": 1}))),
        ("pytestmark = pytest.mark.skip(reason='no crun')\ndef test_a(): pass\ndef test_b(): pass", Outcome(skips=Counter({"no crun": 2}))),
        ("pytest.skip('no \\'crun\\'', allow_module_level=True)", Outcome(skips=Counter({"no 'crun'": 1}))),
        ("@pytest.mark.xfail(reason='known')\ndef test_a(): assert 0", Outcome(skips=Counter({"known": 1}))),
        ("@pytest.fixture\ndef f():\n    yield\n    assert 0\ndef test_a(f): pass", Outcome(failed=1)),
        ("@pytest.fixture\ndef f():\n    yield\n    assert 0\ndef test_a(f): assert 0\ndef test_b(): pass", Outcome(1, 1)),
        ("@pytest.fixture\ndef f():\n    yield\n    assert 0\ndef test_a(f): pytest.skip('no crun')", Outcome(failed=1)),
        ("import nothing_of_this_name", Outcome(failed=1)),
        ("def test_a(): pass\ndef test_b(): pytest.exit('enough')", Outcome(2, 1)),
        ("def test_a(): os._exit(0)", Outcome(failed=1)),
        ("", Outcome()),
    ],
)
def test_tests_are_counted_as_they_ended(project: Path, test: str, expected: Outcome) -> None:
    assert outcome(project, test) == expected


def test_an_older_report_is_never_taken_for_this_ones(project: Path) -> None:
    assert outcome(project, "def test_a(): pass") == Outcome(1)
    assert outcome(project, "os._exit(0)") == Outcome(failed=1)


def test_every_step_runs_even_after_one_that_fails_or_raises(capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> Outcome:
        raise RuntimeError("out of order")

    finished = suite.run([("one", lambda: Outcome(1, 1)), ("two", broken), ("three", lambda: Outcome(3))])
    assert [(each.step, each.outcome) for each in finished] == [("one", Outcome(1, 1)), ("two", Outcome(failed=1)), ("three", Outcome(3))]
    assert "RuntimeError: out of order" in capfd.readouterr().err
    assert suite.conclude(finished, None) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "4 passed, 2 failed, 0 skipped"


def test_nothing_failed_is_success_and_a_step_without_tests_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert suite.conclude(suite.run([("none", Outcome), ("some", lambda: Outcome(2))]), None) == 0
    said = capfd.readouterr().out
    assert "0 tests" in said
    assert said.splitlines()[-1] == "2 passed, 0 failed, 0 skipped"


def test_the_reasons_of_skips_are_told_with_how_often(capfd: pytest.CaptureFixture[str]) -> None:
    assert suite.conclude([SKIPPED], None) == 0
    said = capfd.readouterr().out.splitlines()
    assert [line.split(None, 2) for line in said if "crun" in line] == [["unit", "2", "needs crun: not on the PATH"]]
    assert said[-1] == "1 passed, 0 failed, 2 skipped"


@pytest.mark.parametrize(
    ("listed", "status"),
    [
        ("unit: needs crun: not on the PATH\n", 0),
        ("# a remark: of any kind\n\nunit: needs crun: not on the PATH\nkernel: needs runc: not on the PATH\n", 0),
        ("", 1),
        ("kernel: needs crun: not on the PATH\n", 1),
        ("# unit: needs crun: not on the PATH\n", 1),
    ],
)
def test_a_skip_that_nobody_wrote_down_is_a_failure(listed: str, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert suite.conclude([SKIPPED], listed) == status
    said = capfd.readouterr().out
    assert ("not in tests/expected-skips.txt: unit: needs crun: not on the PATH" in said) is bool(status)
    assert ("expected, and not seen this time: kernel: needs runc: not on the PATH" in said) is ("runc" in listed)


def test_pytests_arguments_name_the_tests_that_run(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "tests/test_it.py").write_text("def test_good(): pass\ndef test_bad(): assert 0\n")
    assert suite.main(["tests", "-k", "good"], project) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"
    assert suite.main(["tests"], project) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 1 failed, 0 skipped"


def test_quick_leaves_slow_tests_out_and_says_so_to_tests(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quick = "def test_quick(): import os; assert os.environ['KERNEL_LAB_QUICK'] == '1'"
    (project / "tests/test_it.py").write_text(f"import pytest\n@pytest.mark.slow\ndef test_slow(): assert 0\n{quick}\n")
    assert suite.main(["--quick", "tests"], project) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"


def test_root_runs_what_an_ordinary_user_runs_and_more(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(uid: int, *, quick: bool = False) -> set[str]:
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        return {name for name, _ in suite.Suite(project, project, quick).steps()}

    everybody = {"ruff", "mypy", "build --check", "unit", "kernel", "cleanup"}
    assert steps(1000) == everybody | {"labs", "solutions"}
    assert steps(0) == everybody | {"labs", "kernel, ordinary user", "notebooks", "notebooks again"}
    assert steps(0, quick=True) == everybody | {"notebooks"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('[{"lab": "02_uts", "result": "ok"}, {"lab": "03_mnt", "result": "cell 4: NameError"}]', Outcome(1, 1)),
        ("[]", Outcome()),
        ("Traceback", Outcome(failed=1)),
    ],
)
def test_each_lab_is_counted(project: Path, answer: str, expected: Outcome) -> None:
    python = project / "python"
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    assert suite.Suite(project, project, python=str(python)).labs() == expected


PRETENDED_PYTHON = """#!/bin/sh
for word; do
    case $word in --junitxml=*) report=${word#*=} ;; tests/*) tests=$word ;; esac
done
name="$(id -un) runs $tests in $(basename "$PWD"), its home is its own: $(test -O "$HOME" && echo yes)"
echo "<testsuites><testcase name='a'/><testcase name='b'><skipped message='$name'/></testcase></testsuites>" >$report
"""


@pytest.mark.slow
@pytest.mark.needs("root", "useradd", "usermod")
def test_an_ordinary_user_runs_the_kernel_tests_in_a_folder_that_only_root_can_open(tmp_path: Path) -> None:
    project = tmp_path / "closed" / "kit"
    project.mkdir(parents=True)
    project.parent.chmod(0o700)
    python = project / "python"
    python.write_text(PRETENDED_PYTHON)
    python.chmod(0o700)
    account = f"klabunit{os.getpid()}"
    seen = suite.Suite(project, tmp_path, python=str(python), account=account).rootless()
    assert seen == Outcome(1, 0, Counter({f"{account} runs tests/kernel in kit, its home is its own: yes": 1}))
