"""Images as a lab shows them: digests as letters, documents as they stand, builds step by step, and pictures of the layers, drawn from the store."""

import gzip
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import BytesIO, StringIO
from itertools import count
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kernel_lab.capture import Result
from kernel_lab.container import Container
from kernel_lab.course.pictures import Box, Link, Picture, rows
from kernel_lab.course.session import fails
from kernel_lab.images.build import Build, Step
from kernel_lab.images.execution import execution
from kernel_lab.images.image import Image, Layer, images
from kernel_lab.images.reference import familiar
from kernel_lab.images.root import ImageRoot
from kernel_lab.images.store import Store
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.net import Net
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User
from kernel_lab.namespaces.uts import UTS

SHORT = 12  # digits of an id, as docker shows them
_HEX = re.compile(rf"(?:[a-f0-9]{{64}}){{1,2}}|\b[a-f0-9]{{{SHORT}}}\b")
_UPLOAD = re.compile(r"(?<=/blobs/uploads/)[a-f0-9]{32}")
VARYING = ("size", "created")  # what another version of a package has different
MOST_SHOWN = 40  # characters of a line of history, in a picture
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Digests:
    """The same letter for the same digest, in the order in which they are met: `print(d(text))`, and `d.show(document)` for JSON.

    Digests are other ones on every machine, as programs have other versions; which of them are the same is not. So are the addresses of
    registries, for which `names` has other words, and the names of uploads, which are left out.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self._letters: dict[str, str] = {}
        self._names = dict(names or {})

    def __call__(self, text: object) -> str:
        said = _UPLOAD.sub("…", _HEX.sub(lambda found: f"[{self._letter(found[0])}]", str(text)))
        for address, name in self._names.items():
            said = said.replace(address, name)
        return said

    def show(self, document: bytes | dict[str, Any]) -> None:
        """Prints JSON, with … for sizes and times."""
        known = document if isinstance(document, dict) else json.loads(document)
        print(self(json.dumps(_without(known), indent=2, ensure_ascii=False)))

    def steps(self, made: Build) -> None:
        """Prints what has become of each instruction; sizes and seconds are other ones each time."""
        rows = [(number, *self._step(step)) for number, step in enumerate(made.steps, 1)]
        print(tabulate(rows, ["step", "instruction", "cache", "makes", "image"]))

    def _step(self, step: Step) -> tuple[str, ...]:
        return step.instruction, "hit" if step.cached else "", "" if step.layer is None else "a layer", self(step.image and step.image.short_id)

    @contextmanager
    def fails(self, *errors: type[Exception]) -> Iterator[None]:
        """As `session.fails`, with letters, and without the directory that the lab works in."""
        said = StringIO()
        try:
            with redirect_stdout(said), fails(*errors):
                yield
        finally:
            print(self(said.getvalue()).replace(f"{os.getcwd()}/", ""), end="")

    def _letter(self, digest: str) -> str:
        # An image's id is the beginning of a digest.
        return self._letters.setdefault(digest[:SHORT], _name(len(self._letters)))


def archive(*members: tuple[str, bytes, str]) -> list[bytes]:
    """A tar archive of empty files and links: name, type (of tarfile), and where a link leads."""
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            tar.addfile(member)
    return [made.getvalue()]


def mine(uid: int, gid: int) -> tuple[int, int]:
    """The owner of a layer's file on the disk: an ordinary user can give files to nobody else."""
    return (uid, gid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def write(folder: str | Path, files: Mapping[str, str]) -> None:
    """Writes files, by their paths in a folder, that everybody may read, whatever the umask."""
    for name, text in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)


def run(image: Image, *words: str) -> Result:
    """What `docker run --rm --network none` leaves: the image's own command, or these words, as the image's user.

    An ordinary user's container has all ids that he was granted.
    """
    runs = execution(image, words)
    parts = (UTS("box"), PID(), Mount(ImageRoot(image), directories=[runs.cwd] if runs.cwd else ()), Net())
    return Container(*parts, *((User.granted(),) if os.geteuid() else ())).run(*runs.argv, env=runs.env, cwd=runs.cwd, user=runs.user)


def traces(image: Image, text: str) -> list[str]:
    """Where a text stands in an image: in which of its layers, the lowest is 1, and whether in its configuration with the history."""
    found = [f"layer {number}" for number, layer in enumerate(image.layers, 1) if text.encode() in _archive(image, layer)]
    return found + (["history"] if text in image.config.raw.decode() else [])


def _archive(image: Image, layer: Layer) -> bytes:
    with image.store.open(layer.blob) as file:
        return gzip.decompress(file.read())


def _name(number: int) -> str:
    first, last = divmod(number, len(LETTERS))
    return (LETTERS[first - 1] if first else "") + LETTERS[last]


def _without(value: Any) -> Any:
    match value:
        case dict():
            return {key: "…" if key in VARYING else _without(inner) for key, inner in value.items()}
        case list():
            return [_without(inner) for inner in value]
    return value


def stacks(store: Store, *names: str) -> Picture:
    """All images of a store, or these, each on its layers: a layer that several have is drawn once, as it lies on the disk once."""
    chosen = [Image.find(store, name) for name in names] or sorted(images(store), key=str)
    titles = _titles(chosen)
    levels: list[list[Box]] = [[] for _ in range(max((len(image.layers) for image in chosen), default=0))]
    links: dict[Link, None] = {}
    for image in chosen:
        below = ""
        for depth, (layer, line) in enumerate(_lines(image)):
            title = titles[layer]
            if all(box.title != title for box in levels[depth]):
                levels[depth].append(Box(title, [line]))
            if below:
                links[Link(title, below)] = None
            below = title
        links[Link(_called(image), below)] = None
    tops = [Box(_called(image), marked=()) for image in chosen]
    return rows(tops, *reversed(levels), links=list(links))


def _lines(image: Image) -> Iterator[tuple[str, str]]:
    """The ChainID of each layer, the lowest first, and what has made it."""
    for step in image.history:
        if step.layer:
            yield step.layer.chain_id, _shortly(str(step.line.get("created_by", "")))


def _shortly(created_by: str) -> str:
    """A line of history without what all of them have, and without digests."""
    return re.sub(r":[a-f0-9]{64}", "", re.sub(r"^/bin/sh -c (#\(nop\) )?", "", created_by))[:MOST_SHOWN]


def _titles(chosen: Iterable[Image]) -> dict[str, str]:
    numbers = count(1)
    found: dict[str, str] = {}
    for image in chosen:
        for layer in image.layers:
            if layer.chain_id not in found:
                found[layer.chain_id] = f"layer {next(numbers)}"
    return found


def _called(image: Image) -> str:
    return ", ".join(map(familiar, image.names)) or f"image {image.short_id}"
