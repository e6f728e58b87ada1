"""Predictions: whatever the learner guesses is shown, and stops nothing."""

import pytest

from kernel_lab.course.predictions import predict
from kernel_lab.kernel.errors import UsageError

OPTIONS = ["box", "its own", "both"]


@pytest.mark.parametrize(
    ("mine", "stands", "after"),
    [
        (..., "Your guess: put a, b or c in place of the dots (in quotes) and run the cell again.", "You had not guessed."),
        ("b", "Your guess: b, its own", "As you said."),
        (" B ", "Your guess: b, its own", "As you said."),
        ("c", "Your guess: c, both", "You said c."),
        ("z", "Your guess, 'z', is none of a, b or c.", "You had not guessed."),
        (["a"], "Your guess, ['a'], is none of a, b or c.", "You had not guessed."),
        (None, "Your guess, None, is none of a, b or c.", "You had not guessed."),
    ],
)
def test_a_guess_is_shown_and_then_set_beside_the_answer(mine: object, stands: str, after: str, capsys: pytest.CaptureFixture[str]) -> None:
    guess = predict("Whose name?", OPTIONS, mine=mine)
    assert capsys.readouterr().out.splitlines() == ["Whose name?", "  a  box", "  b  its own", "  c  both", stands]
    guess.reveal("its own")
    guess.reveal("b", "Nobody touched it.")
    assert capsys.readouterr().out.splitlines() == [f"Answer b: its own. {after}", f"Answer b: its own. {after} Nobody touched it."]


def test_an_answer_that_is_no_option_is_the_writers_mistake() -> None:
    with pytest.raises(UsageError, match="none of the options"):
        predict("Whose name?", OPTIONS).reveal("nobody's")
    with pytest.raises(UsageError, match="at least two options"):
        predict("Whose name?", ["box"])
