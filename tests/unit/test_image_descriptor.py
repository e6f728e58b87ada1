"""Descriptors and the documents that they point to: read, written, refused, and their digests."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images import descriptor as d
from kernel_lab.images.descriptor import Config, Descriptor, Index, Manifest, Platform

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
LAYER = {"mediaType": d.OCI_LAYER_GZIP, "digest": A, "size": 3, "urls": ["https://host.example/a"]}
CONFIG = {"mediaType": d.OCI_CONFIG, "digest": B, "size": 2}
MANIFEST = {"schemaVersion": 2, "mediaType": d.OCI_MANIFEST, "config": CONFIG, "layers": [LAYER], "annotations": {"a": "b"}, "subject": CONFIG}
PLATFORM = {"architecture": "arm64", "os": "linux", "variant": "v8", "os.features": ["x"]}
INDEX = {"schemaVersion": 2, "manifests": [{"mediaType": d.OCI_MANIFEST, "digest": C, "size": 9, "platform": PLATFORM}], "artifactType": "x/y"}
IMAGE = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2015-10-31T22:22:56.015925234Z",
    "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "ExposedPorts": {"80/tcp": {}}, "Hostname": "x", "Entrypoint": None},
    "rootfs": {"type": "layers", "diff_ids": [A, B]},
    "history": [{"created_by": "hand", "empty_layer": True}, {"comment": "c"}],
    "container": "x",
}
Read = Callable[[bytes], Manifest | Index | Config]
DOCUMENTS: list[tuple[Read, dict[str, Any]]] = [(Manifest.read, MANIFEST), (Index.read, INDEX), (Config.read, IMAGE)]

names = st.text(max_size=5).map("x-{}".format)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2), max_leaves=4)


def written(document: object) -> bytes:
    return json.dumps(document, indent=3).encode()


@pytest.mark.parametrize(("read", "document"), DOCUMENTS)
def test_the_bytes_that_were_read_are_kept(read: Read, document: dict[str, Any]) -> None:
    raw = written(document)
    assert read(raw).raw == raw


@pytest.mark.parametrize(("read", "document"), DOCUMENTS)
@given(others=st.dictionaries(names, values, max_size=3))
def test_what_is_not_known_survives_a_change(read: Read, document: dict[str, Any], others: dict[str, Any]) -> None:
    full = document | others
    changed = replace(read(written(full)), others=others | {"new": 1})
    again = json.loads(changed.raw)
    assert again["new"] == 1
    assert {name: again[name] for name in others} == others
    assert read(changed.raw) == changed and read(changed.raw).json() == changed.json()


@pytest.mark.parametrize(("read", "document"), DOCUMENTS)
def test_what_is_written_again_says_the_same(read: Read, document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(read(written(document)).json())) == document


def test_what_is_made_here_has_one_digest() -> None:
    manifest = Manifest(Descriptor.read(CONFIG), (Descriptor.read(LAYER),))
    assert manifest.raw == Manifest.read(manifest.raw).raw == replace(manifest).raw
    assert b" " not in manifest.raw
    one, other = (dict.fromkeys(order, "x") for order in ("ab", "ba"))
    assert replace(manifest, annotations=one).raw == replace(manifest, annotations=other).raw
    assert Descriptor.of(d.OCI_MANIFEST, manifest.raw).digest == f"sha256:{hashlib.sha256(manifest.raw).hexdigest()}"


def test_the_fields_have_the_specifications_meaning() -> None:
    manifest, index, config = Manifest.read(written(MANIFEST)), Index.read(written(INDEX)), Config.read(written(IMAGE))
    assert manifest.layers[0] == Descriptor(d.OCI_LAYER_GZIP, A, 3, others={"urls": LAYER["urls"]})
    assert (manifest.config.digest, manifest.annotations, manifest.others) == (B, {"a": "b"}, {"subject": CONFIG})
    assert index.manifests[0].platform == Platform("arm64", "linux", "v8", {"os.features": ["x"]})
    assert index.media_type is None
    assert (config.diff_ids, config.config["Cmd"], config.history[1], config.others) == ((A, B), ["sh"], {"comment": "c"}, {"container": "x"})
    assert len({manifest.config, manifest.layers[0], manifest.config, index.manifests[0]}) == 3


@pytest.mark.parametrize(
    ("read", "document"),
    [
        (Manifest.read, MANIFEST | {"layers": None, "annotations": None, "subject": None}),
        (Index.read, INDEX | {"manifests": None}),
        (Config.read, IMAGE | {"rootfs": {"type": "layers", "diff_ids": None}, "history": None, "config": None, "created": None}),
    ],
)
def test_gos_empty_list_is_null(read: Read, document: dict[str, Any]) -> None:
    read(written(document))


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


@pytest.mark.parametrize(
    ("read", "document", "why"),
    [
        (Manifest.read, [], r"^manifest: \[\]; an object is needed"),
        (Manifest.read, MANIFEST | {"schemaVersion": 1}, "^manifest: schemaVersion: 1; only 2"),
        (Manifest.read, MANIFEST | {"schemaVersion": "2"}, 'schemaVersion: "2"; a whole number is needed'),
        (Manifest.read, without(MANIFEST, "schemaVersion"), "schemaVersion is missing"),
        (Manifest.read, without(MANIFEST, "config"), "manifest: config is missing"),
        (Manifest.read, without(MANIFEST, "layers"), "manifest: layers is missing"),
        (Manifest.read, MANIFEST | {"layers": {}}, "layers: {}; an array is needed"),
        (Manifest.read, MANIFEST | {"layers": [LAYER, 7]}, r"layers\[1\]: 7; an object is needed"),
        (Manifest.read, MANIFEST | {"layers": [LAYER | {"size": -1}]}, r"layers\[0\]: size: -1; a whole number is needed, 0 or more"),
        (Manifest.read, MANIFEST | {"layers": [LAYER | {"size": True}]}, r"layers\[0\]: size: true; a whole"),
        (Manifest.read, MANIFEST | {"layers": [LAYER | {"size": 1.0}]}, r"layers\[0\]: size: 1.0; a whole"),
        (Manifest.read, MANIFEST | {"layers": [LAYER | {"digest": "../../etc"}]}, r"layers\[0\]: digest: '../../etc' is no digest"),
        (Manifest.read, MANIFEST | {"config": without(CONFIG, "mediaType")}, "config: mediaType is missing"),
        (Manifest.read, MANIFEST | {"annotations": {"a": 1}}, "annotations: a: 1; a string is needed"),
        (Manifest.read, MANIFEST | {"mediaType": d.OCI_INDEX}, "mediaType: .*index.*; here it is one of"),
        (Manifest.read, MANIFEST | {"manifests": []}, "manifests: no document has the fields of a manifest and of an index"),
        (Index.read, INDEX | {"layers": []}, "layers: no document has"),
        (Index.read, INDEX | {"config": CONFIG}, "config: no document has"),
        (Index.read, without(INDEX, "manifests"), "index: manifests is missing"),
        (Index.read, INDEX | {"manifests": [LAYER | {"platform": {"os": "linux"}}]}, r"manifests\[0\]: platform: architecture is missing"),
        (Config.read, without(IMAGE, "rootfs"), "config: rootfs is missing"),
        (Config.read, IMAGE | {"rootfs": {"type": "tar", "diff_ids": []}}, "rootfs: type: 'tar'"),
        (Config.read, IMAGE | {"rootfs": {"type": "layers", "diff_ids": ["x"]}}, r"rootfs: diff_ids\[0\]: 'x' is no digest"),
        (Config.read, IMAGE | {"config": {"Cmd": "sh"}}, 'config: config: Cmd: "sh"; an array is needed'),
        (Config.read, IMAGE | {"config": {"Env": [1]}}, r"config: Env\[0\]: 1; a string"),
        (Config.read, IMAGE | {"history": [{"empty_layer": 1}]}, r"history\[0\]: empty_layer: 1; true or false"),
        (Config.read, IMAGE | {"os": "x" * 99, "architecture": ["y" * 99]}, r"architecture: .{57}\.\.\.; a string"),
    ],
)
def test_a_wrong_shape_is_named(read: Read, document: object, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read(written(document))


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff{}", b"[" * 100_000, b'{"schemaVersion": NaN}', "{}".encode("utf-16"), b"9" * 5000, b'"\\'])
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    for read in (Manifest.read, Index.read, Config.read):
        with pytest.raises(UsageError, match=r"this is no JSON|is needed"):
            read(raw)


FIELDS = st.sampled_from(sorted({*MANIFEST, *INDEX, *IMAGE}))


@given(document=values | st.dictionaries(FIELDS, values), base=st.sampled_from([MANIFEST, INDEX, IMAGE]))
def test_any_json_is_a_document_or_a_usage_error(document: Any, base: dict[str, Any]) -> None:
    full = base | document if isinstance(document, dict) else document
    for read in (Manifest.read, Index.read, Config.read):
        try:
            read(written(full))
        except UsageError as error:
            assert str(error)


def test_a_chain_id_names_a_layer_with_all_below_it() -> None:
    """ChainID(A|B|C) = Digest(Digest(A + " " + B) + " " + C) (config.md)."""
    first = f"sha256:{hashlib.sha256(f'{A} {B}'.encode()).hexdigest()}"
    second = f"sha256:{hashlib.sha256(f'{first} {C}'.encode()).hexdigest()}"
    assert d.chain_ids([A, B, C]) == (A, first, second)
    assert d.chain_ids([]) == ()
