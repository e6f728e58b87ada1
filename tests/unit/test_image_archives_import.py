"""The tar of a root file system as an image: bit for bit its layer, and refused where no container could stand on it."""

import bz2
import gzip
import hashlib
import io
import lzma
import random
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from kernel_lab import UsageError
from kernel_lab.images import archive
from kernel_lab.images.archive import Entry, encode
from kernel_lab.images.descriptor import Platform
from kernel_lab.images.image import Image
from kernel_lab.images.importing import MOST_BEHIND, import_
from kernel_lab.images.store import Store
from kernel_lab.images.unpack import Rules


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def tree() -> bytes:
    """As tar writes one, in records of 10 kB, with a link and a long name."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, content in {"./bin/sh": random.Random(1).randbytes(300_000), "n" * 300: b"", "ü": b"text"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
        entry = tarfile.TarInfo("bin/ash")
        entry.type, entry.linkname = tarfile.LNKTYPE, "bin/sh"
        made.addfile(entry)
    return written.getvalue()


TREE = tree()


def cut(data: bytes, size: int = 10_000) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def layer_of(image: Image) -> bytes:
    (layer,) = image.layers
    with image.store.open(layer.blob) as file:
        return gzip.decompress(file.read())


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress, lzma.compress, bz2.compress])
@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_the_layer_is_the_archive_bit_for_bit(store: Store, compress: Callable[[bytes], bytes], size: int) -> None:
    image = import_(store, cut(compress(TREE), size), "busybox")
    assert layer_of(image) == TREE
    assert image.config.diff_ids == (f"sha256:{hashlib.sha256(TREE).hexdigest()}",)
    assert Image.find(store, "busybox").id == image.id and store.verify() == {} and store.prune() == ((), ())


def test_how_it_is_run_and_what_is_said_of_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    settings = {"Cmd": ["sh"], "Env": ["A=1"], "User": "nobody"}
    image = import_(store, [TREE], settings=settings, message="from a friend", platform=Platform("arm", "linux", "v6"))
    assert (image.settings, image.platform, image.names) == (settings, Platform("arm", "linux", "v6"), ())
    line = {"created": "1970-01-01T00:00:00Z", "created_by": "klab import", "comment": "from a friend"}
    assert image.config.history == (line,)
    assert import_(store, cut(TREE, 777), settings=settings, message="from a friend", platform=Platform("arm", "linux", "v6")).id == image.id


def entry(name: bytes, **fields: Any) -> bytes:
    return encode(Entry(name, **fields)) + archive.END


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "there is no file in this archive"),
        (archive.END, "there is no file in this archive"),
        (b"text" * 1000, "no tar archive"),
        (TREE[:200_000], "truncated"),
        (gzip.compress(TREE)[:100_000], "truncated"),
        (encode(Entry(b"a", size=512)) + bytes(512) + b"x" * 512, "no tar archive"),
        (entry(b"../etc/passwd"), r"goes up by '\.\.'"),
        (entry(b"a", kind=archive.LINK, link=b"../../etc/passwd"), r"goes up by '\.\.'"),
        (entry(b"n/" * 3000), "the kernel takes 4095"),
        (entry(b"bin/.wh.sh"), "it would hide another"),
        (entry(b".wh..wh..opq"), "it would hide another"),
        (entry(b"./", kind=archive.SYMLINK, link=b"x"), "is the root of the archive, and no directory"),
        (entry(b"dev", kind=archive.CHARACTER), "a device of the number 0:0"),
        (encode(Entry(b"big", size=1 << 62)), "a file of .* bytes with its holes, in an archive that may have"),
        (entry(b"V", kind=b"V"), "an entry of type b'V'"),
        (TREE + bytes(MOST_BEHIND + 20_000), "bytes behind its end"),
    ],
)
def test_what_no_container_could_stand_on_is_refused_and_leaves_nothing(store: Store, data: bytes, why: str) -> None:
    before = sorted(store.path.rglob("*"))
    with pytest.raises(UsageError, match=why) as caught:
        import_(store, cut(data), "busybox")
    assert "\n" not in str(caught.value)
    assert sorted(store.path.rglob("*")) == sorted({*before, store.path / "lock"})
    assert store.images() == ()


@pytest.mark.parametrize(
    ("name", "settings", "why"), [("Bad Name", {}, "Bad Name"), ("good", {"Cmd": "sh"}, "settings: Cmd"), ("good", {"Env": [1]}, r"Env\[0\]")]
)
def test_what_is_wrongly_asked_for_is_said_before_anything_is_read(store: Store, name: str, settings: dict[str, Any], why: str) -> None:
    chunks = cut(TREE)
    with pytest.raises(UsageError, match=why):
        import_(store, chunks, name, settings=settings)
    assert next(chunks) == TREE[:10_000]


def test_a_bomb_is_stopped(store: Store) -> None:
    for bomb in (gzip.compress(TREE + bytes(1 << 26)), gzip.compress(encode(Entry(b"l", size=1 << 26)) + bytes(1 << 26))):
        with pytest.raises(UsageError, match="may have"):
            import_(store, [bomb], most=1 << 20)
    assert store.verify() == {} and not list((store.path / "blobs/sha256").iterdir())


def test_millions_of_files_are_too_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rules, "most_entries", 1000)
    with pytest.raises(UsageError, match="more than 1000 files"):
        import_(store, (encode(Entry(b"d%d" % number)) for number in range(1 << 40)))


def test_a_large_archive_takes_little_memory(store: Store) -> None:
    size, piece = 200 << 20, random.Random(1).randbytes(1 << 18)
    tracemalloc.start()
    try:
        import_(store, (part for part in (encode(Entry(b"big", size=size)), *[piece] * (size >> 18), archive.END)))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
