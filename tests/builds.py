"""Images that are built for a test, and what is in them, read by tarfile."""

import io
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_lab.images.build import Build, build
from kernel_lab.images.dockerfile import Dockerfile
from kernel_lab.images.draft import Draft, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.store import Store

TIME = 1_500_000_000
USERS = {"etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home:/bin/sh\n", "etc/group": "root:x:0:\napp:x:1001:\nmore:x:1002:\n"}


@dataclass(frozen=True)
class File:
    """One of an archive. content: of a file, or where a link leads."""

    kind: str
    mode: int
    owner: tuple[int, int]
    content: str = ""
    mtime: float = TIME


class Kitchen:
    """A store, and a context in a folder."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "images")
        self.context = folder / "context"
        self.context.mkdir()
        self.said: list[str] = []

    @property
    def output(self) -> str:
        """What the last build has said."""
        return "".join(self.said)

    def write(self, *names: str, mode: int = 0o644, **contents: str) -> None:
        """Files of the context, each with its own name as content, or with another."""
        for name, content in {**{name: name for name in names}, **contents}.items():
            path = self.context / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            path.chmod(mode)
            self.age(path)

    def age(self, *paths: Path) -> None:
        """As old as every other file."""
        for path in paths:
            os.utime(path, (TIME, TIME), follow_symlinks=False)

    def base(self, name: str, files: Mapping[str, str], settings: Mapping[str, Any] | None = None, *more: tarfile.TarInfo) -> Image:
        """An image of one layer. A name that ends with a slash is a directory's; a content that begins with -> is where a link leads."""
        with self.store.adding() as adding:
            layer = put_layer(adding, [archive(files, *more)])
            return Draft.scratch().with_settings(settings or {}).with_layer(layer, created_by="by a test").put(adding, name)

    def build(self, text: str, *tags: str, **options: Any) -> Build:
        """Of a Dockerfile's text."""
        self.said.clear()
        return build(self.context, self.store, tags, dockerfile=Dockerfile.parse(text), **{"output": self.said.append} | options)


def archive(files: Mapping[str, str], *more: tarfile.TarInfo) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for member in (*map(_member, files, files.values()), *more):
            tar.addfile(member, io.BytesIO(files.get(member.name, "").encode()) if member.isreg() else None)
    return written.getvalue()


def _member(name: str, content: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mtime = TIME
    if name.endswith("/"):
        member.type, member.mode = tarfile.DIRTYPE, 0o755
    elif content.startswith("-> "):
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, content[3:], 0o777
    else:
        member.size = len(content.encode())
    return member


def layer(image: Image, number: int = -1) -> dict[str, File]:
    """What one layer's archive has, in its order."""
    with image.store.open(image.layers[number].blob) as blob, tarfile.open(fileobj=io.BytesIO(blob.read())) as tar:
        return {member.name: _file(tar, member) for member in tar}


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> File:
    content = member.linkname
    if member.isreg():
        read = tar.extractfile(member)
        assert read
        content = read.read().decode(errors="replace")
    kinds = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "hard link"}
    return File(kinds.get(member.type, "other"), member.mode, (member.uid, member.gid), content, member.mtime)


def contents(image: Image, number: int = -1) -> dict[str, str]:
    """The files and links of one layer, and what is in them."""
    return {name: file.content for name, file in layer(image, number).items() if file.kind != "directory"}
