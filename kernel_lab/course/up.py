"""`./lab up`: JupyterLab on the first lab, with the kit's notebooks trusted and the address printed."""

import argparse
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

from jupyter_core.paths import jupyter_runtime_dir
from nbformat.sign import NotebookNotary

from kernel_lab.course.notebook import find, read

ROOT = Path(__file__).parents[2]
FIRST_LAB = "lab/tree/labs/00_start.ipynb"
# A Unix socket's path has 107 bytes at most (unix(7)); Jupyter puts this much below its runtime folder.
SOCKET_PATH = 107
SOCKET_NAME = "/kernel-00000000-0000-0000-0000-000000000000-ipc-1"


def trust(notebooks: Iterable[Path]) -> None:
    """Sign what came with the kit: Jupyter strips the pictures of a notebook that this user has neither run nor signed."""
    with NotebookNotary() as notary:
        for path in notebooks:
            notary.sign(read(path))


@contextmanager
def short_sockets() -> Iterator[None]:
    """Where the home's name is too long for the kernels' sockets, they lie in a short folder of this user's own meanwhile."""
    if len(os.fsencode(jupyter_runtime_dir() + SOCKET_NAME)) <= SOCKET_PATH:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="klab-jupyter-", dir="/tmp") as folder:
        os.environ["JUPYTER_RUNTIME_DIR"] = folder
        yield


def settings(port: int | None, token: str, *, browser: bool) -> list[str]:
    return [
        f"--ServerApp.root_dir={ROOT}",
        f"--ServerApp.default_url=/{FIRST_LAB}",
        f"--LabApp.default_url=/{FIRST_LAB}",
        "--ServerApp.ip=127.0.0.1",
        f"--IdentityProvider.token={token}",
        *([f"--ServerApp.port={port}", "--ServerApp.port_retries=0"] if port else []),
        f"--ServerApp.open_browser={browser}",
        f"--ServerApp.allow_root={os.geteuid() == 0}",
        "--ServerApp.answer_yes=True",  # one Ctrl-C is enough
        "--Application.log_level=WARN",
        # A kernel takes its commands from a Unix socket in this user's own folder, not from a TCP port that all users reach.
        "--KernelManager.transport=ipc",
        # Nothing is asked from the network.
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]


def display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lab up", description="JupyterLab on the first lab.")
    parser.add_argument("--port", type=int, help="this TCP port and no other; without it, the first free one from 8888")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    asked = parser.parse_args(argv)
    if asked.port is not None and not 1 <= asked.port <= 65535:
        parser.error(f"--port {asked.port}: ports are numbered 1 to 65535")

    trust(path for lab in find() for path in (lab.learner, lab.solved) if path.exists())
    from jupyterlab.labapp import LabApp  # slow to import: --help and a wrong option answer without it

    token = secrets.token_hex(24)
    with short_sockets():
        server = LabApp.initialize_server(settings(asked.port, token, browser=display() and not asked.no_browser))
        address = f"{urljoin(server.connection_url, FIRST_LAB)}?token={token}"
        # The server has queued its listen() there: the address is printed when it can be opened.
        server.io_loop.add_callback(print, f"\n    {address}\n\nCtrl-C ends it.", flush=True)
        server.start()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
