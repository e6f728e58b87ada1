"""Compressed layers: what they are, what comes out of them and how much, and what is damaged."""

import bz2
import gzip
import lzma
import random
from collections.abc import Iterator

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images.compression import Compression, decompressed, gzipped, recognised

ZEROS = bytes(1 << 26)
TEXT = random.Random(1).randbytes(50_000) + bytes(300_000)
SKIPPABLE = bytes.fromhex("502a4d1804000000") + b"text"
COMPRESSED = {
    Compression.NONE: TEXT,
    Compression.GZIP: gzip.compress(TEXT),
    Compression.ZSTD: zstd.compress(TEXT),
    Compression.XZ: lzma.compress(TEXT),
    Compression.BZIP2: bz2.compress(TEXT),
}


def cut(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def read(content: bytes, most: int = 1 << 30, size: int = 10_000) -> bytes:
    return b"".join(decompressed(*recognised(cut(content, size)), most))


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
@pytest.mark.parametrize("kind", Compression)
def test_the_first_bytes_tell_the_compression(kind: Compression, size: int) -> None:
    found, chunks = recognised(cut(COMPRESSED[kind], size))
    assert found is kind
    assert b"".join(decompressed(found, chunks, len(TEXT))) == TEXT


@pytest.mark.parametrize("content", [b"", b"a", b"\x1f\x8b"])
def test_less_than_four_bytes_are_not_compressed(content: bytes) -> None:
    assert read(content) == content


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.integers(1, 60))
@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress, lzma.compress, bz2.compress])
def test_members_and_frames_may_stand_behind_each_other(compress: object, parts: list[bytes], size: int) -> None:
    assert callable(compress)
    assert read(b"".join(map(compress, parts)), size=size) == b"".join(parts)


def test_frames_that_are_to_be_skipped_are() -> None:
    assert read(SKIPPABLE + zstd.compress(b"one") + SKIPPABLE + zstd.compress(b"two")) == b"onetwo"


@pytest.mark.parametrize("kind", Compression)
def test_as_much_as_is_allowed_comes_out(kind: Compression) -> None:
    assert read(COMPRESSED[kind], len(TEXT)) == TEXT
    with pytest.raises(UsageError, match="larger, once it is decompressed"):
        read(COMPRESSED[kind], len(TEXT) - 1)


@pytest.mark.parametrize(
    "bomb",
    [*(compress(ZEROS) for compress in (gzip.compress, zstd.compress, bz2.compress)), gzip.compress(b"") * 1000 + gzip.compress(bytes(1 << 20))],
)
def test_of_a_bomb_no_more_comes_out_than_is_allowed(bomb: bytes) -> None:
    out = 0
    with pytest.raises(UsageError, match="allow more, or distrust it"):
        for piece in decompressed(*recognised([bomb]), 100_000):
            out += len(piece)
    assert out <= 100_000


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress, lzma.compress, bz2.compress])
def test_what_is_cut_anywhere_is_truncated(compress: object) -> None:
    assert callable(compress)
    whole = compress(TEXT[:300])
    for length in range(6, len(whole)):
        with pytest.raises(UsageError, match="truncated"):
            read(whole[:length])


@pytest.mark.parametrize("kind", [kind for kind in Compression if kind is not Compression.NONE])
@pytest.mark.parametrize("place", [4_000, -6, -1])
def test_what_is_damaged_is_found(kind: Compression, place: int) -> None:
    with_checksum = zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1})
    content = bytearray(with_checksum if kind is Compression.ZSTD else COMPRESSED[kind])
    content[place] ^= 0x55
    with pytest.raises(UsageError, match=f"compressed by {kind.value}"):
        read(bytes(content))


@pytest.mark.parametrize("kind", [kind for kind in Compression if kind is not Compression.NONE])
def test_what_stands_behind_it_must_be_compressed_too(kind: Compression) -> None:
    with pytest.raises(UsageError, match=f"compressed by {kind.value}"):
        read(COMPRESSED[kind] + b"something else")


def test_a_frame_that_would_take_much_memory_is_refused() -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    with pytest.raises(UsageError, match="zstd cannot be read"):
        read(compressor.compress(TEXT) + compressor.flush())
    with pytest.raises(UsageError, match="xz cannot be read"):
        read(lzma.compress(TEXT, preset=9))
    assert read(lzma.compress(TEXT, preset=8)) == TEXT


@given(st.lists(st.binary(max_size=100), max_size=10), st.integers(1_000, 400_000))
def test_what_is_compressed_depends_on_the_content_alone(chunks: list[bytes], size: int) -> None:
    content = b"".join(chunks) + TEXT
    packed = b"".join(gzipped([*chunks, *cut(TEXT, size)]))
    assert packed == b"".join(gzipped([content]))
    assert gzip.decompress(packed) == content


def test_no_name_and_no_time_is_in_a_gzip_header() -> None:
    """RFC 1952, 2.3: the flags, and four bytes of time."""
    assert b"".join(gzipped([b"text"]))[:8] == b"\x1f\x8b\x08" + bytes(5)
