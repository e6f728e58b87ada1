"""A Dockerfile, read: its parser directives, the ARGs before its first FROM, and its stages with their instructions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kernel_lab.images import instructions, statements
from kernel_lab.images.instructions import Arg, Copy, From, Instruction, Onbuild
from kernel_lab.kernel.errors import UsageError

NAME = "Dockerfile"


@dataclass(frozen=True)
class Stage:
    """A FROM, and what comes before the next one. number: from 0."""

    number: int
    base: From
    instructions: tuple[Instruction, ...]

    @property
    def name(self) -> str | None:
        """In lower case; None: it has its number alone."""
        return self.base.alias


@dataclass(frozen=True)
class Dockerfile:
    """name: as errors call it. directives: syntax, escape and check, where they are there. args: those before the first FROM."""

    name: str
    directives: Mapping[str, str]
    args: tuple[Arg, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def parse(cls, text: str, name: str = NAME) -> "Dockerfile":
        """Raises UsageError, which names file, line and instruction: `Dockerfile:7: COPY: …`."""
        directives, found = statements.read(text, name)
        args: list[Arg] = []
        stages: list[tuple[From, list[Instruction]]] = []
        for instruction in map(instructions.read, found):
            if isinstance(instruction, From):
                stages.append((instruction, []))
            elif stages:
                stages[-1][1].append(instruction)
            elif isinstance(instruction, Arg):
                args.append(instruction)
            else:
                raise instruction.wrong("it stands before the first FROM, where only ARG can")
        if not stages:
            raise UsageError(f"{name}: no FROM is in it; the first instruction is FROM, as in FROM busybox")
        return cls(name, directives, tuple(args), tuple(Stage(number, base, tuple(rest)) for number, (base, rest) in enumerate(stages)))

    @classmethod
    def read(cls, path: Path, name: str | None = None) -> "Dockerfile":
        """The same, from a file. What is no UTF-8 in it stays the bytes that it was (os.fsencode)."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}; say with -f where the Dockerfile is") from error
        return cls.parse(content.decode("utf-8", "surrogateescape"), name or path.name)

    def target(self, text: str | None) -> Stage:
        """The stage of a name or number, as `--target` has it; without one, the last."""
        if text is None:
            return self.stages[-1]
        if found := self._called(text):
            return found
        names = ", ".join(stage.name or str(stage.number) for stage in self.stages)
        raise UsageError(f"--target={text}: {self.name} has no such stage; it has {names}")

    def before(self, stage: Stage, image: str) -> Stage | None:
        """The earlier stage that a FROM means by a name. None: it is an image."""
        # Of two stages with one name the later counts.
        return next((earlier for earlier in reversed(self.stages[: stage.number]) if earlier.name == image.lower()), None)

    def origin(self, stage: Stage, copy: Copy) -> Stage | None:
        """The stage that a COPY in `stage` copies from. None: its origin is an image, or it has none. Raises UsageError for a later stage."""
        if copy.origin is None:
            return None
        if found := self.before(stage, copy.origin):
            return found
        found = self._called(copy.origin)
        if found is None and copy.origin.isdecimal() and copy.origin.isascii():
            raise copy.wrong(f"--from={copy.origin}: the stages are numbered from 0 to {len(self.stages) - 1}")
        if found and found.number >= stage.number:
            raise copy.wrong(f"--from={copy.origin}: this stage is not built yet; one can copy from those before")
        return found

    def _called(self, text: str) -> Stage | None:
        if text.isdecimal() and text.isascii():
            return next((stage for stage in self.stages if stage.number == int(text)), None)
        return next((stage for stage in reversed(self.stages) if stage.name == text.lower()), None)


def triggers(expressions: Iterable[str], base: From) -> tuple[Instruction, ...]:
    """The instructions that a base image has for those who build upon it (OnBuild in its configuration). Errors name the FROM that brings them."""
    return tuple(_trigger(expression, base) for expression in expressions)


def _trigger(expression: str, base: From) -> Instruction:
    where = f"{base.statement.file}:{base.line}: ONBUILD of {base.image}"
    _, found = statements.read(expression, where)
    if len(found) != 1:
        raise base.wrong(f"{base.image}: ONBUILD {expression!r} is not one instruction; this image cannot be built upon")
    statement = replace(found[0], file=base.statement.file, line=base.line, last=base.statement.last)
    instruction = instructions.read(statement)
    if isinstance(instruction, From | Onbuild | instructions.Maintainer):
        raise base.wrong(f"{base.image}: ONBUILD {instruction.keyword} cannot be; this image cannot be built upon")
    return instruction
