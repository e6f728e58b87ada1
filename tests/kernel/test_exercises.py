"""Every check, tried with the answers that its own module lists: right, wrong in each of its hints' states, and blank."""

from pathlib import Path

import pytest

from kernel_lab.course import exercises
from kernel_lab.course.exercises import Exercise, State

pytestmark = pytest.mark.slow

LABS = sorted(path.stem.removeprefix("lab_") for path in Path(exercises.__file__).parent.glob("lab_[0-9][0-9].py"))
ALL = [exercise for lab in LABS for exercise in exercises.of_lab(lab)]


def answers(kind: str) -> list:
    """(exercise, state, answer) for each answer of a kind."""
    found = []
    for exercise in ALL:
        listed = getattr(exercise, kind)
        pairs = [(state, answer) for state in listed for answer in listed[state]] if kind == "wrong" else [("", answer) for answer in listed]
        found += [pytest.param(exercise, *pair, id=f"{exercise.number}-{count}{pair[0] and '-' + pair[0]}") for count, pair in enumerate(pairs)]
    return found


@pytest.mark.parametrize(("exercise", "_state", "answer"), answers("right"))
def test_a_right_answer_passes(exercise: Exercise, _state: str, answer: object) -> None:
    verdict = exercise.judge(answer)
    assert verdict.state is State.DONE, verdict


@pytest.mark.parametrize(("exercise", "state", "answer"), answers("wrong"))
def test_a_wrong_answer_gets_the_hint_of_its_state(exercise: Exercise, state: str, answer: object) -> None:
    verdict = exercise.judge(answer)
    assert (verdict.state, verdict.hint) == (State.NOT_YET, state), verdict


@pytest.mark.parametrize(("exercise", "_state", "answer"), answers("blank"))
def test_a_blank_answer_is_not_tried(exercise: Exercise, _state: str, answer: object) -> None:
    verdict = exercise.judge(answer)
    assert verdict.state is State.BLANK, verdict


@pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.number)
def test_each_hint_is_reached_and_a_right_answer_is_listed(exercise: Exercise) -> None:
    assert exercise.right
    assert {state for state, wrong in exercise.wrong.items() if wrong} == exercise.hints.keys()


@pytest.mark.parametrize("lab", LABS)
def test_each_module_of_checks_has_exercises(lab: str) -> None:
    assert exercises.of_lab(lab)
