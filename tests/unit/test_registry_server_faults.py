"""What may go wrong with a registry of ours: clients that go away, that are slow, or that lie; a disk that is full; what it is started with."""

import asyncio
import errno
import os
import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import trustme
from registries import code, files, image, push, push_blob, put_manifest, serving
from waiting import at_once, soon

from kernel_lab import UsageError
from kernel_lab.images.descriptor import digest_of
from kernel_lab.images.store import LARGEST_DOCUMENT, Store
from kernel_lab.registry.receiving import Receiver
from kernel_lab.registry.server import Registry
from kernel_lab.registry.uploads import Upload

NAME = "lab/app"


def begun(client: httpx.Client) -> httpx.URL:
    return client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])


def talking(registry: Registry, *lines: str, body: bytes = b"") -> socket.socket:
    """A connection on which a request has been sent, or the beginning of one."""
    host, _, port = registry.address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall("\r\n".join((*lines, "Host: x", "", "")).encode() + body)
    return connection


def status(connection: socket.socket) -> int:
    with connection, connection.makefile("rb") as answer:
        return int(answer.readline().split()[1])


def come(client: httpx.Client, place: httpx.URL) -> int:
    """How many bytes of an upload the registry has, by what it says is the last one."""
    return int(client.get(place).headers["Range"].partition("-")[2]) + 1


def test_of_a_client_that_goes_away_what_has_come_is_kept(registry: Registry, client: httpx.Client) -> None:
    place, content = begun(client), os.urandom(4 << 20)
    connection = talking(registry, f"PATCH {place.path} HTTP/1.1", f"Content-Length: {len(content)}", body=content[: 3 << 20])
    assert soon(lambda: come(client, place) > 1)
    connection.close()
    assert soon(lambda: registry.requests[-1].status == 400)
    there = come(client, place)
    rest = client.patch(place, content=content[there:], headers={"Content-Range": f"{there}-{len(content) - 1}"})
    assert (rest.status_code, 1 < there <= 3 << 20) == (202, True)
    assert client.put(place, params={"digest": digest_of(content)}).status_code == 201


def test_of_a_blob_in_one_request_that_breaks_off_nothing_is_kept(registry: Registry, client: httpx.Client) -> None:
    path = f"/v2/{NAME}/blobs/uploads/?digest={digest_of(b'x' * 1000)}"
    connection = talking(registry, f"POST {path} HTTP/1.1", "Content-Length: 1000", body=b"x" * 400)
    assert soon(lambda: files(registry.path))
    connection.close()
    assert soon(lambda: not files(registry.path))
    assert soon(lambda: registry.requests) and registry.requests[-1].received == 400


def test_a_manifest_that_breaks_off_is_none(registry: Registry, client: httpx.Client) -> None:
    push_blob(client, NAME, image()[1])
    raw = image()[0].raw
    talking(registry, f"PUT /v2/{NAME}/manifests/1 HTTP/1.1", f"Content-Length: {len(raw)}", body=raw[:-1]).close()
    assert soon(lambda: registry.requests[-1].path.endswith("manifests/1"))
    assert client.get(f"{NAME}/tags/list").json()["tags"] == []


def test_a_client_that_does_not_wait_for_a_blob_harms_nobody(registry: Registry, client: httpx.Client) -> None:
    content = os.urandom(32 << 20)
    digest = push_blob(client, NAME, content)
    connection = talking(registry, f"GET /v2/{NAME}/blobs/{digest} HTTP/1.1")
    connection.recv(1000)
    connection.close()
    assert soon(lambda: registry.requests[-1].sent is None)
    assert str(registry.requests[-1]).endswith("broken off")
    assert client.get(f"{NAME}/blobs/{digest}").content == content


def test_who_says_nothing_for_too_long_is_told_so(tmp_path: Path) -> None:
    with serving(tmp_path / "registry", patience=0.3) as (registry, client):
        place = begun(client)
        assert status(talking(registry, f"PATCH {place.path} HTTP/1.1", "Content-Length: 1000", body=b"x" * 400)) == 408
        assert client.get(place).headers["Range"] == "0-399"
        assert status(talking(registry, f"PUT /v2/{NAME}/manifests/1 HTTP/1.1", "Content-Length: 1000", body=b"{")) == 408


def test_many_who_say_nothing_keep_nobody_waiting(registry: Registry, client: httpx.Client) -> None:
    silent = [talking(registry, f"PATCH {begun(client).path} HTTP/1.1", "Content-Length: 1000", body=b"x") for _ in range(60)]
    push(client, NAME, "1", b"layer")
    assert client.get(f"{NAME}/manifests/1").status_code == 200
    for connection in silent:
        connection.close()


@pytest.mark.parametrize(
    ("length", "answers"),
    [("1" + "0" * 18, (507,)), ("9" * 40, (400, 507)), ("-1", (400,)), ("0x10", (400,)), ("1, 2", (400,)), ("", (400,))],
)
def test_an_absurd_length_is_refused_before_anything_comes(registry: Registry, client: httpx.Client, length: str, answers: tuple[int, ...]) -> None:
    place = begun(client)
    for line in (f"PATCH {place.path} HTTP/1.1", f"POST /v2/{NAME}/blobs/uploads/?digest={digest_of(b'')} HTTP/1.1"):
        assert status(talking(registry, line, f"Content-Length: {length}")) in answers
    assert client.get(place).headers["Range"] == "0-0"
    assert client.delete(place).status_code == 204 and files(registry.path) == set()


def test_a_manifest_has_at_most_four_megabytes(registry: Registry, client: httpx.Client) -> None:
    manifest, config = image()
    push_blob(client, NAME, config)
    before = files(registry.path)
    full = manifest.raw + b" " * (LARGEST_DOCUMENT - len(manifest.raw))
    assert code(put_manifest(client, NAME, "1", full + b" ")) == (413, "SIZE_INVALID")
    chunked = client.put(f"{NAME}/manifests/1", content=iter([full, b" "]), headers={"Content-Type": str(manifest.media_type)})
    assert code(chunked) == (413, "SIZE_INVALID")
    assert status(talking(registry, f"PUT /v2/{NAME}/manifests/1 HTTP/1.1", f"Content-Length: {LARGEST_DOCUMENT + 1}")) == 413
    assert files(registry.path) == before
    assert put_manifest(client, NAME, "1", full).status_code == 201
    assert client.get(f"{NAME}/manifests/1").content == full


@pytest.mark.parametrize("line", ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Range: 0-9"])
def test_chunks_that_are_none_break_the_upload_off(registry: Registry, client: httpx.Client, line: str) -> None:
    place = begun(client)
    connection = talking(registry, f"PATCH {place.path} HTTP/1.1", line, body=b"3\r\nabc\r\nnonsense\r\n")
    assert status(connection) == 400
    assert client.get(place).headers["Range"] in ("0-2", "0-0")
    assert client.delete(place).status_code == 204


def test_one_blob_pushed_many_times_at_once_is_one(registry: Registry) -> None:
    content = os.urandom(1 << 20)

    def pushing() -> None:
        with httpx.Client(base_url=f"{registry.url}/v2/", timeout=60) as client:
            push_blob(client, NAME, content)
            push_blob(client, f"{NAME}/{threading.get_ident()}", content)

    assert at_once(pushing, 8) == []
    digest = digest_of(content)
    assert all(file.endswith(digest[7:]) for file in files(registry.path))
    assert len({(registry.path / file).stat().st_ino for file in files(registry.path)}) == 1
    with httpx.Client(base_url=f"{registry.url}/v2/") as client:
        assert client.get(f"{NAME}/blobs/{digest}").content == content


def test_of_the_same_chunk_sent_many_times_at_once_one_counts(registry: Registry, client: httpx.Client) -> None:
    place = begun(client)
    answers: list[int] = []

    def sending() -> None:
        answers.append(httpx.patch(f"{registry.url}{place.path}", content=b"x" * 100_000, headers={"Content-Range": "0-99999"}).status_code)

    assert at_once(sending, 6) == []
    assert sorted(answers) == [202] + [416] * 5
    assert client.put(place, params={"digest": digest_of(b"x" * 100_000)}).status_code == 201


def test_tags_pushed_at_once_are_all_there(registry: Registry) -> None:
    number = iter(range(8))

    def pushing() -> None:
        own = str(next(number))
        with httpx.Client(base_url=f"{registry.url}/v2/", timeout=60) as client:
            for tag in range(5):
                push(client, NAME, f"{own}-{tag}", b"base", f"{own} {tag}".encode())

    assert at_once(pushing, 8) == []
    with httpx.Client(base_url=f"{registry.url}/v2/") as client:
        assert len(client.get(f"{NAME}/tags/list").json()["tags"]) == 40
    assert Store(registry.path / "repositories/lab+app").verify() == {}


def test_a_full_disk_is_said_and_what_was_halved_goes(registry: Registry, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Upload.write

    def full(upload: Upload, pieces: list[bytes]) -> None:
        if upload.size + sum(map(len, pieces)) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(upload, pieces)

    push_blob(client, NAME, image()[1][:50])
    before = files(registry.path)
    place = begun(client)
    monkeypatch.setattr(Upload, "write", full)
    assert client.patch(place, content=b"x" * 60).status_code == 202
    assert code(client.patch(place, content=b"x" * 60)) == (507, "UNKNOWN")
    assert code(client.patch(place, content=b"x")) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert code(client.post(f"{NAME}/blobs/uploads/", params={"digest": digest_of(b"x" * 200)}, content=b"x" * 200)) == (507, "UNKNOWN")
    assert code(put_manifest(client, NAME, "1", image()[0].raw)) == (507, "UNKNOWN")
    assert files(registry.path) == before


def test_a_damaged_folder_is_said_in_one_line(registry: Registry, client: httpx.Client) -> None:
    push(client, NAME, "1", b"layer")
    (registry.path / "repositories/lab+app/index.json").write_text("nonsense")
    assert code(client.get(f"{NAME}/manifests/1")) == (500, "UNKNOWN")
    assert code(client.get("_catalog")) == (500, "UNKNOWN")


def test_a_port_that_is_taken_is_said(registry: Registry, tmp_path: Path) -> None:
    host, _, port = registry.address.rpartition(":")
    threads = threading.active_count()
    with pytest.raises(UsageError, match="somebody listens there already"):
        Registry(tmp_path / "other", address=host, port=int(port)).start()
    with pytest.raises(UsageError, match="this machine has no such address"):
        Registry(tmp_path / "other", address="192.0.2.1").start()
    for strange in ("999.1.1.1", "no such host"):
        with pytest.raises(UsageError, match=strange):
            Registry(tmp_path / "other", address=strange).start()
    with pytest.raises(UsageError, match="0 to 65535"):
        Registry(tmp_path / "other", port=70_000).start()
    assert not (tmp_path / "other").exists() and threading.active_count() == threads


def test_one_folder_is_served_once(registry: Registry) -> None:
    threads = threading.active_count()
    with pytest.raises(UsageError, match="another registry serves this folder"):
        Registry(registry.path).start()
    assert threading.active_count() == threads
    registry.stop()
    with serving(registry.path) as (_, client):
        assert client.get("").status_code == 200


def test_it_listens_where_it_is_told_to(tmp_path: Path) -> None:
    addresses = Path("/proc/net/if_inet6")
    here = ["::1"] if addresses.exists() and "0" * 31 + "1" in addresses.read_text() else []
    for address in ("localhost", "127.0.0.2", *here):
        with serving(tmp_path / "registry", address=address) as (registry, client):
            assert client.get("").status_code == 200
            assert registry.address.startswith("[::1]:" if address == "::1" else "127.0.0.")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match=r"has 'thesis\.txt'"):
        Registry(tmp_path).start()
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_certificate_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    authority = trustme.CA()
    paths = []
    for name in ("a", "b"):
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        paths.append((tmp_path / f"{name}.pem", tmp_path / f"{name}.key"))
    (certificate, key), (other, other_key) = paths
    for pair in ((certificate, other_key), (certificate, other), (key, key), (tmp_path / "missing", key), (certificate, None), (None, key)):
        with pytest.raises(UsageError) as refused:
            Registry(tmp_path / "registry", certificate=pair[0], key=pair[1])
        assert "certificate" in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "registry").exists()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with Registry(tmp_path / "registry", certificate=certificate, key=key) as registry, httpx.Client(verify=context) as client:
        assert registry.url.startswith("https://") and client.get(f"{registry.url}/v2/").status_code == 200
        # Who speaks plain HTTP, or nothing, is no trouble for the others.
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{registry.address}/v2/")
        assert client.get(f"{registry.url}/v2/").status_code == 200


def test_it_stops_though_clients_hold_on(tmp_path: Path) -> None:
    threads = threading.active_count()
    with serving(tmp_path / "registry") as (registry, client):
        place = begun(client)
        idle = socket.create_connection(registry.address.split(":"), timeout=20)  # type: ignore[arg-type]
        busy = talking(registry, f"PATCH {place.path} HTTP/1.1", "Content-Length: 1000", body=b"x" * 400)
        assert soon(lambda: client.get(place).status_code == 204)
        registry.stop()
        for connection in (idle, busy):
            connection.close()
        with pytest.raises(httpx.TransportError):
            client.get("")
        assert threading.active_count() <= threads


def test_an_upload_whose_maker_was_killed_when_it_had_become_a_blob_is_none(registry: Registry, client: httpx.Client) -> None:
    place = begun(client)
    client.patch(place, content=b"abc")
    repository = registry.repositories.find(NAME)
    assert repository
    upload = repository.uploads / place.path.rpartition("/")[2]
    # As far as a process comes that is killed before the last step.
    for layout in (registry.repositories.pool, repository.layout):
        layout.link(upload, digest_of(b"abc"))
    assert code(client.patch(place, content=b"d")) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert client.get(f"{NAME}/blobs/{digest_of(b'abc')}").content == b"abc"
    assert not upload.exists() and client.get(place).status_code == 404


def test_a_blob_that_was_cut_off_is_mended_when_it_is_pushed_again(registry: Registry, client: httpx.Client) -> None:
    for name in ("a", "b"):
        push(client, name, "1", b"layer")
    before = files(registry.path)
    manifest = image(b"layer")[0]
    repository = registry.repositories.find("a")
    assert repository
    for digest in (digest_of(b"layer"), digest_of(manifest.raw)):
        os.truncate(repository.layout.blob(digest), 2)
    push(client, "a", "1", b"layer")
    assert client.get("a/manifests/1").content == manifest.raw
    assert client.get(f"a/blobs/{digest_of(b'layer')}").content == b"layer"
    push(client, "b", "1", b"layer")
    assert client.get(f"b/blobs/{digest_of(b'layer')}").content == b"layer"
    assert files(registry.path) == before and Store(registry.path).verify() == {}


def test_a_manifest_that_is_deleted_meanwhile_is_left_out_of_the_referrers(registry: Registry, client: httpx.Client) -> None:
    digest = push(client, NAME, "1", b"layer")
    about = {"subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1}}
    for kind in ("stays", "goes"):
        document = image(b"layer")[0].json() | about | {"artifactType": kind}
        assert put_manifest(client, NAME, kind, document).status_code == 201
    repository = registry.repositories.find(NAME)
    assert repository
    repository.layout.blob(client.head(f"{NAME}/manifests/goes").headers["Docker-Content-Digest"]).unlink()
    answer = client.get(f"{NAME}/referrers/{digest}")
    assert [entry["artifactType"] for entry in answer.json()["manifests"]] == ["stays"]


class Counted(bytes):
    """Counts how often somebody asks how long it is."""

    asked = 0

    def __len__(self) -> int:
        Counted.asked += 1
        return super().__len__()


def test_a_manifest_in_many_small_pieces_costs_no_more_than_its_pieces() -> None:
    pieces = iter([*(Counted(b"x") for _ in range(1000)), b""])

    class Content:
        async def readany(self) -> bytes:
            return next(pieces)

    request = SimpleNamespace(content_length=None, content=Content())
    Counted.asked = 0
    assert asyncio.run(Receiver().document(request)) == b"x" * 1000  # type: ignore[arg-type]
    assert Counted.asked <= 5000
