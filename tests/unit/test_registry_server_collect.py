"""What a registry of ours lets go: what no manifest needs, and only once nobody can still be about to need it."""

import json
import os

import httpx
import pytest
from registries import files, image, push, push_blob, put_manifest
from waiting import at_once

from kernel_lab import UsageError
from kernel_lab.images.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, digest_of
from kernel_lab.registry.server import Registry

NAME = "lab/app"


def test_what_no_manifest_needs_goes(registry: Registry, client: httpx.Client) -> None:
    push(client, NAME, "1", b"kept")
    before = files(registry.path)
    lost = push_blob(client, NAME, b"lost")
    gone = registry.collect(grace=0)
    assert (gone.blobs, gone.size) == ((lost,), 4)
    assert files(registry.path) == before and client.get(f"{NAME}/blobs/{lost}").status_code == 404
    assert registry.collect(grace=0) == ((), (), 0, ())


def test_what_is_new_stays(registry: Registry, client: httpx.Client) -> None:
    lost = push_blob(client, NAME, b"lost")
    place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
    assert registry.collect(grace=1000) == registry.collect() == ((), (), 0, ())
    assert client.get(f"{NAME}/blobs/{lost}").status_code == 200 and client.get(place).status_code == 204


def test_what_a_pusher_has_found_here_is_new_again(registry: Registry, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    other, found = push_blob(client, NAME, b"other"), push_blob(client, NAME, b"found")
    path = registry.repositories.find(NAME).layout.blob(found)  # type: ignore[union-attr]
    added = os.stat(path).st_ctime
    while os.stat(path).st_ctime == added:  # the kernel's clock for files is a coarse one
        assert client.head(f"{NAME}/blobs/{found}").status_code == 200
    monkeypatch.setattr("time.time", lambda: added + 1000)
    assert registry.collect(grace=1000 - (os.stat(path).st_ctime - added) / 2).blobs == (other,)
    assert client.get(f"{NAME}/blobs/{found}").status_code == 200


def test_a_blob_stays_on_disk_until_the_last_repository_lets_it_go(registry: Registry, client: httpx.Client) -> None:
    for name in ("a", "b"):
        push(client, name, "1", b"layer")
    manifest, config = image(b"layer")
    assert client.delete(f"a/manifests/{digest_of(manifest.raw)}").status_code == 202
    assert registry.collect(grace=0).blobs == ()
    assert client.get(f"a/blobs/{digest_of(b'layer')}").status_code == 404
    assert client.get(f"b/blobs/{digest_of(b'layer')}").content == b"layer"
    assert client.delete(f"b/manifests/{digest_of(manifest.raw)}").status_code == 202
    assert set(registry.collect(grace=0).blobs) == {digest_of(content) for content in (b"layer", config, manifest.raw)}
    assert files(registry.path) == set() and os.listdir(registry.path / "repositories") == [".lock"]


def test_uploads_that_nobody_goes_on_with_go(registry: Registry, client: httpx.Client) -> None:
    place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
    client.patch(place, content=b"abc")
    assert registry.collect(grace=0).uploads == (place.path.rpartition("/")[2],)
    assert files(registry.path) == set()
    for answer in (client.get(place), client.patch(place, content=b"d"), client.put(place, params={"digest": digest_of(b"abc")})):
        assert answer.status_code == 404
    push(client, NAME, "1", b"layer")


def test_manifests_without_a_tag_go_when_that_is_asked_for(registry: Registry, client: httpx.Client) -> None:
    old = push(client, NAME, "1", b"old")
    child = push(client, NAME, "child", b"child")
    push(client, NAME, "1", b"new")
    index = Index((Descriptor(OCI_MANIFEST, child, len(image(b"child")[0].raw)),))
    assert put_manifest(client, NAME, "all", index.raw, OCI_INDEX).status_code == 201
    assert client.delete(f"{NAME}/manifests/child").status_code == 202
    about = {"mediaType": OCI_MANIFEST, "digest": child, "size": 1}
    signature, stray = (image(b"new")[0].json() | {"subject": about | {"digest": digest}} for digest in (child, old))
    for document in (signature, stray):
        assert put_manifest(client, NAME, digest_of(json.dumps(document).encode()), document).status_code == 201
    assert registry.collect(grace=0).manifests == ()
    assert client.get(f"{NAME}/manifests/{old}").status_code == 200
    gone = registry.collect(grace=0, untagged=True)
    assert set(gone.manifests) == {f"{NAME}@{digest}" for digest in (old, digest_of(json.dumps(stray).encode()))}
    assert digest_of(b"old") in gone.blobs and client.get(f"{NAME}/manifests/{old}").status_code == 404
    for kept in ("1", "all", child, digest_of(json.dumps(signature).encode())):
        assert client.get(f"{NAME}/manifests/{kept}").status_code == 200


def test_pushes_go_on_meanwhile(registry: Registry) -> None:
    number = iter(range(100))

    def pushing() -> None:
        own = next(number)
        with httpx.Client(base_url=f"{registry.url}/v2/", timeout=60) as client:
            for turn in range(8):
                name = f"repository{own}x{turn}"
                push(client, name, "1", b"base", f"{own} {turn}".encode())
                assert client.get(f"{name}/blobs/{digest_of(b'base')}").status_code == 200
                # Old ones of these are removed, over and over, with the repository in which nothing is left.
                assert client.delete(f"{name}/manifests/{digest_of(image(b'base', f'{own} {turn}'.encode())[0].raw)}").status_code == 202
                push(client, f"kept{own}", str(turn), b"base", f"{own} {turn}".encode())

    def collecting() -> None:
        for _ in range(30):
            registry.collect(grace=2)

    jobs = iter([pushing, pushing, pushing, collecting])
    assert at_once(lambda: next(jobs)(), 4) == []
    with httpx.Client(base_url=f"{registry.url}/v2/") as client:
        for own in range(3):
            for turn in range(8):
                manifest = client.get(f"kept{own}/manifests/{turn}").json()
                for blob in (manifest["config"], *manifest["layers"]):
                    assert len(client.get(f"kept{own}/blobs/{blob['digest']}").content) == blob["size"]


def test_what_a_manifest_calls_its_layers_matters_to_nobody(registry: Registry, client: httpx.Client) -> None:
    blobs = [push_blob(client, NAME, content) for content in (b"x", image()[1])]
    layers = [{"mediaType": kind, "digest": blobs[0], "size": 1} for kind in (OCI_MANIFEST, OCI_INDEX)]
    assert put_manifest(client, NAME, "1", image()[0].json() | {"layers": layers}).status_code == 201
    lost = push_blob(client, NAME, b"lost")
    for untagged in (False, True):
        assert registry.collect(grace=0, untagged=untagged).blobs == ((lost,) if not untagged else ())
    assert [client.get(f"{NAME}/blobs/{blob}").status_code for blob in blobs] == [200, 200]


@pytest.mark.parametrize("damage", ["missing", "nonsense"])
@pytest.mark.parametrize("untagged", [False, True])
def test_where_a_manifest_does_not_say_what_it_needs_all_is_kept_and_elsewhere_the_rest_goes(
    registry: Registry, client: httpx.Client, damage: str, untagged: bool
) -> None:
    digest = push(client, "a", "1", b"layer")
    kept, lost = push_blob(client, "a", b"kept"), push_blob(client, "b", b"lost")
    manifest = registry.repositories.find("a").layout.blob(digest)  # type: ignore[union-attr]
    if damage == "missing":
        manifest.unlink()
    else:
        manifest.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=f"^a: {digest}: .*in the other repositories what nobody needs is gone") as said:
        registry.collect(grace=0, untagged=untagged)
    assert "\n" not in str(said.value)
    for blob in (kept, digest_of(b"layer"), digest_of(image(b"layer")[1])):
        assert client.get(f"a/blobs/{blob}").status_code == 200
    assert client.get(f"b/blobs/{lost}").status_code == 404 and lost not in registry.repositories.pool.digests()
