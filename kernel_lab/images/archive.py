"""The tar format, by hand: what a layer's archive says of each file, without a file system.

It is ustar with POSIX's extended headers (pax(1)) and GNU's own (tar(5)): images have both. Where programs differ in how they read one, it is read as
Go's archive/tar does, on which docker and its relatives stand: what two of them see differently can be hidden from one of them. Names are bytes, as
the kernel has them; so both values of `hdrcharset`, UTF-8 and BINARY, come to the same.
"""

import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from kernel_lab.kernel.errors import UsageError

BLOCK = 512
END = bytes(2 * BLOCK)
# Of a header that describes the next one, and of a list of segments: as in Go's maxSpecialFileSize.
MOST_EXTENDED = 1 << 20

FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = (bytes([kind]) for kind in b"0123456")
OLD_FILE, CONTIGUOUS, SPARSE = b"\0", b"7", b"S"
KINDS = {FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO, OLD_FILE, CONTIGUOUS, SPARSE}
PAX, PAX_GLOBAL, LONG_NAME, LONG_LINK = b"x", b"g", b"L", b"K"
XATTR = b"SCHILY.xattr."

NOBODY = 2**32 - 1  # to chown(2), as -1, it means: leave the owner as it is
SECOND = 10**9
_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_USTAR_MAGIC = b"ustar\0"  # GNU's is "ustar ", and where ustar has a name's beginning it has times
_OLD_SEGMENTS = slice(386, 482)
_MORE_SEGMENTS = slice(0, 504)
_TIME = re.compile(rb"(-?)(\d{1,18})(?:\.(\d*))?")


class Entry(NamedTuple):
    """One file of an archive."""

    name: bytes
    kind: bytes = FILE
    size: int = 0  # of a file, with its holes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0  # in nanoseconds
    link: bytes = b""  # where a symlink leads; of a hard link, the other name
    device: int = 0
    xattrs: Mapping[str, bytes] = {}
    segments: Sequence[tuple[int, int]] = ()  # offset and length of what the archive has of it

    def __str__(self) -> str:
        return repr(os.fsdecode(self.name))


class Archive:
    """The entries of an archive that comes in pieces; `data` gives the content of the latest one.

    Raises UsageError for what is no archive, is damaged, or ends too soon.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._here = memoryview(b"")
        self._left = 0  # bytes of the present file that are still to come
        self._padding = 0
        self._latest: Entry | str = "its beginning"

    def __iter__(self) -> Iterator[Entry]:
        records: dict[bytes, bytes] = {}
        longer: dict[bytes, bytes] = {}
        while any(block := self._take(BLOCK)):
            entry, data = _header(block)
            if entry.kind in (PAX, PAX_GLOBAL, LONG_NAME, LONG_LINK):
                text = self._extension(data)
                # Global records are for the archive's reader: no engine applies them to a layer's files.
                if entry.kind == PAX:
                    records = _records(text)
                elif entry.kind != PAX_GLOBAL:
                    longer[entry.kind] = text.partition(b"\0")[0]
                continue
            yield self._whole(entry, data, block, records, longer)
            self._skip()
            if records or longer:
                records, longer = {}, {}
        if records or longer:
            raise self._truncated()
        for _ in self._pieces:  # a digest is of what stands behind the end, too
            pass

    def data(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes of the latest entry's content."""
        self._left -= size
        return self._flow(size)

    def _flow(self, size: int) -> Iterator[memoryview]:
        while size:
            if not self._here:
                self._refill()
            part = self._here[:size]
            self._here = self._here[size:]
            size -= len(part)
            yield part

    def _refill(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise self._truncated()
        self._here = memoryview(piece)

    def _take(self, size: int) -> bytes:
        """So many bytes; none where an archive may end: between two files."""
        if len(self._here) >= size:
            part = bytes(self._here[:size])
            self._here = self._here[size:]
            return part
        while not self._here:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._here = memoryview(piece)
        return b"".join(self._flow(size))

    def _truncated(self) -> UsageError:
        return UsageError(f"an archive ends in the middle, after {self._latest}: it is truncated; fetch it again")

    def _skip(self) -> None:
        over = self._left + self._padding
        self._left = self._padding = 0
        if over <= len(self._here):  # as mostly: what is left is the padding
            self._here = self._here[over:]
            return
        for _ in self._flow(over):
            pass

    def _extension(self, size: int) -> bytes:
        if size > MOST_EXTENDED:
            raise UsageError(f"an archive has an extended header of {size} bytes, after {self._latest}; {MOST_EXTENDED} are the most")
        text = b"".join(self._flow(size))
        self._padding = -size % BLOCK
        self._skip()
        return text

    def _whole(self, entry: Entry, data: int, block: bytes, records: dict[bytes, bytes], longer: dict[bytes, bytes]) -> Entry:
        """The entry with all that the headers before it and the segments behind it say."""
        entry, data = _extended(entry, data, records)
        if longer:
            entry = entry._replace(name=longer.get(LONG_NAME, entry.name), link=longer.get(LONG_LINK, entry.link))
        if entry.kind in (OLD_FILE, CONTIGUOUS):
            # Before ustar, a directory was a file whose name ends so.
            entry = entry._replace(kind=DIRECTORY if entry.kind == OLD_FILE and entry.name.endswith(b"/") else FILE)
        if b"\0" in entry.name or b"\0" in entry.link:
            raise UsageError(f"{entry}: its name or its link has a zero byte in it, and the kernel's names end there")
        self._latest = entry
        if entry.kind not in KINDS:
            raise UsageError(f"{entry}: an entry of type {entry.kind!r}; a layer has files, directories, links, devices and fifos")
        # What is no file has no content, whatever size it names.
        self._left = data if entry.kind in (FILE, SPARSE) else 0
        self._padding = -self._left % BLOCK
        if entry.kind == SPARSE:
            return self._old_sparse(entry, block)
        if entry.kind == FILE and (sparse := _sparse(records)):
            name, size, numbers = sparse
            entry = entry._replace(name=name or entry.name, size=size)
            return _segmented(entry, self._numbers() if numbers is None else numbers, self._left)
        if entry.size == self._left:
            return entry
        return entry._replace(size=self._left, segments=((0, self._left),) if self._left else ())

    def _old_sparse(self, entry: Entry, block: bytes) -> Entry:
        """GNU's first way: a list in the header, and in blocks behind it (tar(5), "GNU tar archives")."""
        fields, more, size = bytearray(block[_OLD_SEGMENTS]), block[482], _natural(block[483:495], "real size")
        while more:
            following = self._take(BLOCK)
            if not following:
                raise self._truncated()
            fields += following[_MORE_SEGMENTS]
            more = following[504]
            if len(fields) > MOST_EXTENDED:
                raise UsageError(f"{entry}: a sparse file of more segments than {MOST_EXTENDED // 24}")
        numbers = [_natural(bytes(fields[start : start + 12]), "segment") for start in range(0, len(fields), 12) if fields[start]]
        return _segmented(entry._replace(kind=FILE, size=size), numbers, self._left)

    def _numbers(self) -> list[int]:
        """PAX 1.0: a list in lines, at the head of the content, in whole blocks."""
        text, lines, wanted = bytearray(), 0, 1
        while lines < wanted:
            if len(text) > MOST_EXTENDED or self._left < BLOCK:
                raise UsageError(f"a sparse file's list of segments has no end, after {self._latest}")
            block = b"".join(self.data(BLOCK))
            text += block
            lines += block.count(b"\n")
            if wanted == 1 and lines:
                wanted = 2 * _decimal(bytes(text[: text.index(b"\n")]), "number of segments") + 1
        return [_decimal(line, "segment") for line in bytes(text).split(b"\n")[1:wanted]]


def _header(block: bytes) -> tuple[Entry, int]:
    """What a header of 512 bytes says alone, and the size that it names."""
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, major, minor, prefix = _USTAR.unpack(block)
    name = name.partition(b"\0")[0]
    _check(block, checksum)
    if magic[:6] == _USTAR_MAGIC and prefix[0]:
        name = prefix.partition(b"\0")[0] + b"/" + name
    device = os.makedev(_half_of_device(major), _half_of_device(minor)) if kind in (CHARACTER, BLOCK_DEVICE) else 0
    data = _natural(size, "size")
    here, segments = (data, ((0, data),)) if kind == FILE and data else (0, ())
    entry = Entry(name, kind, here, *_access(mode, uid, gid), _number(mtime) * SECOND, link.partition(b"\0")[0], device, {}, segments)
    return entry, data


@lru_cache(1024)  # most files of a layer have the same
def _access(mode: bytes, uid: bytes, gid: bytes) -> tuple[int, int, int]:
    return _natural(mode, "mode") & 0o7777, _id(_natural(uid, "uid")), _id(_natural(gid, "gid"))


def _check(block: bytes, checksum: bytes) -> None:
    named = _natural(checksum, "checksum")
    # The sum of all bytes, as if the checksum were eight blanks; some old programs took a byte for signed.
    found = sum(block) - sum(checksum) + 8 * ord(" ")
    if named != found and named != sum(byte - 256 * (byte > 127) for byte in block[:148] + b" " * 8 + block[156:]):
        raise UsageError(f"this is no tar archive, or a damaged one: a header's checksum is {named}, and its bytes have {found}")


def _number(field: bytes) -> int:
    """Octal digits; or, with the first bit set, two's complement in the rest (tar(5), "Numeric extensions")."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & (1 << bits) - 1
        value -= (value >> bits - 1) << bits
        if not -(2**63) <= value < 2**63:
            raise UsageError(f"an archive has the number {value}, which no file can have")
        return value
    text = field.strip(b" \0").partition(b"\0")[0]
    try:
        return int(text, 8) if text.isdigit() else _nothing(text)
    except ValueError:
        raise UsageError(f"this is no tar archive, or a damaged one: {field!r} is no octal number") from None


def _nothing(text: bytes) -> int:
    if text:
        raise ValueError(text)
    return 0


def _natural(field: bytes, what: str) -> int:
    value = _number(field)
    if value < 0:
        raise UsageError(f"an archive has the {what} {value}, which is less than nothing")
    return value


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 19 or int(text) >= 2**63:
        raise UsageError(f"an archive has the {what} {text[:40]!r}, which is no number that a file can have")
    return int(text)


def _id(value: int) -> int:
    if value >= NOBODY:
        raise UsageError(f"an archive has the owner {value}; {NOBODY - 1} is the largest (chown(2))")
    return value


def _half_of_device(field: bytes) -> int:
    value = _natural(field, "device number")
    if value >= 1 << 20:
        raise UsageError(f"an archive has the device number {value}; the kernel has 12 bits for a major and 20 for a minor (makedev(3))")
    return value


def _time(text: bytes) -> int:
    found = _TIME.fullmatch(text)
    if not found:
        raise UsageError(f"an archive has the time {text[:40]!r}, which is none")
    nanoseconds = int(found[2]) * SECOND + int((found[3] or b"")[:9].ljust(9, b"0"))
    return -nanoseconds if found[1] else nanoseconds


def _records(text: bytes) -> dict[bytes, bytes]:
    """`LENGTH KEY=VALUE\\n`, as often as there is one (pax(1), "pax Extended Header")."""
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    start = 0
    while start < len(text):
        length, blank, _ = text[start : start + 20].partition(b" ")
        end = start + (_decimal(length, "record length") if blank else 0)
        key, equals, value = text[start + len(length) + 1 : end - 1].partition(b"=")
        if not equals or not key or text[end - 1 : end] != b"\n":
            raise UsageError(f"an archive has an extended header whose record at byte {start} is damaged")
        # PAX 0.0 repeats these two for each segment; 0.1 has all in one record.
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs.append(value)
        records[key] = value
        start = end
    return records | ({b"GNU.sparse.map": b",".join(pairs)} if pairs else {})


def _extended(entry: Entry, size: int, records: Mapping[bytes, bytes]) -> tuple[Entry, int]:
    """The entry with what its records say in place of the header; an empty value says nothing, but of an attribute."""
    if not records:
        return entry, size
    said = {key: value for key, value in records.items() if value}
    entry = entry._replace(
        name=said.get(b"path", entry.name),
        link=said.get(b"linkpath", entry.link),
        uid=_id(_decimal(said[b"uid"], "uid")) if b"uid" in said else entry.uid,
        gid=_id(_decimal(said[b"gid"], "gid")) if b"gid" in said else entry.gid,
        mtime=_time(said[b"mtime"]) if b"mtime" in said else entry.mtime,
        xattrs={_xattr(key): value for key, value in records.items() if key.startswith(XATTR)},
    )
    return entry, _decimal(said[b"size"], "size") if b"size" in said else size


def _xattr(key: bytes) -> str:
    if b"\0" in key:
        raise UsageError(f"an archive has an extended attribute with a zero byte in its name: {key!r}")
    return os.fsdecode(key.removeprefix(XATTR))


def _sparse(records: Mapping[bytes, bytes]) -> tuple[bytes, int, list[int] | None] | None:
    """Of a file with holes in one of PAX's three ways: its name and size, and its segments unless they stand in the content."""
    name = records.get(b"GNU.sparse.name", b"")
    if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
        return name, _decimal(records.get(b"GNU.sparse.realsize", b""), "real size"), None
    if b"GNU.sparse.map" in records or b"GNU.sparse.size" in records:
        listed = records.get(b"GNU.sparse.map", b"")
        numbers = [_decimal(number, "segment") for number in listed.split(b",")] if listed else []
        return name, _decimal(records.get(b"GNU.sparse.size", b""), "real size"), numbers
    return None


def _segmented(entry: Entry, numbers: Sequence[int], data: int) -> Entry:
    segments = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    end = 0
    for offset, length in segments:
        if offset < end:
            raise UsageError(f"{entry}: the segments of a sparse file overlap, or stand in no order")
        end = offset + length
    if len(numbers) % 2 or end > entry.size or sum(length for _, length in segments) != data:
        raise UsageError(f"{entry}: the segments of a sparse file do not fit its size, {entry.size}, and what the archive has of it, {data} bytes")
    return entry._replace(segments=segments)


def encode(entry: Entry) -> bytes:
    """The header of an entry: one block, and before it an extended one where that cannot say it."""
    seconds, fraction = divmod(entry.mtime, SECOND)
    fits = {"path": len(entry.name) <= 100, "linkpath": len(entry.link) <= 100, "size": entry.size < 8**11}
    fits |= {"uid": entry.uid < 8**7, "gid": entry.gid < 8**7, "mtime": not fraction and 0 <= seconds < 8**11}
    said = {"path": entry.name, "linkpath": entry.link, "size": b"%d" % entry.size, "uid": b"%d" % entry.uid, "gid": b"%d" % entry.gid}
    said["mtime"] = _decimal_time(entry.mtime)
    records = [(key.encode(), value) for key, value in said.items() if not fits[key]]
    records += [(XATTR + os.fsencode(name), value) for name, value in sorted(entry.xattrs.items())]
    extension = b""
    if records:
        text = b"".join(_record(key, value) for key, value in records)
        extension = _block(Entry(b"PaxHeader", PAX, len(text)), 0) + text + bytes(-len(text) % BLOCK)
    size, uid, gid, time = (
        value if fits[key] else 0 for key, value in (("size", entry.size), ("uid", entry.uid), ("gid", entry.gid), ("mtime", seconds))
    )
    return extension + _block(entry._replace(size=size, uid=uid, gid=gid), time)


def _decimal_time(nanoseconds: int) -> bytes:
    seconds, fraction = divmod(abs(nanoseconds), SECOND)
    return b"%s%d.%09d" % (b"-" if nanoseconds < 0 else b"", seconds, fraction)


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + len(str(len(rest)))
    # Its length counts its own digits, and these can make one digit more.
    return b"%d" % (len(rest) + len(str(length))) + rest


def _block(entry: Entry, seconds: int) -> bytes:
    major, minor = os.major(entry.device), os.minor(entry.device)
    small = [b"%07o\0" % value for value in (entry.mode, entry.uid, entry.gid)]
    large = [b"%011o\0" % value for value in (entry.size, seconds)]
    devices = [b"%07o\0" % value for value in (major, minor)]
    magic = _USTAR_MAGIC + b"00"
    fields = (entry.name[:100], *small, *large, b" " * 8, entry.kind, entry.link[:100], magic, b"", b"", *devices, b"")
    block = _USTAR.pack(*fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
