"""An image is made as a Dockerfile says, as docker's classic builder does: each instruction makes an image, on which the next one stands.

So the image of an instruction that has been carried out before is found again, and only what comes after a change is made anew.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from kernel_lab import state
from kernel_lab.cgroups.limits import Words
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.images import platforms, snapshots, store
from kernel_lab.images.build_context import Context, workplace
from kernel_lab.images.build_errors import BuildError
from kernel_lab.images.build_output import Output, Write, automatic
from kernel_lab.images.build_stage import Work
from kernel_lab.images.build_stages import Fetch, Options, Stages, Step
from kernel_lab.images.descriptor import Platform
from kernel_lab.images.dockerfile import Dockerfile
from kernel_lab.images.image import Image
from kernel_lab.images.reference import Reference
from kernel_lab.images.store import Store
from kernel_lab.kernel.table import Table
from kernel_lab.namespaces.net import Net

__all__ = ["Build", "BuildError", "Step", "build"]

ALONE = Net()


class _Row(NamedTuple):
    step: int
    instruction: str
    cache: str
    seconds: str
    layer: str
    image: str


@dataclass(frozen=True)
class Build:
    """An image, and how it came to be. Prints as a table of its steps."""

    image: Image
    steps: tuple[Step, ...]

    @property
    def table(self) -> Table[_Row]:
        """The steps in words."""
        return Table(_row(number, step) for number, step in enumerate(self.steps, 1))

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def build(
    context: str | Path | Context | None = None,
    kept: Store | None = None,
    tags: Iterable[str] = (),
    *,
    dockerfile: str | Path | Dockerfile | None = None,
    args: Mapping[str, str] | None = None,
    target: str | None = None,
    platform: str | Platform | None = None,
    labels: Mapping[str, str] | None = None,
    cache: bool = True,
    fetch: Fetch | None = None,
    pull: bool = False,
    network: Net | None = ALONE,
    limits: Words | None = None,
    secrets: Mapping[str, bytes] | None = None,
    output: Output | Write | TextIO | None = None,
) -> Build:
    """The image of a Dockerfile: of the one in the directory `context`, or of another, by its path or read already.

    kept: the store; without one, the user's own. tags: the image's names. args: for ARG. target: a stage. labels: added at the end.
    cache: what has been made before is taken. fetch: is called with the name and platform of a base image that the store has not, and puts it there;
    `pull`: of every one, since there may be a newer one.
    network: of every RUN; without one a loopback alone, and None is this machine's own. limits: of every RUN, as Cgroup has them.
    secrets: for `RUN --mount=type=secret`, by their ids. output: a stream, or a function that is given pieces of text.
    Raises UsageError or BuildError, with file, line and instruction; then nothing is left but the images of the steps before, as cache.
    """
    names = tuple(map(Reference.parse, tags))
    asked = platforms.parse(platform) if isinstance(platform, str) else platform
    found = context if isinstance(context, Context) else Context.read(context, dockerfile)
    options = Options(args or {}, target, asked, labels or {}, fetch, pull)
    group = Cgroup(**limits) if limits else None
    told = output if isinstance(output, Output) else automatic() if output is None else Output(output)
    with ExitStack() as until:
        until.callback(told.close)
        work = _work(kept or store.local(), found, told, until)
        work.uses_cache, work.network, work.group, work.secrets = cache, network, group, secrets or {}
        stages = Stages(found.dockerfile, options, work)
        image = stages.image()
        for name in names:
            image.store.tag(image.descriptor, name)
        _tell(told, image, names, stages.unused())
        return Build(image, tuple(stages.steps))


def _work(kept: Store, context: Context, output: Output, until: ExitStack) -> Work:
    """What the stages share."""
    directory = workplace(kept)
    until.callback(state.discard, directory)
    adding = until.enter_context(kept.adding(tidy=True))
    return Work(adding, snapshots.beside(kept), until, output, directory, directory.parent.with_name("caches"), context.tree())


def _tell(output: Output, image: Image, names: Iterable[Reference], unused: list[str]) -> None:
    if unused:
        output.line(f"[Warning] One or more build-args {unused} were not consumed")
    output.line(f"Successfully built {image.short_id}")
    for name in names:
        output.line(f"Successfully tagged {name.familiar}")


def _row(number: int, step: Step) -> _Row:
    layer = "" if step.layer is None else f"{step.layer} B"
    return _Row(number, step.instruction, "hit" if step.cached else "", f"{step.seconds:.3f}", layer, step.image.short_id if step.image else "")
