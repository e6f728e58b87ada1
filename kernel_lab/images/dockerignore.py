"""What of a directory is no part of a build's context: `.dockerignore` (docs.docker.com/build/concepts/context; moby's patternmatcher).

Each line is a pattern of a path from the directory's root; `!` takes back what lines before have excluded, and the last line that matches a path
counts. A pattern that matches a directory matches all in it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath

from kernel_lab.images.expansion import SPACE
from kernel_lab.images.statements import BYTE_ORDER_MARK
from kernel_lab.kernel.errors import UsageError

NAME = ".dockerignore"
WILD = "*?[\\"  # what begins a part of a pattern that is no character itself

_WILDCARD = re.compile(r"[*?\[\]\\]")
_PART = re.compile(r"\*\*/?|\*|\\.|\[\^?(?:(?:\\.|[^\\\]-])(?:-(?:\\.|[^\\\]-]))?)+\]|[^\[\\]", re.DOTALL)


@dataclass(frozen=True)
class Pattern:
    """One line. excludes: it has no `!`. literal: how every path begins that it can match."""

    excludes: bool
    literal: str
    expression: re.Pattern[str]

    def matches(self, path: PurePosixPath) -> bool:
        """Whether it matches the path, or a directory that the path is in."""
        return any(self.expression.fullmatch(str(part)) for part in (path, *path.parents[:-1]))

    def may_match_in(self, directory: str) -> bool:
        return self.literal.startswith(f"{directory}/") or f"{directory}/".startswith(self.literal)


@dataclass(frozen=True)
class Ignore:
    """The patterns of a file, in their order."""

    patterns: tuple[Pattern, ...] = ()

    @classmethod
    def parse(cls, text: str, name: str = NAME) -> "Ignore":
        """Raises UsageError, which names file and line, for a pattern that is none."""
        lines = enumerate(text.removeprefix(BYTE_ORDER_MARK).split("\n"), 1)
        return cls(tuple(_pattern(line, f"{name}:{number}") for number, line in lines if line.strip(SPACE) and not line.startswith("#")))

    @classmethod
    def read(cls, context: Path, dockerfile: Path | None = None) -> "Ignore":
        """The file beside the Dockerfile that has its name and .dockerignore behind; without it, the one of the context; without any, nothing."""
        beside = [dockerfile.with_name(dockerfile.name + NAME)] if dockerfile else []
        for path in (*beside, context / NAME):
            try:
                return cls.parse(path.read_bytes().decode("utf-8", "surrogateescape"), path.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}; it has to be a file that can be read") from error
        return cls()

    def excludes(self, path: str | PurePosixPath) -> bool:
        """Whether a path from the context's root is left out."""
        last = next((pattern for pattern in reversed(self.patterns) if pattern.matches(PurePosixPath(path))), None)
        return last is not None and last.excludes

    def walk(self, context: Path) -> Iterator[str]:
        """The paths in a directory that are not left out, sorted, each directory before what is in it; without following links.

        A directory that is left out is there all the same where something in it is not.
        """
        yield from self._within(context, "")

    def _within(self, context: Path, directory: str) -> Iterator[str]:
        with os.scandir(context / directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            path = f"{directory}/{entry.name}" if directory else entry.name
            excluded = self.excludes(path)
            inner = self._within(context, path) if entry.is_dir(follow_symlinks=False) and not (excluded and self._all_excluded(path)) else iter(())
            if not excluded:
                yield path
                yield from inner
            elif (first := next(inner, None)) is not None:
                yield path
                yield first
                yield from inner

    def _all_excluded(self, directory: str) -> bool:
        """Whether nothing in a directory that is left out can come back."""
        return not any(pattern.may_match_in(directory) for pattern in self.patterns if not pattern.excludes)


def patterns(words: Iterable[str], where: str) -> Ignore:
    """The same of patterns that stand elsewhere, as in `COPY --exclude`."""
    return Ignore(tuple(_pattern(word, where) for word in words))


def _pattern(line: str, where: str) -> Pattern:
    text = line.strip(SPACE)
    excludes = not text.startswith("!")
    path = normpath(text if excludes else text[1:].strip(SPACE) or "/")
    # Cleaned as a path is; at the root, a slash before it says nothing.
    path = re.sub("^/+", "", path)
    if not path and not excludes:
        raise UsageError(f"{where}: {line.strip(SPACE)!r}: ! takes something back, and a pattern comes after it")
    try:
        literal, expression = _translated(path)
        return Pattern(excludes, literal, re.compile(expression, re.DOTALL))
    except (UsageError, re.error) as error:
        raise UsageError(f"{where}: {line.strip(SPACE)!r}: {error}") from None


def _translated(pattern: str) -> tuple[str, str]:
    """What every match begins with, and the expression."""
    literal, expression, rest = "", "", pattern
    plain = True
    while rest:
        part, rest = _first(rest)
        plain = plain and part[0] not in WILD
        literal += part if plain else ""
        expression += _expression(part, rest, begins=not expression)
    return literal, expression


def _first(pattern: str) -> tuple[str, str]:
    """The first part of a pattern: stars, a class, an escaped character, or a character."""
    if found := _PART.match(pattern):
        return found[0], pattern[found.end() :]
    raise UsageError("a [ has no ] that ends it, or its characters are wrong" if pattern[0] == "[" else "a backslash at the end escapes nothing")


def _expression(part: str, rest: str, begins: bool) -> str:
    match part[0]:
        case "*" if part.startswith("**"):
            # As moby has it: **.pyc is a file's ending, and wherever else ** stands it is directories.
            ending = begins and not part.endswith("/") and not _WILDCARD.search(rest)
            return ".*" if ending or not rest else "(?:.*/)?"
        case "*":
            return "[^/]*"
        case "?":
            return "[^/]"
        case "[":
            return _class(part)
        case "\\":
            return re.escape(part[1])
    return re.escape(part)


def _class(part: str) -> str:
    negated = part.startswith("[^")
    inner = re.sub(r"\\(.)|([^-])", lambda found: re.escape(found[1] or found[2]), part[2 if negated else 1 : -1], flags=re.DOTALL)
    return f"[{'^' if negated else ''}{inner}]"
