"""The stages of a Dockerfile that a target needs, in their order, and what each stands on."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kernel_lab.images import build_mounts, platforms, scope
from kernel_lab.images.build_errors import placed
from kernel_lab.images.build_stage import Building, Work
from kernel_lab.images.descriptor import Platform
from kernel_lab.images.dockerfile import Dockerfile, Stage, triggers
from kernel_lab.images.image import Image
from kernel_lab.images.instructions import Copy, From, Instruction, Label, Run
from kernel_lab.images.statements import Statement
from kernel_lab.images.tree import Tree
from kernel_lab.kernel.errors import UsageError

SCRATCH = "scratch"

Fetch = Callable[[str, Platform | None], object]


class Step(NamedTuple):
    """What has become of an instruction. seconds: it took; layer: bytes of the layer that it has made, as it travels; image: so far."""

    instruction: str
    cached: bool
    seconds: float
    layer: int | None
    image: Image | None


@dataclass(frozen=True)
class Options:
    """What is asked for besides the context. fetch: brings a base image into the store that it has not, or with `pull` in any case."""

    args: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    platform: Platform | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    fetch: Fetch | None = None
    pull: bool = False


class Stages:
    """A Dockerfile while it is carried out."""

    def __init__(self, file: Dockerfile, options: Options, work: Work) -> None:
        self._file = file
        self._options = options
        self._work = work
        work.files = self.files
        self._target = file.target(options.target)
        self._platform = options.platform or platforms.here()
        self._scope = scope.first(file.args, options.args, scope.predefined(self._platform, platforms.here(), options.target))
        self._needed = sorted(self._needs(self._target, {}).values(), key=lambda stage: stage.number)
        self._count = len(file.args) + sum(1 + len(self._instructions(stage)) for stage in self._needed)
        self._built: dict[int, Building] = {}
        self.steps: list[Step] = []

    def image(self) -> Image:
        """That of the target, once all is carried out."""
        for arg in self._file.args:
            self._begin(arg)
            self.steps.append(Step(arg.source, False, 0.0, None, None))
        for stage in self._needed:
            self._build(stage)
        image = self._built[self._target.number].image
        if image is None:
            raise self._target.base.wrong("nothing comes after it, and an image of nothing is none; COPY something")
        return image

    def unused(self) -> list[str]:
        """The arguments that no ARG has asked for."""
        declared = set(self._scope.declared).union(*(building.scope.declared for building in self._built.values()))
        return sorted(name for name in self._options.args if name not in declared and name.upper() not in scope.PROXIES)

    def files(self, stage: Stage, instruction: Instruction, name: str) -> Tree:
        """The files of an earlier stage or an image, as `--from` names them."""
        if found := self._origin(stage, instruction, name):
            return self._work.tree(self._building(found).image)
        return self._work.tree(self._find(name, None))

    def _needs(self, stage: Stage, found: dict[int, Stage]) -> dict[int, Stage]:
        """The stage, and those that it takes something of."""
        found[stage.number] = stage
        others = [self._base(stage)[1], *(self._origin(stage, *pair) for pair in _origins(stage))]
        for other in filter(None, others):
            if other.number not in found:
                self._needs(other, found)
        return found

    def _origin(self, stage: Stage, instruction: Instruction, name: str) -> Stage | None:
        return self._file.origin(stage, Copy(instruction.statement, (), "/", origin=name))

    def _base(self, stage: Stage) -> tuple[From, Stage | None]:
        base = stage.base.expanded(self._scope.variables)
        return base, self._file.before(stage, base.image)

    def _instructions(self, stage: Stage) -> tuple[Instruction, ...]:
        """With one more for the labels that the command line gives the target, as docker has it."""
        labels = self._options.labels if stage == self._target else {}
        if not labels:
            return stage.instructions
        text = " ".join(f'"{name}"="{value}"' for name, value in labels.items())
        statement = Statement("--label", 0, 0, f"LABEL {text}", "LABEL", (), text)
        return (*stage.instructions, _Given(statement, tuple(labels.items())))

    def _begin(self, instruction: Instruction) -> None:
        self._work.output.step(len(self.steps) + 1, self._count, instruction.source)

    def _building(self, stage: Stage) -> Building:
        # What an image says with ONBUILD is seen only when that image is there.
        return self._built[stage.number] if stage.number in self._built else self._build(stage)

    def _build(self, stage: Stage) -> Building:
        self._begin(stage.base)
        started = time.monotonic()
        with placed(stage.base):
            building = self._started(stage)
        self.steps.append(Step(stage.base.source, False, time.monotonic() - started, None, building.image))
        self._work.output.arrow(building.image.short_id if building.image else "")
        self._triggered(stage, building)
        for instruction in self._instructions(stage):
            self._begin(instruction)
            self._carry_out(instruction, building)
        self._built[stage.number] = building
        return building

    def _started(self, stage: Stage) -> Building:
        base, below = self._base(stage)
        if below:
            earlier = self._building(below)
            return Building(self._work, stage, earlier.image, earlier.platform, earlier.scope.inherited())
        platform = platforms.parse(base.platform) if base.platform else self._options.platform
        image = None if base.image.lower() == SCRATCH else self._find(base.image, platform)
        building = Building(self._work, stage, image, platform or self._platform, self._scope.stage({}))
        building.scope.variables.update(building.environment)
        return building

    def _find(self, name: str, platform: Platform | None) -> Image:
        store, fetch = self._work.adding.store, self._options.fetch
        try:
            if fetch and self._options.pull:
                fetch(name, platform)
            image = Image.find(store, name, platform)
        except UsageError:
            if not fetch or self._options.pull:
                raise
            fetch(name, platform)
            image = Image.find(store, name, platform)
        if not self._work.adding.keep(image.descriptor):
            raise UsageError(f"{name}: not all that it is made of is in the store any more; fetch it again")
        return image

    def _triggered(self, stage: Stage, building: Building) -> None:
        """What the base image has for those who build upon it."""
        if found := triggers(building.triggers, stage.base):
            self._work.output.line(f"# Executing {len(found)} build trigger{'s' if len(found) > 1 else ''}")
            for instruction in found:
                self._carry_out(instruction, building)

    def _carry_out(self, instruction: Instruction, building: Building) -> None:
        started, before = time.monotonic(), building.image
        with placed(instruction):
            cached = building.step(instruction)
        count = len(before.layers) if before else 0
        new = building.image.layers[count:] if building.image else ()
        size = sum(layer.blob.size for layer in new) if new else None
        self.steps.append(Step(instruction.source, cached, time.monotonic() - started, size, building.image))


@dataclass(frozen=True)
class _Given(Label):
    """LABEL from the command line: nothing in it is a variable."""

    def expanded(self, variables: Mapping[str, str]) -> "_Given":
        return self


def _origins(stage: Stage) -> list[tuple[Instruction, str]]:
    """The stages and images that are named in a stage; of a mount, where no variable is in its name."""
    found: list[tuple[Instruction, str]] = []
    for instruction in stage.instructions:
        if isinstance(instruction, Copy) and instruction.origin:
            found.append((instruction, instruction.origin))
        elif isinstance(instruction, Run):
            found += [(instruction, name) for text in instruction.mounts if (name := build_mounts.origin(instruction, text))]
    return found
