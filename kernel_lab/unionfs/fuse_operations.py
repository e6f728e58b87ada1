"""A union as a file system of FUSE: what the kernel asks for by number (fuse_lowlevel.h), asked of the union by path.

The kernel may keep names, attributes and contents as long as it likes: everything that changes them comes by here.
"""

import errno
import itertools
import os
import stat
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from kernel_lab.unionfs import branches as tree
from kernel_lab.unionfs.aufs_copy import list_attributes
from kernel_lab.unionfs.aufs_union import Union
from kernel_lab.unionfs.branches import Branch, Place
from kernel_lab.unionfs.fuse_nodes import Node, Nodes
from kernel_lab.unionfs.policies import Policy

P = ParamSpec("P")
T = TypeVar("T")

FOREVER = 1e6  # seconds
ABSENT = 4096  # so many names that do not exist are remembered for each directory
# Of open(2), what concerns the branch's file too. The kernel itself appends, and reads past the cache.
OPENED = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
ACL = b"system.posix_acl_"
SET_ID = stat.S_ISUID | stat.S_ISGID


def request(method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A method as pyfuse3 wants it. Nothing here ever waits; what the kernel refuses, the caller is refused."""

    @wraps(method)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    return answer


class Open(NamedTuple):
    """An open file: which, and in which branch it may be written to."""

    node: Node
    written: Branch | None


class Files(pyfuse3.Operations):
    """The requests. A file handle is the descriptor of the branch's file itself."""

    def __init__(self, branches: Sequence[Branch], create: Policy) -> None:
        super().__init__()
        self.union = Union(branches, create, self._copied)
        self.nodes = Nodes()
        self.opened: dict[int, Open] = {}
        self.listings: dict[int, tuple[int, list[str]]] = {}
        self.handles = itertools.count(1)

    # Names

    @request
    def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(parent, os.fsdecode(name))

    @request
    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, lookups in inode_list:
            self.nodes.forget(self.nodes[number], lookups)

    @request
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._make(parent, name, ctx, lambda real: os.mkdir(real, mode))[1]

    @request
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._make(parent, name, ctx, lambda real: os.mknod(real, mode, rdev), mode)[1]

    @request
    def symlink(self, parent: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._make(parent, name, ctx, lambda real: os.symlink(target, real))[1]

    @request
    def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext) -> tuple[FileInfo, EntryAttributes]:
        how = flags & OPENED | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor, entry = self._make(parent, name, ctx, lambda real: os.open(real, how, mode), mode)
        return self._info(descriptor, self.nodes[entry.st_ino], flags), entry

    @request
    def link(self, inode: int, new_parent: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        name = os.fsdecode(new_name)
        self.union.link(self._path(self.nodes[inode]), self._join(new_parent, name))
        return self._entry(new_parent, name)

    @request
    def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self._remove(parent, os.fsdecode(name))

    @request
    def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self._remove(parent, os.fsdecode(name))

    @request
    def rename(self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes, flags: int, ctx: RequestContext) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        old, new = (parent_old, os.fsdecode(name_old)), (parent_new, os.fsdecode(name_new))
        target = self.union.search(self._join(*new))
        with self._losing(new, target[0]) if target else nullcontext():
            self.union.rename(self._join(*old), self._join(*new), not flags)
        moved = self.nodes.known(*old, self.union.find(self._join(*new))[0].status)
        if moved:
            self.nodes.rename(moved, old, new)

    @request
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return os.fsencode(os.readlink(self._place(self.nodes[inode]).path))

    # Attributes

    @request
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self.nodes[inode])

    @request
    def setattr(self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext) -> EntryAttributes:
        node = self.nodes[inode]
        real, follow = self._changeable(node, content=not fields.update_size or attr.st_size > 0)
        if fields.update_size:
            os.truncate(real if fh is None else fh, attr.st_size)
        if fields.update_uid or fields.update_gid:
            os.chown(real, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1, follow_symlinks=follow)
        if fields.update_mode:
            os.chmod(real, stat.S_IMODE(attr.st_mode))
        if fields.update_atime or fields.update_mtime:
            now = os.stat(real, follow_symlinks=follow)
            times = attr.st_atime_ns if fields.update_atime else now.st_atime_ns, attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
            os.utime(real, ns=times, follow_symlinks=follow)
        return self._attributes(node)

    @request
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name.startswith(ACL):
            raise FUSEError(errno.EOPNOTSUPP)
        real, follow = self._readable(self.nodes[inode])
        return os.getxattr(real, name, follow_symlinks=follow)

    @request
    def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        names = map(os.fsencode, list_attributes(*self._readable(self.nodes[inode])))
        return [name for name in names if not name.startswith(ACL)]

    @request
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        # An access list would be kept, but not heeded: the kernel looks at modes here (default_permissions).
        if name.startswith(ACL):
            raise FUSEError(errno.EOPNOTSUPP)
        real, follow = self._changeable(self.nodes[inode])
        os.setxattr(real, name, value, follow_symlinks=follow)

    @request
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        real, follow = self._readable(self.nodes[inode])
        os.getxattr(real, name, follow_symlinks=follow)  # what is not there is not copied up for
        real, follow = self._changeable(self.nodes[inode])
        os.removexattr(real, name, follow_symlinks=follow)

    @request
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        branches = self.union.branches
        status = os.statvfs(next((branch for branch in branches if branch.writable), branches[0]).path)
        answer = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, field, getattr(status, field))
        answer.f_namemax = tree.LONGEST
        return answer

    # Contents

    @request
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self.nodes[inode]
        changes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        real, follow = self._changeable(node, content=not flags & os.O_TRUNC) if changes else self._readable(node)
        descriptor = os.open(real, flags & OPENED | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
        return self._info(descriptor, node, flags)

    @request
    def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    @request
    def write(self, fh: int, off: int, buf: bytes) -> int:
        return os.pwrite(fh, buf, off)

    @request
    def fsync(self, fh: int, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(fh)

    @request
    def release(self, fh: int) -> None:
        self.opened.pop(fh).node.open.remove(fh)
        os.close(fh)

    @request
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle = next(self.handles)
        self.listings[handle] = inode, []
        return handle

    @request
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        inode, names = self.listings[fh]
        if start_id == 0:
            # What comes and goes meanwhile moves none of the others.
            names = [".", "..", *self.union.names(self.nodes.path(inode))]
            self.listings[fh] = inode, names
        for number, name in enumerate(names[start_id:], start_id + 1):
            if not self._listed(inode, name, token, number):
                return

    @request
    def releasedir(self, fh: int) -> None:
        del self.listings[fh]

    @request
    def fsyncdir(self, fh: int, datasync: bool) -> None:
        for place in self.union.find(self.nodes.path(self.listings[fh][0])):
            if place.branch.writable:
                descriptor = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    # Other branches

    def change(self, branches: Sequence[Branch]) -> tuple[list[tuple[int, bytes]], list[int]]:
        """Puts other branches in place of these. What the kernel has to forget then: names, and the numbers of files.

        Raises OSError (EBUSY) while a file of a branch that goes is open for writing: what is written there would be seen no more.
        """
        for opened in self.opened.values():
            if opened.written and opened.written not in branches:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), opened.written.path)
        self.union.change(branches)
        names = [name for node in self.nodes for name in node.names if self._is_other(name, node)]
        names += [(node.number, name) for node in self.nodes for name in node.absent if self._is_other((node.number, name), None)]
        return [(parent, os.fsencode(name)) for parent, name in names], [node.number for node in self.nodes]

    def _is_other(self, name: tuple[int, str], node: Node | None) -> bool:
        found: list[Place] = []
        with suppress(OSError):  # a directory above it is gone
            found = self.union.search(self._join(*name))
        return (self.nodes.known(*name, found[0].status) if found else None) is not node or bool(found and not node)

    # From numbers to paths

    def _join(self, parent: int, name: str) -> str:
        return f"{self.nodes.path(parent)}/{name}"

    def _path(self, node: Node) -> str:
        """A path by which the union shows this file."""
        for path in self.nodes.paths(node):
            found = self.union.search(path)
            if found and (found[0].is_directory or self.nodes.of(found[0].status) is node):
                return path
        raise FUSEError(errno.ESTALE)

    def _place(self, node: Node) -> Place:
        return self.union.find(self._path(node))[0]

    def _readable(self, node: Node) -> tuple[str, bool]:
        """The path of a file in its branch, and whether a symbolic link is to be followed to it: that of a descriptor is."""
        return (f"/proc/self/fd/{node.nameless}", True) if node.nameless >= 0 else (self._place(node).path, False)

    def _changeable(self, node: Node, content: bool = True) -> tuple[str, bool]:
        """The same, where it may be changed."""
        if node.nameless < 0:
            return self.union.bring(self._path(node), content=content), False
        if node.hidden:
            if not os.path.samestat(os.stat(node.nameless), os.lstat(node.source)):  # its branch is no longer there
                raise FUSEError(errno.ESTALE)
            copy = self.union.bring_nameless(node.source)
            self._moved(node, os.stat(copy), f"/proc/self/fd/{copy}")
            os.close(node.nameless)
            node.nameless, node.hidden = copy, 0
        return f"/proc/self/fd/{node.nameless}", True

    # From paths to numbers

    def _entry(self, parent: int, name: str) -> EntryAttributes:
        """What the kernel is told of a name, and counts."""
        found = self.union.search(self._join(parent, name))
        if not found:
            return self._absent(parent, name)
        node = self.nodes.meet(parent, name, found[0].status)
        node.lookups += 1
        self.nodes[parent].absent.discard(name)
        return _told(node, found[0].status, len(found) > 1)

    def _absent(self, parent: int, name: str) -> EntryAttributes:
        absent = self.nodes[parent].absent
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = FOREVER if len(absent) < ABSENT else 0
        if entry.entry_timeout:
            absent.add(name)
        return entry

    def _listed(self, parent: int, name: str, token: ReaddirToken, number: int) -> bool:
        """Whether there was room for one more name."""
        if name in (".", ".."):  # of these the kernel takes no more than that they are directories, and counts nothing
            return pyfuse3.readdir_reply(token, name.encode(), self._attributes(self.nodes[parent]), number)
        found = self.union.search(self._join(parent, name))
        if not found:
            return True
        node = self.nodes.meet(parent, name, found[0].status)
        node.lookups += 1
        listed = pyfuse3.readdir_reply(token, os.fsencode(name), _told(node, found[0].status, len(found) > 1), number)
        if not listed:
            self.nodes.forget(node, 1)
        return listed

    def _attributes(self, node: Node) -> EntryAttributes:
        if node.open:
            return _told(node, os.fstat(node.open[0]))
        if node.nameless >= 0:
            return _told(node, os.fstat(node.nameless))
        found = self.union.find(self._path(node))
        return _told(node, found[0].status, len(found) > 1)

    def _info(self, descriptor: int, node: Node, flags: int) -> FileInfo:
        written = None
        if flags & os.O_ACCMODE != os.O_RDONLY and node.nameless < 0:
            written = self._place(node).branch
        node.open.append(descriptor)
        self.opened[descriptor] = Open(node, written)
        return FileInfo(fh=descriptor, keep_cache=True)

    # Changes

    def _make(self, parent: int, name: bytes, ctx: RequestContext, make: Callable[[str], T], mode: int = 0) -> tuple[T, EntryAttributes]:
        """Something new, of the user who asks for it."""

        def make_owned(real: str) -> T:
            made = make(real)
            if (ctx.uid, ctx.gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
                _own(real, ctx, mode)
            return made

        text = os.fsdecode(name)
        return self.union.add(self._join(parent, text), make_owned), self._entry(parent, text)

    def _remove(self, parent: int, name: str) -> None:
        with self._losing((parent, name), self.union.find(self._join(parent, name))[0]):
            self.union.remove(self._join(parent, name))

    @contextmanager
    def _losing(self, name: tuple[int, str], top: Place) -> Iterator[None]:
        """A file loses a name. If that was its last, whoever has it open goes on by a descriptor."""
        node = self.nodes.known(*name, top.status)
        if node is None:
            yield
            return
        with ExitStack() as closing:
            descriptor = os.open(top.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            closing.callback(os.close, descriptor)
            yield
            self.nodes.unname(node, name)
            if not top.branch.writable:
                node.hidden, node.source = node.hidden + 1, top.path
            if not node.names:
                node.nameless = descriptor
                closing.pop_all()

    def _copied(self, status: os.stat_result, real: str) -> None:
        """A file has been copied up: from now on, it is this one."""
        node = self.nodes.of(status)
        if node:
            self._moved(node, os.lstat(real), real)

    def _moved(self, node: Node, status: os.stat_result, real: str) -> None:
        self.nodes.identify(node, status)
        for descriptor in node.open:
            now = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(now, descriptor, inheritable=False)
            os.close(now)


def _told(node: Node, status: os.stat_result, is_merged: bool = False) -> EntryAttributes:
    """A file's attributes. A directory of several branches has no number of links that would say something: 1, as on btrfs and overlay."""
    entry = EntryAttributes()
    entry.st_ino = node.number
    entry.entry_timeout = entry.attr_timeout = FOREVER
    entry.st_mode, entry.st_rdev = status.st_mode, status.st_rdev
    entry.st_nlink = 1 if is_merged else status.st_nlink - node.hidden
    entry.st_uid, entry.st_gid = status.st_uid, status.st_gid
    entry.st_size, entry.st_blocks, entry.st_blksize = status.st_size, status.st_blocks, status.st_blksize
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
    return entry


def _own(real: str, ctx: RequestContext, mode: int) -> None:
    # In a directory with the set-group-ID bit, what is new has the directory's group already (inode(7)).
    group = -1 if os.stat(os.path.dirname(real)).st_mode & stat.S_ISGID else ctx.gid
    os.chown(real, ctx.uid, group, follow_symlinks=False)
    if mode & SET_ID:  # which the change of owner has taken away
        os.chmod(real, stat.S_IMODE(mode))
