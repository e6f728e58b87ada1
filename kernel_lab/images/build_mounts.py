"""`RUN --mount`: what a command sees and the image has not (docs.docker.com/reference/dockerfile, "RUN --mount").

What a bind shows is a copy: so `.dockerignore` counts, layers need no mount, and whatever is written there touches nobody's files.
"""

import csv
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kernel_lab import state
from kernel_lab.images import owners
from kernel_lab.images.beneath import open_inside, place
from kernel_lab.images.build_copy import Copying, sources
from kernel_lab.images.build_errors import placed
from kernel_lab.images.instructions import SCRIPTS, Run
from kernel_lab.images.pack import NO_LINKS
from kernel_lab.images.snapshots import MOST_FILES
from kernel_lab.images.tree import Place, Tree
from kernel_lab.images.unpack import Rules, unpack
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.flags import O
from kernel_lab.namespaces.mnt import Bind
from kernel_lab.namespaces.net import Net
from kernel_lab.unionfs.whiteouts import FOUND
from kernel_lab.unionfs.writable import Writable

TARGET = ("target", "dst", "destination")
OTHER_NAMES = {"src": "source", "dst": "target", "destination": "target", "readonly": "ro", "readwrite": "rw"}
FIELDS = {
    "bind": {"source", "target", "from", "ro", "rw"},
    "cache": {"id", "target", "sharing", "mode", "uid", "gid", "ro", "rw"},
    "tmpfs": {"target", "size"},
    "secret": {"id", "target", "required", "mode", "uid", "gid"},
}
SECRETS = "/run/secrets"
RESOLVER = "/etc/resolv.conf"
SYSTEMDS = "/run/systemd/resolve/resolv.conf"  # of systemd's resolver, whom nobody reaches at 127.0.0.53 in another network
Fields = Mapping[str, str]
Folder = Callable[[], Path]


@dataclass(frozen=True)
class Given:
    """What mounts may show. tree: of the context, or of the stage or image of a `from`. secrets: their content. caches: where these are kept."""

    tree: Callable[[str | None], Tree]
    secrets: Mapping[str, bytes]
    caches: Path


@dataclass
class Mounts:
    """What a container mounts. key: what of it the outcome depends on."""

    binds: list[Bind] = field(default_factory=list)
    tmpfs: list[str] = field(default_factory=list)
    key: str = ""

    def add_resolver(self, image: Tree, whose: str) -> None:
        """What turns names into addresses: this machine's own, as docker gives it to every container."""
        if os.path.exists(whose):
            # A link in the image may lead anywhere, and nothing is mounted on a link.
            self.binds.append(Bind(whose, str(image.find(RESOLVER)), readonly=True))

    def take_away(self, made: Writable) -> None:
        """Removes the empty files and directories that the container was mounted on, unless the image has them."""
        root = os.open(made.upper, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for target in (*(bind.target for bind in self.binds), *(text.partition(":")[0] for text in self.tmpfs)):
                _take_away(root, Tree(made.lower), target)
        finally:
            os.close(root)


def resolver(network: Net | None) -> str | None:
    """The file that names this machine's name servers, for who is in a network."""
    if network is None:
        return RESOLVER
    return (SYSTEMDS if os.path.exists(SYSTEMDS) else RESOLVER) if network.network else None


def read(text: str) -> dict[str, str]:
    """The fields of a mount, by their first names. Raises UsageError for one that is not known."""
    fields = {}
    for word in next(csv.reader([text]), []):
        name, _, value = word.partition("=")
        fields[OTHER_NAMES.get(name, name)] = value
    kind = fields.setdefault("type", "bind")
    if kind not in FIELDS:
        raise UsageError(f"--mount=type={kind}: there is {', '.join(FIELDS)}; what else BuildKit has, this builder has not")
    if strange := set(fields) - FIELDS[kind] - {"type"}:
        raise UsageError(f"--mount=type={kind}: there is no {sorted(strange)[0]}; there is {', '.join(sorted(FIELDS[kind]))}")
    if kind == "secret" and "id" in fields:
        fields.setdefault("target", f"{SECRETS}/{fields['id']}")
    if not fields.get("target"):
        raise UsageError(f"--mount={text}: it needs a target, the place where the command sees it")
    return fields


def origin(run: Run, text: str) -> str | None:
    """The stage or image that a mount is from."""
    with placed(run):
        return read(text).get("from")


def of(run: Run, workdir: str, given: Given, folder: Folder, until: ExitStack) -> Mounts:
    """The mounts of an instruction. folder: makes an empty directory for what they need; until: what ends with them."""
    mounts = Mounts()
    for text in run.mounts:
        fields = read(text)
        fields["target"] = os.path.normpath(os.path.join("/", workdir, fields["target"]))
        made = _KINDS[fields["type"]](fields, given, folder, until, mounts)
        if made:
            mounts.binds.append(Bind(str(made), fields["target"], _readonly(fields)))
    if run.script:
        scripts = folder()
        _written(scripts / run.script.name, run.script.content.encode("utf-8", "surrogateescape"), 0o755)
        mounts.binds.append(Bind(str(scripts), SCRIPTS, readonly=True))
        mounts.key += run.script.content
    return mounts


def _bind(fields: Fields, given: Given, folder: Folder, until: ExitStack, mounts: Mounts) -> Path:
    tree = given.tree(fields.get("from"))
    copying = Copying(sources(tree, [fields.get("source") or "."]), "/")
    if len(copying.sources) > 1:
        raise UsageError(f"--mount: source={fields['source']}: these are {len(copying.sources)}, and one of them can be shown at {fields['target']}")
    digest = copying.digest
    mounts.key += digest
    directory = folder()
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        unpack(copying.layer(Tree(()), lambda word: None), root, Rules(1 << 62, owner=owners.on_disk(), most_entries=MOST_FILES))
    finally:
        os.close(root)
    if copying.digest != digest:
        raise UsageError("files have changed while they were copied; build again")
    (source,) = copying.sources
    return directory if source.place.is_directory else directory / source.name


def _cache(fields: Fields, given: Given, folder: Folder, until: ExitStack, mounts: Mounts) -> Path:
    """A directory that stays for the next build. It says nothing of the outcome."""
    path = state.ours(given.caches, 0o700) / hashlib.sha256((fields.get("id") or fields["target"]).encode()).hexdigest()
    if (sharing := fields.get("sharing", "shared")) not in ("shared", "locked"):
        raise UsageError(f"--mount: sharing={sharing}: there is shared, for several at once, and locked, for one after the other")
    if sharing == "locked":
        until.enter_context(state.locked(path.with_suffix(".lock")))
    with suppress(FileExistsError):
        path.mkdir()
        _give(path, fields, 0o755)
    return path


def _tmpfs(fields: Fields, given: Given, folder: Folder, until: ExitStack, mounts: Mounts) -> None:
    size = f",size={fields['size']}" if fields.get("size") else ""
    mounts.tmpfs.append(f"{fields['target']}:mode=1777{size}")


def _secret(fields: Fields, given: Given, folder: Folder, until: ExitStack, mounts: Mounts) -> Path | None:
    name = fields.get("id") or os.path.basename(fields["target"])
    if name not in given.secrets:
        if fields.get("required", "false") not in ("false", "0"):
            raise UsageError(f"--mount=type=secret: {name} is required, and was not given: --secret id={name},src=FILE")
        return None
    path = folder() / "secret"
    _written(path, given.secrets[name], 0o400)
    _give(path, fields, 0o400)
    return path


_KINDS: Mapping[str, Callable[[Fields, Given, Folder, ExitStack, Mounts], Path | None]] = {
    "bind": _bind,
    "cache": _cache,
    "tmpfs": _tmpfs,
    "secret": _secret,
}


def _readonly(fields: Fields) -> bool:
    if fields["type"] in ("bind", "secret"):
        return fields.get("rw", "false") == "false"
    return fields.get("ro", "false") != "false"


def _written(path: Path, content: bytes, mode: int) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def _give(path: Path, fields: Fields, mode: int) -> None:
    try:
        path.chmod(int(fields.get("mode", f"{mode:o}"), 8))
        if os.geteuid() == 0:
            os.chown(path, int(fields.get("uid", 0)), int(fields.get("gid", 0)))
    except ValueError:
        raise UsageError("--mount: mode is an octal number, and uid and gid are decimal ones") from None


def _take_away(root: int, below: Tree, target: str) -> None:
    parts = below.find(target).parts
    for count in range(len(parts), 0, -1):
        try:
            # The command may have put a link in its place, which leads anywhere.
            above = open_inside(root, os.fsencode("/".join(parts[: count - 1])), O.PATH | O.DIRECTORY, NO_LINKS)
        except KernelError:
            return
        try:
            _remove_empty(above, parts[count - 1], below.find("/".join(parts[:count])))
        except OSError:  # the command has written something there
            return
        finally:
            os.close(above)


def _remove_empty(directory: int, name: str, below: Place) -> None:
    """Removes what only a mount needed, and a directory that is as below: it has come up for that."""
    status = os.lstat(name, dir_fd=directory)
    if below.mode and (_owned(status) != _owned(below.status) or FOUND.is_opaque(place(directory, os.fsencode(name)))):
        return
    if stat.S_ISDIR(status.st_mode):
        os.rmdir(name, dir_fd=directory)
    elif not status.st_size and not below.mode:
        os.unlink(name, dir_fd=directory)


def _owned(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid
