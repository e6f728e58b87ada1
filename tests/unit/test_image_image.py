"""Images in a store: which one a name means on which platform, what they are made of, and what only looks like one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from archives import file, layer, made, put_manifest

from kernel_lab import UsageError
from kernel_lab.images.descriptor import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Config, Descriptor, Index, Platform, chain_ids, digest_of
from kernel_lab.images.image import Image, images
from kernel_lab.images.platforms import parse
from kernel_lab.images.store import Store

ONE, TWO = layer(file("one", b"1")), layer(file("two", b"2"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def index(store: Store, name: str | None, *manifests: Descriptor) -> Descriptor:
    with store.adding() as adding:
        return store.tag(adding.put(Index(manifests).raw, OCI_INDEX), name)


def on(image: Image, platform: str | None = None) -> Descriptor:
    return replace(image.descriptor, annotations={}, platform=parse(platform) if platform else None)


def test_what_an_image_is_made_of(store: Store) -> None:
    image = made(store, "two", ONE, TWO, settings={"Cmd": ["sh"]})
    assert image.id == image.manifest.config.digest and image.short_id == image.id[7:19]
    assert [layer.diff_id for layer in image.layers] == [digest_of(ONE), digest_of(TWO)]
    assert tuple(layer.chain_id for layer in image.layers) == chain_ids((digest_of(ONE), digest_of(TWO)))
    assert image.size == sum(layer.blob.size for layer in image.layers) + image.manifest.config.size
    assert image.platform == Platform("amd64", "linux")
    assert str(image) == "two:latest" and str(made(store, None, ONE)) == made(store, None, ONE).id


def test_the_same_layer_twice_is_two_layers(store: Store) -> None:
    first, second = made(store, None, ONE, ONE).layers
    assert first.blob == second.blob and first.diff_id == second.diff_id and first.chain_id != second.chain_id


def test_an_image_is_found_by_name_digest_and_id(store: Store) -> None:
    image = made(store, "named", ONE)
    assert {Image.find(store, what).id for what in ("named", image.descriptor.digest, image.id, image.short_id)} == {image.id}
    with pytest.raises(UsageError, match="no image of this name"):
        Image.find(store, "other")


def test_of_an_index_the_one_for_the_platform_is_found(store: Store) -> None:
    ours, theirs = made(store, None, ONE, architecture="amd64"), made(store, None, TWO, architecture="arm64")
    index(store, "several", on(theirs, "arm64"), on(ours, "amd64"))
    assert Image.find(store, "several", parse("amd64")).id == ours.id
    assert Image.find(store, "several", parse("linux/arm64")).id == theirs.id
    with pytest.raises(UsageError, match=r"several: there is no image for linux/s390x in it; there is: linux/arm64, linux/amd64"):
        Image.find(store, "several", parse("s390x"))


def test_where_an_index_does_not_say_the_configuration_does(store: Store) -> None:
    ours, theirs = made(store, None, ONE, architecture="amd64"), made(store, None, TWO, architecture="arm64")
    index(store, "silent", on(theirs), on(ours))
    assert Image.find(store, "silent", parse("amd64")).id == ours.id
    assert Image.find(store, "silent", parse("arm64")).id == theirs.id


def test_an_index_in_an_index_is_looked_into(store: Store) -> None:
    image = made(store, None, ONE)
    inner = index(store, None, on(image, "amd64"))
    index(store, "outer", replace(inner, annotations={}))
    assert Image.find(store, "outer", parse("amd64")).id == image.id


def test_an_image_for_another_platform_is_not_what_was_asked_for(store: Store) -> None:
    made(store, "arm", ONE, architecture="arm64")
    assert Image.find(store, "arm").platform.architecture == "arm64"
    with pytest.raises(UsageError, match="arm: runs on linux/arm64, and linux/amd64 was asked for"):
        Image.find(store, "arm", parse("amd64"))


def test_as_many_layers_as_digests_of_them(store: Store) -> None:
    with pytest.raises(UsageError, match="its manifest has 1 layers, and its configuration 2 DiffIDs"):
        made(store, None, ONE, diff_ids=[digest_of(ONE), digest_of(TWO)])


def artifact(store: Store, media_type: str) -> Descriptor:
    """What signatures are kept as: the configuration is an image's."""
    content = b'{"critical": "a signature"}'
    config = Config("", "", (digest_of(content),)).raw
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor.of(OCI_CONFIG, config).json(),
        "layers": [Descriptor.of(media_type, content).json()],
    }
    return put_manifest(store, json.dumps(manifest).encode(), config, content, name="signature")


def test_an_artifact_is_no_image(store: Store) -> None:
    image = made(store, "image", ONE)
    artifact(store, "application/vnd.dev.cosign.simplesigning.v1+json")
    assert [found.id for found in images(store)] == [image.id]
    with pytest.raises(UsageError, match=r"is no image but an artifact, with application/vnd\.dev\.cosign"):
        Image.find(store, "signature")


def test_a_damaged_image_is_none_of_those_that_are_there(store: Store) -> None:
    good, bad = made(store, "good", ONE), made(store, "bad", TWO)
    store._layout.blob(bad.manifest.config.digest).write_bytes(b"{}")
    assert [found.id for found in images(store)] == [good.id]


@pytest.mark.parametrize(
    "empty",
    [{"layers": None, "diff_ids": None, "history": None, "config": None}, {"layers": [], "diff_ids": [], "history": [], "config": {}}],
)
def test_an_image_of_nothing(empty: dict[str, Any], store: Store) -> None:
    """Go's programs write an empty list as `null`."""
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": empty["diff_ids"]}}
    raw = json.dumps(config | {"history": empty["history"], "config": empty["config"]}).encode()
    manifest = {"schemaVersion": 2, "config": Descriptor.of(OCI_CONFIG, raw).json(), "layers": empty["layers"], "annotations": None}
    image = Image(store, put_manifest(store, json.dumps(manifest).encode(), raw))
    assert image.layers == () and image.settings == {} and image.history == () and image.size == len(raw)


def test_a_setting_that_is_null_is_not_said(store: Store) -> None:
    image = made(store, None, ONE, settings={"Cmd": None, "Env": None, "Volumes": None, "User": "1", "Healthcheck": {"Test": ["NONE"]}})
    assert image.settings == {"User": "1", "Healthcheck": {"Test": ["NONE"]}}
