"""Predictions: the learner says first what will happen; a wrong guess stops nothing."""

from collections.abc import Sequence
from string import ascii_lowercase

from kernel_lab.kernel.errors import UsageError


class Prediction:
    """A question with lettered options, and the learner's letter (or `...`: not answered)."""

    def __init__(self, question: str, options: Sequence[str], mine: object) -> None:
        self.question = question
        self.options = dict(zip(ascii_lowercase, options, strict=False))
        self.mine = mine
        self.letter = mine.strip().lower() if isinstance(mine, str) and mine.strip().lower() in self.options else None

    def __repr__(self) -> str:
        return "\n".join([self.question, *(f"  {letter}  {text}" for letter, text in self.options.items()), self._stands()])

    def _letters(self) -> str:
        *first, last = self.options
        return f"{', '.join(first)} or {last}"

    def _stands(self) -> str:
        if self.mine is ...:
            return f"Your guess: put {self._letters()} in place of the dots (in quotes) and run the cell again."
        if self.letter is None:
            return f"Your guess, {self.mine!r}, is none of {self._letters()}."
        return f"Your guess: {self.letter}, {self.options[self.letter]}"

    def reveal(self, answer: str, because: str = "") -> None:
        """Print the answer that the kernel gave (a letter, or the text of an option) beside the learner's guess."""
        letter = next((letter for letter, text in self.options.items() if answer in (letter, text)), None)
        if letter is None:
            raise UsageError(f"{answer!r} is none of the options {list(self.options.values())}")
        said = "You had not guessed." if self.letter is None else "As you said." if self.letter == letter else f"You said {self.letter}."
        print(" ".join(filter(None, (f"Answer {letter}: {self.options[letter]}.", said, because))))


def predict(question: str, options: Sequence[str], mine: object = ...) -> Prediction:
    """Print the question and where the learner's guess `mine` stands; `.reveal(answer)` comes after the experiment."""
    if len(options) < 2:
        raise UsageError(f"{question!r}: a prediction needs at least two options")
    prediction = Prediction(question, options, mine)
    print(prediction)
    return prediction
