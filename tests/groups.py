"""What tests of control groups share: which controllers the machine has, and its own tree of version 2 put back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBUSY
from pathlib import Path

import pytest

from kernel_lab.cgroups import hierarchies


def wants(*names: str) -> None:
    """Skips where the machine has none of these controllers."""
    if not any(map(hierarchies.find, names)):
        pytest.skip(f"needs the controller {' or '.join(names)}: {hierarchies.missing(names[0])}")


@contextmanager
def handed_on(*names: str) -> Iterator[list[str]]:
    """The topmost group of version 2 hands these controllers on, as far as it has them; at the end, only those that it did before.

    The kit itself leaves them: somebody else may have a limit by then. So may another run of the tests, and then they stay, too.
    """
    unified = hierarchies.unified()
    if unified is None:
        yield []
        return
    file = Path(unified.point, "cgroup.subtree_control")
    before = file.read_text().split()
    chosen = [name for name in names if name in unified.controllers]
    for name in chosen:
        file.write_text(f"+{name}")
    yield chosen
    for name in set(file.read_text().split()) - set(before):
        try:
            file.write_text(f"-{name}")
        except OSError as error:
            if error.errno != EBUSY:
                raise
