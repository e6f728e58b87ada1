"""A registry of ours for a test, and a plain HTTP client that pushes to it what a test needs."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bcrypt
import httpx

from kernel_lab.images.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Config, Descriptor, Manifest, digest_of
from kernel_lab.registry.server import Registry

USER, PASSWORD = "ada", "correct horse"


def htpasswd(folder: Path) -> Path:
    """A file with one user; bcrypt at its quickest."""
    path = folder / "htpasswd"
    path.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    return path


@contextmanager
def serving(path: Path, **options: Any) -> Iterator[tuple[Registry, httpx.Client]]:
    """A registry, and a client of it that is nobody in particular."""
    with Registry(path, **options) as registry, httpx.Client(base_url=f"{registry.url}/v2/", timeout=30) as client:
        yield registry, client


def push_blob(client: httpx.Client, name: str, content: bytes, digest: str | None = None) -> str:
    """A blob, as clients push one: a session, and all in the last request."""
    digest = digest or digest_of(content)
    place = client.post(f"{name}/blobs/uploads/")
    assert place.status_code == 202, place.text
    done = client.put(client.base_url.join(place.headers["Location"]), params={"digest": digest}, content=content)
    assert done.status_code == 201, done.text
    return digest


Document = Mapping[str, Any] | bytes


def put_manifest(client: httpx.Client, name: str, reference: str, document: Document, media_type: str = OCI_MANIFEST) -> httpx.Response:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return client.put(f"{name}/manifests/{reference}", content=raw, headers={"Content-Type": media_type})


def image(*layers: bytes) -> tuple[Manifest, bytes]:
    """A manifest and its configuration."""
    blobs = tuple(Descriptor.of(OCI_LAYER, layer) for layer in layers)
    config = Config("amd64", "linux", tuple(blob.digest for blob in blobs)).raw
    return Manifest(Descriptor.of(OCI_CONFIG, config), blobs), config


def push(client: httpx.Client, name: str, tag: str, *layers: bytes) -> str:
    """An image of these layers; its digest."""
    manifest, config = image(*layers)
    for blob in (*layers, config):
        push_blob(client, name, blob)
    done = put_manifest(client, name, tag, manifest.raw)
    assert done.status_code == 201, done.text
    return digest_of(manifest.raw)


def code(response: httpx.Response) -> tuple[int, str]:
    """The status, and the specification's code for what is wrong."""
    (error,) = response.json()["errors"]
    assert error["message"] and "\n" not in error["message"]
    return response.status_code, error["code"]


def files(path: Path) -> set[str]:
    """All that is in a registry's folder, but for what is always there."""
    always = {"lock", ".lock", "serving", "token-key", "oci-layout", "index.json"}
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name not in always}
