"""`klab bench images`: unpacking an image, making a layer, copying an image, a container's first start on one; beside tar, umoci and skopeo.

All work on the same image, which has been read just now, one after the other, round by round; what each has made is removed before the next one
begins, and the disk has all of it by then. Everybody has a process of its own, whose memory is looked at meanwhile. This kit's is timed from inside,
since a notebook has its Python already; the others' from the wish to the end.
"""

import hashlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from kernel_lab import bootstrap, state
from kernel_lab.benchmarks.contestant import Absent
from kernel_lab.benchmarks.density import interruptible
from kernel_lab.benchmarks.machine import machine
from kernel_lab.benchmarks.report import Report, Row, check_picture
from kernel_lab.container import Container
from kernel_lab.images import base, owners
from kernel_lab.images import store as stores
from kernel_lab.images.compression import Compression, decompressed, gzipped, recognised
from kernel_lab.images.descriptor import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from kernel_lab.images.draft import Draft, PutLayer, put_layer
from kernel_lab.images.image import Image, Layer
from kernel_lab.images.loading import load
from kernel_lab.images.pack import pack
from kernel_lab.images.root import ImageRoot
from kernel_lab.images.saving import save
from kernel_lab.images.snapshots import MOST_FILES, Snapshots
from kernel_lab.images.store import CHUNK, Store
from kernel_lab.images.unpack import Rules, unpack_root
from kernel_lab.kernel.errors import UsageError
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

ROUNDS = 5
MEGABYTE = 1 << 20
GLANCE = 10  # milliseconds between two looks at a process's memory
PATIENCE = 20.0  # seconds for a process to end when it is interrupted
KIT, UMOCI, SKOPEO = "kit", "umoci", "skopeo"
TAR, TAR_HASHED, TAR_GZIP, TAR_PIGZ = "tar", "tar, sha256sum, sync", "tar, gzip", "tar, pigz -1"
MAKE, COPY, FIRST, NEXT = "make a layer", "copy an image", "first start", "next start"
UNPACK = {Compression.GZIP: "unpack gzip", Compression.NONE: "unpack uncompressed", Compression.ZSTD: "unpack zstd"}
TYPES = {Compression.GZIP: OCI_LAYER_GZIP, Compression.NONE: OCI_LAYER, Compression.ZSTD: OCI_LAYER_ZSTD}
PROGRAMS = {Compression.GZIP: "gzip", Compression.NONE: "", Compression.ZSTD: "zstd"}
INCLUDES = {
    TAR: "extended attributes, owners by number; no digest is checked, and the disk is not waited for",
    TAR_HASHED: "the same, with the digests of what comes and of the archive, and until the disk has it: what the kit does",
    TAR_GZIP: "no digest is made, and the disk is not waited for; level 6, as docker",
    TAR_PIGZ: "the same on all cores",
    UMOCI: "all digests; the disk is not waited for; a layer is made by init, new and insert",
    SKOPEO: "all digests",
    KIT: "all digests, and until the disk has it; without the start of Python and its imports",
}


@dataclass(frozen=True)
class Ground:
    """What is the same for all: an image in each form, and its files twice, in directories that differ in nothing that a layer has."""

    images: Mapping[Compression, Image]
    trees: tuple[Path, Path]

    @property
    def store(self) -> Path:
        return self.images[Compression.GZIP].store.path

    def name(self, form: Compression) -> str:
        """As umoci and skopeo find it."""
        return self.images[form].names[0]


class Turn(NamedTuple):
    """A contestant's place in a round: what it works on, and an empty folder for what it makes."""

    ground: Ground
    number: int
    folder: Path

    @property
    def tree(self) -> Path:
        return self.ground.trees[self.number % 2]


Way = Callable[[Turn], Sequence[str]]  # the command that does it; raises Absent


# This kit, in a process of its own.


def unpack(store: str, digest: str, folder: str) -> Iterator[None]:
    """All layers into directories."""
    Snapshots(Path(folder, "snapshots")).directories(Image.find(Store(store), digest))
    yield


def make(tree: str, folder: str) -> Iterator[None]:
    """A layer of a directory, in a store."""
    with Store(Path(folder, "store")).adding() as adding:
        put_layer(adding, pack(Path(tree), None, owner=owners.in_archive()))
        yield


def copy(store: str, name: str, folder: str) -> Iterator[None]:
    """An image into another store, through an archive that nobody keeps."""
    load(Store(Path(folder, "store")), save(Store(store), [name]))
    yield


def start(store: str, digest: str, folder: str) -> Iterator[None]:
    """A container on an image of which nothing is unpacked, and another one."""
    users = () if os.geteuid() == 0 else (User(),)
    for _ in range(2):
        root = ImageRoot(Image.find(Store(store), digest), snapshots_=Snapshots(Path(folder, "snapshots")))
        Container(*users, UTS("box"), PID(), Mount(root)).run("true", check=True)
        yield


WORKS: Mapping[str, Callable[..., Iterator[None]]] = {"unpack": unpack, "make": make, "copy": copy, "start": start}


def work(name: str, *arguments: str) -> int:
    """Does one of these, and prints how many seconds each of its steps took; the status that the process ends with."""
    seconds, begin = [], time.perf_counter()
    for _ in WORKS[name](*arguments):
        end = time.perf_counter()
        seconds.append(end - begin)
        begin = time.perf_counter()
    print(json.dumps(seconds))
    return 0


def _kit(name: str, *arguments: object) -> Sequence[str]:
    return [sys.executable, "-m", __spec__.name, name, *map(str, arguments)]


def _kit_unpacks(form: Compression, turn: Turn) -> Sequence[str]:
    return _kit("unpack", turn.ground.store, turn.ground.images[form].descriptor.digest, turn.folder)


def _kit_makes(turn: Turn) -> Sequence[str]:
    return _kit("make", turn.tree, turn.folder)


def _kit_copies(turn: Turn) -> Sequence[str]:
    return _kit("copy", turn.ground.store, turn.ground.name(Compression.GZIP), turn.folder)


def _kit_starts(turn: Turn) -> Sequence[str]:
    return _kit("start", turn.ground.store, turn.ground.images[Compression.GZIP].descriptor.digest, turn.folder)


# The others.


def _tar_unpacks(form: Compression, turn: Turn) -> Sequence[str]:
    _need("tar", PROGRAMS[form])
    return _script(f"mkdir {place} && tar {_extract(place)} --file={blob}" for blob, place in _layers(form, turn))


def _tar_unpacks_hashed(form: Compression, turn: Turn) -> Sequence[str]:
    program = PROGRAMS[form]
    _need("tar", "tee", "sha256sum", program)
    lines = []
    for blob, place in _layers(form, turn):
        # What flows by goes to sha256sum too, through a descriptor of its own, so that the shell waits for it.
        if program:
            inner = f"{{ tee /dev/fd/3 <{blob} | {program} -dc | tee /dev/fd/4 | tar {_extract(place)} --file=-; }} 3>&1 >&2 | sha256sum >&2"
            flow = f"{{ {inner}; }} 4>&1 | sha256sum"
        else:
            flow = f"{{ tee /dev/fd/3 <{blob} | tar {_extract(place)} --file=-; }} 3>&1 >&2 | sha256sum"
        lines.append(f"mkdir {place}; {flow}; sync --file-system {place}")
    return _script(lines)


def _umoci_unpacks(form: Compression, turn: Turn) -> Sequence[str]:
    _need(UMOCI)
    rootless = () if os.geteuid() == 0 else ("--rootless",)
    image = f"{turn.ground.store}:{turn.ground.name(form)}"
    return [UMOCI, "raw", "unpack", *rootless, "--image", image, str(turn.folder / "root")]


def _tar_makes(compressor: str, turn: Turn) -> Sequence[str]:
    _need("tar", compressor.split()[0])
    create = f"tar --create --xattrs --xattrs-include='*' --numeric-owner --directory={_quoted(turn.tree)} ."
    return _script([f"{create} | {compressor} >{_quoted(turn.folder / 'layer.tar.gz')}"])


def _umoci_makes(turn: Turn) -> Sequence[str]:
    _need(UMOCI)
    rootless = "" if os.geteuid() == 0 else "--rootless"
    layout = _quoted(turn.folder / "layout")
    image = f"--image {layout}:new"
    return _script([f"umoci init --layout {layout}", f"umoci new {image}", f"umoci insert {rootless} {image} {_quoted(turn.tree)} /"])


def _skopeo_copies(turn: Turn) -> Sequence[str]:
    _need(SKOPEO)
    name = turn.ground.name(Compression.GZIP)
    return [SKOPEO, "--insecure-policy", "copy", "--quiet", f"oci:{turn.ground.store}:{name}", f"oci:{turn.folder / 'copy'}:{name}"]


def _need(*programs: str) -> None:
    if missing := [program for program in programs if program and not shutil.which(program)]:
        raise Absent(f"not installed: {', '.join(missing)}")


def _script(lines: Iterable[str]) -> Sequence[str]:
    _need("bash")
    return ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]


def _layers(form: Compression, turn: Turn) -> Iterator[tuple[str, str]]:
    """For a shell: the blob of each layer, and a directory for it."""
    for layer in turn.ground.images[form].layers:
        yield _quoted(turn.ground.store / "blobs" / layer.blob.digest.replace(":", "/")), _quoted(turn.folder / layer.diff_id.partition(":")[2])


def _extract(place: str) -> str:
    whose = "--same-owner --numeric-owner" if os.geteuid() == 0 else "--no-same-owner"
    return f"--extract --preserve-permissions {whose} --xattrs --xattrs-include='*' --directory={place}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


# The floor of each stands first; what a command does one step after the other has a case for each.
TRIALS: Mapping[tuple[str, ...], Mapping[str, Way]] = {
    **{
        (case,): {
            TAR: partial(_tar_unpacks, form),
            TAR_HASHED: partial(_tar_unpacks_hashed, form),
            KIT: partial(_kit_unpacks, form),
            UMOCI: partial(_umoci_unpacks, form),
        }
        for form, case in UNPACK.items()
    },
    (MAKE,): {TAR_GZIP: partial(_tar_makes, "gzip -n"), TAR_PIGZ: partial(_tar_makes, "pigz -1n"), KIT: _kit_makes, UMOCI: _umoci_makes},
    (COPY,): {SKOPEO: _skopeo_copies, KIT: _kit_copies},
    (FIRST, NEXT): {KIT: _kit_starts},
}


# The rounds.


@dataclass
class Score:
    """Of one contestant in one trial: milliseconds by case, the most memory in bytes of one process, the layers it has made; or why it is out."""

    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    peak: int = 0
    made: list[tuple[str, int]] = field(default_factory=list)  # digest and size
    out: str = ""


def measure(rounds: int = ROUNDS, cases: Sequence[str] | None = None, image: str | None = None, into: Path | None = None) -> Report:
    """Everybody `rounds` times. image: the name of one of the user's; without it, Debian's, which is made once.

    into: where all is unpacked and written; without it, beside the kit's own images. Raises UsageError for no rounds, and for a case, an image or a
    folder that there is not.
    """
    if rounds < 1:
        raise UsageError(f"rounds={rounds}: at least one")
    if into is not None and not into.is_dir():
        raise UsageError(f"into={str(into)!r}: there is no such directory")
    chosen = _chosen(cases)
    scores = {(trial, who): Score() for trial in chosen for who in TRIALS[trial]}
    with _folder(into or state.data_dir()) as folder:
        place = ground(_source(image), folder)
        turns = [(number, trial, who) for number in range(rounds) for trial in chosen for who in TRIALS[trial]]
        for number, trial, who in tqdm(turns, disable=not sys.stderr.isatty()):
            _take_turn(trial, who, Turn(place, number, folder / "turn"), scores[trial, who])
    times = {(case, who): list(some) for (_, who), score in scores.items() for case, some in score.times.items()}
    rows = tuple(_row(case, who, score, _floor(trial, case, times)) for (trial, who), score in scores.items() for case in trial)
    return Report(rows, rounds, machine(_versions()), times, {who: what for who, what in INCLUDES.items() if any(row.who == who for row in rows)})


def _chosen(cases: Sequence[str] | None) -> list[tuple[str, ...]]:
    """Trials by their cases; each may be given by its first word."""
    names = [case for trial in TRIALS for case in trial]
    for asked in cases or ():
        if not any(asked in (case, case.split()[0]) for case in names):
            raise UsageError(f"case {asked!r}: there is {', '.join(map(repr, names))}")
    return [trial for trial in TRIALS if cases is None or any(asked in (case, case.split()[0]) for asked in cases for case in trial)]


@contextmanager
def _folder(where: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"images-{state.Creator.this().stamp}-", dir=where.absolute()))
    try:
        folder.chmod(0o755)  # the root of a user namespace must be able to walk through
        yield folder
    finally:
        state.discard(folder)


def _source(name: str | None) -> Image:
    if name is not None:
        return Image.find(stores.local(), name)
    store, name = Store(state.data_dir() / "bench-images"), f"debian:{bootstrap.own_suite()}"
    if store.named(name):
        return Image.find(store, name)
    print(f"{name} is being made, once; this takes a minute", file=sys.stderr)
    return base.make("debian", store)


def ground(source: Image, folder: Path) -> Ground:
    """Made from an image, in a folder."""
    store = Store(folder / "store")
    tree, same = folder / "tree", folder / "same"
    rules = Rules(stores.local().free, None, owners.on_disk(), lambda why: None, MOST_FILES)
    unpack_root((_archive(source, layer) for layer in source.layers), tree, rules)
    subprocess.run(["cp", "--archive", tree, same], check=True, capture_output=True)
    return Ground({form: _in_form(source, store, form) for form in UNPACK}, (tree, same))


def _archive(image: Image, layer: Layer) -> Iterator[bytes]:
    with image.store.open(layer.blob) as blob:
        compression, chunks = recognised(iter(partial(blob.read, CHUNK), b""))
        yield from decompressed(compression, chunks, image.store.free)


def _in_form(source: Image, store: Store, form: Compression) -> Image:
    """The same image with its layers compressed so."""
    draft = Draft.scratch(source.platform).with_settings(source.settings)
    with store.adding() as adding:
        for layer in source.layers:
            blob = adding.put(_compressed(_archive(source, layer), form), TYPES[form])
            draft = draft.with_layer(PutLayer(blob, layer.diff_id))
        return draft.put(adding, UNPACK[form].replace(" ", "-"))


def _compressed(chunks: Iterable[bytes], form: Compression) -> Iterable[bytes]:
    if form is Compression.GZIP:
        return gzipped(chunks)
    return _by_zstd(chunks) if form is Compression.ZSTD else chunks


def _by_zstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    compressor = zstd.ZstdCompressor()
    yield from map(compressor.compress, chunks)
    yield compressor.flush()


def _take_turn(trial: tuple[str, ...], who: str, turn: Turn, score: Score) -> None:
    """Who fails once is out: its times would not be those of the same work."""
    if score.out:
        return
    turn.folder.mkdir()
    try:
        os.sync()  # what the one before has written is not for this one to wait for
        spent = spend(TRIALS[trial][who](turn))
        for case, seconds in zip(trial, spent.steps, strict=True):
            score.times[case].append(seconds * 1000)
        score.peak = max(score.peak, spent.peak)
        if trial == (MAKE,):
            score.made.append(_layer_in(turn.folder))
    except Absent as absent:
        score.out = str(absent)
        score.times.clear()
    finally:
        state.discard(turn.folder)


class Spent(NamedTuple):
    """Seconds of each step, and the most memory in bytes that one of its processes has had."""

    steps: Sequence[float]
    peak: int


def spend(words: Sequence[str]) -> Spent:
    """Runs a command to its end. Raises Absent when it fails. Whatever ends this, the command has ended, too."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        begin = time.perf_counter()
        # In a session of its own, which is interrupted as a whole.
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=complained, start_new_session=True)
        try:
            peak = _watched(process.pid)
            seconds = time.perf_counter() - begin
        except BaseException:
            _interrupt(process)
            raise
        if process.wait():
            raise Absent(f"failed: {_text(complained).strip().rpartition(': ')[2] or f'exit {process.returncode}'}")
        return Spent(json.loads(_text(said)) if words[0] == sys.executable else [seconds], peak)


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _watched(pid: int) -> int:
    """Waits for the end of a process: the most memory that it or one of its children has had."""
    process = os.pidfd_open(pid)
    try:
        ended = select.poll()
        ended.register(process, select.POLLIN)
        peak = 0
        while True:
            peak = max(peak, *map(_most_resident, _family(pid)))
            if ended.poll(GLANCE):
                return peak
    finally:
        os.close(process)


def _family(pid: int) -> Iterator[int]:
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child))


def _most_resident(pid: int) -> int:
    """Not of getrusage(2): that counts what a process was before its exec, which is its parent's memory."""
    with suppress(FileNotFoundError, ProcessLookupError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
            return int(found[1]) << 10
    return 0


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    # What a shell has started in the background is deaf to the first.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _layer_in(folder: Path) -> tuple[str, int]:
    """The digest and the size of the largest file."""
    layer = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with open(layer, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), layer.stat().st_size


def _floor(trial: tuple[str, ...], case: str, times: Mapping[tuple[str, str], Sequence[float]]) -> Sequence[float]:
    """The first one's times, where there are others to be compared with it."""
    first, *others = TRIALS[trial]
    return times.get((case, first), ()) if others else ()


def _row(case: str, who: str, score: Score, floor: Sequence[float]) -> Row:
    if score.out:
        return Row(case, who, note=score.out)
    facts = {"peak_mb": round(score.peak / MEGABYTE, 1)}
    notes = [f"at most {facts['peak_mb']:.0f} MB of memory"]
    if score.made:
        facts |= {"layer_mb": round(score.made[0][1] / MEGABYTE, 1), "different_layers": len({digest for digest, _ in score.made})}
        notes.append(f"a layer of {facts['layer_mb']} MB, {facts['different_layers']} different in {len(score.made)}")
    return Row.of(case, who, score.times[case], floor, ", ".join(notes), facts)


def _versions() -> dict[str, str]:
    versions = {}
    for program in filter(shutil.which, ("tar", "gzip", "pigz", "zstd", UMOCI, SKOPEO)):
        said = subprocess.run([program, "--version"], capture_output=True, text=True)
        if found := re.search(r"\d+(\.\d+)+\S*", said.stdout + said.stderr):
            versions[program] = found[0].rstrip(",")
    return versions


def bench_images(
    rounds: int = ROUNDS,
    json: bool = False,
    plot: str | Path | None = None,
    cases: Sequence[str] | None = None,
    image: str | None = None,
    into: Path | None = None,
) -> int:
    """Measures, prints, and draws into the file `plot`; the status that a command ends with."""
    if plot is not None:
        check_picture(plot)
    with interruptible():
        report = measure(rounds, cases, image, into)
    print(report.json() if json else report)
    if plot is not None:
        report.plot(plot)
    return 0


if __name__ == "__main__":
    sys.exit(work(*sys.argv[1:]))
