"""A registry of ours among others: the programs that push to it and pull from it, and a process that is killed in the middle of anything."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trustme
from registries import PASSWORD, USER, code, files, htpasswd, image, push, push_blob, put_manifest, serving
from waiting import soon

from kernel_lab.benchmarks.registry_speed import measure
from kernel_lab.images.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Config, Descriptor, Index, Manifest, digest_of
from kernel_lab.images.store import Store
from kernel_lab.registry.server import Registry

KLAB = (sys.executable, "-B", "-m", "kernel_lab.cli", "registry")
NAME = "lab/app"
MEGABYTE = 1 << 20


def said(*command: str | Path) -> str:
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def refused(*command: str | Path) -> str:
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert ran.returncode != 0, ran.stdout
    return ran.stderr


@contextmanager
def process(folder: Path, *options: str, before: tuple[str, ...] = ()) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A registry in a process of its own, and its URL."""
    command = [*before, *KLAB, "serve", "--port", "0", "--data", str(folder), "--quiet", *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr
        first = server.stderr.readline().strip()
        if not first.startswith("serving "):
            raise RuntimeError(f"it does not serve: {first}{server.stderr.read()}")
        yield server, first.rpartition(" ")[2]
    finally:
        server.kill()
        server.communicate()


def talking(url: str) -> httpx.Client:
    return httpx.Client(base_url=f"{url}/v2/", timeout=60)


def made(folder: Path, name: str, *layers: bytes) -> tuple[Store, Descriptor]:
    """An image in a store of its own, whose layers are no archives: who copies it does not look into them."""
    store = Store(folder)
    with store.adding() as adding:
        blobs = tuple(adding.put(layer, OCI_LAYER) for layer in layers)
        config = adding.put(Config("amd64", "linux", tuple(blob.digest for blob in blobs)).raw, OCI_CONFIG)
        return store, store.tag(adding.put(Manifest(config, blobs).raw, OCI_MANIFEST), name)


@pytest.fixture
def auth(tmp_path: Path) -> Path:
    return tmp_path / "auth.json"


def copy(source: str, destination: str, *options: str | Path) -> None:
    """As it is: skopeo would compress layers otherwise."""
    said("skopeo", "copy", "-q", "--preserve-digests", *options, source, destination)


@pytest.mark.needs("skopeo")
def test_skopeo_pushes_to_us_and_pulls_from_us_the_same_bytes(tmp_path: Path) -> None:
    store, pushed = made(tmp_path / "images", "app:1", os.urandom(3 * MEGABYTE), b"small")
    with serving(tmp_path / "registry") as (registry, client):
        where = f"docker://{registry.address}/{NAME}"
        copy(f"oci:{store.path}:docker.io/library/app:1", f"{where}:1", "--dest-tls-verify=false")
        assert client.head(f"{NAME}/manifests/1").headers["Docker-Content-Digest"] == pushed.digest
        copy(f"{where}:1", f"oci:{tmp_path}/back:x", "--src-tls-verify=false")
        assert Store(tmp_path / "back").resolve("x").digest == pushed.digest and Store(tmp_path / "back").verify() == {}
        assert json.loads(said("skopeo", "inspect", "--tls-verify=false", f"{where}:1"))["Digest"] == pushed.digest
        assert json.loads(said("skopeo", "list-tags", "--tls-verify=false", where))["Tags"] == ["1"]
        said("skopeo", "delete", "--tls-verify=false", f"{where}:1")
        assert client.get(f"{NAME}/tags/list").json()["tags"] == []
        assert registry.collect(grace=0).size > 3 * MEGABYTE and files(registry.path) == set()


@pytest.mark.needs("skopeo")
def test_skopeo_opens_a_repositorys_folder_as_it_is(tmp_path: Path) -> None:
    with serving(tmp_path / "registry") as (registry, client):
        digest = push(client, NAME, "1", b"layer")
    copy(f"oci:{registry.path}/repositories/lab+app:1", f"oci:{tmp_path}/copy:x")
    assert Store(tmp_path / "copy").resolve("x").digest == digest


@pytest.mark.needs("skopeo")
def test_skopeo_pushes_and_pulls_images_of_several_platforms(tmp_path: Path) -> None:
    with serving(tmp_path / "registry") as (registry, client):
        manifests = [Descriptor(OCI_MANIFEST, push(client, NAME, kind, kind.encode()), len(image(kind.encode())[0].raw)) for kind in ("a", "b")]
        index = Index(tuple(manifests)).raw
        assert put_manifest(client, NAME, "all", index, OCI_INDEX).status_code == 201
        where = f"docker://{registry.address}"
        copy(f"{where}/{NAME}:all", f"{where}/other:all", "--all", "--src-tls-verify=false", "--dest-tls-verify=false")
        assert client.get("other/manifests/all").content == index
        assert Store(registry.path / "repositories/other").verify() == {}


@pytest.mark.needs("skopeo")
def test_the_second_time_nothing_is_transferred(tmp_path: Path) -> None:
    store, _ = made(tmp_path / "images", "app:1", os.urandom(MEGABYTE))
    with serving(tmp_path / "registry") as (registry, _):
        for tag, megabytes in (("1", 1), ("2", 0)):
            before = len(registry.requests)
            copy(f"oci:{store.path}:docker.io/library/app:1", f"docker://{registry.address}/{NAME}:{tag}", "--dest-tls-verify=false")
            since = list(registry.requests)[before:]
            assert sum(request.received for request in since) // MEGABYTE == megabytes
            assert any(request.method == "PATCH" for request in since) == bool(megabytes)


@pytest.mark.needs("skopeo")
def test_skopeo_authenticates_by_tokens(tmp_path: Path, auth: Path) -> None:
    store, pushed = made(tmp_path / "images", "app:1", b"layer")
    with serving(tmp_path / "registry", users=htpasswd(tmp_path), private=["secret/*"]) as (registry, _):
        source, where = f"oci:{store.path}:docker.io/library/app:1", f"docker://{registry.address}"
        no_tls, to = ("--tls-verify=false", f"--authfile={auth}"), ("--dest-tls-verify=false", f"--authfile={auth}")
        assert "unauthorized" in refused("skopeo", "copy", "-q", *to, source, f"{where}/open/app:1").lower()
        assert "invalid" in refused("skopeo", "login", *no_tls, "-u", USER, "-p", "other", registry.address)
        said("skopeo", "login", *no_tls, "-u", USER, "-p", PASSWORD, registry.address)
        for name in ("open/app", "secret/app"):
            copy(source, f"{where}/{name}:1", *to)
            assert json.loads(said("skopeo", "inspect", *no_tls, f"{where}/{name}:1"))["Digest"] == pushed.digest
        assert {request.path.split("?")[0] for request in registry.requests if request.user is None and request.status < 300} <= {"/token", "/v2/"}
        said("skopeo", "logout", f"--authfile={auth}", registry.address)
        assert json.loads(said("skopeo", "inspect", *no_tls, f"{where}/open/app:1"))["Digest"] == pushed.digest
        assert "unauthorized" in refused("skopeo", "inspect", *no_tls, f"{where}/secret/app:1").lower()


@pytest.mark.needs("skopeo")
def test_skopeo_comes_by_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    authority.cert_pem.write_to_path(trusted / "ca.crt")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    store, pushed = made(tmp_path / "images", "app:1", os.urandom(2 * MEGABYTE))
    with Registry(tmp_path / "registry", certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem", users=htpasswd(tmp_path)) as registry:
        where, own = f"docker://{registry.address}/{NAME}:1", f"{USER}:{PASSWORD}"
        source = f"oci:{store.path}:docker.io/library/app:1"
        copy(source, where, f"--dest-cert-dir={trusted}", f"--dest-creds={own}")
        copy(where, f"oci:{tmp_path}/back:x", f"--src-cert-dir={trusted}")
        assert Store(tmp_path / "back").resolve("x").digest == pushed.digest and Store(tmp_path / "back").verify() == {}
        assert "certificate" in refused("skopeo", "inspect", where)


@contextmanager
def podman() -> Iterator[Callable[..., str]]:
    with tempfile.TemporaryDirectory(prefix="klab-") as folder:  # podman takes no long path
        own = ("podman", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs")
        yield lambda *words: said(*own, *words)


@pytest.mark.needs("podman", "root")
def test_podman_logs_in_pushes_and_pulls(tmp_path: Path, auth: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context/hello").write_text("text")
    archive = tmp_path / "root.tar"
    said("tar", "-C", tmp_path / "context", "-cf", archive, "hello")
    with podman() as run, serving(tmp_path / "registry", users=htpasswd(tmp_path), private=["*"]) as (registry, client):
        name, to = f"{registry.address}/{NAME}:1", ("--tls-verify=false", f"--authfile={auth}")
        own = run("import", "-q", archive, name).strip().removeprefix("sha256:")
        run("login", *to, "-u", USER, "-p", PASSWORD, registry.address)
        run("push", "-q", *to, "--digestfile", tmp_path / "digest", name)
        with httpx.Client(base_url=client.base_url, auth=(USER, PASSWORD)) as user:
            assert user.head(f"{NAME}/manifests/1").headers["Docker-Content-Digest"] == (tmp_path / "digest").read_text()
        run("rmi", name)
        assert run("pull", "-q", *to, name).strip() == own
        before = len(registry.requests)
        run("push", "-q", *to, name, f"{registry.address}/lab/copy:2")
        since = list(registry.requests)[before:]
        assert any("mount=" in request.path and request.status == 201 for request in since), "podman has asked to mount what the registry has"
        assert run("search", *to, f"{registry.address}/lab").count("lab/") == 2


# Killed at any moment.


@dataclass
class Acknowledged:
    """What a registry has said that it has."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, bytes] = field(default_factory=dict)
    chunks: dict[str, int] = field(default_factory=dict)


def pushing(url: str, own: str, known: Acknowledged, chance: random.Random) -> None:
    """Pushes until nobody answers; writes down what was acknowledged, once it was."""
    with talking(url) as client, suppress(httpx.TransportError):
        for turn in range(1000):
            content = chance.randbytes(chance.choice([100, 1000, 300_000]))
            place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
            half = len(content) // 2
            assert client.patch(place, content=content[:half]).status_code == 202
            known.chunks[place.path] = half
            answer = client.put(place, params={"digest": digest_of(content)}, content=content[half:])
            assert answer.status_code == 201, answer.text
            known.blobs[digest_of(content)] = content
            del known.chunks[place.path]
            manifest, config = image(content)
            push_blob(client, NAME, config)
            assert put_manifest(client, NAME, f"{own}-{turn}", manifest.raw).status_code == 201
            known.tags[f"{own}-{turn}"] = manifest.raw


@pytest.mark.slow
def test_whenever_it_is_killed_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    chance = random.Random(1)
    known = [Acknowledged() for _ in range(3)]
    unfinished = 0
    for attempt in range(12):
        with process(tmp_path / "registry") as (server, url):
            jobs = [
                threading.Thread(target=pushing, args=(url, f"{attempt}-{number}", own, random.Random(100 * attempt + number)))
                for number, own in enumerate(known)
            ]
            for job in jobs:
                job.start()
            time.sleep(chance.uniform(0.05, 0.5))
            server.send_signal(signal.SIGKILL)
            for job in jobs:
                job.join()
        with serving(tmp_path / "registry") as (registry, client):
            for own in known:
                for path, size in own.chunks.items():
                    # The answer to the last request may not have come, though the registry was done with it.
                    there = client.get(client.base_url.join(path))
                    if there.status_code == 204:
                        assert int(there.headers["Range"].partition("-")[2]) + 1 >= size
                        unfinished += 1
                own.chunks.clear()
                for tag, raw in own.tags.items():
                    assert client.get(f"{NAME}/manifests/{tag}").content == raw
            assert Store(registry.path / "repositories/lab+app").verify() == {} == Store(registry.path).verify()
    with serving(tmp_path / "registry") as (registry, client):
        for own in known:
            for digest, content in own.blobs.items():
                assert client.get(f"{NAME}/blobs/{digest}").content == content
        assert unfinished and sum(len(own.tags) for own in known) > 30
        registry.collect(grace=0)
        assert not any("/uploads/" in name for name in files(registry.path))
        for own in known:
            assert all(client.get(f"{NAME}/manifests/{tag}").content == raw for tag, raw in own.tags.items())


@pytest.mark.slow
@pytest.mark.needs("strace")
@pytest.mark.parametrize("call", ["link", "rename", "fsync", "unlink", "mkdir", "chmod", "write"])
def test_killed_at_any_system_call_of_a_push_it_goes_on(tmp_path: Path, call: str) -> None:
    """strace kills the registry as it enters the call for the n-th time, until it does so often that nobody is killed."""
    content = b"layer" * 1000
    number, done = 1, list[str]()
    while len(done) < 2:
        folder = tmp_path / str(number)
        # -D: the registry is this process's child, and not strace's.
        inject = ("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")
        done = []
        with suppress(RuntimeError, httpx.TransportError), process(folder, before=inject) as (_, url), talking(url) as client:
            done.append(push_blob(client, NAME, content))
            done.append(push(client, NAME, "1", content))
        with serving(folder) as (registry, client):
            if done:
                assert client.get(f"{NAME}/blobs/{done[0]}").content == content
            if done[1:]:
                assert client.get(f"{NAME}/manifests/1").content == image(content)[0].raw
            push(client, NAME, "1", content)
            registry.collect(grace=0)
            assert len(files(registry.path)) == 6 and Store(registry.path / "repositories/lab+app").verify() == {}
            assert client.get(f"{NAME}/blobs/{digest_of(content)}").content == content
        number += 1 + number // 8
    assert number > 3


@pytest.mark.needs("strace")
def test_the_disk_has_what_is_acknowledged(tmp_path: Path) -> None:
    """By the rules of fsync(2): of a file its content, of a folder the names in it."""
    folder, log = tmp_path / "registry", tmp_path / "log"
    trace = ("strace", "-D", "-f", "-q", "-y", "-s", "12", "-o", str(log), "-e", "trace=write,fsync,rename,link,mkdir,openat,sendto")
    with process(folder, before=trace) as (server, url), talking(url) as client:
        place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
        client.patch(place, content=b"lay")
        client.put(place, params={"digest": digest_of(b"layer")}, content=b"er")
        push(client, NAME, "1", b"layer", os.urandom(MEGABYTE))
        push(client, "other", "1", b"layer")
        client.post("third/blobs/uploads/", params={"mount": digest_of(b"layer"), "from": NAME})
        client.delete(f"{NAME}/manifests/1")
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
    assert soon(lambda: log.read_text().rstrip().endswith("+++ exited with 0 +++"))
    not_on_disk, answers = set[str](), 0
    for call in finished_calls(log.read_text()):
        name = call.partition("(")[0]
        paths = [path for path in re.findall(r'[<"]([^<>"]+)[>"]', call) if path.startswith(f"{folder}/") and path != f"{folder}/token-key"]
        if name == "sendto" and '"HTTP/1.1 20' in call:
            # A repository's first blob brings the folder for blobs to the disk.
            assert {path for path in not_on_disk if " 202" not in call or not path.endswith("/blobs")} == set(), call
            answers += 1
        elif name == "write":
            not_on_disk |= set(paths)
        elif name == "fsync":
            not_on_disk -= set(re.findall("<(.+)>", call))
        elif name in ("link", "rename"):
            assert paths[0] not in not_on_disk
            not_on_disk.add(os.path.dirname(paths[1]))
        elif name == "mkdir" or ("/uploads/" in call and "O_CREAT" in call):
            not_on_disk |= {os.path.dirname(path) for path in paths[:1]} - {str(folder.parent)}
    assert answers > 15


def finished_calls(log: str) -> Iterator[str]:
    """Each system call that has succeeded, as strace has written it, when it had come to its end."""
    begun: dict[str, str] = {}
    for line in log.splitlines():
        process, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[process] = call.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", call):
            call = begun.pop(process) + call[resumed.end() :]
        if " = -1 " not in call:
            yield call


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    said("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        said("umount", folder)


@pytest.mark.needs("root")
def test_a_disk_that_gets_full_loses_nothing_but_what_was_too_much(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 * MEGABYTE) as disk, serving(disk / "registry") as (registry, client):
        digest = push(client, NAME, "1", b"layer")
        before = files(registry.path)
        content = os.urandom(12 * MEGABYTE)
        place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
        # Of unknown length: what is announced would be refused at once.
        assert code(client.patch(place, content=iter([content]))) == (507, "UNKNOWN")
        place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
        assert code(client.patch(place, content=iter([content[:3000]] * 4000))) == (507, "UNKNOWN")
        assert code(client.post(f"{NAME}/blobs/uploads/", params={"digest": digest_of(content)}, content=iter([content]))) == (507, "UNKNOWN")
        place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
        assert code(client.patch(place, content=content)) == (507, "UNKNOWN")
        assert client.delete(place).status_code == 204
        assert files(registry.path) == before
        assert client.head(f"{NAME}/manifests/1").headers["Docker-Content-Digest"] == digest
        push(client, NAME, "2", content[: 2 * MEGABYTE])


@pytest.mark.slow
def test_a_large_blob_takes_little_memory(tmp_path: Path) -> None:
    size = 256 * MEGABYTE
    piece = os.urandom(MEGABYTE)
    with process(tmp_path / "registry") as (server, url), talking(url) as client:
        place = client.base_url.join(client.post(f"{NAME}/blobs/uploads/").headers["Location"])
        assert client.patch(place, content=iter([piece] * (size // MEGABYTE))).status_code == 202
        digest = digest_of(piece * (size // MEGABYTE))
        assert client.put(place, params={"digest": digest}).status_code == 201
        with client.stream("GET", f"{NAME}/blobs/{digest}") as answer:
            assert sum(map(len, answer.iter_raw())) == size
        peak = next(line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) < 100 * 1024


@pytest.mark.slow
def test_the_benchmark_measures_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    report = measure(rounds=1, size=3 * MEGABYTE + 1)
    assert {(row.case, row.who) for row in report.rows} == {(case, who) for case in ("push", "pull") for who in ("kit", "docker-registry")}
    for case in ("push", "pull"):
        facts = report.row(case, "kit").facts
        assert facts["mb_per_s"] > 0 and 10 < facts["peak_mb"] < 100
        other = report.row(case, "docker-registry")
        assert other.times_floor == 1 or "not installed" in other.note
    assert os.listdir(tmp_path / "data") == []


# From a shell.


def test_it_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    with process(tmp_path / "registry", "--htpasswd", str(htpasswd(tmp_path)), "--private", "*", "--public", "open/*") as (server, url):
        assert httpx.get(f"{url}/v2/secret/tags/list").status_code == 401
        assert httpx.get(f"{url}/v2/open/x/tags/list").status_code == 404
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0
    port = url.rpartition(":")[2]
    assert soon(lambda: socket.socket().connect_ex(("127.0.0.1", int(port))) != 0)


def test_a_shell_collects_while_it_serves(tmp_path: Path) -> None:
    collect = (*KLAB, "garbage-collect", "--data", tmp_path / "registry")
    with process(tmp_path / "registry") as (_, url), talking(url) as client:
        push(client, NAME, "1", b"layer")
        lost = push_blob(client, NAME, b"lost")
        assert said(*collect) == "0 bytes are free again\n"
        assert said(*collect, "--grace", "0") == f"blob {lost}\n4 bytes are free again\n"
        assert json.loads(said(*collect, "--grace", "0", "--json")) == {"manifests": [], "blobs": [], "size": 0, "uploads": []}
        assert client.get(f"{NAME}/manifests/1").status_code == 200


def test_what_it_cannot_be_started_with_is_said_in_one_line(tmp_path: Path) -> None:
    serve = (*KLAB, "serve", "--port", "0", "--data", tmp_path / "registry")
    (tmp_path / "users").write_text("ada:plain\n")
    for words, why in (
        (("--private", "*"), "only users may pull what is private"),
        (("--htpasswd", tmp_path / "missing"), "no file with users"),
        (("--htpasswd", tmp_path / "users"), "line 1"),
        (("--tls-cert", tmp_path / "users"), "TLS needs both"),
        (("--tls-cert", tmp_path / "users", "--tls-key", tmp_path / "users"), "no certificate"),
        (("--address", "192.0.2.1"), "this machine has no such address"),
    ):
        errors = refused(*serve, *words)
        assert why in errors and errors.count("\n") == 1 and errors.startswith("klab: ")
    assert "there is no registry" in refused(*KLAB, "garbage-collect", "--data", tmp_path / "registry")
    assert not (tmp_path / "registry").exists()
