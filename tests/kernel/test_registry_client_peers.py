"""Our client and real peers: Debian's docker-registry with and without passwords, skopeo and what it keeps, and our own registry's tokens."""

import json
import os
import random
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from waiting import soon

from kernel_lab.images.compression import gzipped
from kernel_lab.images.descriptor import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Config,
    Descriptor,
    Index,
    Manifest,
    Platform,
    digest_of,
)
from kernel_lab.images.store import Store
from kernel_lab.registry import client as clients
from kernel_lab.registry import credentials, transport
from kernel_lab.registry.client import Client
from kernel_lab.registry.credentials import Credential
from kernel_lab.registry.progress import Progress
from kernel_lab.registry.pull import pull, pull_all
from kernel_lab.registry.push import push
from kernel_lab.registry.server import Registry
from kernel_lab.registry.transport import RegistryError

USER, PASSWORD = "olga", "correct horse: battery"
SILENT = Progress()
KLAB = (sys.executable, "-m", "kernel_lab.cli")
CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
AUTH = "auth: {{htpasswd: {{realm: here, path: {path}}}}}\n"


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


@contextmanager
def docker_registry(folder: Path, more: str = "", port: int = 0) -> Iterator[str]:
    """Debian's registry: its address."""
    folder.mkdir(exist_ok=True)
    if not port:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
    config = folder / "config.yml"
    config.write_text(CONFIG.format(folder=folder / "data", port=port) + more)
    with subprocess.Popen(["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert soon(lambda: listening(port) or process.poll() is not None) and process.poll() is None
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


def listening(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path / "registry") as name:
        yield name


@pytest.fixture
def private(tmp_path: Path) -> Iterator[str]:
    """One that wants a name and a password, from htpasswd."""
    path = tmp_path / "htpasswd"
    path.write_bytes(subprocess.run(["htpasswd", "-Bbn", USER, PASSWORD], check=True, capture_output=True).stdout)
    with docker_registry(tmp_path / "registry", AUTH.format(path=path)) as name:
        yield name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


def archive(content: bytes) -> bytes:
    """A layer with one file, which skopeo could look into."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        tar.addfile(entry, BytesIO(content))
    return buffer.getvalue()


def image(store: Store, name: str | None, *contents: bytes, docker: bool = False, architecture: str = "amd64") -> Descriptor:
    layer_type, config_type, manifest_type = (
        (DOCKER_LAYER_GZIP, DOCKER_CONFIG, DOCKER_MANIFEST) if docker else (OCI_LAYER + "+gzip", OCI_CONFIG, OCI_MANIFEST)
    )
    archives = list(map(archive, contents))
    with store.adding() as adding:
        blobs = tuple(adding.put(b"".join(gzipped([tar])), layer_type) for tar in archives)
        config = adding.put(Config(architecture, "linux", tuple(map(digest_of, archives))).raw, config_type)
        found = adding.put(Manifest(config, blobs, media_type=manifest_type).raw, manifest_type)
        return store.tag(found, name)


def skopeo(*words: str) -> bytes:
    done = subprocess.run(["skopeo", *words], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def blobs(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("blobs/sha256/*")}


@pytest.mark.needs("docker-registry", "skopeo")
@pytest.mark.parametrize("docker", [True, False])
def test_what_we_push_skopeo_sees_and_copies_bit_for_bit(registry: str, store: Store, tmp_path: Path, docker: bool) -> None:
    found = image(store, f"{registry}/x/y:1", b"base", random.Random(1).randbytes(3_000_000), docker=docker)
    assert push(f"{registry}/x/y:1", store, SILENT).digest == found.digest
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{registry}/x/y:1")
    assert raw == store.read(found) and digest_of(raw) == found.digest
    skopeo("copy", "--preserve-digests", "--src-tls-verify=false", f"docker://{registry}/x/y:1", f"dir:{tmp_path}/copy")
    needed = {part.digest.partition(":")[2] for part in store.needs(found)} - {found.digest.partition(":")[2]}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == needed | {"manifest.json", "version"}
    assert all(digest_of((tmp_path / "copy" / name).read_bytes()) == f"sha256:{name}" for name in needed)


@pytest.mark.needs("docker-registry", "skopeo")
@pytest.mark.parametrize("docker", [True, False])
def test_what_skopeo_pushes_we_pull_bit_for_bit(registry: str, store: Store, tmp_path: Path, docker: bool) -> None:
    found = image(store, f"{registry}/ours:1", b"base", b"top", docker=docker)
    push(f"{registry}/ours:1", store, SILENT)
    insecure = ("--src-tls-verify=false", "--dest-tls-verify=false")
    skopeo("copy", "--preserve-digests", *insecure, f"docker://{registry}/ours:1", f"docker://{registry}/x:1")
    other = Store(tmp_path / "other")
    pulled = pull(f"{registry}/x:1", other, "linux/amd64", progress=SILENT)
    assert pulled.digest == pulled.image.digest == found.digest
    assert blobs(other.path) == blobs(store.path) and other.verify() == {}
    if not docker:  # of docker's types skopeo finds none in a layout
        skopeo("copy", "--preserve-digests", f"oci:{other.path}:{registry}/x:1", f"dir:{tmp_path}/copy")
        assert digest_of((tmp_path / "copy/manifest.json").read_bytes()) == found.digest


@pytest.mark.needs("docker-registry", "skopeo")
@pytest.mark.parametrize("index_type", [OCI_INDEX, DOCKER_INDEX])
def test_an_index_goes_there_and_comes_back_whole_or_for_one_platform(registry: str, store: Store, tmp_path: Path, index_type: str) -> None:
    docker = index_type == DOCKER_INDEX
    children = [
        replace(image(store, None, name.encode(), docker=docker, architecture=name), platform=Platform(name, "linux"), annotations={})
        for name in ("amd64", "arm64")
    ]
    with store.adding() as adding:
        index = adding.put(Index(tuple(children), media_type=index_type).raw, index_type)
        store.tag(index, f"{registry}/x:1")
    assert push(f"{registry}/x:1", store, SILENT).digest == index.digest
    assert skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{registry}/x:1") == store.read(index)
    skopeo("copy", "--all", "--preserve-digests", "--src-tls-verify=false", f"docker://{registry}/x:1", f"dir:{tmp_path}/copy")
    assert digest_of((tmp_path / "copy/manifest.json").read_bytes()) == index.digest
    one, whole = Store(tmp_path / "one"), Store(tmp_path / "whole")
    pulled = pull(f"{registry}/x:1", one, "linux/arm64", progress=SILENT)
    assert (pulled.digest, pulled.image.digest) == (index.digest, children[1].digest)
    assert blobs(one.path) == {part.digest.partition(":")[2] for part in store.needs(children[1])}
    assert pull(f"{registry}/x:1", whole, all_platforms=True, progress=SILENT).image.digest == index.digest
    assert blobs(whole.path) == blobs(store.path) and whole.verify() == {} == one.verify()
    if not docker:
        skopeo("copy", "--all", "--preserve-digests", f"oci:{whole.path}:{registry}/x:1", f"dir:{tmp_path}/again")
        assert digest_of((tmp_path / "again/manifest.json").read_bytes()) == index.digest


@pytest.mark.needs("docker-registry")
def test_blobs_are_mounted_from_another_repository_and_sent_once(registry: str, store: Store) -> None:
    found = image(store, f"{registry}/x:1", b"base", b"top")
    store.tag(found, f"{registry}/y/z:1")
    assert len(push(f"{registry}/x:1", store, SILENT).transferred) == 3
    assert len(push(f"{registry}/y/z:1", store, SILENT).mounted) == 3
    assert len(push(f"{registry}/y/z:1", store, SILENT).already) == 3
    assert httpx.get(f"http://{registry}/v2/y/z/manifests/1", headers={"Accept": OCI_MANIFEST}).content == store.read(found)


@pytest.mark.needs("docker-registry")
def test_a_large_blob_arrives_in_chunks(registry: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "CHUNKED_FROM", 1 << 20)
    monkeypatch.setattr(clients, "CHUNK", 1 << 20)
    found = image(store, f"{registry}/x:1", random.Random(2).randbytes(5_300_000))
    push(f"{registry}/x:1", store, SILENT)
    assert pull(f"{registry}/x:1", Store(tmp_path / "other"), "linux/amd64", progress=SILENT).digest == found.digest


@pytest.mark.slow
@pytest.mark.needs("docker-registry")
def test_a_pull_goes_on_when_the_registry_is_killed_and_comes_back(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BACKOFF", 1.0)
    content = random.Random(3).randbytes(40_000_000)
    asked: list[int] = []

    class Watching(Progress):
        """Kills the registry in the middle, once."""

        def moved(self, blob: Descriptor, count: int) -> None:
            asked.append(count)
            if sum(asked) > 2_000_000:
                killed.set()

    killed, back = threading.Event(), threading.Event()
    with docker_registry(tmp_path / "registry") as name:
        found = image(store, f"{name}/x:1", content)
        push(f"{name}/x:1", store, SILENT)

    def lives() -> None:
        port = int(name.rpartition(":")[2])
        with docker_registry(tmp_path / "registry", port=port):
            ready.set()
            killed.wait(60)
        with docker_registry(tmp_path / "registry", port=port):
            back.wait(60)

    ready = threading.Event()
    thread = threading.Thread(target=lives)
    thread.start()
    try:
        assert ready.wait(30)
        other = Store(tmp_path / "other")
        assert pull(f"{name}/x:1", other, "linux/amd64", progress=Watching()).digest == found.digest
        assert other.verify() == {} and sum(asked) >= len(content)
    finally:
        killed.set()
        back.set()
        thread.join()


@pytest.mark.needs("docker-registry", "htpasswd")
def test_a_registry_with_passwords_is_used_after_a_login_of_klabs(private: str, store: Store, tmp_path: Path) -> None:
    found = image(store, f"{private}/x:1", b"one")
    with pytest.raises(RegistryError, match=f"unauthorized: .*klab login {private}"):
        push(f"{private}/x:1", store, SILENT)
    environment = os.environ | {"DOCKER_CONFIG": str(tmp_path / "docker")}
    login = [*KLAB, "login", "-u", USER, "--password-stdin", private]
    wrong = subprocess.run(login, input="wrong", text=True, capture_output=True, env=environment)
    assert wrong.returncode and "unauthorized" in wrong.stderr and not (tmp_path / "docker/config.json").exists()
    right = subprocess.run(login, input=PASSWORD, text=True, capture_output=True, env=environment)
    assert right.stdout == "Login Succeeded\n", right.stderr
    assert push(f"{private}/x:1", store, SILENT).digest == found.digest
    assert pull(f"{private}/x:1", Store(tmp_path / "other"), "linux/amd64", progress=SILENT).digest == found.digest
    credentials.erase(private)
    with pytest.raises(RegistryError, match="unauthorized"):
        pull(f"{private}/x:1", Store(tmp_path / "other"), progress=SILENT)


@pytest.mark.needs("docker-registry", "htpasswd", "skopeo")
def test_skopeo_and_we_find_each_others_passwords(private: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(store, f"{private}/x:1", b"one")
    credentials.store(private, Credential(USER, PASSWORD))
    push(f"{private}/x:1", store, SILENT)
    config = tmp_path / "docker/config.json"
    assert json.loads(skopeo("inspect", "--authfile", str(config), "--tls-verify=false", f"docker://{private}/x:1"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    skopeo("login", "--authfile", str(tmp_path / "auth.json"), "--tls-verify=false", "-u", USER, "-p", PASSWORD, private)
    assert pull(f"{private}/x:1", Store(tmp_path / "other"), "linux/amd64", progress=SILENT).newer


@pytest.mark.needs("docker-registry", "skopeo")
def test_tags_come_as_skopeo_sees_them_and_what_is_deleted_is_gone(registry: str, store: Store, tmp_path: Path) -> None:
    found = image(store, None, b"one")
    for tag in ("1", "2", "latest"):
        store.tag(found, f"{registry}/x:{tag}")
        push(f"{registry}/x:{tag}", store, SILENT)
    seen = json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{registry}/x"))["Tags"]
    other = Store(tmp_path / "other")
    with Client(registry) as client:
        assert sorted(client.tags("x")) == sorted(seen) == ["1", "2", "latest"]
        assert [pulled.digest for pulled in pull_all(f"{registry}/x", other, "linux/amd64", SILENT)] == [found.digest] * 3
        client.delete_manifest("x", found.digest)
        assert not client.has_manifest("x", "1") and list(client.tags("x")) == []
    with pytest.raises(RegistryError, match="there is no such tag"):
        pull(f"{registry}/x:1", other, progress=SILENT)


@pytest.mark.slow
def test_our_own_registry_and_its_tokens(store: Store, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry", users={USER: PASSWORD}, private=["lab/*"]) as registry:
        name = registry.address
        found = image(store, f"{name}/lab/x:1", b"one", random.Random(4).randbytes(2_000_000))
        store.tag(found, f"{name}/lab/y:1")
        with pytest.raises(RegistryError, match=r"unauthorized|denied"):
            push(f"{name}/lab/x:1", store, SILENT)
        credentials.store(name, Credential(USER, PASSWORD))
        assert len(push(f"{name}/lab/x:1", store, SILENT).transferred) == 3
        assert len(push(f"{name}/lab/y:1", store, SILENT).mounted) == 3
        other = Store(tmp_path / "other")
        assert pull(f"{name}/lab/y:1", other, "linux/amd64", progress=SILENT).digest == found.digest and other.verify() == {}
        with Client(name) as client:
            client.delete_manifest("lab/y", found.digest)
            assert not client.has_manifest("lab/y", found.digest)


def test_our_own_registry_takes_a_large_blob_in_chunks(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "CHUNKED_FROM", 1 << 20)
    monkeypatch.setattr(clients, "CHUNK", 1 << 20)
    with Registry(tmp_path / "registry") as registry:
        found = image(store, f"{registry.address}/x:1", random.Random(5).randbytes(5_300_000))
        push(f"{registry.address}/x:1", store, SILENT)
        assert pull(f"{registry.address}/x:1", Store(tmp_path / "other"), "linux/amd64", progress=SILENT).digest == found.digest
