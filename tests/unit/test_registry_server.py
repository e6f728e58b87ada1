"""A registry of ours, by the distribution specification: what is pushed can be pulled, found and deleted, and what is wrong is refused."""

import hashlib
import json
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from registries import code, files, image, push, push_blob, put_manifest, serving

from kernel_lab.images.descriptor import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor, Index, digest_of
from kernel_lab.images.store import Store
from kernel_lab.registry.server import Registry

MISSING = digest_of(b"missing")
NAME = "lab/app"


def test_it_says_which_protocol_it_speaks(client: httpx.Client) -> None:
    answer = client.get("")
    assert (answer.status_code, answer.json()) == (200, {})
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_an_image_is_pulled_as_it_was_pushed(client: httpx.Client) -> None:
    digest = push(client, NAME, "1", b"layer")
    manifest, config = image(b"layer")
    for reference in ("1", digest):
        answer = client.get(f"{NAME}/manifests/{reference}")
        assert answer.content == manifest.raw
        assert answer.headers["Content-Type"] == OCI_MANIFEST and answer.headers["Docker-Content-Digest"] == digest
    for content in (b"layer", config):
        answer = client.get(f"{NAME}/blobs/{digest_of(content)}")
        assert (answer.content, answer.headers["Docker-Content-Digest"]) == (content, digest_of(content))


def test_head_says_the_same_without_the_body(client: httpx.Client) -> None:
    digest = push(client, NAME, "1", b"layer")
    for path in (f"{NAME}/manifests/1", f"{NAME}/manifests/{digest}", f"{NAME}/blobs/{digest_of(b'layer')}", f"{NAME}/tags/list", ""):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for header in ("Content-Length", "Content-Type", "Docker-Content-Digest"):
            assert head.headers.get(header) == got.headers.get(header), path
    for path in (f"{NAME}/manifests/2", f"{NAME}/blobs/{MISSING}", f"nothing/blobs/{MISSING}"):
        assert (client.head(path).status_code, client.head(path).content) == (404, b"")


def test_a_blob_comes_in_one_request_in_two_or_in_chunks(client: httpx.Client) -> None:
    content = bytes(range(256))
    whole = client.post(f"{NAME}/blobs/uploads/", params={"digest": digest_of(content + b"1")}, content=content + b"1")
    assert whole.status_code == 201 and whole.headers["Location"] == f"/v2/{NAME}/blobs/{digest_of(content + b'1')}"
    push_blob(client, NAME, content + b"2")
    place = client.post(f"{NAME}/blobs/uploads/").headers["Location"]
    for first, last in ((0, 99), (100, 199)):
        headers = {"Content-Range": f"{first}-{last}", "Content-Type": "application/octet-stream"}
        answer = client.patch(client.base_url.join(place), content=content[first : last + 1], headers=headers)
        assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{last}")
        place = answer.headers["Location"]
        status = client.get(client.base_url.join(place))
        assert (status.status_code, status.headers["Range"], status.headers["Location"]) == (204, f"0-{last}", place)
    last = client.put(client.base_url.join(place), params={"digest": digest_of(content)}, content=content[200:], headers={"Content-Range": "200-255"})
    assert last.status_code == 201
    for end in (b"", b"1", b"2"):
        assert client.get(f"{NAME}/blobs/{digest_of(content + end)}").content == content + end


def test_a_chunk_that_does_not_come_next_is_refused_and_changes_nothing(client: httpx.Client) -> None:
    place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
    assert client.patch(place, content=b"abc", headers={"Content-Range": "0-2"}).status_code == 202
    for said, content, status in (
        ("0-2", b"abc", 416),
        ("4-5", b"ef", 416),
        ("3-2", b"", 416),
        ("3-5", b"de", 400),
        ("3-x", b"d", 400),
        ("-1-3", b"d", 400),
        (f"3-{'9' * 40}", b"d", 400),
    ):
        answer = client.patch(place, content=content, headers={"Content-Range": said})
        assert answer.status_code == status, said
        assert client.get(place).headers["Range"] == "0-2"
    refused = client.patch(place, content=b"x", headers={"Content-Range": "9-9"})
    assert code(refused) == (416, "BLOB_UPLOAD_INVALID") and refused.headers["Range"] == "0-2"
    for pieces in ([b"d"], [b"d", b"e", b"f", b"g"]):  # without Content-Length
        answer = client.patch(place, content=iter(pieces), headers={"Content-Range": "3-5"})
        assert code(answer) == (400, "SIZE_INVALID") and client.get(place).headers["Range"] == "0-2"
    assert client.put(place, params={"digest": digest_of(b"abcde")}, content=b"de").status_code == 201


def test_an_upload_can_be_given_up(registry: Registry, client: httpx.Client) -> None:
    place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
    client.patch(place, content=b"abc")
    assert files(registry.path)
    assert client.delete(place).status_code == 204
    assert files(registry.path) == set()
    for answer in (client.get(place), client.patch(place, content=b"d"), client.put(place, params={"digest": MISSING}), client.delete(place)):
        assert code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_belongs_to_its_repository(client: httpx.Client) -> None:
    push_blob(client, "other", b"x")
    place = client.post(f"{NAME}/blobs/uploads/").headers["Location"].replace(NAME, "other")
    assert code(client.patch(client.base_url.join(place), content=b"abc")) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_what_is_something_else_than_its_digest_is_refused_and_goes(registry: Registry, client: httpx.Client) -> None:
    place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
    assert code(client.put(place, params={"digest": MISSING}, content=b"abc")) == (400, "DIGEST_INVALID")
    assert code(client.post(f"{NAME}/blobs/uploads/", params={"digest": MISSING}, content=b"abc")) == (400, "DIGEST_INVALID")
    assert code(put_manifest(client, NAME, MISSING, image()[0].raw)) == (400, "DIGEST_INVALID")
    assert files(registry.path) == set()


@pytest.mark.parametrize("digest", ["", "sha256:abc", "md5:" + "0" * 32, "sha256:" + "0" * 63 + "G", "sha256:../../../token-key", "latest"])
def test_what_is_no_digest_is_none(client: httpx.Client, digest: str) -> None:
    place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
    assert code(client.put(place, params={"digest": digest})) == (400, "DIGEST_INVALID")
    assert client.get(place).status_code == 204
    if digest and "/" not in digest:
        for path in (f"{NAME}/blobs/{digest}", f"{NAME}/referrers/{digest}"):
            assert code(client.get(path)) == (400, "DIGEST_INVALID")


def test_sha512_is_a_digest_too(client: httpx.Client) -> None:
    digest = f"sha512:{hashlib.sha512(b'content').hexdigest()}"
    push_blob(client, NAME, b"content", digest)
    assert client.get(f"{NAME}/blobs/{digest}").content == b"content"
    whole = client.post(f"{NAME}/blobs/uploads/", params={"digest": digest}, content=b"content")
    place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
    client.patch(place, content=b"con")
    chunked = client.put(place, params={"digest": digest}, content=b"tent")
    assert (whole.status_code, chunked.status_code) == (201, 201)
    raw = image()[0].raw
    push_blob(client, NAME, image()[1])
    own = f"sha512:{hashlib.sha512(raw).hexdigest()}"
    assert put_manifest(client, NAME, own, raw).headers["Docker-Content-Digest"] == own
    assert client.get(f"{NAME}/manifests/{own}").content == raw


def test_a_blob_is_given_in_parts(client: httpx.Client) -> None:
    path = f"{NAME}/blobs/{push_blob(client, NAME, bytes(range(100)))}"
    for said, status, first, last in (
        ("bytes=0-9", 206, 0, 9),
        ("bytes=90-", 206, 90, 99),
        ("bytes=-5", 206, 95, 99),
        ("bytes=90-5000", 206, 90, 99),
        (f"bytes=5-{'9' * 30}", 206, 5, 99),
        ("bytes=-5000", 206, 0, 99),
    ):
        answer = client.get(path, headers={"Range": said})
        assert (answer.status_code, answer.content) == (status, bytes(range(first, last + 1))), said
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/100"
    for said in ("bytes=100-", "bytes=200-300", f"bytes={'9' * 30}-", "bytes=5-2", "bytes=--5", "bytes=x-y", "bytes=0-1,4-5", "lines=1-2", "-"):
        answer = client.get(path, headers={"Range": said})
        # What is no range of bytes may be left unread (RFC 9110, 14.2).
        assert answer.status_code in (416, 200), said
        assert answer.headers.get("Content-Range", "bytes */100") == "bytes */100"
    assert client.get(path, headers={"Range": "bytes=100-"}).status_code == 416


def test_what_a_client_has_already_is_not_sent_again(client: httpx.Client) -> None:
    path = f"{NAME}/blobs/{push_blob(client, NAME, b'content')}"
    tag = client.get(path).headers["ETag"]
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
    assert client.get(path, headers={"If-None-Match": '"other"'}).content == b"content"
    assert client.get(path, headers={"If-Match": '"other"'}).status_code == 412


def test_a_blob_is_mounted_from_another_repository(client: httpx.Client, registry: Registry) -> None:
    digest = push_blob(client, "source", b"content")
    mounted = client.post(f"{NAME}/blobs/uploads/", params={"mount": digest, "from": "source"})
    assert (mounted.status_code, mounted.headers["Location"]) == (201, f"/v2/{NAME}/blobs/{digest}")
    assert client.get(f"{NAME}/blobs/{digest}").content == b"content"
    files_of_it = {(registry.path / file).stat().st_ino for file in files(registry.path)}
    assert len(files_of_it) == 1, "on disk it is there once"
    for source in ({"from": "nothing"}, {"from": "../source"}, {}):
        other = client.post("third/blobs/uploads/", params={"mount": digest, **source})
        assert other.status_code == 202 and "/uploads/" in other.headers["Location"]
        assert client.get(f"third/blobs/{digest}").status_code == 404


def test_what_two_repositories_are_given_is_on_disk_once(client: httpx.Client, registry: Registry) -> None:
    for name in ("a", "b", "a/b"):
        push(client, name, "latest", b"layer" * 1000)
    assert len(files(registry.path)) == 4 * 3
    assert len({(registry.path / file).stat().st_ino for file in files(registry.path)}) == 3


def test_a_manifest_needs_its_blobs(client: httpx.Client, registry: Registry) -> None:
    manifest, config = image(b"layer")
    push_blob(client, NAME, config)
    before = files(registry.path)
    assert code(put_manifest(client, NAME, "1", manifest.raw)) == (404, "MANIFEST_BLOB_UNKNOWN")
    push_blob(client, "other", b"layer")
    assert code(put_manifest(client, NAME, "1", manifest.raw)) == (404, "MANIFEST_BLOB_UNKNOWN"), "another repository's blobs do not count"
    push_blob(client, NAME, b"layer")
    wrong = manifest.json() | {"layers": [manifest.layers[0].json() | {"size": 4}]}
    assert code(put_manifest(client, NAME, "1", wrong)) == (400, "SIZE_INVALID")
    elsewhere = manifest.layers[0].json() | {"digest": MISSING, "urls": ["https://example.org/layer"]}
    assert put_manifest(client, NAME, "2", manifest.json() | {"layers": [elsewhere]}).status_code == 201
    assert put_manifest(client, NAME, "1", manifest.raw).status_code == 201
    assert before < files(registry.path) and client.get(f"{NAME}/tags/list").json()["tags"] == ["1", "2"]


def test_an_index_needs_its_manifests(client: httpx.Client) -> None:
    manifest = image(b"layer")[0]
    index = Index((Descriptor.of(OCI_MANIFEST, manifest.raw),))
    assert code(put_manifest(client, NAME, "all", index.raw, OCI_INDEX)) == (404, "MANIFEST_BLOB_UNKNOWN")
    push_blob(client, NAME, manifest.raw)
    assert code(put_manifest(client, NAME, "all", index.raw, OCI_INDEX)) == (404, "MANIFEST_BLOB_UNKNOWN"), "as a blob it is no manifest"
    digest = push(client, NAME, "1", b"layer")
    assert put_manifest(client, NAME, "all", index.raw, OCI_INDEX).status_code == 201
    assert client.get(f"{NAME}/manifests/all").headers["Content-Type"] == OCI_INDEX
    assert code(client.delete(f"{NAME}/manifests/{digest}")) == (405, "DENIED")
    assert client.get(f"{NAME}/manifests/{digest}").status_code == 200


def test_an_index_says_of_its_manifests_what_they_were_pushed_as(client: httpx.Client) -> None:
    push(client, NAME, "1", b"layer")
    raw = image(b"layer")[0].raw
    for kind in (OCI_INDEX, DOCKER_MANIFEST, "application/x.other"):
        assert code(put_manifest(client, NAME, "all", Index((Descriptor.of(kind, raw),)).raw, OCI_INDEX)) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        (b"", OCI_MANIFEST),
        (b"[]", OCI_MANIFEST),
        (b"{" * 100_000, OCI_MANIFEST),
        (image()[0].raw, OCI_INDEX),
        (image()[0].raw, DOCKER_MANIFEST),
        (image()[0].raw, "application/json"),
        (image()[0].raw, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        (json.dumps(image()[0].json() | {"manifests": []}).encode(), OCI_MANIFEST),
        (json.dumps(image()[0].json() | {"subject": {"digest": "x"}}).encode(), OCI_MANIFEST),
        (json.dumps(image()[0].json() | {"config": image()[0].config.json() | {"digest": "sha256:../../x"}}).encode(), OCI_MANIFEST),
    ],
)
def test_what_is_no_manifest_is_refused(registry: Registry, client: httpx.Client, document: bytes, media_type: str) -> None:
    push_blob(client, NAME, image()[1])
    before = files(registry.path)
    assert code(put_manifest(client, NAME, "1", document, media_type)) == (400, "MANIFEST_INVALID")
    assert files(registry.path) == before


def test_a_manifest_may_say_itself_what_it_is(client: httpx.Client) -> None:
    manifest, config = image()
    push_blob(client, NAME, config)
    assert client.put(f"{NAME}/manifests/1", content=manifest.raw).status_code == 201
    assert client.get(f"{NAME}/manifests/1").headers["Content-Type"] == OCI_MANIFEST


def test_a_tag_moves_and_the_old_manifest_stays_under_its_digest(client: httpx.Client) -> None:
    first, second = push(client, NAME, "1", b"first"), push(client, NAME, "1", b"second")
    assert client.head(f"{NAME}/manifests/1").headers["Docker-Content-Digest"] == second
    assert client.get(f"{NAME}/manifests/{first}").status_code == 200


def test_tags_and_manifests_and_blobs_are_deleted(client: httpx.Client) -> None:
    digest = push(client, NAME, "1", b"layer")
    push(client, NAME, "2", b"layer")
    assert client.delete(f"{NAME}/manifests/1").status_code == 202
    assert code(client.get(f"{NAME}/manifests/1")) == (404, "MANIFEST_UNKNOWN")
    assert client.get(f"{NAME}/manifests/2").status_code == client.get(f"{NAME}/manifests/{digest}").status_code == 200
    blob = f"{NAME}/blobs/{digest_of(b'layer')}"
    assert code(client.delete(blob)) == (405, "DENIED")
    assert code(client.delete(f"{NAME}/blobs/{digest}")) == (405, "UNSUPPORTED")
    assert client.delete(f"{NAME}/manifests/{digest}").status_code == 202
    assert client.get(f"{NAME}/tags/list").json() == {"name": NAME, "tags": []}
    assert client.delete(blob).status_code == 202
    for gone in (f"{NAME}/manifests/2", f"{NAME}/manifests/{digest}"):
        assert code(client.get(gone)) == code(client.delete(gone)) == (404, "MANIFEST_UNKNOWN")
    assert code(client.get(blob)) == code(client.delete(blob)) == (404, "BLOB_UNKNOWN")


def test_lists_come_in_pages(client: httpx.Client) -> None:
    for tag in ("b", "a", "10", "9", "C"):
        push(client, NAME, tag, b"layer")
    for name in ("z", "a/b/c"):
        push(client, name, "1", b"layer")
    assert client.get(f"{NAME}/tags/list").json()["tags"] == ["10", "9", "C", "a", "b"]
    found: list[str] = []
    path = client.base_url.join(f"{NAME}/tags/list?n=2")
    while path:
        answer = client.get(path)
        assert len(answer.json()["tags"]) <= 2
        found += answer.json()["tags"]
        following = answer.links.get("next")
        path = client.base_url.join(following["url"]) if following else None
    assert found == ["10", "9", "C", "a", "b"]
    assert client.get("_catalog").json() == {"repositories": ["a/b/c", NAME, "z"]}
    page = client.get("_catalog?n=1&last=a/b/c")
    assert page.json() == {"repositories": [NAME]} and page.headers["Link"] == '</v2/_catalog?n=1&last=lab%2Fapp>; rel="next"'
    assert "Link" not in client.get("_catalog?n=3").headers
    assert client.get("_catalog?n=0").json() == {"repositories": []}
    for wrong in ("-1", "x", "1e3", "", "9" * 30):
        assert client.get("_catalog", params={"n": wrong}).status_code == 400
    assert code(client.get("nothing/tags/list")) == (404, "NAME_UNKNOWN")


def test_what_refers_to_a_manifest_is_found(client: httpx.Client) -> None:
    digest = push(client, NAME, "1", b"layer")
    about = Descriptor(OCI_MANIFEST, digest, len(image(b"layer")[0].raw)).json()
    manifest = image(b"layer")[0].json()
    signature = manifest | {"subject": about, "artifactType": "application/x.signature", "annotations": {"by": "ada"}}
    bill = manifest | {"subject": about, "layers": []}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "subject": about, "artifactType": "application/x.list"}
    answers = [
        put_manifest(client, NAME, digest_of(json.dumps(document).encode()), document, media_type)
        for document, media_type in ((signature, OCI_MANIFEST), (bill, OCI_MANIFEST), (index, OCI_INDEX))
    ]
    assert [answer.headers["OCI-Subject"] for answer in answers] == [digest] * 3
    found = client.get(f"{NAME}/referrers/{digest}")
    assert found.headers["Content-Type"] == OCI_INDEX and found.json()["mediaType"] == OCI_INDEX
    kinds = {entry["artifactType"]: entry for entry in found.json()["manifests"]}
    assert kinds.keys() == {"application/x.signature", "application/vnd.oci.image.config.v1+json", "application/x.list"}
    assert kinds["application/x.signature"]["annotations"] == {"by": "ada"}
    for entry in kinds.values():
        assert len(client.get(f"{NAME}/manifests/{entry['digest']}").content) == entry["size"]
    some = client.get(f"{NAME}/referrers/{digest}", params={"artifactType": "application/x.list"})
    assert some.headers["OCI-Filters-Applied"] == "artifactType"
    assert [entry["artifactType"] for entry in some.json()["manifests"]] == ["application/x.list"]
    assert "OCI-Filters-Applied" not in found.headers
    for path in (f"{NAME}/referrers/{MISSING}", f"nothing/referrers/{MISSING}"):
        assert client.get(path).json()["manifests"] == []
    assert client.delete(f"{NAME}/manifests/{kinds['application/x.list']['digest']}").status_code == 202
    assert len(client.get(f"{NAME}/referrers/{digest}").json()["manifests"]) == 2


def test_a_subject_need_not_be_there(client: httpx.Client) -> None:
    push_blob(client, NAME, image()[1])
    about = {"mediaType": OCI_MANIFEST, "digest": MISSING, "size": 7}
    assert put_manifest(client, NAME, "1", image()[0].json() | {"subject": about}).headers["OCI-Subject"] == MISSING
    assert len(client.get(f"{NAME}/referrers/{MISSING}").json()["manifests"]) == 1


NO_NAMES = ["UPPER", "a//b", "-a", "a..b", "..", "a/../b", "%2e%2e/%2e%2e/x", "a%2f..%2f..%2fb", "a+b", "a b", "x" * 256, ".a", "a%00b"]
REQUESTS = [("GET", f"blobs/{MISSING}"), ("POST", "blobs/uploads/"), ("PUT", "manifests/1"), ("GET", "tags/list"), ("DELETE", "manifests/1")]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_is_none_is_refused(registry: Registry, name: str) -> None:
    before = files(registry.path)
    for method, rest in REQUESTS:
        with closing(HTTPConnection(registry.address)) as raw:  # which leaves a path as it is
            raw.request(method, f"/v2/{name.replace(' ', '%20')}/{rest}")
            assert raw.getresponse().status in (400, 404), name
    assert files(registry.path) == before and sorted(file.name for file in registry.path.parent.iterdir()) == ["registry"]


def test_repositories_may_be_called_as_files_of_a_layout_are(client: httpx.Client) -> None:
    names = ["lab", "lab/blobs", "lab/index.json", "lab/blobs/sha256", "lab/uploads", "lab/manifests/x", "v2", "x" * 255]
    for name in names:
        push(client, name, "latest", name.encode())
    assert client.get("_catalog").json()["repositories"] == sorted(names)
    for name in names:
        assert client.get(f"{name}/blobs/{digest_of(name.encode())}").content == name.encode()


@pytest.mark.parametrize("tag", [".x", "-x", "a" * 129, "a b", "a+b", "ä"])
def test_a_tag_that_is_none_is_refused(client: httpx.Client, tag: str) -> None:
    push_blob(client, NAME, image()[1])
    assert code(put_manifest(client, NAME, tag, image()[0].raw)) == (400, "MANIFEST_INVALID")
    path = f"{NAME}/manifests/{tag}"
    assert code(client.get(path)) == code(client.delete(path)) == (404, "MANIFEST_UNKNOWN")
    assert client.head(path).status_code == 404


def test_what_it_cannot_do_is_said_in_the_specifications_form(client: httpx.Client) -> None:
    push(client, NAME, "1", b"layer")
    answer = client.put(f"{NAME}/tags/list")
    assert code(answer) == (405, "UNSUPPORTED") and "GET" in answer.headers["Allow"]
    assert code(client.get("/nothing")) == (404, "UNSUPPORTED")
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"


def test_what_is_compressed_on_its_way_is_kept_as_it_came(client: httpx.Client) -> None:
    # A server that unpacked it would store other bytes than those of the digest.
    place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
    packed = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    done = client.put(place, params={"digest": digest_of(packed)}, content=packed, headers={"Content-Encoding": "gzip"})
    assert done.status_code == 201
    with client.stream("GET", f"{NAME}/blobs/{digest_of(packed)}", headers={"Accept-Encoding": "gzip"}) as answer:
        assert b"".join(answer.iter_raw()) == packed and "Content-Encoding" not in answer.headers


def test_the_folder_of_a_repository_is_a_store_of_images(registry: Registry, client: httpx.Client) -> None:
    first, second = push(client, NAME, "1", b"first"), push(client, NAME, "2", b"second")
    store = Store(registry.path / "repositories/lab+app")
    assert store.verify() == {}
    assert (store.resolve("1").digest, store.resolve("2").digest) == (first, second)
    assert Store(registry.path).verify() == {}


def test_it_goes_on_where_another_has_stopped(tmp_path: Path) -> None:
    with serving(tmp_path / "registry") as (registry, client):
        digest = push(client, NAME, "1", b"layer")
        place = client.post(f"{NAME}/blobs/uploads/").headers["Location"]
        assert client.patch(client.base_url.join(place), content=b"abc").status_code == 202
    with serving(tmp_path / "registry") as (registry, client):
        assert client.head(f"{NAME}/manifests/1").headers["Docker-Content-Digest"] == digest
        assert client.get(client.base_url.join(place)).headers["Range"] == "0-2"
        assert client.patch(client.base_url.join(place), content=b"de", headers={"Content-Range": "3-4"}).status_code == 202
        assert client.put(client.base_url.join(place), params={"digest": digest_of(b"abcde")}).status_code == 201
        assert client.get(f"{NAME}/blobs/{digest_of(b'abcde')}").content == b"abcde"
        assert registry.requests[0].path == f"/v2/{NAME}/manifests/1"


def test_the_log_shows_what_was_transferred(registry: Registry, client: httpx.Client) -> None:
    push(client, NAME, "1", b"layer" * 100)
    client.get(f"{NAME}/blobs/{digest_of(b'layer' * 100)}")
    client.head(f"{NAME}/blobs/{digest_of(b'layer' * 100)}")
    client.get(f"{NAME}/blobs/{digest_of(b'layer' * 100)}", headers={"Range": "bytes=0-9"})
    client.get(f"{NAME}/manifests/2")
    seen = [(request.method, request.status, request.received, request.sent) for request in registry.requests]
    assert seen[0] == ("POST", 202, 0, 0) and seen[1] == ("PUT", 201, 500, 0)
    assert seen[-4:-1] == [("GET", 200, 0, 500), ("HEAD", 200, 0, 0), ("GET", 206, 0, 10)]
    assert seen[-1][:3] == ("GET", 404, 0)
    assert str(registry.requests[1]).endswith(" 201 500 bytes in, 0 bytes out")
