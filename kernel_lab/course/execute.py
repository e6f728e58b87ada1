"""Execute a notebook in memory, the way that build and run share: a kernel of its own, no ports, nothing written."""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from kernel_lab import state
from kernel_lab.course.exercises import STRICT
from kernel_lab.course.notebook import LABS, Notebook

CELL_SECONDS = 120
START_SECONDS = 120
SHORT = 60


@dataclass(frozen=True)
class Outcome:
    seconds: float
    error: str = ""  # the first cell that failed, in one line


def sockets() -> "tempfile.TemporaryDirectory[str]":
    """A folder for a kernel's Unix sockets, where `klab cleanup` finds it, if that is a short name: their path has 107 bytes at most (unix(7)).

    Not TCP: every user of the machine reaches those ports, and a port that was free when it was chosen may be taken when the kernel binds it.
    """
    place = state.run_dir()
    short = len(os.fsencode(place)) <= SHORT
    return tempfile.TemporaryDirectory(prefix=f"kernel.{state.Creator.this().stamp}.", dir=place if short else "/tmp", ignore_cleanup_errors=True)


def execute(notebook: Notebook, folder: Path, *, strict: bool, each: Callable[[], object] = lambda: None) -> Outcome:
    """Run every cell in `folder`, filling the outputs in; stop at the first that fails. `each` is called after every cell."""
    begun = time.monotonic()
    with sockets() as place:
        error = asyncio.run(_execute(_client(notebook, folder, place), strict, each))
    return Outcome(time.monotonic() - begun, error)


def _client(notebook: Notebook, folder: Path, place: str) -> NotebookClient:
    return NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=f"{place}/k"),
        timeout=CELL_SECONDS,
        startup_timeout=START_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )


async def _execute(client: NotebookClient, strict: bool, each: Callable[[], object]) -> str:
    place = "before the first cell"
    try:
        async with client.async_setup_kernel(env=_environment(strict), cleanup_kc=True):
            for index, cell in enumerate(client.nb.cells):
                place = f"cell {index + 1}"
                await client.async_execute_cell(cell, index, execution_count=client.code_cells_executed + 1)
                each()
    except CellExecutionError as error:
        return f"{place}: {error.ename}: {' '.join(error.evalue.split())}"
    except (CellTimeoutError, DeadKernelError) as error:
        return f"{place}: {' '.join(str(error).split())}"
    return ""


def _environment(strict: bool) -> dict[str, str]:
    path = [str(LABS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), STRICT: str(int(strict))}
