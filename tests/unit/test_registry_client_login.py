"""Who we are: challenges and tokens, what is kept in docker's file and with credential helpers, and `klab login`."""

import base64
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from registry_double import PASSWORD, USER, Double, nobodys_settings, problem

from kernel_lab import UsageError
from kernel_lab.cli import remote
from kernel_lab.images.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Config, Manifest, digest_of
from kernel_lab.images.store import Store, local
from kernel_lab.registry import authentication, credentials, endpoints
from kernel_lab.registry.authentication import Challenge, challenges
from kernel_lab.registry.client import Client
from kernel_lab.registry.credentials import Credential
from kernel_lab.registry.progress import Progress
from kernel_lab.registry.pull import pull
from kernel_lab.registry.push import push
from kernel_lab.registry.transport import RegistryError

# A helper that keeps what it is told in a file beside it, and writes down how it was called.
HELPER = """#!/bin/sh
cd "$(dirname "$0")" && echo "$1" >> calls
case "$1" in
get) read -r url; if grep -q "\\"$url\\"" kept 2>/dev/null; then cat kept; else echo "credentials not found in native keychain"; exit 1; fi ;;
store) cat > kept ;;
erase) rm kept ;;
esac
"""


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    nobodys_settings(monkeypatch, tmp_path)
    return tmp_path / "docker/config.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of docker-credential-double, which is on the PATH."""
    folder = tmp_path / "helper"
    folder.mkdir()
    program = folder / "docker-credential-double"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture(params=["basic", "bearer"])
def double(request: pytest.FixtureRequest) -> Iterator[Double]:
    with Double(auth=request.param) as double:
        yield double


def written(config: Path, content: object) -> None:
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps(content))


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def klab(command: click.Command, *arguments: str, said: str | None = None) -> Result:
    return CliRunner().invoke(command, arguments, input=said, standalone_mode=False)


# Challenges.


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["Basic realm=here"], [("basic", {"realm": "here"})]),
        (['BASIC  realm="a, \\"b\\" = c"'], [("basic", {"realm": 'a, "b" = c'})]),
        (['Bearer realm="https://a/t",service="s",scope="repository:x:pull,push repository:y:pull"'], None),
        (['Basic realm="a", Bearer realm = "b" , Service=c'], [("basic", {"realm": "a"}), ("bearer", {"realm": "b", "service": "c"})]),
        (["Negotiate, Basic realm=a"], [("negotiate", {}), ("basic", {"realm": "a"})]),
        (["Negotiate", 'Basic realm="a"'], [("negotiate", {}), ("basic", {"realm": "a"})]),
        (["", "=", '"'], []),
    ],
)
def test_challenges_are_read_as_the_standard_has_them(lines: list[str], found: list[tuple[str, dict[str, str]]] | None) -> None:
    if found is None:
        found = [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push repository:y:pull"})]
    headers = httpx.Headers([("WWW-Authenticate", line) for line in lines])
    assert challenges(headers) == [Challenge(scheme, parameters) for scheme, parameters in found]


@pytest.mark.parametrize("names_lenders", [True, False])
def test_a_registry_that_knows_who_we_are_lets_us_pull_and_push(double: Double, tmp_path: Path, names_lenders: bool) -> None:
    credentials.store(double.name, Credential(USER, PASSWORD))
    store = Store(tmp_path / "images")
    with store.adding() as adding:
        layer = adding.put(b"one", OCI_LAYER)
        made = adding.put(Config("amd64", "linux", (layer.digest,)).raw, OCI_CONFIG)
        image = adding.put(Manifest(made, (layer,)).raw, OCI_MANIFEST)
        for name in ("x", "y"):
            store.tag(image, f"{double.name}/{name}:1")
    push(f"{double.name}/x:1", store, Progress())
    double.names_lenders = names_lenders
    assert len(push(f"{double.name}/y:1", store, Progress()).mounted) == 2
    pulled = pull(f"{double.name}/y:1", Store(tmp_path / "other"), "linux/amd64", progress=Progress())
    assert pulled.digest == image.digest
    with Client(double.name) as client:
        assert list(client.tags("x")) == ["1"]
        client.delete_manifest("x", image.digest)
    asked = [str(request.url) for request in double.asked]
    assert not any(PASSWORD in url or encoded(PASSWORD) in url for url in asked)


def test_a_token_is_asked_for_once_for_many_requests(tmp_path: Path) -> None:
    with Double(auth="bearer") as double:
        double.image("x", "1", *(b"%d" % number for number in range(20)))
        pull(f"{double.name}/x:1", Store(tmp_path / "images"), "linux/amd64", progress=Progress())
        assert len(double.requests("GET", "/token")) == 1
        assert double.requests("GET", "/token") == ["/token?service=double&scope=repository%3Ax%3Apull"]


def test_a_token_that_is_not_good_any_more_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with Double(auth="bearer") as double, Client(double.name) as client:
        double.image("x", "1", b"one")
        assert list(client.tags("x")) == ["1"]
        double.tokens.clear()
        assert list(client.tags("x")) == ["1"]
        monkeypatch.setattr(authentication, "WORN", 0)
        double.tokens.clear()
        assert list(client.tags("x")) == ["1"] == list(client.tags("x"))


def test_an_identity_token_is_shown_to_the_token_server_alone(config: Path) -> None:
    with Double(auth="bearer") as double:
        double.image("x", "1", b"one")
        written(config, {"auths": {double.name: {"auth": encoded("me:"), "identitytoken": PASSWORD}}})
        with Client(double.name) as client:
            assert list(client.tags("x")) == ["1"]
        assert len(double.requests("POST", "/token")) == 1 and not double.requests("GET", "/token")


def test_without_a_login_or_with_a_wrong_one_it_is_said_what_to_do(double: Double, tmp_path: Path) -> None:
    store = Store(tmp_path / "images")
    double.image("x", "1", b"one")
    if double.auth == "basic":
        with pytest.raises(RegistryError, match=f"unauthorized: .*log in with: klab login {double.name}"):
            pull(f"{double.name}/x:1", store, progress=Progress())
    credentials.store(double.name, Credential(USER, "secret"))
    with pytest.raises(RegistryError, match=f"unauthorized: .*klab login {double.name}") as error:
        pull(f"{double.name}/x:1", store, progress=Progress())
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_no_password_is_sent_to_a_token_server_without_encryption() -> None:
    async def fault(request: web.Request) -> web.Response:
        how = 'Bearer realm="http://198.51.100.1/token",service="x"'
        return problem(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": how})

    with Double() as double, Client(double.name, Credential(USER, PASSWORD)) as client:
        double.faults.append(fault)
        with pytest.raises(RegistryError, match=r"sends to http://198\.51\.100\.1, which is not encrypted"):
            client.ping()


def test_a_mirror_does_not_hear_the_hubs_password() -> None:
    credentials.store("docker.io", Credential(USER, PASSWORD))
    with Double(auth="basic") as double:
        mirror, hub = endpoints.Endpoints(mirrors=(double.url,)).of("docker.io")
        with Client(mirror) as client, pytest.raises(RegistryError, match="unauthorized"):
            client.ping()
        assert not any("Authorization" in request.headers for request in double.asked)
    assert (hub.registry, hub.host, hub.schemes) == ("docker.io", "registry-1.docker.io", ("https",))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("Digest realm=x", r"in a way that is not known here \(digest\)"),
        ("", "and does not say how"),
        ('Bearer realm="http://x:port/"', "names no place where tokens are to be had"),
        ("Bearer service=x", "names no place where tokens are to be had"),
        ('Bearer realm="https://me:secret@tokens.example/"', "names no place where tokens are to be had"),
    ],
)
def test_a_challenge_that_nobody_can_meet_is_refused(how: str, why: str) -> None:
    async def fault(request: web.Request) -> web.Response:
        return problem(401, "UNAUTHORIZED", "who", {"WWW-Authenticate": how})

    with Double() as double, Client(double.name) as client:
        double.faults.append(fault)
        with pytest.raises(RegistryError, match=why):
            client.ping()


@pytest.mark.parametrize(
    "answer",
    ["{", "[]", "{}", "[" * 100_000, f'{{"token": "a", "expires_in": 1{"0" * 400}}}', '{"token": "a\\nb"}', '{"token": "a", "expires_in": "x"}'],
)
def test_a_token_server_that_answers_something_else_is_refused(answer: str) -> None:
    async def fault(request: web.Request) -> web.Response | None:
        return web.Response(text=answer) if request.path == "/token" else None

    with Double(auth="bearer") as double, Client(double.name) as client:
        double.faults.append(fault)
        with pytest.raises(RegistryError, match="has answered"):
            client.ping()


# What is kept.


@pytest.mark.parametrize(
    ("auths", "registry"),
    [
        ({"registry.example:5000": {"auth": encoded("me:a:b")}}, "registry.example:5000"),
        ({"registry.example:5000": {"username": "me", "password": "a:b"}}, "registry.example:5000"),
        ({"https://registry.example:5000/v1/": {"auth": encoded("me:a:b")}}, "registry.example:5000"),
        ({"http://registry.example:5000": {}, "registry.example:5000/v2/": {"auth": encoded("me:a:b")}}, "registry.example:5000"),
        ({"https://index.docker.io/v1/": {"auth": encoded("me:a:b")}}, "docker.io"),
        ({"docker.io": {"auth": encoded("me:a:b")}}, "docker.io"),
    ],
)
def test_what_docker_has_kept_is_found(config: Path, auths: object, registry: str) -> None:
    written(config, {"auths": auths})
    assert credentials.find(registry) == Credential("me", "a:b")
    assert credentials.find("other.example") is None


def test_what_podman_has_kept_is_found_after_dockers(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "run/containers"
    place.mkdir(parents=True)
    (place / "auth.json").write_text(json.dumps({"auths": {"x.example": {"auth": encoded("podman:p")}}}))
    assert credentials.find("x.example") == Credential("podman", "p")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none"))
    assert credentials.find("x.example") is None
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(place / "auth.json"))
    written(config, {"auths": {"x.example": {"auth": encoded("docker:d")}}})
    assert credentials.find("x.example") == Credential("docker", "d")


def test_keeping_changes_nothing_else_in_the_file_and_nobody_else_may_read_it(config: Path) -> None:
    others = {"HttpHeaders": {"a": "b"}, "auths": {"other.example": {"auth": encoded("a:b")}}, "detachKeys": "ctrl-x"}
    written(config, others)
    config.chmod(0o644)
    place = credentials.store("x.example", Credential("me", "päss:wörd"))
    assert place == str(config) and stat.S_IMODE(config.stat().st_mode) == 0o600
    content = json.loads(config.read_text())
    assert content.pop("auths") == {**others.pop("auths"), "x.example": {"auth": encoded("me:päss:wörd")}} and content == others  # type: ignore[dict-item]
    assert credentials.find("x.example") == Credential("me", "päss:wörd")
    assert credentials.erase("x.example") and not credentials.erase("x.example")
    assert list(json.loads(config.read_text())["auths"]) == ["other.example"]
    assert [path.name for path in config.parent.iterdir()] == ["config.json"]


def test_a_file_that_is_a_link_stays_one(config: Path, tmp_path: Path) -> None:
    written(tmp_path / "docker/settings.json", {})
    config.symlink_to("settings.json")
    credentials.store("x.example", Credential("me", "p"))
    assert config.is_symlink() and credentials.find("x.example") == Credential("me", "p")


@pytest.mark.parametrize(
    "content",
    [
        "{secret",
        "[]",
        '{"auths": []}',
        '{"auths": {"x.example": "secret"}}',
        '{"auths": {"x.example": {"auth": "secret!"}}}',
        '{"auths": {"x.example": {"auth": "c2VjcmV0"}}}',
        '{"credsStore": "../secret"}',
        '{"credHelpers": []}',
        '{"credsStore": "none-such"}',
    ],
)
def test_a_file_that_cannot_be_understood_is_named_and_not_shown(config: Path, content: str) -> None:
    config.parent.mkdir()
    config.write_text(content)
    with pytest.raises(UsageError, match=r"config\.json") as error:
        credentials.find("x.example")
    assert content.startswith('{"credsStore": "../') or "secret" not in str(error.value)


def test_a_helper_keeps_what_the_file_does_not(config: Path, helper: Path) -> None:
    written(config, {"credsStore": "double"})
    assert credentials.find("x.example") is None
    assert credentials.store("x.example", Credential("me", "secret")) == "docker-credential-double"
    assert json.loads((helper / "kept").read_text()) == {"ServerURL": "x.example", "Username": "me", "Secret": "secret"}
    assert json.loads(config.read_text()) == {"credsStore": "double", "auths": {"x.example": {}}}
    assert credentials.find("x.example") == Credential("me", "secret")
    assert credentials.erase("x.example") and not (helper / "kept").exists() and not credentials.erase("x.example")
    assert json.loads(config.read_text())["auths"] == {}


def test_a_registrys_own_helper_comes_before_that_of_all(config: Path, helper: Path) -> None:
    written(config, {"credsStore": "none-such", "credHelpers": {"docker.io": "double"}})
    (helper / "kept").write_text(json.dumps({"ServerURL": "https://index.docker.io/v1/", "Username": "<token>", "Secret": "t"}))
    assert credentials.find("docker.io") == Credential(identity_token="t")


@pytest.mark.parametrize(("script", "why"), [("echo locked; exit 1", "double get: locked"), ("echo secret", "an object with Username and Secret")])
def test_a_helper_that_fails_says_why(config: Path, helper: Path, script: str, why: str) -> None:
    (helper / "docker-credential-double").write_text(f"#!/bin/sh\n{script}\n")
    written(config, {"credsStore": "double"})
    with pytest.raises(UsageError, match=why) as error:
        credentials.find("x.example")
    assert "secret" not in str(error.value)


def test_a_helper_that_repeats_a_password_is_not_repeated(config: Path, helper: Path) -> None:
    (helper / "docker-credential-double").write_text("#!/bin/sh\ncat; exit 1\n")
    written(config, {"credsStore": "double"})
    with pytest.raises(UsageError, match=r"double store: .*\*\*\*") as error:
        credentials.store("x.example", Credential("me", "secret"))
    assert "secret" not in str(error.value) and "secret" not in repr(Credential("me", "secret"))
    assert json.loads(config.read_text()) == {"credsStore": "double"}


# klab.


def test_a_login_is_kept_once_the_registry_has_accepted_it(double: Double, config: Path) -> None:
    assert "unauthorized" in str(klab(remote.login, "-u", USER, "--password-stdin", double.name, said="wrong\n").exception)
    assert not config.exists()
    done = klab(remote.login, "-u", USER, "--password-stdin", double.name, said=f"{PASSWORD}\n")
    assert done.exception is None and done.stdout.endswith("Login Succeeded\n") and "unencrypted" in done.output
    assert credentials.find(double.name) == Credential(USER, PASSWORD)
    asked = klab(remote.login, double.name, said=f"{USER}\n{PASSWORD}\n")
    assert asked.exception is None and PASSWORD not in asked.output
    assert "insecure" in klab(remote.login, "-u", USER, "-p", PASSWORD, f"http://{double.name}/v2/").output
    assert klab(remote.logout, double.name).output == f"Removing login credentials for {double.name}\n"
    assert klab(remote.logout, double.name).output == f"Not logged in to {double.name}\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-p", "x", "--password-stdin", "h.example"), "mutually exclusive"),
        (("--password-stdin", "h.example"), "--username"),
        (("-u", "me", "--password-stdin", "h.example"), "a name and a password are needed"),
        (("-u", "me", "-p", "x", "no_host"), "no registry|would be taken"),
    ],
)
def test_a_login_without_what_it_needs_is_refused(arguments: tuple[str, ...], why: str) -> None:
    error = klab(remote.login, *arguments, said="").exception
    assert isinstance(error, UsageError) and re.search(why, str(error))


def test_klab_pulls_and_pushes(config: Path) -> None:
    with Double() as double:
        image = double.image("x", "1", b"one")
        double.image("x", "2", b"two")
        pulled = klab(remote.pull, f"{double.name}/x:1", "--platform", "linux/amd64")
        assert pulled.exception is None, pulled.exception
        layer = digest_of(b"one")[7:19]
        status = f"Status: Downloaded newer image for {double.name}/x:1"
        lines = ["1: Pulling from x", f"{layer}: Pulling fs layer", f"{layer}: Pull complete", f"Digest: {image.digest}"]
        assert pulled.output.splitlines() == [*lines, status, f"{double.name}/x:1"]
        assert klab(remote.pull, "-q", "-a", f"{double.name}/x", "--platform", "linux/amd64").output == f"{double.name}/x:1\n{double.name}/x:2\n"
        double.manifests.clear()
        assert klab(remote.push, "-q", "--all-tags", f"{double.name}/x").output == f"{double.name}/x:1\n{double.name}/x:2\n"
        assert klab(remote.push, f"{double.name}/x:1").output.splitlines()[-1] == f"1: digest: {image.digest} size: {image.size}"
        assert {name for _, name in double.manifests if ":" not in name} == {"1", "2"} and len(local().images()) == 2
