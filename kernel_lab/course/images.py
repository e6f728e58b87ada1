"""Images as a lab shows them: digests as letters, documents as they stand, and pictures of the layers, drawn from the store."""

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import BytesIO, StringIO
from itertools import count
from typing import Any

from kernel_lab.course.pictures import Box, Link, Picture, rows
from kernel_lab.course.session import fails
from kernel_lab.images.image import Image, images
from kernel_lab.images.reference import familiar
from kernel_lab.images.store import Store

_HEX = re.compile(r"(?:[a-f0-9]{64}){1,2}")
VARYING = ("size", "created")  # what another version of a package has different
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Digests:
    """The same letter for the same digest, in the order in which they are met: `print(d(text))`, and `d.show(document)` for JSON.

    Digests are other ones on every machine, as programs have other versions; which of them are the same is not.
    """

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def __call__(self, text: object) -> str:
        return _HEX.sub(lambda found: f"[{self._letter(found[0])}]", str(text))

    def show(self, document: bytes | dict[str, Any]) -> None:
        """Prints JSON, with … for sizes and times."""
        known = document if isinstance(document, dict) else json.loads(document)
        print(self(json.dumps(_without(known), indent=2, ensure_ascii=False)))

    @contextmanager
    def fails(self) -> Iterator[None]:
        """As `session.fails`, with letters, and without the directory that the lab works in."""
        said = StringIO()
        try:
            with redirect_stdout(said), fails():
                yield
        finally:
            print(self(said.getvalue()).replace(f"{os.getcwd()}/", ""), end="")

    def _letter(self, digest: str) -> str:
        return self._letters.setdefault(digest, _name(len(self._letters)))


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
            yield step.layer.chain_id, str(step.line.get("created_by", ""))[:40]


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
