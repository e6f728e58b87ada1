"""Checks: three states, one hint by the state found, and nothing that an answer does gets out."""

import signal
import sys

import pytest

from kernel_lab.course import exercises, limit
from kernel_lab.course.exercises import NotYet, State, check, exercise, not_yet, yours
from kernel_lab.kernel.errors import UsageError

HINTS = {"small": "Look at nine.", "large": "Look at eleven.", "odd": "Look at the last digit."}


@pytest.fixture(autouse=True)
def none_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercises, "EXERCISES", {})
    monkeypatch.setattr(exercises, "_done", {})
    monkeypatch.delenv(exercises.STRICT, raising=False)


def looks(answer: object) -> str | NotYet:
    value = answer() if callable(answer) else answer
    return "ten it is" if value == 10 else not_yet("small" if value < 10 else "large", f"it is {value}.")


def ten(**more: object) -> exercises.Exercise:
    return exercise("99.1", wants="ten", hints=HINTS, **more)(looks)  # type: ignore[arg-type]


def verdict_of(answer: object, **more: object) -> str:
    return str(ten(**more).judge(answer))


def test_the_three_states_are_printed_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    ten()
    for answer in (..., 3, 11, 10):
        check("99.1", answer)
    assert capsys.readouterr().out.splitlines() == [
        "○ 99.1 not tried yet: this wants ten",
        "✗ 99.1 not yet: it is 3. Look at nine.",
        "✗ 99.1 not yet: it is 11. Look at eleven.",
        "✓ 99.1 ten it is",
    ]


class Dots:
    def good(self) -> int:
        return 1

    def rows(self) -> None: ...


class DotsBelow:
    def rows(self) -> object:
        text = "begun"
        print(text)
        ...  # noqa: PIE790


class DotsInProperty:
    @property
    def rows(self) -> None: ...


class DotsInStatic:
    @staticmethod
    def rows() -> object:
        yield ...


class DotsAsValue:
    flags = ...


def dots() -> None:
    """A text of its own."""
    ...  # noqa: PIE790


def dots_as_argument() -> object:
    return print(..., 1)


def without_source(text: str) -> object:
    names: dict[str, object] = {}
    exec(text, names)
    return names["f"]


BLANK = [..., [1, ...], (...,), {"a": ...}, dots, dots_as_argument, lambda: ..., without_source("def f(): return ...")]
BLANK += [Dots, DotsBelow, DotsInProperty, DotsInStatic, DotsAsValue]


@pytest.mark.parametrize("answer", BLANK)
def test_what_still_holds_dots_is_blank(answer: object) -> None:
    assert ten().judge(answer).state is State.BLANK


def typed(pair: tuple[int, ...] = ()) -> int:
    return 10


def passing() -> None:
    pass


class Passing:
    def check(self) -> None:
        pass


@pytest.mark.parametrize("answer", [typed, passing, Passing, None, 0, "", [], {}, int, "...", without_source("def f(): pass")])
def test_anything_else_was_tried(answer: object) -> None:
    assert ten().judge(answer).state is not State.BLANK


def raising() -> int:
    raise ValueError("one\nand two")


def leaving() -> int:
    sys.exit(3)


def deep() -> int:
    return deep() + 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (raising, "ValueError: one and two"),
        (leaving, "SystemExit: 3"),
        (deep, "RecursionError"),
        ("junk", "TypeError"),
        (object(), "TypeError"),
    ],
)
def test_an_answer_that_raises_is_not_yet(answer: object, said: str) -> None:
    assert verdict_of(answer).startswith(f"✗ 99.1 not yet: the try ended in {said}")
    assert "\n" not in verdict_of(answer)


def test_the_wrong_kind_of_answer_is_named() -> None:
    assert verdict_of([4], accepts=callable) == "✗ 99.1 not yet: this wants ten, and got [4] (list)"
    assert verdict_of(int, accepts=lambda answer: False) == "✗ 99.1 not yet: this wants ten, and got the class int"


def looping() -> int:
    while True:
        try:
            while True:
                pass
        except BaseException:
            while True:
                pass


def test_an_answer_that_loops_is_interrupted_even_if_it_swallows_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "AGAIN", 0.2)
    assert verdict_of(looping, seconds=0.2) == "✗ 99.1 not yet: no answer within 0.2 s: does it loop, or wait for something that never comes?"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def interrupting() -> int:
    raise KeyboardInterrupt


def test_the_learner_may_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        ten().judge(interrupting)


@pytest.mark.parametrize("answer", [..., 3])
def test_strict_raises_unless_right(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(exercises.STRICT, "1")
    ten()
    check("99.1", 10)
    with pytest.raises(AssertionError, match=r"99\.1 not"):
        check("99.1", answer)


def test_yours_is_the_answer_that_passed_last() -> None:
    ten()
    assert yours("99.1", "theirs") == "theirs"
    check("99.1", 10)
    assert yours("99.1", "theirs") == 10
    check("99.1", 11)
    assert yours("99.1", "theirs") == "theirs"


@pytest.mark.parametrize("hints", [{}, {"a": "x", "b": "y"}, {"a": "x", "b": "y", "c": " "}, {"a": "x", "b": "y", "c": "y"}])
def test_fewer_than_three_hints_are_refused(hints: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="at least 3 hints"):
        exercise("99.1", wants="ten", hints=hints)


@pytest.mark.parametrize("number", ["1", "02", "2.1", "02.x", "a2.1"])
def test_a_number_that_is_none_is_refused(number: str) -> None:
    with pytest.raises(UsageError, match="its number is"):
        exercise(number, wants="ten", hints=HINTS)


def test_an_unknown_exercise_is_refused_with_those_that_there_are() -> None:
    ten()
    with pytest.raises(UsageError, match=r"no exercise '99\.7'; this lab has 99\.1"):
        check("99.7", 10)


def test_a_check_without_the_hint_of_its_state_is_seen() -> None:
    broken = exercise("99.2", wants="ten", hints=HINTS)(lambda answer: not_yet("no such state"))
    verdict = broken.judge(1)
    assert (verdict.state, verdict.hint) == (State.NOT_YET, "")
