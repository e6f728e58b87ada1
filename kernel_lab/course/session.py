"""What the cells of a lab use, under one import: `lab` first, `audit` last, and between them `check`, `predict`, `fails`, `peer`, `user`."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kernel_lab import state
from kernel_lab.container import Container
from kernel_lab.course.exercises import check, yours
from kernel_lab.course.needs import missing
from kernel_lab.course.oci import crun
from kernel_lab.course.peers import peer
from kernel_lab.course.pictures import Box, Link, boxes, rows, side_by_side
from kernel_lab.course.predictions import predict
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.snapshot import Snapshot, snapshot
from kernel_lab.namespaces.part import Part
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS

__all__ = ["Box", "Link", "audit", "boxes", "check", "crun", "fails", "lab", "peer", "predict", "rows", "side_by_side", "user", "yours"]

PATIENCE = 20.0  # seconds that the kernel gets to finish what it does after the last process of a namespace is gone
_begun: list[tuple[str, Snapshot]] = []


def lab(number: str, *needs: str) -> None:
    """Say in one line that the lab can run here, and remember what the machine holds now for `audit`."""
    absent = missing(*needs)
    if absent:
        raise UsageError(f"lab {number} cannot run here: " + "; ".join(f"{need} is missing ({mend})" for need, mend in absent.items()))
    start_one()
    _be_ready_for_large_outputs()
    _begun[:] = [(number, snapshot(state.run_path()))]
    print(f"Lab {number}: what it needs is here. Containers start {'as root' if os.geteuid() == 0 else 'rootless'}.")


def start_one() -> None:
    """Raises what the kernel says where no container can start. Besides, a creator opens a few files with its first container and keeps them."""
    for part in (UTS("first"), PID(init=True)):
        Container(*user(), part).run("true")


def _be_ready_for_large_outputs() -> None:
    """The first one of 64 KB makes a notebook's messaging start a thread, which keeps files open to the end (pyzmq's copy_threshold)."""
    if zmq := sys.modules.get("zmq"):
        zmq.Frame(bytes(zmq.COPY_THRESHOLD), copy=False)


def audit(patience: float = PATIENCE) -> None:
    """Assert that nothing is left of what the lab made in the kernel and on disk since `lab`."""
    if not _begun:
        raise UsageError("audit() compares with what lab() saw: run the lab's first code cell before it")
    number, before = _begun[0]
    gc.collect()  # what a cell has lost hold of may still keep a descriptor open
    leaks = before.leaks(patience)
    if leaks.unsure:  # another notebook's containers have their records in the same folder
        leaks = before.leaks(patience, but=("record",))
    if leaks:
        raise AssertionError(f"lab {number} left something behind (klab cleanup finds it):\n{leaks}")
    print("Nothing is left: no namespace, process, control group, mount, link, rule, open descriptor or record.")


def user() -> tuple[Part, ...]:
    """The parts that let an ordinary user start containers; none as root: `Container(*user(), UTS("box"))`."""
    return () if os.geteuid() == 0 else (User(),)


@contextmanager
def fails(*errors: type[Exception]) -> Iterator[None]:
    """The block fails on purpose: print the error in one line; if it does not fail, say so with an AssertionError."""
    expected = errors or (KernelError, UsageError)
    try:
        yield
    except expected as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}")
    else:
        raise AssertionError("this was to fail on purpose, and it did not")
