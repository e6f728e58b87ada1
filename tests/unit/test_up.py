"""./lab up: the address that it prints is open to who has the token, and to nobody else; its notebooks are trusted."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from jupyter_core.paths import jupyter_runtime_dir
from nbformat.sign import NotebookNotary

from kernel_lab.course import up

ROOT = Path(__file__).parents[2]


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "XDG_", "DISPLAY", "WAYLAND"))}
    return kept | {"HOME": str(home)}


@contextmanager
def started(home: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "kernel_lab.course.up", *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            yield server
        finally:
            server.terminate()


def status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=240) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_the_printed_address_is_open_with_its_token_alone(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        assert server.stdout
        address = next((found[0] for line in server.stdout if (found := re.search(r"http\S+", line))), "")
        place, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+/)lab/tree/labs/00_start\.ipynb\?token=([0-9a-f]{48})", address).groups()  # type: ignore[union-attr]
        assert status(address) == 200
        assert status(f"{place}api/contents/labs?token={token}") == 200
        assert status(f"{place}api/contents/labs") == 403
        server.send_signal(signal.SIGINT)
        assert server.wait(240) == 0


@pytest.mark.slow
def test_a_port_that_is_asked_for_and_taken_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with started(tmp_path, "--port", str(port)) as server:
            said, _ = server.communicate(timeout=240)
            assert server.returncode == 1
            assert f"port {port} is not available" in said


def test_what_has_been_trusted_opens_with_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    picture = nbformat.v4.new_output("display_data", {"text/html": "<b>1</b>"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[picture])])
    ours, other = tmp_path / "ours.ipynb", tmp_path / "other.ipynb"
    for path in (ours, other):
        notebook.cells[0].source = path.name
        nbformat.write(notebook, path)
    up.trust([ours])
    with NotebookNotary() as notary:
        assert [notary.check_signature(nbformat.read(path, as_version=4)) for path in (ours, other)] == [True, False]


def test_kernels_get_their_sockets_below_a_home_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(long))
    with up.short_sockets():
        place = Path(jupyter_runtime_dir())
        assert place.stat().st_mode & 0o077 == 0
        with socket.socket(socket.AF_UNIX) as kernel:
            kernel.bind(f"{place}{up.SOCKET_NAME}")
    assert not place.exists()


def test_a_short_home_keeps_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", "/tmp/short")
    with up.short_sockets():
        assert jupyter_runtime_dir() == "/tmp/short"
