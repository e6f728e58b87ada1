"""A Dockerfile's text becomes statements: continued lines joined, comments left out, here-documents attached (BuildKit's dockerfile/parser).

What a statement means is for instructions.py.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from kernel_lab.images.expansion import BACKSLASH, SPACE, Quotes, Rules, expand_words
from kernel_lab.kernel.errors import UsageError

DIRECTIVES = ("syntax", "escape", "check")
ESCAPES = (BACKSLASH, "`")
WITH_DOCUMENTS = ("ADD", "COPY", "RUN")
BYTE_ORDER_MARK = "\ufeff"

_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*", re.ASCII)
_DOCUMENT = re.compile(r"\d*<<(-?)([^<]+)", re.ASCII)
GAP = re.compile(r"[\t\v\f\r ]+")


@dataclass(frozen=True)
class Document:
    """A here-document: `<<name`, whose lines end before a line `name`.

    content: its lines as they stand. expands: no part of the name was quoted. strips: it was `<<-`, and tabs at the beginning of its lines go.
    """

    name: str
    content: str
    expands: bool
    strips: bool

    @property
    def text(self) -> str:
        return re.sub("^\t+", "", self.content, flags=re.MULTILINE) if self.strips else self.content


@dataclass(frozen=True)
class Statement:
    """An instruction as it was written.

    line, last: its first and last line in the file, from 1. source: it in one line. keyword: in upper case. flags: its `--name=value`, without
    quotes. rest: what follows them. escape: the character that the Dockerfile's directive has chosen.
    """

    file: str
    line: int
    last: int
    source: str
    keyword: str
    flags: tuple[str, ...]
    rest: str
    escape: str = BACKSLASH
    documents: tuple[Document, ...] = ()

    @classmethod
    def of(cls, source: str, file: str, line: int, last: int, escape: str = BACKSLASH) -> "Statement":
        keyword, *others = GAP.split(source.strip(SPACE), maxsplit=1)
        flags, rest = _flags(others[0] if others else "", escape)
        return cls(file, line, last, source.strip(SPACE), keyword.upper(), flags, rest.strip(SPACE), escape)

    def wrong(self, why: str) -> UsageError:
        """An error that says where it is."""
        return UsageError(f"{self.file}:{self.line}: {self.keyword}: {why}")

    def inner(self) -> "Statement":
        """The instruction behind ONBUILD."""
        return replace(self.of(self.rest, self.file, self.line, self.last, self.escape), documents=self.documents)

    def words(self) -> tuple[str, ...]:
        return tuple(GAP.split(self.rest)) if self.rest else ()

    def quoted_words(self) -> list[str]:
        """The words, with the quotes and escapes in them, within which a space separates nothing."""
        words, quote, chars = [""], "", iter(self.rest)
        for char in chars:
            if char == self.escape and quote != "'":
                words[-1] += "".join(char + after for after in [next(chars, None)] if after)
            elif not quote and char in SPACE:
                words.append("")
            else:
                quote = "" if char == quote else quote or (char if char in "'\"" else "")
                words[-1] += char
        return [word for word in words if word]

    def array(self) -> tuple[str, ...] | None:
        """The strings of the JSON form, or None: then it is text, however much it looks like JSON."""
        if not self.rest.startswith("["):
            return None
        try:
            found = json.loads(self.rest, parse_constant=_no_json)
        except (ValueError, RecursionError):
            return None
        if not all(isinstance(word, str) for word in found):
            raise self.wrong("in the JSON form all between [ and ] are strings, in double quotes")
        return tuple(re.sub("[\ud800-\udfff]", "\ufffd", word) for word in found)  # "\\ud800" alone is no character: Go's replacement


def read(text: str, file: str) -> tuple[Mapping[str, str], tuple[Statement, ...]]:
    """The parser directives and the statements of a Dockerfile; `file` is what errors call it. Raises UsageError."""
    lines = _lines(text.removeprefix(BYTE_ORDER_MARK))
    directives = _directives(lines, file)
    statements = tuple(_Statements(lines, file, directives.get("escape", BACKSLASH)))
    if not statements:
        raise UsageError(f"{file}: no instruction is in it; the first is FROM, as in FROM busybox")
    return directives, statements


def document(word: str) -> Document | None:
    """The here-document that a word announces, still without its content."""
    if not (found := _DOCUMENT.fullmatch(word)):
        return None
    # Its name is read as BuildKit reads it: with a backslash as the escape, whatever the directive says.
    bare = expand_words(found[2], {}, Rules(unset_stays=True))
    quoted = expand_words(found[2], {}, Rules(unset_stays=True, quotes=Quotes.KEPT))
    if len(bare) != 1:
        return None
    return Document(bare[0], "", expands=_marks(quoted) == _marks(bare), strips=bool(found[1]))


class _Statements:
    """The statements of some lines, in turn."""

    def __init__(self, lines: list[str], file: str, escape: str) -> None:
        self._lines = iter(enumerate(lines, 1))
        self._file = file
        self._escape = escape
        # An escaped escape at the end continues nothing.
        self._continued = re.compile(rf"(?<!{re.escape(escape)}){re.escape(escape)}[ \t]*\Z")
        self._last = 0

    def __iter__(self) -> Iterator[Statement]:
        while (text := self._more()) is not None:
            yield self._statement(text.lstrip(SPACE))

    def _statement(self, text: str) -> Statement:
        first = self._last
        while (end := self._continued.search(text)) and (more := self._more()) is not None:
            text = text[: end.start()] + more
        if end:
            text = text[: end.start()]
        statement = Statement.of(text, self._file, first, self._last, self._escape)
        documents = tuple(self._filled(statement, announced) for announced in _announced(statement))
        return replace(statement, last=self._last, documents=documents)

    def _more(self) -> str | None:
        """The next line that counts, without its end: comments and empty lines are left out, also between continued ones."""
        while (line := self._next()) is not None:
            if (text := line.lstrip(SPACE)) and not text.startswith("#"):
                return line.rstrip("\r\n")
        return None

    def _filled(self, statement: Statement, announced: Document) -> Document:
        content = ""
        while (line := self._next()) is not None:
            end = line.rstrip("\r\n")
            if (end.lstrip("\t") if announced.strips else end) == announced.name:
                return replace(announced, content=content)
            content += line
        raise statement.wrong(f"the here-document <<{announced.name} has no end: a line {announced.name} is missing")

    def _next(self) -> str | None:
        self._last, line = next(self._lines, (self._last, None))
        return line


def _lines(text: str) -> list[str]:
    """With their ends. str.splitlines would split at more than the newline."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _directives(lines: list[str], file: str) -> dict[str, str]:
    """`# name=value` before all else: the first line of another kind, be it an empty one, ends them."""
    directives: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        found = _DIRECTIVE.fullmatch(line.strip(SPACE))
        name = found[1].lower() if found else ""
        if not found or name not in DIRECTIVES:
            break
        if name in directives:
            raise UsageError(f"{file}:{number}: the parser directive {name} is there twice; leave one")
        if name == "escape" and found[2] not in ESCAPES:
            raise UsageError(f"{file}:{number}: escape={found[2]}: the escape character is \\ or `")
        directives[name] = found[2]
    return directives


def _announced(statement: Statement) -> list[Document]:
    """The here-documents that begin in a statement; the JSON form has none."""
    inner = statement.inner() if statement.keyword == "ONBUILD" and statement.rest else statement
    if "<<" not in statement.source or inner.keyword not in WITH_DOCUMENTS or inner.array() is not None:
        return []
    try:
        words = expand_words(statement.source, {}, Rules(quotes=Quotes.KEPT, raw=True, unset_stays=True))
    except UsageError:
        return []  # a shell may understand what this lexer does not, and BuildKit looks no further either
    try:
        return [announced for word in words if (announced := document(word))]
    except UsageError as error:
        raise statement.wrong(str(error)) from None


def _flags(text: str, escape: str) -> tuple[tuple[str, ...], str]:
    """The words at the beginning that begin with --, and the rest; -- alone ends them."""
    flags = []
    while (text := text.lstrip(SPACE)).startswith("--"):
        flag, text = _unquoted_word(text, escape)
        if flag == "--":
            break
        flags.append(flag)
    return tuple(flags), text


def _unquoted_word(text: str, escape: str) -> tuple[str, str]:
    word, quote, chars = "", "", iter(range(len(text)))
    for at in chars:
        char = text[at]
        if char == escape:
            word += text[at + 1 : at + 2]
            next(chars, None)
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        elif not quote and char in SPACE:
            return word, text[at:]
        else:
            word += char
    return word, ""


def _marks(words: list[str]) -> int:
    return sum(word.count("'") + word.count('"') for word in words)


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")  # Python's json takes NaN and Infinity
