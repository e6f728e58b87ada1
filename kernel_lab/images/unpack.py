"""A layer's archive becomes files, in one pass, and none of them outside its directory, whatever the archive says.

Whoever writes an archive decides about every name and link in it. So the directory of a name is found as beneath.py does, where a link leads as it
would in a container; and what is made there is made by its last component, and never through a link. So do docker (in a chroot) and umoci. A name
with `..` in it is refused.
"""

import errno
import os
import pickle
import stat
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, TypeVar

from kernel_lab import state
from kernel_lab.images import archive
from kernel_lab.images.archive import Archive, Entry
from kernel_lab.images.beneath import Directories, open_inside, place
from kernel_lab.images.compression import Compression, decompressed, recognised
from kernel_lab.images.measured import Measured
from kernel_lab.kernel.calls import syscall
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.flags import O
from kernel_lab.unionfs.aufs_copy import list_attributes
from kernel_lab.unionfs.merged import lookup, names
from kernel_lab.unionfs.whiteouts import AUFS_OPAQUE, AUFS_OWN, AUFS_WHITEOUT, TRUSTED, USER, Notation, is_directory

SHA256 = "sha256"
PATH_MAX = 4096  # linux/limits.h, with the zero byte
IMPLIED_MODE = 0o755  # of a directory that an archive goes through and does not have
OVERLAYS = (TRUSTED.prefix, USER.prefix)
OF_THIS_MACHINE = ("security.selinux", *OVERLAYS)  # extended attributes that say nothing of the content
_WHITEOUT, _OWN, _OPAQUE = (os.fsencode(mark) for mark in (AUFS_WHITEOUT, AUFS_OWN, AUFS_OPAQUE))

T = TypeVar("T")
Owner = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Rules:
    """How a layer is unpacked.

    most: bytes that its archive may have, and any file in it with its holes.
    marks: the notation for whiteouts in a layer's own directory. None: what they hide is deleted, as layers are unpacked over one another.
    owner: from a file's uid and gid in the archive to those it gets; without it they are the same.
    skipped: is told in words what this user cannot make, or overlay would misunderstand, and that is left out. Without it, it is an error.
    most_entries: bounds the memory too: a directory, or any file of layers over one another, takes about 100 bytes until the end.
    below: the directories of the layers that this one lies on, the topmost first, in the same notation. A directory that the archive goes through and
        does not have is then as it is there, since overlay would show the upper one's owner and mode. And what an opaque directory hides is hidden
        name by name: inside and outside of a user namespace overlay knows the same whiteouts, but each its own attribute for an opaque directory.
    """

    most: int
    marks: Notation | None = None
    owner: Owner | None = None
    skipped: Callable[[str], None] | None = None
    most_entries: int = 300_000
    below: tuple[str, ...] | None = None


class Unpacked(NamedTuple):
    """What came in, and what was in it."""

    digest: str  # of the bytes as they came
    size: int
    diff_id: str  # of the archive
    archive_size: int


def unpack_layer(chunks: Iterable[bytes], directory: Path, rules: Rules, *, digest: str = "", diff_id: str = "") -> Unpacked:
    """Makes `directory` from a layer; it is there whole, or not at all.

    Raises UsageError when the layer is none, breaks the rules, or has another digest or DiffID than those that are given; KernelError for what the
    kernel refuses.
    """
    with _whole(directory) as root:
        unpacked = unpack(chunks, root, rules, digest or SHA256, diff_id or SHA256)
        for what, found, wanted in (("digest", unpacked.digest, digest), ("DiffID", unpacked.diff_id, diff_id)):
            if wanted and found != wanted:
                raise UsageError(f"a layer has the {what} {found}, and {wanted} was asked for: fetch it again, or distrust where it comes from")
    return unpacked


def unpack_root(layers: Iterable[Iterable[bytes]], directory: Path, rules: Rules) -> list[Unpacked]:
    """Makes `directory` from layers, the lowest first, each over those before it. It is there whole, or not at all; raises as `unpack_layer`."""
    with _whole(directory) as root:
        return [unpack(chunks, root, rules) for chunks in layers]


def unpack(chunks: Iterable[bytes], root: int, rules: Rules, digest: str = SHA256, diff_id: str = SHA256) -> Unpacked:
    """Unpacks a layer, compressed or not, into the directory whose descriptor is `root`. What it has made before an error stays there.

    It is hashed by the algorithms that `digest` and `diff_id` begin with.
    """
    compression, chunks = recognised(chunks)
    outer, inner = (Measured(wanted.partition(":")[0]) for wanted in (digest, diff_id))
    # Uncompressed, both are the same bytes: to hash them once is enough.
    same = compression is Compression.NONE and outer.algorithm == inner.algorithm
    pieces = chunks if same else outer.of(chunks)
    with tempfile.TemporaryFile() as waiting, closing(Directories(root)) as directories:
        tree = _Tree(directories, rules, waiting)
        tree.begin()
        entries = Archive(inner.of(decompressed(compression, pieces, rules.most)))
        for entry in entries:
            try:
                tree.add(entry, entries)
            except OSError as error:
                _refuse(error, entry)
        tree.finish()
    if same:
        outer = inner
    return Unpacked(outer.digest, outer.size, inner.digest, inner.size)


@contextmanager
def _whole(directory: Path) -> Iterator[int]:
    """A descriptor of a directory under its maker's name, which is renamed to `directory` at the end."""
    if os.path.lexists(directory):
        raise UsageError(f"{directory}: exists; a layer is unpacked into a directory of its own")
    half = directory.with_name(f"{directory.name}.{state.Creator.this().stamp}.{os.urandom(4).hex()}")
    try:
        half.mkdir(mode=0o700)
        root = os.open(half, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fchmod(root, IMPLIED_MODE)
            yield root
            # Also after a power cut: a name may be on the disk before the content is.
            syscall("syncfs", root)
        finally:
            os.close(root)
        half.rename(directory)
    except BaseException:
        state.discard(half)
        raise


def _refuse(error: OSError, entry: Entry) -> NoReturn:
    if error.errno is None:  # it comes from where the chunks do
        raise error
    raise KernelError(error.errno, f"unpack {entry}", look=_looks(error, entry)) from error


def _looks(error: OSError, entry: Entry) -> str:
    match error.errno:
        case errno.ENOENT if entry.kind == archive.LINK:
            return f"There is no {os.fsdecode(entry.link)!r} for the hard link, which must be in the same layer."
        case errno.ENOTDIR | errno.EEXIST:
            return "An entry before it, or a layer below, has a file or a link that leads nowhere in place of a directory above it."
        case errno.EPERM | errno.EINVAL:
            return "An ordinary user has no owners but those of a user namespace: run as its root, or map owners to your own."
    return ""


class _Tree:
    """The files beneath the root, while they come."""

    def __init__(self, directories: Directories, rules: Rules, waiting: IO[bytes]) -> None:
        self._directories = directories
        self._rules = rules
        self._count = 0
        # Paths, as their hashes, that this layer has: its whiteouts and opaque directories hide only what is below it (layer.md, "Whiteouts").
        self._had: set[int] = set()
        # A directory gets its owner, mode and times at the end: each name made in it changes its times, and its mode may forbid to make one.
        # Until then they wait in a file, since there may be many.
        self._waiting = waiting
        self._places = array("Q")
        self._end = 0  # of the file, whose position nobody has to ask for

    def begin(self) -> None:
        """The root is as it is below, until an entry says something else."""
        if self._rules.below:
            self._wait(self._as_below([])._replace(name=b"."))

    def add(self, entry: Entry, content: Archive) -> None:
        """Makes one entry."""
        self._count_one(entry)
        self._directories.renew()
        parts = components(entry, entry.name)
        if not parts:
            self._add_root(entry)
        elif _WHITEOUT in entry.name and (marked := [part for part in parts if part.startswith(_WHITEOUT)]):
            self._add_marked(entry, parts, marked)
        else:
            self._make(entry, parts, content)

    def _add_marked(self, entry: Entry, parts: Sequence[bytes], marked: Sequence[bytes]) -> None:
        if any(part.startswith(_OWN) and part != _OPAQUE for part in marked):
            return  # what AUFS kept in a branch for itself
        if len(marked) > 1 or not parts[-1].startswith(_WHITEOUT):
            raise UsageError(f"{entry}: is below a whiteout, which is no directory")
        self._hide(entry, parts)

    def _count_one(self, entry: Entry) -> None:
        self._count += 1
        # A file in a directory of a lower layer, or behind a link, has more paths than its own to be remembered.
        if max(self._count, len(self._had)) > self._rules.most_entries:
            raise UsageError(f"{entry}: a layer of more than {self._rules.most_entries} files; allow more, or distrust it")

    def finish(self) -> None:
        """Gives directories what had to wait: those inside before those around them, which may shut this user out; and of two entries, the later."""
        self._had.clear()
        finished: set[int] = set()
        self._waiting.flush()
        for start in reversed(self._places):
            entry: Entry = pickle.loads(os.pread(self._waiting.fileno(), self._end - start, start))
            self._end = start
            if (path := hash(entry.name)) in finished:
                continue
            finished.add(path)
            try:
                self._finish(entry)
            except OSError as error:
                _refuse(error, entry)

    def _finish(self, entry: Entry) -> None:
        try:
            here = open_inside(self._directories.root, entry.name, O.RDONLY | O.DIRECTORY | O.NOFOLLOW)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # a later entry has taken its place
            raise
        try:
            for name in list_attributes(here, follow=True):
                if name not in entry.xattrs and not name.startswith(OF_THIS_MACHINE):
                    os.removexattr(here, name)  # a lower layer's
            self._dress(entry, here)
        finally:
            os.close(here)

    def _add_root(self, entry: Entry) -> None:
        if entry.kind != archive.DIRECTORY:
            raise UsageError(f"{entry}: is the root of the layer, and no directory")
        self._wait(entry._replace(name=b"."))

    def _make(self, entry: Entry, parts: Sequence[bytes], content: Archive) -> None:
        parent, name = self._parent(parts[:-1]), parts[-1]
        if entry.kind == archive.DIRECTORY:
            self._make_directory(entry._replace(name=b"/".join(parts)), parent, name)
        elif entry.kind == archive.FILE:
            self._make_file(entry, parent, name, content)
        elif entry.kind == archive.LINK:
            self._make_link(entry, parent, name)
        else:
            self._make_node(entry, parent, name)
        self._remember(parts)

    def _remember(self, parts: Sequence[bytes]) -> None:
        if self._rules.marks is None:
            for count in range(len(parts), 0, -1):
                if (path := hash(b"/".join(parts[:count]))) in self._had:
                    break
                self._had.add(path)

    def _make_directory(self, entry: Entry, parent: int, name: bytes) -> None:
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                os.chmod(name, 0o700, dir_fd=parent)  # an ordinary user may not have been let in
            else:
                opaque = self._replace(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        if opaque and self._rules.marks:
            self._make_opaque(self._rules.marks, place(parent, name))
        self._wait(entry)

    def _wait(self, entry: Entry) -> None:
        self._places.append(self._end)
        self._end += self._waiting.write(pickle.dumps(entry))

    def _make_file(self, entry: Entry, parent: int, name: bytes, content: Archive) -> None:
        if entry.size > self._rules.most:
            raise UsageError(f"{entry}: a file of {entry.size} bytes with its holes, in a layer that may have {self._rules.most}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        file = self._anew(lambda: os.open(name, flags, 0o600, dir_fd=parent), parent, name)
        try:
            for offset, length in entry.segments:
                if offset:
                    os.lseek(file, offset, os.SEEK_SET)
                for part in content.data(length):
                    _write(file, part)
            if len(entry.segments) != 1 or entry.segments[0] != (0, entry.size):
                os.ftruncate(file, entry.size)
            self._dress(entry, file)
        finally:
            os.close(file)

    def _make_link(self, entry: Entry, parent: int, name: bytes) -> None:
        parts = components(entry, entry.link)
        if not parts or any(part.startswith(_WHITEOUT) for part in parts):
            raise UsageError(f"{entry}: a hard link to {os.fsdecode(entry.link)!r}, which is no file's name in a layer")
        source = self._directories.opened(b"/".join(parts[:-1]))
        found = os.lstat(parts[-1], dir_fd=source)
        with suppress(FileNotFoundError):
            if os.path.samestat(found, os.lstat(name, dir_fd=parent)):
                return
        self._anew(lambda: os.link(parts[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False), parent, name)

    def _make_node(self, entry: Entry, parent: int, name: bytes) -> None:
        if entry.kind == archive.SYMLINK:
            self._anew(lambda: os.symlink(entry.link, name, dir_fd=parent), parent, name)
        else:
            kinds = {archive.FIFO: stat.S_IFIFO, archive.CHARACTER: stat.S_IFCHR, archive.BLOCK_DEVICE: stat.S_IFBLK}
            if entry.kind == archive.CHARACTER and not entry.device:
                raise UsageError(f"{entry}: a device of the number 0:0, which no device has: overlay would take it for a whiteout")
            try:
                self._anew(lambda: os.mknod(name, kinds[entry.kind] | 0o600, entry.device, dir_fd=parent), parent, name)
            except PermissionError as error:
                self._cannot(f"{entry}: only root, outside of every user namespace, makes device nodes (mknod(2))", error)
                return
        self._dress_by_name(entry, parent, name)

    def _cannot(self, why: str, error: OSError | None = None) -> None:
        if not self._rules.skipped:
            raise UsageError(f"{why}; let it be skipped, or unpack as root") from error
        self._rules.skipped(why)

    def _anew(self, make: Callable[[], T], parent: int, name: bytes) -> T:
        """Makes a name that is no directory's, in place of whatever has it."""
        try:
            return make()
        except FileExistsError:
            self._replace(parent, name)
            return make()

    def _replace(self, parent: int, name: bytes) -> bool:
        """Removes what has the name; tells whether it was a whiteout."""
        was = self._is_hidden(parent, name)
        self._directories.remove(parent, name)
        return was

    def _is_hidden(self, parent: int, name: bytes) -> bool:
        """Whether this layer has a whiteout of the name."""
        return bool(self._rules.marks and self._rules.marks.hides(place(parent, b"."), os.fsdecode(name)))

    def _dress(self, entry: Entry, file: int) -> None:
        """Owner first: a change of it takes setuid bits and capabilities away (chown(2))."""
        os.fchown(file, *self._owner(entry))
        if entry.xattrs:
            self._set_attributes(entry, file)
        os.fchmod(file, entry.mode)
        os.utime(file, ns=(entry.mtime, entry.mtime))

    def _dress_by_name(self, entry: Entry, parent: int, name: bytes) -> None:
        os.chown(name, *self._owner(entry), dir_fd=parent, follow_symlinks=False)
        if entry.xattrs:
            self._set_attributes(entry, place(parent, name))
        if entry.kind != archive.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)  # it was made a moment ago, and is no link
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _owner(self, entry: Entry) -> tuple[int, int]:
        return self._rules.owner(entry.uid, entry.gid) if self._rules.owner else (entry.uid, entry.gid)

    def _set_attributes(self, entry: Entry, file: int | str) -> None:
        for name, value in entry.xattrs.items():
            if name.startswith(OVERLAYS):
                # A redirect would show a directory of another place; an opaque one is a whiteout's matter.
                self._cannot(f"{entry}: has {name}, with which overlay would see something else in its place")
                continue
            try:
                os.setxattr(file, name, value, follow_symlinks=False) if isinstance(file, str) else os.setxattr(file, name, value)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                    raise
                self._cannot(f"{entry}: this user, or this file system, has no extended attribute {name} (xattr(7))", error)

    def _hide(self, entry: Entry, parts: Sequence[bytes]) -> None:
        """A whiteout, which may have any type (layer.md)."""
        parent, hidden = self._parent(parts[:-1]), parts[-1].removeprefix(_WHITEOUT)
        if parts[-1] == _OPAQUE:
            if self._rules.marks:
                self._make_opaque(self._rules.marks, place(parent, b"."))
            else:
                self._prune(parts[:-1])
        elif hidden in (b"", b".", b".."):
            raise UsageError(f"{entry}: a whiteout of {os.fsdecode(hidden)!r}, which is the name of no file")
        elif self._rules.marks:
            self._mark(self._rules.marks, parent, hidden)
        else:
            self._delete((*parts[:-1], hidden), parent)

    def _mark(self, marks: Notation, parent: int, hidden: bytes) -> None:
        directory, name = place(parent, b"."), os.fsdecode(hidden)
        if marks.has(directory, name):
            # This layer has it: only what is below is hidden, which a file does by itself.
            if stat.S_ISDIR(os.lstat(hidden, dir_fd=parent).st_mode):
                self._make_opaque(marks, place(parent, hidden))
        elif not marks.hides(directory, name) and self._is_below(directory, name):
            marks.hide(directory, name)

    def _is_below(self, directory: str, name: str) -> bool:
        """Whether there is anything to hide, as far as it is known. A whiteout for nothing would be seen in a directory that nothing lies below."""
        return self._rules.below is None or bool(self._shown(self._below(self._path(directory).parts), name))

    def _make_opaque(self, marks: Notation, directory: str) -> None:
        """Hides all that is below a directory, and not what this layer has in it."""
        if self._rules.below is None:
            marks.make_opaque(directory)
            return
        root = os.path.realpath(place(self._directories.root, b"."))
        waiting = [self._path(directory)]
        while waiting:
            path = waiting.pop()
            for name in sorted(names(self._below(path.parts), marks)):
                if not os.path.lexists(f"{root}/{path}/{name}"):
                    self._count_one(Entry(os.fsencode(path / name)))
                    marks.hide(f"{root}/{path}", name)
                elif is_directory(f"{root}/{path}/{name}"):
                    waiting.append(path / name)

    def _path(self, directory: str) -> Path:
        """Where a directory really is beneath the root: a link of this layer may have led to it."""
        return Path(os.path.relpath(os.path.realpath(directory), os.path.realpath(place(self._directories.root, b"."))))

    def _delete(self, parts: Sequence[bytes], parent: int) -> None:
        """Takes away what a lower layer has of it."""
        try:
            found = os.lstat(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            return
        if hash(b"/".join(parts)) not in self._had:
            self._directories.remove(parent, parts[-1])
        elif stat.S_ISDIR(found.st_mode):
            self._prune(parts)

    def _prune(self, top: Sequence[bytes]) -> None:
        """Takes away all that lower layers have below a directory."""
        waiting = [tuple(top)]
        while waiting:
            parts = waiting.pop()
            parent = self._parent(parts)
            for name in os.listdir(place(parent, b".").encode()):
                path = (*parts, name)
                if hash(b"/".join(path)) not in self._had:
                    self._directories.remove(parent, name)
                elif stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                    waiting.append(path)

    def _parent(self, parts: Sequence[bytes]) -> int:
        """A descriptor of the directory, which is made where it is missing."""
        try:
            return self._directories.opened(b"/".join(parts))
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        for count in range(1, len(parts) + 1):
            self._imply(parts[:count])
        return self._directories.opened(b"/".join(parts))

    def _imply(self, parts: Sequence[bytes]) -> None:
        try:
            self._directories.opened(b"/".join(parts))
        except KernelError as error:
            above = self._directories.opened(b"/".join(parts[:-1]))
            if self._is_hidden(above, parts[-1]):
                implied = Entry(b"/".join(parts), archive.DIRECTORY, mode=IMPLIED_MODE)
                self._count_one(implied)
                self._make_directory(implied, above, parts[-1])
                return
            if error.errno != errno.ENOENT:
                raise
            implied = self._as_below(parts)
            self._count_one(implied)
            # A link that leads nowhere stays, and is an error: FileExistsError.
            os.mkdir(parts[-1], 0o700, dir_fd=above)
            self._wait(implied)

    def _as_below(self, parts: Sequence[bytes]) -> Entry:
        """A directory that the archive does not have, as it is in the layers below."""
        entry = Entry(b"/".join(parts), archive.DIRECTORY, mode=IMPLIED_MODE)
        directories = self._below(map(os.fsdecode, parts))
        if not directories:
            return entry
        status = os.lstat(directories[0])
        names = (name for name in list_attributes(directories[0], follow=True) if not name.startswith(OF_THIS_MACHINE))
        xattrs = {name: os.getxattr(directories[0], name) for name in names}
        mode = stat.S_IMODE(status.st_mode)
        return entry._replace(mode=mode, uid=status.st_uid, gid=status.st_gid, mtime=status.st_mtime_ns, xattrs=xattrs)

    def _below(self, parts: Iterable[str]) -> tuple[str, ...]:
        """Those that a directory is merged from in the layers below, the topmost first."""
        directories = self._rules.below or ()
        for part in parts:
            directories = tuple(filter(is_directory, self._shown(directories, part)))
        return directories

    def _shown(self, directories: Sequence[str], name: str) -> tuple[str, ...]:
        return lookup(directories, name, self._rules.marks) if self._rules.marks else ()


def components(entry: Entry, path: bytes) -> list[bytes]:
    """The components of a path in an archive, which begins at the root with or without a slash."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(f"{entry}: goes up by '..' in {os.fsdecode(path)!r}; no layer needs to, and docker refuses what leads out")
    if len(path) >= PATH_MAX:
        raise UsageError(f"{entry}: a path of {len(path)} bytes, and the kernel takes {PATH_MAX - 1} (path_resolution(7))")
    return parts


def _write(file: int, part: memoryview) -> None:
    while part:
        part = part[os.write(file, part) :]
