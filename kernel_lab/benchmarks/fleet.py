"""`klab bench layers`: many containers on one root, each of which may write: by overlay, by AUFS, by copies, and by copies that share blocks.

Measured for a fleet as a whole: how long it takes until all of them run, what they occupy on disk beside the root that they began with, and how
much of the page cache a file takes that all of them have read. What is still to be written to the disk when the last one runs is not waited for.
"""

import fcntl
import os
import shutil
import stat
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from time import perf_counter

from kernel_lab import rootfs, state
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.benchmarks.machine import machine
from kernel_lab.benchmarks.report import Report, Row, png
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
# struct fiemap and its extents (Documentation/filesystems/fiemap.rst).
FIEMAP, HEAD, EXTENT, MOST = 0xC020660B, struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x"), 512
SYNC, SHARED = 0x1, 0x2000

Way = Callable[[Path, Path], Root]  # the root of one container, from what all begin with and a directory of its own


def overlay(base: Path, own: Path) -> Root:
    """What the container writes lies in its own directory, upon the base."""
    return Overlay(base, upper=own)


def aufs(base: Path, own: Path) -> Root:
    """The same, by AUFS."""
    return Aufs(Branch(str(own), "rw"), Branch(str(base), "ro"))


def copy(base: Path, own: Path) -> Root:
    """Everything a second time."""
    return _copied(base, own, "never")


def reflink(base: Path, own: Path) -> Root:
    """A copy whose files keep to the base's blocks until they are written (btrfs, xfs). Raises Absent on other file systems."""
    return _copied(base, own, "always")


WAYS: Mapping[str, Way] = {"overlay": overlay, "AUFS": aufs, "full copy": copy, "reflink copy": reflink}
FLOOR = "overlay"


def _copied(base: Path, own: Path, blocks: str) -> Root:
    done = subprocess.run(["cp", "-a", f"--reflink={blocks}", f"{base}/.", own], capture_output=True, text=True)
    if done.returncode:
        raise Absent(f"cp --reflink={blocks}: {done.stderr.strip().rpartition(': ')[2]}")
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
    with _folder() as folder:
        root = shutil.copytree(rootfs.busybox(), folder / "base", symlinks=True)
        (root / DATA).write_bytes(os.urandom(SIZE))
        yield root


@contextmanager
def deployed(way: Way, root: Path, count: int = COUNT) -> Iterator[tuple[list[Container], Path, float]]:
    """`count` running containers on one root, the directory that holds what is their own, and the seconds that it took."""
    with _folder() as folder, ExitStack() as made:
        begin = perf_counter()
        boxes = [made.enter_context(_started(way, root, folder / str(number))) for number in range(count)]
        yield boxes, folder, perf_counter() - begin


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"fleet-{state.Creator.this().stamp}-", dir=state.data_dir()))
    try:
        # In a user namespace root is another user, who must be able to walk through.
        folder.chmod(0o755)
        yield folder
    finally:
        state.discard(folder)


def _started(way: Way, root: Path, own: Path) -> Container:
    own.mkdir()
    users = () if os.geteuid() == 0 else (User(),)
    return Container(*users, UTS(f"box{own.name}"), PID(), Mount(way(root, own))).start("sleep", "3600")


def cost(way: Way, root: Path, count: int = COUNT) -> Cost:
    """Deploys a fleet, has the large file read in every container, and looks at disk and page cache. Raises Absent, UsageError or KernelError."""
    (root / DATA).read_bytes()  # a base that is in use: its files are in memory
    with deployed(way, root, count) as (boxes, folder, seconds):
        return Cost(seconds, occupied(folder), cached([root / DATA, *(Path(f"/proc/{box.pid}/root", DATA) for box in boxes)]))


def cached(files: Sequence[Path]) -> int:
    """Bytes of page cache once all but the first of these files, the base's own, have been read, from nothing of them in memory."""
    for file in files:
        pagecache.forget(file)
    for file in files[1:]:
        file.read_bytes()
    return sum(map(_let_go, files))


def _let_go(file: Path) -> int:
    """What is in memory of a file, which is let go: so what several have in common counts once, for the first of them."""
    found = pagecache.resident(file)
    pagecache.forget(file)
    return found


def occupied(folder: str | Path) -> int:
    """Bytes on disk of all that is below: of a file with many names once, and without the blocks that it shares with others."""
    found: dict[tuple[int, int], int] = {}
    for directory, names, files in os.walk(folder):
        for path in (os.path.join(directory, name) for name in (*names, *files)):
            status = os.lstat(path)
            found[status.st_dev, status.st_ino] = status.st_blocks * 512 - (_shared(path) if stat.S_ISREG(status.st_mode) else 0)
    return sum(found.values())


def _shared(path: str) -> int:
    """Bytes of a file's blocks that other files have as well; none where the file system cannot say."""
    table = bytearray(HEAD.size + MOST * EXTENT.size)
    HEAD.pack_into(table, 0, 0, 1 << 63, SYNC, 0, MOST, 0)
    with open(path, "rb") as file:
        try:
            fcntl.ioctl(file, FIEMAP, table)
        except OSError:
            return 0
    mapped = HEAD.unpack_from(table)[3]
    extents = [EXTENT.unpack_from(table, HEAD.size + number * EXTENT.size) for number in range(mapped)]
    return sum(length for _, _, length, flags in extents if flags & SHARED)


def measure(rounds: int = 3, count: int = COUNT) -> Report:
    """Deploys a fleet of `count` containers `rounds` times in each way. Raises UsageError for less than one of either."""
    if rounds < 1 or count < 1:
        raise UsageError(f"rounds={rounds}, count={count}: at least one of each")
    with base() as root:
        found = {who: _costs(way, root, rounds, count) for who, way in WAYS.items()}
    case = f"{count} containers on one root"
    times = {who: [one.seconds * 1000 for one in costs] for who, costs in found.items() if not isinstance(costs, str)}
    rows = tuple(_row(case, who, costs, times) for who, costs in found.items())
    return Report(rows, rounds, machine({}), {(case, who): some for who, some in times.items()})


def _costs(way: Way, root: Path, rounds: int, count: int) -> Sequence[Cost] | str:
    try:
        return [cost(way, root, count) for _ in range(rounds)]
    except (Absent, UsageError, OSError) as error:
        return str(error)


def _row(case: str, who: str, costs: Sequence[Cost] | str, times: Mapping[str, Sequence[float]]) -> Row:
    if isinstance(costs, str):
        return Row(case, who, note=costs)
    facts = {f"{what}_mb": round(statistics.median(map(attrgetter(what), costs)) / MEGABYTE, 1) for what in ("disk", "cache")}
    note = f"{facts['disk_mb']} MB on disk, {facts['cache_mb']} MB of page cache"
    return Row.of(case, who, times[who], times.get(FLOOR, ()), note, facts)


def picture(report: Report) -> bytes:
    """Disk, page cache and time of each way, as PNG."""
    rows = [row for row in report.rows if row.median_ms is not None]
    return bars(
        {
            "MB on disk": {row.who: row.facts["disk_mb"] for row in rows},
            "MB of page cache": {row.who: row.facts["cache_mb"] for row in rows},
            "seconds until all run": {row.who: (row.median_ms or 0) / 1000 for row in rows},
        }
    )


def bars(panels: Mapping[str, Mapping[str, float]]) -> bytes:
    """Panels beside one another, each with its title and a bar for each of the same names, as PNG."""
    from matplotlib.figure import Figure

    names = list(next(iter(panels.values())))
    figure = Figure(figsize=(1 + 2.2 * len(panels), 0.8 + 0.4 * len(names)), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True):
        lengths = [values[name] for name in names]
        axes.bar_label(axes.barh(names, lengths), [f"{length:,.0f}" if length >= 100 else f"{length:.3g}" for length in lengths], padding=3)
        axes.set(title=title, xmargin=0.25)
    axes.invert_yaxis()
    return png(figure)
