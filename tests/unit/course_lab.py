"""A made-up lab, number 99, that keeps to every rule; its exercises are defined in a cell, for they are nobody's to learn."""

import json
from pathlib import Path

from kernel_lab.course.notebook import Lab

EXERCISES = """
from kernel_lab.course.exercises import exercise, not_yet

HINTS = {"small": "Look at what comes after nine.", "large": "Look at what comes before eleven.", "odd": "Look at the last digit."}

for number in ("99.1", "99.2"):
    @exercise(number, wants="the number ten", hints=HINTS, accepts=lambda answer: isinstance(answer, int))
    def ten(answer):
        return "ten it is" if answer == 10 else not_yet("small" if answer < 10 else "large", f"it is {answer}")
"""

FIRST = """
from kernel_lab.course import session
from kernel_lab.course.session import audit, boxes, Box, check, fails, lab, predict

session.start_one = lambda: None  # a unit test needs no container
lab("99")
"""

SOLVE = """
```{code-cell} ipython3
:tags: [exercise]

# solution
answer = 10
# blank
answer = ...
# end
check("NUMBER", answer)
```
"""

HEAD = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {name: python3, display_name: Python 3 (ipykernel), language: python}
---

# Lab 99: counting to ten

+++

## Question

How far is ten? This takes **20 minutes**.
"""


def code(source: str, *tags: str) -> str:
    marked = f":tags: [{', '.join(tags)}]\n\n" if tags else ""
    return f"\n```{{code-cell}} ipython3\n{marked}{source.strip()}\n```\n"


def prose(text: str, *tags: str) -> str:
    metadata = " " + json.dumps({"tags": tags}) if tags else ""
    return f"\n+++{metadata}\n\n{text.strip()}\n"


PARTS = {
    "head": HEAD,
    "first": code(FIRST),
    "exercises": code(EXERCISES),
    "predict": prose("## Predict") + code('guess = predict("What is after nine?", ["ten", "eleven"], mine=...)'),
    "see": prose("## See it") + code('guess.reveal("ten")') + code('boxes(Box("nine"), Box("ten"))'),
    "measured": code("import time\ntime.monotonic_ns()", "measured"),
    "break": prose("## Break it first") + code("with fails(ZeroDivisionError):\n    10 / 0", "fails"),
    "build": prose("## Build it") + SOLVE.replace("NUMBER", "99.1") + SOLVE.replace("NUMBER", "99.2"),
    "add": prose("## Add it to the runtime") + code("9 + 1"),
    "real": prose("## Against the real thing") + code("print(10)"),
    "more": "".join(prose(f"Step {count}.") for count in range(8)),
    "instructor": prose("**Ask** why. **Demo** it. **Trap**: eleven. **Minutes**: 20.", "instructor"),
    "clean": prose("## Clean up and prove it") + code("audit()"),
}


def write(labs: Path, **changed: str) -> Lab:
    """The lab in a folder `labs`, with some of its parts changed."""
    source = labs / "src" / "99_ten.md"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join((PARTS | changed).values()), encoding="utf-8")
    return Lab(source)
