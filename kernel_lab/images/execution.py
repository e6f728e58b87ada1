"""What a container of an image runs: the image's settings, and what its caller says instead (config.md; docker run)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kernel_lab.images.image import Image
from kernel_lab.kernel.errors import UsageError


@dataclass(frozen=True)
class Execution:
    """The words of a command, and what it is given, as `Container.run` takes them. `cwd`: made where it is missing."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None


def execution(
    image: Image,
    words: Sequence[str] = (),
    *,
    entrypoint: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
) -> Execution:
    """The image's entrypoint with these words, or without any with its own; whatever is given takes the place of the image's.

    `entrypoint`: one program; then the image's own words are not for it. An empty one takes the image's away. Raises UsageError when nothing is
    left to be run.
    """
    settings = image.config.config
    own = tuple(settings.get("Entrypoint") or ())
    first = own if entrypoint is None else (entrypoint,) if entrypoint else ()
    argv = (*first, *(words or (settings.get("Cmd") or () if entrypoint is None else ())))
    if not argv:
        raise UsageError(f"{image}: it does not say what a container runs; write a command behind its name")
    variables = dict(_variable(image, text) for text in settings.get("Env") or ())
    return Execution(argv, variables | dict(env or {}), cwd or settings.get("WorkingDir") or None, user or settings.get("User") or None)


def _variable(image: Image, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"{image}: its environment has {text!r}, which is no NAME=VALUE (config.md)")
    return name, value
