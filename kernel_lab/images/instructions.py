"""The instructions of a Dockerfile, each with what it says (docs.docker.com/reference/dockerfile, BuildKit's dockerfile/instructions).

Variables are still in them: what ENV and ARG set comes into being while an image is built, so `expanded` is asked for just before an instruction is
carried out.
"""

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, ClassVar, Self

from kernel_lab.images.expansion import SPACE, Rules, expand, expand_document, expand_words
from kernel_lab.images.statements import GAP, Document, Statement, document
from kernel_lab.kernel.errors import UsageError

SCRIPTS = "/dev/pipes"  # where BuildKit shows a RUN's own script to the command
PROTOCOLS = ("tcp", "udp", "sctp")
HIGHEST_PORT = 65535
SHORTEST = 1_000_000  # nanoseconds; docker's least interval of a health check
UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}

_STAGE_NAME = re.compile("[a-z][a-z0-9-_.]*")
_DURATION = re.compile(rf"[+-]?(?:0|(?:(?:\d+\.?\d*|\.\d+)(?:{'|'.join(UNITS)}))+)", re.ASCII)
_PORT = re.compile(r"(?:(?P<host>.*):)?(?P<first>\d+)(?:-(?P<last>\d+))?(?:/(?P<protocol>[a-zA-Z]*))?", re.ASCII)

Command = str | tuple[str, ...]  # a text for the shell, or the words of a program's call
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Instruction:
    """What they have in common: where they stand, and which of their fields have variables in them."""

    statement: Statement

    EXPANDING: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def read(cls, statement: Statement) -> Self:
        """Raises UsageError, with the place, for what the instruction does not allow."""
        raise NotImplementedError

    @property
    def line(self) -> int:
        """Where it begins in the file, from 1."""
        return self.statement.line

    @property
    def source(self) -> str:
        """As docker shows it: in one line, `RUN apt-get update`."""
        return self.statement.source

    @property
    def keyword(self) -> str:
        return self.statement.keyword

    def wrong(self, why: str) -> UsageError:
        """An error that says where it is, as `Dockerfile:7: COPY: …`."""
        return self.statement.wrong(why)

    def expanded(self, variables: Mapping[str, str]) -> Self:
        """With its variables replaced, and without the quotes around them. Raises UsageError, with the place."""
        rules = Rules(self.statement.escape)
        try:
            return self._expanded(lambda text: expand(text, variables, rules), variables)
        except UsageError as error:
            raise self.wrong(str(error)) from None

    def _expanded(self, one: Callable[[str], str], variables: Mapping[str, str]) -> Self:
        return replace(self, **{name: _each(one, getattr(self, name)) for name in self.EXPANDING})


@dataclass(frozen=True)
class From(Instruction):
    """FROM: what a stage begins with, another stage's name or an image's. alias: in lower case."""

    image: str
    alias: str | None = None
    platform: str | None = None

    EXPANDING = ("image", "platform")

    @classmethod
    def read(cls, statement: Statement) -> "From":
        flags = _flags(statement, platform=None)
        match statement.words():
            case (image,):
                return cls(statement, image, None, **flags)
            case (image, word, alias) if word.lower() == "as":
                if not _STAGE_NAME.fullmatch(alias.lower()):
                    raise statement.wrong(f"{alias!r} cannot name a stage: a letter first, then letters, digits and any of - _ .")
                return cls(statement, image, alias.lower(), **flags)
        raise statement.wrong("it is written FROM IMAGE or FROM IMAGE AS NAME")

    def _expanded(self, one: Callable[[str], str], variables: Mapping[str, str]) -> Self:
        found = super()._expanded(one, variables)
        for name in self.EXPANDING:
            if getattr(found, name) == "":
                raise UsageError(f"{getattr(self, name)!r} is empty: declare its variable with ARG before the first FROM, and give it a value")
        return found


@dataclass(frozen=True)
class Arg(Instruction):
    """ARG: names, each with its default, or None where it has none. Which default counts is decided where the name is declared: see scope.py."""

    defaults: tuple[tuple[str, str | None], ...]

    @classmethod
    def read(cls, statement: Statement) -> "Arg":
        _flags(statement)
        words = statement.quoted_words()
        if not words:
            raise statement.wrong("it needs a name, as in ARG VERSION or ARG VERSION=1")
        return cls(statement, tuple((name, value if equals else None) for name, equals, value in (_named(statement, word) for word in words)))


@dataclass(frozen=True)
class _Pairs(Instruction):
    pairs: Pairs

    EXPANDING = ("pairs",)

    @classmethod
    def read(cls, statement: Statement) -> Self:
        _flags(statement)
        words = statement.quoted_words()
        if not words:
            raise statement.wrong(f"it needs a name and a value, as in {statement.keyword} name=value")
        if "=" not in words[0]:
            # The older form: one name, and all that follows is its value.
            only, *after = GAP.split(statement.rest, maxsplit=1)
            if not after:
                raise statement.wrong(f"{only} has no value; it is written {statement.keyword} {only}=value")
            return cls(statement, ((only, after[0]),))
        pairs = []
        for word in words:
            name, equals, value = _named(statement, word)
            if not equals:
                raise statement.wrong(f"{word!r} has no =; it is written name=value, and a value with spaces in quotes")
            pairs.append((name, value))
        return cls(statement, tuple(pairs))

    def _expanded(self, one: Callable[[str], str], variables: Mapping[str, str]) -> Self:
        found = super()._expanded(one, variables)
        for (name, _), (written, _) in zip(found.pairs, self.pairs, strict=True):
            if not name:
                raise UsageError(f"{written!r} is empty, and a name is needed")
        return found


@dataclass(frozen=True)
class Env(_Pairs):
    """ENV: variables of the image. Within one instruction none sees what another sets."""


@dataclass(frozen=True)
class Label(_Pairs):
    """LABEL."""


@dataclass(frozen=True)
class _Called(Instruction):
    """Those with a command: text for the shell, or in the JSON form a program's words."""

    command: Command

    @classmethod
    def read(cls, statement: Statement) -> Self:
        _flags(statement)
        return cls(statement, _command(statement))

    def words(self, shell: Sequence[str]) -> tuple[str, ...]:
        """What is called; `shell` is what SHELL says."""
        return (*shell, self.command) if isinstance(self.command, str) else self.command


@dataclass(frozen=True)
class Cmd(_Called):
    """CMD."""


@dataclass(frozen=True)
class Entrypoint(_Called):
    """ENTRYPOINT."""


@dataclass(frozen=True)
class Inline:
    """A file whose content stands in the Dockerfile itself."""

    name: str
    content: str
    expands: bool = False


@dataclass(frozen=True)
class Run(_Called):
    """RUN. Its here-documents are in the command already.

    script: a here-document that is all of RUN and begins with #!. It is a program of its own, which the command calls at SCRIPTS.
    mounts, network, security: as the flags have them.
    """

    script: Inline | None = None
    mounts: tuple[str, ...] = ()
    network: str | None = None
    security: str | None = None

    EXPANDING = ("mounts",)

    @classmethod
    def read(cls, statement: Statement) -> "Run":
        flags = _flags(statement, mount=(), network=None, security=None)
        command, script = _command(statement), None
        if isinstance(command, str) and statement.documents:
            command, script = _with_documents(command, statement.documents)
        if command == ():
            raise statement.wrong("[] calls nothing")
        return cls(statement, command, script, flags["mount"], flags["network"], flags["security"])


@dataclass(frozen=True)
class _Copying(Instruction):
    sources: tuple[str, ...]
    destination: str
    inline: tuple[Inline, ...] = ()
    chown: str | None = None
    chmod: str | None = None
    link: bool = False
    exclude: tuple[str, ...] = ()

    EXPANDING: ClassVar[tuple[str, ...]] = ("sources", "destination", "chown", "chmod", "exclude")

    def _expanded(self, one: Callable[[str], str], variables: Mapping[str, str]) -> Self:
        found = super()._expanded(one, variables)
        inline = (replace(file, content=expand_document(file.content, variables), expands=False) if file.expands else file for file in self.inline)
        return replace(found, inline=tuple(inline))


@dataclass(frozen=True)
class Add(_Copying):
    """ADD: as COPY, and archives are unpacked, and addresses fetched."""

    checksum: str | None = None

    EXPANDING = (*_Copying.EXPANDING, "checksum")

    @classmethod
    def read(cls, statement: Statement) -> "Add":
        flags = _flags(statement, chown=None, chmod=None, link=False, exclude=(), checksum=None)
        return cls(statement, *_copied(statement), **flags)


@dataclass(frozen=True)
class Copy(_Copying):
    """COPY. origin: `--from`, a stage's name or number, or an image's name; None is the context.

    parents: the sources keep the directories that they are in.
    """

    origin: str | None = None
    parents: bool = False

    @classmethod
    def read(cls, statement: Statement) -> "Copy":
        flags = _flags(statement, chown=None, chmod=None, link=False, exclude=(), parents=False, **{"from": None})
        origin = flags.pop("from")
        if origin is not None and not _plain(statement, origin):
            raise statement.wrong(f"--from={origin}: there are no variables in --from; name a stage with FROM {origin} AS NAME, and copy from NAME")
        return cls(statement, *_copied(statement), **flags, origin=origin)


@dataclass(frozen=True)
class _Text(Instruction):
    text: str

    EXPANDING: ClassVar[tuple[str, ...]] = ("text",)

    @classmethod
    def read(cls, statement: Statement) -> Self:
        _flags(statement)
        if not statement.rest:
            raise statement.wrong("it needs one argument")
        return cls(statement, statement.rest)


@dataclass(frozen=True)
class Workdir(_Text):
    """WORKDIR: a path. One that is relative is within the last."""


@dataclass(frozen=True)
class User(_Text):
    """USER: a name or number, and with a colon a group's."""


@dataclass(frozen=True)
class Maintainer(_Text):
    """MAINTAINER: an author. LABEL has taken its place; it has no variables."""

    EXPANDING = ()


@dataclass(frozen=True)
class StopSignal(_Text):
    """STOPSIGNAL: a name, with or without SIG, or a number."""

    def _expanded(self, one: Callable[[str], str], variables: Mapping[str, str]) -> Self:
        found = super()._expanded(one, variables)
        if not _is_signal(found.text):
            raise UsageError(f"{found.text!r} is no signal; kill -l lists their names")
        return found


@dataclass(frozen=True)
class Expose(Instruction):
    """EXPOSE. ports: as they are written; expanded, each alone with its protocol, as 80/tcp."""

    ports: tuple[str, ...]

    @classmethod
    def read(cls, statement: Statement) -> "Expose":
        _flags(statement)
        if not statement.rest:
            raise statement.wrong("it needs a port, as in EXPOSE 80 or EXPOSE 53/udp")
        return cls(statement, tuple(sorted(statement.words())))

    def _expanded(self, one: Callable[[str], str], variables: Mapping[str, str]) -> Self:
        words = (word for port in self.ports for word in expand_words(port, variables, Rules(self.statement.escape)))
        return replace(self, ports=tuple(port for word in words for port in _ports(word)))


@dataclass(frozen=True)
class Volume(Instruction):
    """VOLUME."""

    paths: tuple[str, ...]

    EXPANDING = ("paths",)

    @classmethod
    def read(cls, statement: Statement) -> "Volume":
        _flags(statement)
        paths = statement.array()
        return cls(statement, statement.words() if paths is None else paths)._full()

    def _expanded(self, one: Callable[[str], str], variables: Mapping[str, str]) -> Self:
        found = super()._expanded(one, variables)
        if not all(found.paths):
            raise UsageError("a path is empty")
        return found

    def _full(self) -> "Volume":
        paths = tuple(path.strip(SPACE) for path in self.paths)
        if not paths or not all(paths):
            raise self.wrong("it needs a path, as in VOLUME /data")
        return replace(self, paths=paths)


@dataclass(frozen=True)
class Healthcheck(_Called):
    """HEALTHCHECK. command: () is NONE, which takes away what the base image has. Times are in nanoseconds, and 0 is docker's default."""

    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0

    @classmethod
    def read(cls, statement: Statement) -> "Healthcheck":
        flags = _flags(statement, interval=None, timeout=None, start_period=None, start_interval=None, retries=None)
        kind, *others = re.split(f"[{SPACE}]+", statement.rest, maxsplit=1)
        called = replace(statement, rest="".join(others))
        match kind.upper():
            case "NONE" if not called.rest:
                return cls(statement, ())
            case "CMD" if command := _command(called):
                retries = _count(statement, flags.pop("retries"))
                return cls(statement, command, **{name: _time(statement, name, value) for name, value in flags.items()}, retries=retries)
        raise statement.wrong("it is written HEALTHCHECK CMD command, or HEALTHCHECK NONE")

    @property
    def test(self) -> tuple[str, ...]:
        """As the image's configuration has it."""
        if isinstance(self.command, str):
            return ("CMD-SHELL", self.command)
        return ("CMD", *self.command) if self.command else ("NONE",)


@dataclass(frozen=True)
class Shell(Instruction):
    """SHELL: what the shell form of a command is given to."""

    shell: tuple[str, ...]

    @classmethod
    def read(cls, statement: Statement) -> "Shell":
        _flags(statement)
        if not (shell := statement.array()):
            raise statement.wrong('it has the JSON form alone, as in SHELL ["/bin/bash", "-c"]')
        return cls(statement, shell)


@dataclass(frozen=True)
class Onbuild(Instruction):
    """ONBUILD. trigger: the instruction for those who build upon the image; expression: its text, as the image's configuration has it."""

    trigger: Instruction
    expression: str

    @classmethod
    def read(cls, statement: Statement) -> "Onbuild":
        _flags(statement)
        inner = statement.inner()
        if inner.keyword in ("", "ONBUILD", "FROM", "MAINTAINER"):
            raise statement.wrong(f"an instruction comes after it, as in ONBUILD COPY . /app, and {inner.keyword or 'nothing'} cannot")
        try:
            trigger = read(inner)
        except UsageError as error:
            raise UsageError(str(error).replace(f"{inner.keyword}: ", f"ONBUILD {inner.keyword}: ", 1)) from None
        return cls(statement, trigger, "\n".join([statement.rest, *(found.content + found.name for found in statement.documents)]))


KINDS: Mapping[str, type[Instruction]] = {
    kind.__name__.upper(): kind
    for kind in (
        *(From, Arg, Env, Label, Run, Cmd, Entrypoint, Copy, Add),
        *(Workdir, User, Maintainer, StopSignal, Expose, Volume, Healthcheck, Shell, Onbuild),
    )
}


def read(statement: Statement) -> Instruction:
    """What a statement means. Raises UsageError, with the place."""
    if kind := KINDS.get(statement.keyword):
        return kind.read(statement)
    near = get_close_matches(statement.keyword, KINDS, 1)
    raise UsageError(
        f"{statement.file}:{statement.line}: there is no instruction {statement.keyword!r}; "
        + (f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(KINDS))}")
    )


def _each(one: Callable[[str], str], value: Any) -> Any:
    """Applied to the texts in a field, however deep."""
    if isinstance(value, str):
        return one(value)
    return tuple(_each(one, part) for part in value) if isinstance(value, tuple) else value


def _flags(statement: Statement, **defaults: Any) -> dict[str, Any]:
    """The values of an instruction's flags. What a default is, its flag has: None for one text, False for yes or no, () for a list of texts."""
    values = dict(defaults)
    seen = set()
    for flag in statement.flags:
        name, equals, value = flag[2:].partition("=")
        key = name.replace("-", "_")
        if key not in defaults or "_" in name:
            known = ", ".join("--" + each.replace("_", "-") for each in defaults) or "none"
            raise statement.wrong(f"there is no flag --{name}; the flags here: {known}")
        if key in seen and defaults[key] != ():
            raise statement.wrong(f"--{name} is there twice")
        seen.add(key)
        if defaults[key] is False:
            values[key] = _yes(statement, name, value if equals else "true")
        elif not equals:
            raise statement.wrong(f"--{name} needs a value, as in --{name}=VALUE")
        else:
            values[key] = (*values[key], value) if defaults[key] == () else value
    return values


def _yes(statement: Statement, name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise statement.wrong(f"--{name}={value}: it is true or false")
    return value.lower() == "true"


def _command(statement: Statement) -> Command:
    words = statement.array()
    return statement.rest if words is None else words


def _with_documents(command: str, documents: tuple[Document, ...]) -> tuple[str, Inline | None]:
    """What is called where a RUN has here-documents: the shell reads them itself, but for one that is all there is."""
    if not _announced(command):
        return "\n".join([command, *(found.content + found.name for found in documents)]), None
    text, name = documents[0].text, documents[0].name
    return (f"{SCRIPTS}/{name}", Inline(name, text)) if text.startswith("#!") else (text, None)


def _copied(statement: Statement) -> tuple[tuple[str, ...], str, tuple[Inline, ...]]:
    """Sources, destination, and the here-documents among the sources."""
    words = statement.array()
    paths = statement.words() if words is None else words
    if len(paths) < 2:
        raise statement.wrong(f"it needs a source and a destination, as in {statement.keyword} app.py /app/")
    *sources, destination = paths
    if words is not None:
        return tuple(sources), destination, ()
    if _announced(destination):
        raise statement.wrong(f"{destination}: a here-document is a source, and a destination comes last")
    inline = tuple(Inline(found.name, found.text, found.expands) for found in statement.documents)
    if [file.name for file in inline] != [found.name for word in sources if (found := _announced(word))]:
        raise statement.wrong("the name of a here-document has no space in it")
    return tuple(word for word in sources if not _announced(word)), destination, inline


def _announced(word: str) -> Document | None:
    try:
        return document(word)
    except UsageError:
        return None


def _named(statement: Statement, word: str) -> tuple[str, str, str]:
    """name, =, value."""
    name, equals, value = word.partition("=")
    if not name:
        raise statement.wrong(f"{word!r}: a name comes before =")
    return name, equals, value


def _plain(statement: Statement, text: str) -> bool:
    try:
        return expand(text, {}, Rules(statement.escape)) == text
    except UsageError:
        return False


def _ports(word: str) -> list[str]:
    """A port or a range of them, each with its protocol. An address and port of the host before it say nothing here, as with docker."""
    found = _PORT.fullmatch(word)
    first, last = (int(found["first"]), int(found["last"] or found["first"])) if found else (0, 0)
    protocol = ((found and found["protocol"]) or PROTOCOLS[0]).lower()
    if not found or protocol not in PROTOCOLS or not first <= last <= HIGHEST_PORT:
        raise UsageError(f"{word!r} is no port: a number or a range, and /tcp, /udp or /sctp, as in 80, 53/udp or 8000-8010")
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _is_signal(text: str) -> bool:
    if text.isdecimal():
        return 1 <= int(text) <= signal.SIGRTMAX
    name = text.upper().removeprefix("SIG")
    if found := re.fullmatch(r"RTMIN\+(\d{1,2})|RTMAX-(\d{1,2})", name, re.ASCII):
        return int(found[1] or found[2]) <= signal.SIGRTMAX - signal.SIGRTMIN
    return f"SIG{name}" in signal.Signals.__members__


def _time(statement: Statement, name: str, text: str | None) -> int:
    """Nanoseconds, of a duration as Go writes it: 30s, 1m30s, 1.5h."""
    if not text:
        return 0
    time = _nanoseconds(text)
    if time is None or (time and not SHORTEST <= time < 2**63):
        raise statement.wrong(f"--{name.replace('_', '-')}={text}: a time is a number with its unit, as in 30s, 1m30s or 500ms, and at least 1ms")
    return time


def _nanoseconds(text: str) -> int | None:
    if not _DURATION.fullmatch(text):
        return None
    parts = re.findall(rf"([\d.]+)({'|'.join(UNITS)})", text)
    return int(sum(Fraction(number.rstrip(".") or "0") * UNITS[unit] for number, unit in parts)) * (-1 if text.startswith("-") else 1)


def _count(statement: Statement, text: str | None) -> int:
    if text and not re.fullmatch("[0-9]{1,9}", text):
        raise statement.wrong(f"--retries={text}: it is a number, and 0 is docker's default")
    return int(text or 0)
