"""Variables in a Dockerfile: `$name`, `${name}` and `${name:-word}`, with quotes and escapes, as BuildKit expands them (its shell/lex).

It looks like a shell's and is smaller: no command is run, no file name is completed, and an unset variable is empty. The forms that take a pattern
know `*` and `?`, and no brackets.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from kernel_lab.kernel.errors import UsageError

# Go's unicode.IsSpace, by which BuildKit splits and trims; str.isspace has four control characters more.
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
BACKSLASH = "\\"
_NAME = re.compile(r"\d+|[@*#?$!-]|\w*")  # the second are a shell's own parameters: names too, and never set here
DEEPEST = 100  # ${a:-${b:-…}}
MOST_SHOWN = 60  # characters of a text that an error is about
FORMS = "there are :- :+ :? - + ? # ## % %% / //"

Piece = tuple[str, bool]  # a part of the result, and whether a space in it separates words


class Quotes(Enum):
    REMOVED = auto()
    KEPT = auto()  # they quote, and stay
    PLAIN = auto()  # they are characters like others


@dataclass(frozen=True)
class Rules:
    """escape: what takes its meaning from the next character. raw: it stays there itself. unset_stays: an unset variable is left as written."""

    escape: str = BACKSLASH
    quotes: Quotes = Quotes.REMOVED
    raw: bool = False
    unset_stays: bool = False


def expand(text: str, variables: Mapping[str, str], rules: Rules = Rules()) -> str:
    """The text with its variables replaced. Raises UsageError for an open quote or brace, an unknown form, and for `${name:?why}` as it says."""
    return _joined(_pieces(text, variables, rules))


def expand_words(text: str, variables: Mapping[str, str], rules: Rules = Rules()) -> list[str]:
    """The words of the expanded text: what a variable brings in is split at its spaces too, unless it is quoted. Raises as `expand`."""
    words = [""]
    for part, separates in _pieces(text, variables, rules):
        if separates and any(char in SPACE for char in part):
            first, *others = re.split(f"[{SPACE}]+", part)
            words[-1] += first
            words += others
        else:
            words[-1] += part
    return [word for word in words if word]


def expand_document(text: str, variables: Mapping[str, str]) -> str:
    """A here-document's text: quotes have no meaning in it, and the escape is a backslash whatever the Dockerfile has chosen."""
    return expand(text, variables, Rules(quotes=Quotes.PLAIN))


def _pieces(text: str, variables: Mapping[str, str], rules: Rules) -> list[Piece]:
    try:
        return _Reader(text, variables, rules).until("")
    except UsageError as error:
        shown = text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"
        raise UsageError(f"{shown!r}: {error}") from None


def _joined(pieces: Iterable[Piece]) -> str:
    return "".join(part for part, _ in pieces)


class _Reader:
    def __init__(self, text: str, variables: Mapping[str, str], rules: Rules) -> None:
        self._text, self._at = text, 0
        self._variables = variables
        self._rules = rules
        self._raw = rules.raw
        self._depth = 0

    def until(self, end: str, raw: bool | None = None) -> list[Piece]:
        """Up to the character `end`, which is taken too; without one, all that is left."""
        outer, self._raw = self._raw, self._raw if raw is None else raw
        pieces: list[Piece] = []
        while self._peek() != end:
            if not self._peek():
                raise UsageError(f"there is no {end} for ${{")
            pieces += self._piece()
        self._next()
        self._raw = outer
        return pieces

    def _piece(self) -> list[Piece]:
        char = self._next()
        if char == "$":
            return [(self._variable(), True)]
        if char in ("'", '"') and self._rules.quotes is not Quotes.PLAIN:
            inner = self._single_quoted() if char == "'" else self._double_quoted()
            return [(f"{char}{inner}{char}" if self._rules.quotes is Quotes.KEPT else inner, False)]
        if char == self._rules.escape:
            return [(char if self._raw else "", False), (self._next(), False)]
        return [(char, True)]

    def _single_quoted(self) -> str:
        end = self._text.find("'", self._at)
        if end < 0:
            raise UsageError("a ' has no second one")
        inner, self._at = self._text[self._at : end], end + 1
        return inner

    def _double_quoted(self) -> str:
        inner = ""
        while (char := self._next()) != '"':
            if not char:
                raise UsageError('a " has no second one')
            if char == "$":
                inner += self._variable()
            elif char == self._rules.escape and self._peek() in ('"', "$", self._rules.escape):
                inner += (char if self._raw else "") + self._next()
            else:
                inner += char
        return inner

    def _variable(self) -> str:
        if self._peek() != "{":
            name = self._name()
            return self._value(name, f"${name}") if name else "$"
        self._next()
        self._depth += 1
        if self._depth > DEEPEST:
            raise UsageError(f"more than {DEEPEST} of ${{ within one another")
        value = self._braced()
        self._depth -= 1
        return value

    def _braced(self) -> str:
        if self._peek() in ("{", "}", ":"):
            raise UsageError("bad substitution: a variable's name comes after ${")
        name = self._name()
        match self._next():
            case "":
                raise UsageError("there is no } for ${")
            case "}":
                return self._value(name, f"${{{name}}}")
            case "/":
                return self._replaced(name)
            case ":":
                return self._modified(name, self._next(), ":")
            case "+" | "-" | "?" | "#" | "%" as operator:
                return self._modified(name, operator)
            case other:
                raise UsageError(f"unsupported modifier {other!r} after {name!r}; {FORMS}")

    def _modified(self, name: str, operator: str, colon: str = "") -> str:
        word = _joined(self.until("}", operator in ("#", "%")))
        value = self._variables.get(name)
        if value is None and self._rules.unset_stays:
            return f"${{{name}{colon}{operator}{word}}}"
        missing = not value if colon else value is None
        match operator:
            case "-":
                return word if missing else value or ""
            case "+":
                return "" if missing else word
            case "?" if missing:
                raise UsageError(f"{name}: {word or 'is not allowed to be ' + ('unset' if value is None else 'empty')}")
            case "?":
                return value or ""
            case "#" | "%":
                return _trimmed(value or "", operator, word)
        raise UsageError(f"unsupported modifier {colon + operator!r} after {name!r}; {FORMS}")

    def _replaced(self, name: str) -> str:
        everywhere = self._peek() == "/"
        if everywhere:
            self._next()
        pattern, replacement = _joined(self.until("/", True)), _joined(self.until("}", True))
        value = self._variables.get(name)
        if value is None and self._rules.unset_stays:
            return f"${{{name}/{pattern}/{replacement}}}"
        return _substituted(re.compile("".join(_units(pattern, ".*"))), replacement, value or "", everywhere)

    def _value(self, name: str, written: str) -> str:
        return self._variables.get(name, written if self._rules.unset_stays else "")

    def _name(self) -> str:
        name = _NAME.match(self._text, self._at)
        assert name is not None  # it matches nothing too
        self._at = name.end()
        return name[0]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += len(char)
        return char


def _trimmed(value: str, end: str, pattern: str) -> str:
    """`value` without what matches at its beginning (#) or its end (%): the least of it, or with the character doubled the most."""
    most = pattern.startswith(end)
    units = _units(pattern[1:] if most else pattern, ".*" if most else ".*?")
    if end == "#":
        return re.sub(r"\A" + "".join(units), "", value, count=1)
    # An expression finds what begins first; so what is to end last is looked for backwards.
    return re.sub(r"\A" + "".join(reversed(units)), "", value[::-1], count=1)[::-1]


def _units(pattern: str, star: str) -> list[str]:
    """The pattern as an expression's parts, one for each of its characters."""
    units, chars = [], iter(pattern)
    for char in chars:
        if char == BACKSLASH:
            char = next(chars, "")
            if not char or char not in "*?/}\\":
                raise UsageError(f"{pattern!r}: a backslash in a pattern stands before one of * ? / }} \\")
            units.append(re.escape(char))
        else:
            units.append({"*": star, "?": "."}.get(char) or re.escape(char))
    return units


def _substituted(pattern: re.Pattern[str], replacement: str, value: str, everywhere: bool) -> str:
    result, done = "", 0
    for found in pattern.finditer(value):
        # What is empty right behind a match is none in Go, and one in Python.
        if not (found[0] or found.start() == 0 or found.start() > done):
            continue
        result += value[done : found.start()] + replacement
        done = found.end()
        if not everywhere:
            break
    return result + value[done:]
