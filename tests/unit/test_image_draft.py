"""Images made step by step: layers, settings, history; and what other programs say of them."""

import gzip
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from archives import file, layer, made

from kernel_lab import UsageError
from kernel_lab.images import platforms
from kernel_lab.images.descriptor import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Config,
    Manifest,
    Platform,
    digest_of,
)
from kernel_lab.images.draft import Draft, now, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.store import Store

ONE, TWO = layer(file("one", b"1")), layer(file("two", b"2"))
EPOCH = 1_700_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def drafted(store: Store, name: str | None = "made") -> Image:
    with store.adding() as adding:
        draft = Draft.scratch(Platform("arm64", "linux", "v8")).with_settings({"Cmd": ["sh"], "Env": ["A=1"], "Labels": {"a": "b"}})
        draft = draft.with_layer(put_layer(adding, [ONE]), created_by="COPY one /", author="me").with_history(created_by="CMD", comment="no files")
        return draft.with_layer(put_layer(adding, [TWO])).put(adding, name)


def test_a_layer_is_its_archive_compressed(store: Store) -> None:
    with store.adding() as adding:
        put = put_layer(adding, [ONE[:100], ONE[100:]])
        assert put == put_layer(adding, [ONE])
    assert put.diff_id == digest_of(ONE) and put.blob.media_type == OCI_LAYER_GZIP
    assert gzip.decompress(store.open(put.blob).read()) == ONE


def test_an_image_from_nothing(store: Store) -> None:
    image = drafted(store)
    assert image.config.diff_ids == (digest_of(ONE), digest_of(TWO))
    assert image.platform == Platform("arm64", "linux", "v8")
    assert image.settings == {"Cmd": ["sh"], "Env": ["A=1"], "Labels": {"a": "b"}}
    assert [{key: value for key, value in line.items() if key != "created"} for line in image.config.history] == [
        {"created_by": "COPY one /", "author": "me"},
        {"created_by": "CMD", "comment": "no files", "empty_layer": True},
        {},
    ]
    assert image.config.author == "me" and image.config.created == image.config.history[-1]["created"]
    assert store.verify() == {}


def test_without_a_platform_it_is_this_machines() -> None:
    config = Draft.scratch().config
    assert Platform(config.architecture, config.os, config.variant) == platforms.here()


def test_settings_are_changed_and_taken_away() -> None:
    draft = Draft.scratch().with_settings({"Cmd": ["a"], "User": "1"}).with_settings({"Cmd": None, "User": "2", "WorkingDir": "/"})
    assert draft.config.config == {"User": "2", "WorkingDir": "/"}


@pytest.mark.parametrize("settings", [{"Cmd": "sh"}, {"Env": {"A": "1"}}, {"Labels": ["a"]}, {"User": 0}, {"Cmd": [1]}])
def test_settings_have_the_specifications_shapes(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"settings: config: {next(iter(settings))}"):
        Draft.scratch().with_settings(settings)


def test_on_an_image_its_layers_and_history_stay(store: Store) -> None:
    parent = drafted(store)
    with store.adding() as adding:
        child = Draft.on(parent).with_layer(put_layer(adding, [ONE]), created_by="again").put(adding, "child")
    assert child.manifest.layers[:2] == parent.manifest.layers and child.config.history[:3] == parent.config.history
    assert child.settings == parent.settings and child.platform == parent.platform
    assert len(child.layers) == 3 and len(child.config.history) == 4


def test_on_an_image_of_dockers_it_is_one_of_ocis(store: Store) -> None:
    with store.adding() as adding:
        layers = adding.put(gzip.compress(ONE), DOCKER_LAYER_GZIP), adding.put(TWO, DOCKER_LAYER)
        config = Config("amd64", "linux", (digest_of(ONE), digest_of(TWO)), others={"docker_version": "20.10", "os.version": "1"})
        manifest = Manifest(adding.put(config.raw, DOCKER_CONFIG), layers, DOCKER_MANIFEST)
        parent = Image(store, store.tag(adding.put(manifest.raw, DOCKER_MANIFEST), "dockers"))
        child = Draft.on(parent).with_history(created_by="x").put(adding, "ocis")
    assert child.descriptor.media_type == OCI_MANIFEST == child.manifest.media_type
    assert [layer.media_type for layer in child.manifest.layers] == [OCI_LAYER_GZIP, OCI_LAYER]
    assert [layer.digest for layer in child.manifest.layers] == [layer.digest for layer in layers]
    assert child.config.others == config.others


def test_a_layer_that_is_not_there_makes_no_image(store: Store) -> None:
    parent = made(store, "parent", ONE)
    draft = Draft(parent.config, tuple(replace(layer, digest=digest_of(b"gone")) for layer in parent.manifest.layers))
    with store.adding() as adding, pytest.raises(UsageError, match="missing"):
        draft.put(adding, "child")
    assert len(store.images()) == 1


def test_with_a_source_date_it_is_always_the_same_image(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    assert drafted(store).descriptor == drafted(Store(tmp_path / "another")).descriptor
    assert drafted(store).config.created == "2023-11-14T22:13:20Z" == now()


@pytest.mark.parametrize("epoch", ["", "yesterday", "1e9", "9" * 30])
def test_a_source_date_is_a_number(epoch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(UsageError, match=r"SOURCE_DATE_EPOCH=.*it is a number of seconds since 1970"):
        now()


@pytest.mark.needs("skopeo")
def test_skopeo_says_the_same_of_it(store: Store) -> None:
    image = drafted(store)
    ran = subprocess.run(["skopeo", "inspect", "--config", f"oci:{store.path}:docker.io/library/made:latest"], capture_output=True, check=True)
    told = json.loads(ran.stdout)
    assert told["rootfs"]["diff_ids"] == list(image.config.diff_ids) and told["config"] == image.settings
    assert (told["architecture"], told["variant"]) == ("arm64", "v8") and len(told["history"]) == 3


@pytest.mark.needs("umoci")
def test_umoci_says_the_same_of_it(store: Store) -> None:
    image = drafted(store)
    ran = subprocess.run(["umoci", "stat", "--json", "--image", f"{store.path}:docker.io/library/made:latest"], capture_output=True, check=True)
    history = json.loads(ran.stdout)["history"]
    assert [line.get("empty_layer", False) for line in history] == [False, True, False]
    assert [line["layer"]["digest"] for line in history if line["layer"]] == [layer.digest for layer in image.manifest.layers]
