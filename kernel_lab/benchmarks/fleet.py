"""`klab bench layers`: many containers on one root, each of which may write: by overlay, by AUFS, by copies, and by copies that share blocks.

Measured for a fleet as a whole: how long it takes until all of them run, what they occupy on disk beside the root that they began with, and how
much of the page cache a file takes that all of them read.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from kernel_lab import rootfs, state
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.benchmarks.machine import machine
from kernel_lab.benchmarks.report import Report, Row
from kernel_lab.container import Container
from kernel_lab.kernel import pagecache
from kernel_lab.kernel.errors import UsageError
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.root import Directory, Root
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS
from kernel_lab.unionfs.aufs import Aufs
from kernel_lab.unionfs.branches import Branch
from kernel_lab.unionfs.overlay import Overlay

COUNT = 20
DATA, SIZE = "data", 16 << 20  # a file that makes the root as large as a small image
MEGABYTE = 1 << 20

Way = Callable[[Path, Path], Root]  # the root of one container, from what all begin with and a directory of its own


def overlay(base: Path, own: Path) -> Root:
    return Overlay(base, upper=own)


def aufs(base: Path, own: Path) -> Root:
    return Aufs(Branch(str(own), "rw"), Branch(str(base), "ro"))


def copy(base: Path, own: Path) -> Root:
    return _copied(base, own, "auto")


def reflink(base: Path, own: Path) -> Root:
    return _copied(base, own, "always")


WAYS: dict[str, Way] = {"overlay": overlay, "AUFS on FUSE": aufs, "full copy": copy, "reflink copy": reflink}
FLOOR = "overlay"


def _copied(base: Path, own: Path, reflink: str) -> Root:
    how = "never" if reflink == "auto" else reflink
    done = subprocess.run(["cp", "-a", f"--reflink={how}", f"{base}/.", own], capture_output=True, text=True)
    if done.returncode:
        raise Absent(done.stderr.strip().splitlines()[0])
    return Directory(str(own))


@dataclass(frozen=True)
class Cost:
    """What a fleet took: seconds until all ran; bytes on disk beside the base; bytes of page cache for a file that all have read."""

    seconds: float
    disk: int
    cache: int


@contextmanager
def base() -> Iterator[Path]:
    """A root for all of them to begin with: busybox, and a file of 16 MB."""
    with tempfile.TemporaryDirectory(prefix=f"fleet-{state.Creator.this().stamp}-", dir=state.data_dir()) as folder:
        root = shutil.copytree(rootfs.busybox(), Path(folder, "base"), symlinks=True)
        (root / DATA).write_bytes(os.urandom(SIZE))
        os.chmod(folder, 0o755)
        yield root


@contextmanager
def deployed(way: Way, root: Path, count: int = COUNT) -> Iterator[tuple[list[Container], Path, float]]:
    """`count` running containers on one root, the directory that holds what is their own, and the seconds that it took."""
    with ExitStack() as made:
        folder = made.enter_context(tempfile.TemporaryDirectory(prefix=f"fleet-{state.Creator.this().stamp}-", dir=state.data_dir()))
        os.chmod(folder, 0o755)
        begin = perf_counter()
        boxes = [made.enter_context(_started(way, root, Path(folder, str(number)))) for number in range(count)]
        yield boxes, Path(folder), perf_counter() - begin


def _started(way: Way, root: Path, own: Path) -> Container:
    own.mkdir()
    users = () if os.geteuid() == 0 else (User(),)
    return Container(*users, UTS(f"box{own.name}"), PID(), Mount(way(root, own))).start("sleep", "3600")


def cost(way: Way, root: Path, count: int = COUNT) -> Cost:
    """Deploys a fleet, has every container's copy of the large file read, and looks at disk and page cache."""
    with deployed(way, root, count) as (boxes, folder, seconds):
        files = [f"/proc/{box.pid}/root/{DATA}" for box in boxes]
        for file in (str(root / DATA), *files):
            pagecache.forget(file)
        before = pagecache.cached()
        for file in files:
            Path(file).read_bytes()
        return Cost(seconds, occupied(folder), pagecache.cached() - before)


def occupied(folder: Path) -> int:
    """Bytes on disk of all files below, each counted once however many names it has (st_blocks, stat(2))."""
    seen: dict[tuple[int, int], int] = {}
    for directory, names, files in os.walk(folder):
        for name in (*names, *files):
            status = os.lstat(os.path.join(directory, name))
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def measure(rounds: int = 3, count: int = COUNT) -> Report:
    """Deploys a fleet of `count` containers `rounds` times in each way. Raises UsageError for less than one of either."""
    if rounds < 1 or count < 1:
        raise UsageError(f"rounds={rounds}, count={count}: at least one of each")
    with base() as root:
        found = {who: _costs(way, root, rounds, count) for who, way in WAYS.items()}
    case = f"{count} containers on one root"
    times = {who: [one.seconds * 1000 for one in costs] for who, costs in found.items() if not isinstance(costs, str)}
    rows = tuple(_row(case, who, costs, times) for who, costs in found.items())
    return Report(rows, rounds, machine({}), {(case, who): some for who, some in times.items()}, {})


def _costs(way: Way, root: Path, rounds: int, count: int) -> Sequence[Cost] | str:
    try:
        return [cost(way, root, count) for _ in range(rounds)]
    except (Absent, UsageError, OSError) as error:
        return str(error)


def _row(case: str, who: str, costs: Sequence[Cost] | str, times: dict[str, list[float]]) -> Row:
    if isinstance(costs, str):
        return Row(case, who, note=costs)
    last = costs[-1]
    facts = {"disk_mb": round(last.disk / MEGABYTE, 1), "page_cache_mb": round(last.cache / MEGABYTE, 1)}
    note = f"{facts['disk_mb']} MB on disk, {facts['page_cache_mb']} MB of page cache"
    return Row.of(case, who, times[who], times.get(FLOOR, ()), note, facts)
