"""Layers as they travel: compressed by gzip or zstd, or not at all, and read piece by piece with a bound on what comes out.

What is compressed says so itself, in its first bytes (RFC 1952, RFC 8878): a media type can be wrong, and docker believes the bytes too. As docker
does, these read what xz and bzip2 have compressed as well, in which the root file systems of distributions are published.
"""

import bz2
import lzma
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from isal import igzip_lib, isal_zlib

from kernel_lab.kernel.errors import UsageError

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

PIECE = 1 << 18  # the most bytes that come out at once
# And that go in: what follows a member is copied, and a hostile file is thousands of empty ones.
SIP = 1 << 14
MAGIC = 6  # so many bytes tell what something is
# So much of what came out a zstd frame may refer back to: 32 MB. What `zstd -20` writes is read; --ultra -22 would want 128 MB of memory.
WINDOW_LOG = 25
XZ_MEMORY = 40 << 20  # for `xz -8`; -9 wants 65 MB
# With level 3, ISA-L's output depends on the processor's vectors; with 2 it does not, and it is a tenth larger than gzip's.
LEVEL = 2
WITH_HEADER = 31  # zlib's window bits for a gzip header, which here has no name and no time


class Compression(Enum):
    """How a layer is compressed; of these, gzip and zstd are suffixes of media types too."""

    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"
    XZ = "xz"
    BZIP2 = "bzip2"


class _Decompressor(Protocol):
    """What the library has for every compression (bz2.BZ2Decompressor)."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def recognise(head: bytes) -> Compression:
    """What begins with these bytes; six are enough."""
    if head[:3] == b"\x1f\x8b\x08":
        return Compression.GZIP
    # A frame, or one to be skipped, which some writers begin with (RFC 8878, 3.1.2).
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return Compression.ZSTD
    if head[:6] == b"\xfd7zXZ\0":
        return Compression.XZ
    if head[:3] == b"BZh":
        return Compression.BZIP2
    return Compression.NONE


def recognised(chunks: Iterable[bytes]) -> tuple[Compression, Iterator[bytes]]:
    """How what comes in chunks is compressed, and the same chunks once more."""
    chunks = iter(chunks)
    head = b""
    while len(head) < MAGIC and (chunk := next(chunks, None)) is not None:
        head += chunk
    return recognise(head), chain([head], chunks)


def decompressed(compression: Compression, chunks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """The content, in pieces, of one or more gzip members or zstd frames that stand behind each other.

    `most` bytes may come out. Raises UsageError, before it gives more, for a longer content, and for data that is damaged or ends too soon.
    """
    for piece in chunks if compression is Compression.NONE else _pieces(compression, chunks, most):
        most -= len(piece)
        if most < 0:
            raise UsageError("an archive is larger, once it is decompressed, than the most bytes it may have; allow more, or distrust it")
        yield piece


def _pieces(compression: Compression, chunks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """The content, and one byte more than `most` where there is more."""
    decompressor = None
    for waiting in (chunk[start : start + SIP] for chunk in chunks for start in range(0, len(chunk), SIP)):
        sip = waiting
        while sip or (decompressor and not decompressor.needs_input):
            decompressor = decompressor or _decompressor(compression)
            piece = _decompress(decompressor, sip, min(PIECE, most + 1), compression)
            most -= len(piece)
            yield piece
            sip = b""
            if decompressor.eof:
                sip, decompressor = decompressor.unused_data, None
    if decompressor:
        raise UsageError(f"an archive compressed by {compression.value} ends in the middle: it is truncated; fetch it again")


def _decompressor(compression: Compression) -> _Decompressor:
    if compression is Compression.GZIP:
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if compression is Compression.XZ:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    if compression is Compression.BZIP2:
        return bz2.BZ2Decompressor()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})


def _decompress(decompressor: _Decompressor, chunk: bytes, most: int, compression: Compression) -> bytes:
    try:
        return decompressor.decompress(chunk, most)
    except (igzip_lib.error, zstd.ZstdError, lzma.LZMAError, OSError) as error:  # type: ignore[misc]  # isal's stub calls this class an instance
        raise UsageError(f"an archive compressed by {compression.value} cannot be read: {error}; fetch it again") from None


def gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks as one gzip member, the same for the same content on every machine: without a name or a time, and however it was cut up."""
    compressor = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, WITH_HEADER)
    # ISA-L looks for repetitions in what it is given at once, so that it has to be given the same blocks every time.
    for block in _blocks(chunks):
        yield compressor.compress(block)
    yield compressor.flush()


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= PIECE:
            yield bytes(waiting[:PIECE])
            del waiting[:PIECE]
    yield bytes(waiting)
