"""The tar format: what others write is read, what is written others read, and what is no archive is named."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images.archive import CHARACTER, DIRECTORY, END, FIFO, FILE, LINK, SPARSE, SYMLINK, Archive, Entry, encode

names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)
ids = st.sampled_from([0, 1000, 8**7 - 1, 8**7, 2**32 - 2])
times = st.integers(-(2**40), 2**70 // 10**9 * 10**9) | st.sampled_from(
    [0, 1, -1, 10**9, 10**9 * (8**11 - 1), 10**9 * 8**11, 1_600_000_000_123_456_789]
)
xattrs = st.dictionaries(st.sampled_from(["user.a", "user.ü", "security.capability", "user.a b"]), st.binary(max_size=1200), max_size=3)
kinds = st.sampled_from([(SYMLINK, 0), (LINK, 0), (DIRECTORY, 0), (FIFO, 0), (CHARACTER, os.makedev(200, 30_000))])
entries = st.builds(
    lambda kind, **fields: Entry(kind=kind[0], device=kind[1], **fields),
    name=names,
    kind=kinds,
    mode=st.integers(0, 0o7777),
    uid=ids,
    gid=ids,
    mtime=times,
    link=names,
    xattrs=xattrs,
)


def read(content: bytes, size: int = 512) -> list[tuple[Entry, bytes]]:
    reader = Archive(content[start : start + size] for start in range(0, len(content), size))
    return [(entry, b"".join(bytes(part) for _, length in entry.segments for part in reader.data(length))) for entry in reader]


def header(**fields: bytes) -> bytes:
    """A file's header with some fields as bytes, and the right checksum."""
    block = bytearray(encode(Entry(b"name")))
    places = {"name": 0, "mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136, "kind": 156, "link": 157, "magic": 257, "major": 329}
    for name, value in fields.items():
        block[places[name] : places[name] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    text = b"".join(records)
    return header(kind=kind, size=b"%011o\0" % len(text)) + text + bytes(-len(text) % 512)


def record(text: bytes) -> bytes:
    length = next(length for length in range(len(text) + 3, len(text) + 9) if len(str(length)) + len(text) + 2 == length)
    return b"%d %s\n" % (length, text)


@given(st.lists(entries, max_size=4), st.integers(1, 2000))
@example([Entry(b"a" * 100), Entry(b"a" * 101)], 512)
def test_what_is_written_is_read(listed: list[Entry], size: int) -> None:
    assert [entry for entry, _ in read(b"".join(map(encode, listed)) + END, size)] == listed


@given(entries)
def test_pythons_library_reads_what_is_written(entry: Entry) -> None:
    with tarfile.open(fileobj=io.BytesIO(encode(entry) + END)) as file:
        (found,) = file.getmembers()
    surrogates = "utf-8", "surrogateescape"
    assert found.name.encode(*surrogates) == entry.name.rstrip(b"/") or entry.name.endswith(b"/")
    assert (found.mode, found.uid, found.gid, found.type) == (entry.mode, entry.uid, entry.gid, entry.kind)
    assert abs(float(found.mtime) - entry.mtime / 10**9) <= abs(entry.mtime) / 10**15 + 1e-9


def test_what_fits_into_a_header_of_old_has_no_other() -> None:
    assert len(encode(Entry(b"n" * 100, SYMLINK, link=b"l" * 100, mtime=10**9))) == 512
    assert len(encode(Entry(b"name", mtime=1))) == 3 * 512


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["short", "d" * 90 + "/" + "n" * 90, "ü" * 20])
def test_what_pythons_library_writes_is_read(name: str, form: int) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.uid, info.mode = 700, 12345, 77, 0o4711
        archive.addfile(info, io.BytesIO(b"c" * 700))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, name[:90]
        archive.addfile(link)
    (first, content), (second, _) = read(file.getvalue())
    assert (os.fsdecode(first.name), first.size, first.mtime, first.uid, first.mode) == (name, 700, 12345 * 10**9, 77, 0o4711)
    assert content == b"c" * 700
    assert (second.kind, os.fsdecode(second.link)) == (SYMLINK, name[:90])


@pytest.mark.needs("tar")
@pytest.mark.parametrize("holes", [[], [(0, 10)], [(1 << 20, 5000)], [(offset << 16, 4096) for offset in range(1, 200, 2)]])
@pytest.mark.parametrize("form", [["--format=gnu"], *(["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0"))])
def test_files_with_holes_as_gnu_tar_writes_them(form: list[str], holes: list[tuple[int, int]], tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        for offset, length in holes:
            file.seek(offset)
            file.write(os.urandom(length))
        file.truncate(1 << 24)
    (tmp_path / "after").write_text("after")
    packed = subprocess.run(["tar", "-C", tmp_path, "-cf", "-", "--sparse", *form, "sparse", "after"], check=True, capture_output=True).stdout
    assert len(packed) < 1 << 20
    (sparse, data), (after, content) = read(packed)
    assert (sparse.name, sparse.kind, sparse.size, after.name, content) == (b"sparse", FILE, 1 << 24, b"after", b"after")
    whole = bytearray(1 << 24)
    for offset, length in sparse.segments:
        whole[offset : offset + length], data = data[:length], data[length:]
    assert whole == (tmp_path / "sparse").read_bytes()


def test_a_number_may_be_binary() -> None:
    (entry, _), *_ = read(header(uid=b"\x80" + b"\0" * 3 + b"\x12\x34\x56\x78", mtime=b"\xff" * 12))
    assert (entry.uid, entry.mtime) == (0x12345678, -(10**9))


def test_a_directory_from_before_ustar_is_a_file_whose_name_ends_with_a_slash() -> None:
    assert [entry.kind for entry, _ in read(header(kind=b"\0", name=b"name/") + header(kind=b"\0") + header(kind=b"7"))] == [DIRECTORY, FILE, FILE]


def test_what_is_no_file_has_no_content_whatever_its_size() -> None:
    found = read(header(kind=b"5", size=b"%011o\0" % 512) + header(name=b"next"))
    assert [(entry.name, entry.size) for entry, _ in found] == [(b"name", 0), (b"next", 0)]


def test_extended_headers_say_what_the_next_one_is() -> None:
    said = (b"path=long", b"linkpath=there", b"uid=3000000", b"mtime=-1.25", b"SCHILY.xattr.user.a=b=\nc", b"size=3", b"hdrcharset=BINARY", b"gid=")
    content = pax(*map(record, said)) + header(uid=b"0000007\0", gid=b"0000011\0") + b"abc".ljust(512, b"\0") + header()
    (first, text), (second, _) = read(content)
    assert (first.name, first.link, first.uid, first.gid, first.mtime, text) == (b"long", b"there", 3_000_000, 9, -1_250_000_000, b"abc")
    assert first.xattrs == {"user.a": b"b=\nc"}
    assert second == Entry(b"name")


def test_a_global_header_is_not_a_files() -> None:
    assert read(pax(record(b"path=other"), record(b"uid=5"), kind=b"g") + header())[0][0] == Entry(b"name")


def test_gnus_long_names_end_with_a_zero_byte() -> None:
    long = header(kind=b"L", size=b"%011o\0" % 301) + (b"n" * 300).ljust(512, b"\0")
    assert read(long + header())[0][0].name == b"n" * 300


def test_what_stands_behind_the_end_is_passed_over() -> None:
    chunks = iter([header(), END, b"anything", header(name=b"hidden")])
    assert len(list(Archive(chunks))) == 1
    assert not list(chunks)


def _bad() -> Iterator[tuple[str, bytes]]:
    yield "checksum", header()[:-1] + b"x"
    yield "checksum", b"this is text, and not an archive".ljust(512)
    yield "size -1, which is less than nothing", header(size=b"\xff" * 12)
    yield "no octal number", header(size=b"-0000000001\0")
    yield "no octal number", header(size=b"0000000_001\0")
    yield "no octal number", header(mode=b"0o00644\0")
    yield "no octal number", header(uid=b"0000009\0")
    yield "which no file can have", header(size=b"\x80" + b"\x7f" * 11)
    yield "owner 4294967295", header(uid=b"\x80\0\0\0\xff\xff\xff\xff")
    yield "owner 4294967295", pax(record(b"gid=4294967295")) + header()
    yield "uid b'-1'", pax(record(b"uid=-1")) + header()
    yield "size b'-1'", pax(record(b"size=-1")) + header()
    yield "size b'1_0'", pax(record(b"size=1_0")) + header()
    yield "time b'soon'", pax(record(b"mtime=soon")) + header()
    yield "device number", header(kind=b"3", major=b"7777777\0")
    yield "record at byte 0 is damaged", pax(b"11 path=a\n") + header()
    yield "record at byte 0 is damaged", pax(b"0 path=a\n") + header()
    yield "record at byte 0 is damaged", pax(b"path=a\n") + header()
    yield "record at byte 0 is damaged", pax(b"99999999 path=a\n") + header()
    yield "record at byte 9 is damaged", pax(record(b"path=a"), b"\0" * 10) + header()
    yield "zero byte", pax(record(b"path=a\0b")) + header()
    yield "zero byte", pax(record(b"linkpath=a\0b")) + header()
    yield "zero byte", pax(record(b"SCHILY.xattr.user.\0=b")) + header()
    yield "type b'V'", header(kind=b"V")
    yield "extended header of 8589934591 bytes", header(kind=b"x", size=b"77777777777\0")
    yield "extended header of 8589934591 bytes", header(kind=b"L", size=b"77777777777\0")
    yield "overlap", pax(record(b"GNU.sparse.map=0,2,1,2"), record(b"GNU.sparse.size=9")) + header(size=b"00000000004\0") + bytes(512)
    yield "do not fit its size", pax(record(b"GNU.sparse.map=0,2,5,5"), record(b"GNU.sparse.size=9")) + header(size=b"00000000007\0") + bytes(512)
    yield "do not fit its size", pax(record(b"GNU.sparse.map=0,2,5"), record(b"GNU.sparse.size=9")) + header(size=b"00000000002\0") + bytes(512)
    yield "do not fit its size", pax(record(b"GNU.sparse.map=0,9"), record(b"GNU.sparse.size=9")) + header(size=b"00000000002\0") + bytes(512)
    one = (record(b"GNU.sparse.major=1"), record(b"GNU.sparse.minor=0"), record(b"GNU.sparse.realsize=9"))
    yield "has no end", pax(*one) + header(size=b"00000001000\0") + b"9999\n".ljust(512, b"1")
    yield "has no end", pax(*one) + header()
    yield "do not fit its size", pax(*one) + header(size=b"00000001000\0") + b"1\n0\n5\n".ljust(512, b"\0")


@pytest.mark.parametrize(
    ("words", "content"), [pytest.param(words, content, id=f"{words}, {number}") for number, (words, content) in enumerate(_bad())]
)
def test_what_is_no_archive_is_named(words: str, content: bytes) -> None:
    with pytest.raises(UsageError, match=words):
        read(content + END)


def test_a_list_of_segments_has_a_bound() -> None:
    block = bytearray(header(kind=SPARSE))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = bytearray(512)
    more[504] = 1
    with pytest.raises(UsageError, match="more segments"):
        list(Archive([bytes(block), *[bytes(more)] * 3000]))


def test_a_list_of_segments_in_the_content_has_a_bound() -> None:
    one = (record(b"GNU.sparse.major=1"), record(b"GNU.sparse.minor=0"), record(b"GNU.sparse.realsize=9"))
    with pytest.raises(UsageError, match="has no end"):
        list(Archive([pax(*one), header(size=b"77777777777\0"), b"99999999\n".ljust(512, b"1"), *[b"1\n" * 256] * 3000]))


@pytest.mark.parametrize("size", [100, 512, 5000])
def test_an_archive_that_ends_in_the_middle_is_truncated(size: int) -> None:
    whole = encode(Entry(b"first" * 30, mtime=5, size=700)) + bytes(1024) + encode(Entry(b"second"))
    boundaries = {0, len(whole), len(whole) - 512}
    for length in set(range(0, len(whole), 50)) - boundaries:
        with pytest.raises(UsageError, match="truncated"):
            read(whole[:length], size)


@given(
    st.binary(max_size=2000)
    | st.lists(st.sampled_from([header(), header(kind=b"S"), pax(record(b"size=9")), bytes(100), END, b"9" * 512])).map(b"".join)
)
def test_whatever_the_bytes_are_the_answer_is_entries_or_an_error_in_words(content: bytes) -> None:
    try:
        read(content)
    except UsageError as error:
        assert str(error)
