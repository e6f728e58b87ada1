"""How fast a registry takes and gives a large blob, and in how much memory: ours, and beside it docker's own, as Debian packages it.

The client is this process, with as little of its own as possible: sendfile(2) for the push, one buffer for the pull. Both registries write to the
same disk, and a push has ended when the registry says so.
"""

import hashlib
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import NamedTuple

from kernel_lab import state
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.benchmarks.machine import machine
from kernel_lab.benchmarks.report import Report, Row
from kernel_lab.kernel.errors import UsageError

SIZE = 1 << 30
MEGABYTE = 1 << 20
PATIENCE = 20.0
OURS, DOCKERS = "kit", "docker-registry"
PUSH, PULL = "push", "pull"
CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{folder}"}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Peer(NamedTuple):
    """A registry that serves: its process, and its port on loopback."""

    pid: int
    port: int

    def peak(self) -> int:
        """The most memory that it has had, in bytes (VmHWM, proc_pid_status(5))."""
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found
        return int(found[1]) << 10


Started = Callable[[Path], AbstractContextManager[Peer]]


@contextmanager
def ours(folder: Path) -> Iterator[Peer]:
    """Our registry, in a process of its own."""
    command = [sys.executable, "-m", "kernel_lab.cli", "registry", "serve", "--quiet", "--port", "0", "--data", str(folder / "ours")]
    with _process(command) as process:
        assert process.stderr
        said = process.stderr.readline()
        if not (found := re.search(r":(\d+)$", said.strip())):
            raise RuntimeError(f"our registry has not started: {said}{process.stderr.read()}")
        yield Peer(process.pid, int(found[1]))


@contextmanager
def dockers(folder: Path) -> Iterator[Peer]:
    """docker's registry. Raises Absent where it is not installed."""
    if (program := shutil.which(DOCKERS)) is None:
        raise Absent(f"not installed: apt-get install {DOCKERS}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "config.yml"
    config.write_text(CONFIG.format(folder=folder / "dockers", port=port))
    with _process([program, "serve", str(config)]) as process:
        _wait_for(port, process)
        yield Peer(process.pid, port)


CONTESTANTS: Mapping[str, Started] = {DOCKERS: dockers, OURS: ours}


def push(peer: Peer, repository: str, blob: Path, digest: str) -> None:
    """A blob in one request, and one more that names its digest."""
    place = _answer(peer, "POST", f"/v2/{repository}/blobs/uploads/", 202).headers["Location"]
    path = _path(place)
    with socket.create_connection(("127.0.0.1", peer.port)) as connection, open(blob, "rb") as file:
        size = blob.stat().st_size
        head = f"PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n"
        connection.sendall(head.encode())
        connection.sendfile(file)
        answer = HTTPResponse(connection)
        answer.begin()
        if answer.status != 202:
            raise RuntimeError(f"PATCH {path}: {answer.status}: {answer.read(1000)!r}")
    path = _path(answer.headers["Location"])
    _answer(peer, "PUT", f"{path}{'&' if '?' in path else '?'}digest={digest}", 201)


def pull(peer: Peer, repository: str, size: int, digest: str) -> None:
    """A blob, of which nothing is kept."""
    connection = HTTPConnection("127.0.0.1", peer.port)
    try:
        connection.request("GET", f"/v2/{repository}/blobs/{digest}")
        answer = connection.getresponse()
        buffer = bytearray(MEGABYTE)
        total = 0
        while count := answer.readinto(buffer):
            total += count
        if (answer.status, total) != (200, size):
            raise RuntimeError(f"GET: {answer.status}, {total} bytes instead of {size}")
    finally:
        connection.close()


def measure(rounds: int = 3, size: int = SIZE) -> Report:
    """Pushes a blob of `size` bytes and pulls it, `rounds` times in turns. Raises UsageError for less than one of either."""
    if rounds < 1 or size < 1:
        raise UsageError(f"rounds={rounds}, size={size}: at least one of each")
    folder = Path(tempfile.mkdtemp(prefix=f"registry-{state.Creator.this().stamp}-", dir=state.data_dir()))
    try:
        blob, digest = _blob(folder, size)
        times: dict[tuple[str, str], list[float]] = {}
        peaks: dict[str, list[int]] = {}
        absent: dict[str, str] = {}
        for number in range(rounds):
            for who, started in CONTESTANTS.items():
                try:
                    _round(who, started, folder / f"{number}", blob, digest, times, peaks)
                except Absent as error:
                    absent[who] = str(error)
        rows = [_row(case, who, times, peaks, absent, size) for case in (PUSH, PULL) for who in CONTESTANTS]
        return Report(tuple(rows), rounds, machine({}), times)
    finally:
        state.discard(folder)


def bench_registry(rounds: int = 3, as_json: bool = False, size: int = SIZE) -> int:
    """Measures and prints."""
    report = measure(rounds, size)
    print(report.json() if as_json else report)
    return 0


def _round(
    who: str,
    started: Started,
    folder: Path,
    blob: Path,
    digest: str,
    times: dict[tuple[str, str], list[float]],
    peaks: dict[str, list[int]],
) -> None:
    folder.mkdir()
    try:
        with started(folder) as peer:
            os.sync()  # what the one has written is not to be the other's to wait for
            moments = [time.perf_counter()]
            push(peer, "bench", blob, digest)
            moments.append(time.perf_counter())
            pull(peer, "bench", blob.stat().st_size, digest)
            moments.append(time.perf_counter())
            for case, begin, end in zip((PUSH, PULL), moments, moments[1:], strict=False):
                times.setdefault((case, who), []).append((end - begin) * 1000)
            peaks.setdefault(who, []).append(peer.peak())
    finally:
        state.discard(folder)


def _row(
    case: str,
    who: str,
    times: Mapping[tuple[str, str], list[float]],
    peaks: Mapping[str, list[int]],
    absent: Mapping[str, str],
    size: int,
) -> Row:
    if who in absent:
        return Row(case, who, note=absent[who])
    own = times[case, who]
    speed, memory = size / MEGABYTE / statistics.median(own) * 1000, max(peaks[who]) / MEGABYTE
    note = f"{speed:.0f} MB/s, at most {memory:.0f} MB of memory"
    return Row.of(case, who, own, times.get((case, DOCKERS), ()), note, {"mb_per_s": round(speed, 1), "peak_mb": round(memory, 1)})


def _blob(folder: Path, size: int) -> tuple[Path, str]:
    path, hashed = folder / "blob", hashlib.sha256()
    with open(path, "wb") as file:
        left = size
        while left:
            piece = os.urandom(min(left, MEGABYTE))
            left -= len(piece)
            hashed.update(piece)
            file.write(piece)
    return path, f"sha256:{hashed.hexdigest()}"


@contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > end:
                raise Absent(f"{DOCKERS} does not serve") from None
            time.sleep(0.02)


def _answer(peer: Peer, method: str, path: str, status: int) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", peer.port)
    try:
        connection.request(method, path, headers={"Content-Length": "0"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != status:
            raise RuntimeError(f"{method} {path}: {answer.status}: {said[:1000]!r}")
        return answer
    finally:
        connection.close()


def _path(location: str) -> str:
    # docker's registry answers with the whole address.
    return re.sub("^https?://[^/]+", "", location)
