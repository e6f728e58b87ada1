"""The loop: machine code that runs a table of system calls in a new process which may touch neither a stack nor Python.

`START` is entered as a C function, in the creator:

    long start(struct clone_args *args, size_t size, void *first_row, uint64_t *all_signals, uint64_t *old_mask)

It blocks `all_signals`, calls clone3, restores the mask, and returns clone3's answer: the child's pid, or a negative errno. The child walks the
rows from `first_row` on and never returns. `WALK` is `void walk(void *first_row)`: the child's half alone, which ends the process that calls it.
"""

from kernel_lab.kernel.loop import aarch64, x86_64
from kernel_lab.kernel.loop.listing import Listing, assemble, labels, show

LISTINGS: dict[str, Listing] = {"x86_64": x86_64.LISTING, "aarch64": aarch64.LISTING}
MACHINES = tuple(LISTINGS)
START = {machine: labels(lines)["start"] for machine, lines in LISTINGS.items()}
WALK = {machine: labels(lines)["walk"] for machine, lines in LISTINGS.items()}


def code(machine: str) -> bytes:
    """The loop's bytes for a machine as `platform.machine()` names it; they may be placed at any address."""
    return assemble(LISTINGS[machine])


def listing(machine: str) -> str:
    """The loop as a table for the eye."""
    return show(LISTINGS[machine])
