"""`--change`: an image's settings as a line of a Dockerfile has them."""

from collections.abc import Iterable, Mapping
from typing import Any

import click

from kernel_lab.images import build_settings
from kernel_lab.images.dockerfile import Dockerfile
from kernel_lab.images.instructions import Add, Arg, Copy, Run
from kernel_lab.images.scope import first
from kernel_lab.kernel.errors import UsageError

OPTION = click.option("--change", "-c", "lines", multiple=True, help='Other settings, as a Dockerfile has them: CMD ["httpd", "-f"].')


def changed(lines: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with these lines applied, one after the other; one that is None is to be taken away.

    Raises UsageError for a line that is none, or that makes files.
    """
    found = dict(settings)
    for line in lines:
        for instruction in Dockerfile.parse(f"FROM scratch\n{line}", f"--change {line!r}").stages[0].instructions:
            if isinstance(instruction, Add | Arg | Copy | Run):
                raise UsageError(f"--change {line!r}: {instruction.keyword} is for building; here settings alone can be changed")
            variables = first((), {}, {}).stage(build_settings.environment(found)).variables
            found |= build_settings.changed(instruction.expanded(variables), found, has_cmd=True).settings
    return found
