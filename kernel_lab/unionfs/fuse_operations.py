"""What the kernel asks a file system for through FUSE, request by request (fuse_lowlevel.h), answered from a union."""

import errno
import itertools
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from kernel_lab.unionfs.aufs_copy import list_attributes
from kernel_lab.unionfs.branches import LONGEST
from kernel_lab.unionfs.fuse_files import Files

P = ParamSpec("P")
T = TypeVar("T")

# Of open(2), what concerns the branch's file too. The kernel itself appends, and reads past the cache.
OPENED = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
SET_ID = stat.S_ISUID | stat.S_ISGID
ACL = b"system.posix_acl_"
ROOM = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")


def request(method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A method as pyfuse3 wants it. Nothing here ever waits; what the kernel refuses, the caller is refused."""

    @wraps(method)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    return answer


class Operations(pyfuse3.Operations):
    """The requests. The handle of an open file is the descriptor of the branch's file itself.

    What is not here, the kernel does by itself or refuses: permissions (`default_permissions`), locks, appending, mapping; reserving space.
    """

    def __init__(self, files: Files) -> None:
        super().__init__()
        self.files, self.union, self.nodes = files, files.union, files.nodes
        self.handles = itertools.count(1)
        self.listings: dict[int, tuple[int, list[str]]] = {}  # of open directories: the number, and the names

    @request
    def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self.files.entry(parent, os.fsdecode(name))

    @request
    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, lookups in inode_list:
            self.files.forget(number, lookups)

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
        return self._opened(entry.st_ino, descriptor), entry

    @request
    def link(self, inode: int, new_parent: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        name = os.fsdecode(new_name)
        self.union.link(self.files.found(self.nodes[inode])[0], self.files.path(new_parent, name))
        return self.files.entry(new_parent, name)

    @request
    def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self.files.remove(parent, os.fsdecode(name))

    @request
    def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self.files.remove(parent, os.fsdecode(name))

    @request
    def rename(self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes, flags: int, ctx: RequestContext) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        self.files.rename((parent_old, os.fsdecode(name_old)), (parent_new, os.fsdecode(name_new)), not flags)

    @request
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return os.fsencode(os.readlink(self.files.readable(self.nodes[inode]).path))

    @request
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self.files.status(self.nodes[inode])

    @request
    def setattr(self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext) -> EntryAttributes:
        node = self.nodes[inode]
        real, follow = self.files.changeable(node, content=not fields.update_size or attr.st_size > 0)
        if fields.update_size:
            os.truncate(real if fh is None else fh, attr.st_size)
        if fields.update_uid or fields.update_gid:
            os.chown(real, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1, follow_symlinks=follow)
        if fields.update_mode:  # after the owner, whose change takes bits away
            os.chmod(real, stat.S_IMODE(attr.st_mode))
        if fields.update_atime or fields.update_mtime:
            now = os.stat(real, follow_symlinks=follow)
            times = attr.st_atime_ns if fields.update_atime else now.st_atime_ns, attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
            os.utime(real, ns=times, follow_symlinks=follow)
        return self.files.status(node)

    @request
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name.startswith(ACL):
            raise FUSEError(errno.EOPNOTSUPP)
        node = self.nodes[inode]
        if node.open:  # asked for before each write: whether the file has capabilities to lose
            return os.getxattr(node.open[0], name)
        real, follow = self.files.readable(node)
        return os.getxattr(real, name, follow_symlinks=follow)

    @request
    def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        names = map(os.fsencode, list_attributes(*self.files.readable(self.nodes[inode])))
        return [name for name in names if not name.startswith(ACL)]

    @request
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if name.startswith(ACL):  # it would be kept, but not heeded: with default_permissions, the kernel looks at modes
            raise FUSEError(errno.EOPNOTSUPP)
        real, follow = self.files.changeable(self.nodes[inode])
        os.setxattr(real, name, value, follow_symlinks=follow)

    @request
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        real, follow = self.files.readable(self.nodes[inode])
        os.getxattr(real, name, follow_symlinks=follow)  # for what is not there, nothing is copied up
        real, follow = self.files.changeable(self.nodes[inode])
        os.removexattr(real, name, follow_symlinks=follow)

    @request
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        branches = self.union.branches
        status = os.statvfs(next((branch for branch in branches if branch.writable), branches[0]).path)
        answer = StatvfsData()
        for field in ROOM:
            setattr(answer, field, getattr(status, field))
        answer.f_namemax = LONGEST
        return answer

    @request
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self.nodes[inode]
        changes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        real, follow = self.files.changeable(node, content=not flags & os.O_TRUNC) if changes else self.files.readable(node)
        return self._opened(inode, os.open(real, flags & OPENED | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)))

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
        self.files.close(fh)

    @request
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle = next(self.handles)
        self.listings[handle] = inode, []
        return handle

    @request
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        inode, names = self.listings[fh]
        if start_id == 0:
            # From now on as it is: what comes and goes meanwhile moves none of the others.
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
                directory = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)

    def _opened(self, inode: int, descriptor: int) -> FileInfo:
        self.files.open(self.nodes[inode], descriptor)
        return FileInfo(fh=descriptor, keep_cache=True)

    def _make(self, parent: int, name: bytes, ctx: RequestContext, make: Callable[[str], T], mode: int = 0) -> tuple[T, EntryAttributes]:
        """Something new, of the user who asks for it."""

        def make_owned(real: str) -> T:
            made = make(real)
            if os.geteuid() == 0 and (ctx.uid, ctx.gid) != (0, os.getegid()):
                _own(real, ctx, mode)
            return made

        return self.files.make(parent, os.fsdecode(name), make_owned)

    def _listed(self, parent: int, name: str, token: ReaddirToken, number: int) -> bool:
        """Whether there was room for one more name."""
        if name in (".", ".."):  # of these the kernel takes no more than that they are directories, and counts nothing
            return pyfuse3.readdir_reply(token, name.encode(), self.files.status(self.nodes[parent]), number)
        entry = self.files.entry(parent, name)
        if not entry.st_ino:  # it has gone meanwhile
            return True
        listed = pyfuse3.readdir_reply(token, os.fsencode(name), entry, number)
        if not listed:
            self.files.forget(entry.st_ino)
        return listed


def _own(real: str, ctx: RequestContext, mode: int) -> None:
    # In a directory with the set-group-ID bit, what is new has the directory's group already (inode(7)).
    group = -1 if os.stat(os.path.dirname(real)).st_mode & stat.S_ISGID else ctx.gid
    os.chown(real, ctx.uid, group, follow_symlinks=False)
    if mode & SET_ID:  # which the change of owner has taken away
        os.chmod(real, stat.S_IMODE(mode))
