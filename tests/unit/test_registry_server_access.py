"""Who may do what in a registry of ours: users and anybody, public and private repositories, passwords and tokens."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jwt
import pytest
from registries import PASSWORD, USER, code, files, htpasswd, image, push, push_blob, put_manifest, serving
from waiting import soon

from kernel_lab import UsageError
from kernel_lab.images.descriptor import digest_of
from kernel_lab.registry.access import Access
from kernel_lab.registry.server import Registry
from kernel_lab.registry.tokens import SERVICE
from kernel_lab.registry.users import Users

KEY = b"k" * 32
OPEN, SECRET = "open/app", "secret/app"
AS_USER = (USER, PASSWORD)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Registry, httpx.Client]]:
    with serving(tmp_path / "registry", users=htpasswd(tmp_path), private=["secret/*"], public=["secret/open"]) as (registry, client):
        with httpx.Client(base_url=client.base_url, auth=AS_USER) as user:
            for name in (OPEN, SECRET):
                push(user, name, "1", name.encode())
        yield registry, client


@pytest.fixture
def registry(served: tuple[Registry, httpx.Client]) -> Registry:
    return served[0]


@pytest.fixture
def client(served: tuple[Registry, httpx.Client]) -> httpx.Client:
    return served[1]


def challenge(answer: httpx.Response) -> dict[str, str]:
    assert code(answer) == (401, "UNAUTHORIZED")
    scheme, _, rest = answer.headers["WWW-Authenticate"].partition(" ")
    assert scheme == "Bearer"
    return dict(re.findall(r'(\w+)="([^"]*)"', rest))


def token(client: httpx.Client, *scopes: str, user: bool = True) -> str:
    answer = client.get(client.base_url.join("/token"), params={"service": SERVICE, "scope": scopes}, auth=AS_USER if user else None)
    assert answer.status_code == 200 and answer.json()["token"] == answer.json()["access_token"]
    return str(answer.json()["token"])


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


def claims(value: str) -> dict[str, object]:
    return dict(jwt.decode(value, options={"verify_signature": False}))


def test_a_client_learns_how_to_authenticate(registry: Registry, client: httpx.Client) -> None:
    assert challenge(client.get("")) == {"realm": f"{registry.url}/token", "service": SERVICE}
    assert client.get("", auth=AS_USER).status_code == 200
    assert client.get("", headers=bearer(token(client))).status_code == 200
    assert client.get("", headers=bearer(token(client, user=False))).status_code == 200  # and is told no more than that
    said = challenge(client.post(f"{OPEN}/blobs/uploads/"))
    assert said["scope"] == f"repository:{OPEN}:pull,push" and "error" not in said
    assert challenge(client.get(f"{SECRET}/tags/list"))["scope"] == f"repository:{SECRET}:pull"
    assert challenge(client.delete(f"{OPEN}/manifests/1"))["scope"] == f"repository:{OPEN}:delete"


def test_anybody_pulls_what_is_public_and_changes_nothing(registry: Registry, client: httpx.Client) -> None:
    before = files(registry.path)
    assert client.get(f"{OPEN}/manifests/1").status_code == client.get(f"{OPEN}/tags/list").status_code == 200
    blob = digest_of(OPEN.encode())
    assert client.get(f"{OPEN}/blobs/{blob}").content == OPEN.encode()
    for answer in (
        client.post(f"{OPEN}/blobs/uploads/"),
        client.post("new/blobs/uploads/", params={"digest": blob}, content=OPEN.encode()),
        client.post("new/blobs/uploads/", params={"mount": blob, "from": OPEN}),
        put_manifest(client, OPEN, "2", image(OPEN.encode())[0].raw),
        client.delete(f"{OPEN}/manifests/1"),
        client.delete(f"{OPEN}/blobs/{blob}"),
    ):
        challenge(answer)
    assert files(registry.path) == before


def test_what_is_private_tells_anybody_nothing(client: httpx.Client) -> None:
    for name in (SECRET, "secret/nothing"):
        for path in ("manifests/1", "tags/list", f"blobs/{digest_of(SECRET.encode())}", f"referrers/{digest_of(SECRET.encode())}"):
            challenge(client.get(f"{name}/{path}"))
    assert client.get("_catalog").json() == {"repositories": [OPEN]}
    assert client.get("_catalog", auth=AS_USER).json() == {"repositories": [OPEN, SECRET]}
    assert client.get(f"{SECRET}/manifests/1", auth=AS_USER).status_code == 200
    assert client.get("secret/open/tags/list").status_code == 404  # an exception: not there, and not forbidden


def test_a_token_is_for_what_was_asked_and_no_more(client: httpx.Client) -> None:
    pull = bearer(token(client, f"repository:{SECRET}:pull"))
    assert client.get(f"{SECRET}/manifests/1", headers=pull).status_code == 200
    assert challenge(client.post(f"{SECRET}/blobs/uploads/", headers=pull))["error"] == "insufficient_scope"
    challenge(client.get("secret/other/tags/list", headers=pull))
    push_too = bearer(token(client, f"repository:{SECRET}:pull,push repository:{OPEN}:push"))
    for name in (OPEN, SECRET):
        assert client.post(f"{name}/blobs/uploads/", headers=push_too).status_code == 202
        challenge(client.delete(f"{name}/manifests/1", headers=push_too))
    all_of_it = bearer(token(client, f"repository:{SECRET}:*"))
    assert client.delete(f"{SECRET}/manifests/1", headers=all_of_it).status_code == 202
    assert challenge(client.get("_catalog", headers=all_of_it))["scope"] == "registry:catalog:*"
    assert client.get("_catalog", headers=bearer(token(client, "registry:catalog:*"))).json() == {"repositories": [OPEN, SECRET]}


def test_anybodys_token_is_for_what_anybody_may(client: httpx.Client) -> None:
    scopes = (f"repository:{OPEN}:pull,push,delete", f"repository:{SECRET}:*", "registry:catalog:*")
    value = token(client, *scopes, "repository:../x:pull", "nonsense", "repository:x", user=False)
    assert claims(value)["access"] == [{"type": "repository", "name": OPEN, "actions": ["pull"]}]
    challenge(client.post(f"{OPEN}/blobs/uploads/", headers=bearer(value)))
    assert client.get(f"{OPEN}/manifests/1", headers=bearer(value)).status_code == 200


def test_a_token_is_got_by_oauth2_too(client: httpx.Client) -> None:
    form = {"grant_type": "password", "username": USER, "password": PASSWORD, "service": SERVICE, "client_id": "x"}
    answer = client.post(client.base_url.join("/token"), data=form | {"scope": f"repository:{SECRET}:pull"})
    assert answer.json()["expires_in"] > 60 and answer.json()["scope"] == f"repository:{SECRET}:pull"
    assert client.get(f"{SECRET}/manifests/1", headers=bearer(answer.json()["access_token"])).status_code == 200
    challenge(client.post(client.base_url.join("/token"), data=form | {"password": "other"}))
    assert client.post(client.base_url.join("/token"), data=form | {"grant_type": "refresh_token"}).json() == {"error": "unsupported_grant_type"}
    assert client.post(client.base_url.join("/token"), content=b"x" * (1 << 20)).status_code in (400, 413)


def test_wrong_credentials_are_refused_even_where_none_are_needed(client: httpx.Client) -> None:
    path = f"{OPEN}/manifests/1"
    for auth in ((USER, "other"), ("nobody", PASSWORD), (USER, ""), ("", ""), (USER, PASSWORD + "\0"), (USER, "x" * 100)):
        challenge(client.get(path, auth=auth))
    for header in ("Basic", "Basic ###", "Basic " + "4" * 8, "Bearer", "Bearer x.y.z", "Digest x", "", "Basic Og=="):
        assert challenge(client.get(path, headers={"Authorization": header}))["error"] == "invalid_token"
    for odd in ("Basic é".encode(), "Bearer é".encode(), b"Basic \xe9", b"Bearer \xe9", b"Bearer a.\xe9.c", b"\xe9 x"):
        assert challenge(client.get(path, headers={"Authorization": odd}))["error"] == "invalid_token"


def test_who_sends_wrong_passwords_keeps_nobody_else_waiting(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in = bearer(token(client, f"repository:{SECRET}:pull"))
    answers: list[int] = []
    checking, go_on = threading.Event(), threading.Event()

    def slow(users: Users, name: str, password: str) -> bool:
        checking.set()
        return go_on.wait(60) and False

    monkeypatch.setattr(Users, "right", slow)

    def wrong() -> None:
        answers.append(httpx.get(client.base_url, auth=("ada", "wrong"), timeout=60).status_code)

    # More than there are threads for all that waits for the disk.
    threads = [threading.Thread(target=wrong) for _ in range(40)]
    for thread in threads:
        thread.start()
    try:
        assert checking.wait(20)
        assert soon(lambda: client.get(f"{OPEN}/manifests/1").status_code == 200)
        assert client.get(f"{SECRET}/manifests/1", headers=let_in).status_code == 200
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
    assert answers == [401] * 40


def test_a_token_that_is_not_ours_or_no_longer_is_refused(registry: Registry, client: httpx.Client) -> None:
    own = (registry.path / "token-key").read_bytes()
    good = {"iss": SERVICE, "aud": SERVICE, "sub": USER, "access": [{"type": "repository", "name": SECRET, "actions": ["pull"]}]}
    later = int(time.time()) + 100
    assert client.get(f"{SECRET}/manifests/1", headers=bearer(jwt.encode(good | {"exp": later}, own, "HS256"))).status_code == 200
    for forged in (
        jwt.encode(good | {"exp": later}, KEY, "HS256"),
        jwt.encode(good | {"exp": later - 1000}, own, "HS256"),
        jwt.encode(good, own, "HS256"),
        jwt.encode(good | {"exp": later, "aud": "other"}, own, "HS256"),
        jwt.encode(good | {"exp": later}, "", "none"),
        jwt.encode(good | {"exp": later}, own * 2, "HS512"),
    ):
        assert challenge(client.get(f"{SECRET}/manifests/1", headers=bearer(forged)))["error"] == "invalid_token"
    # Of somebody who is no user any more, a token gives what anybody has.
    former = bearer(jwt.encode(good | {"exp": later, "sub": "bob"}, own, "HS256"))
    challenge(client.get(f"{SECRET}/manifests/1", headers=former))


def test_who_may_not_pull_from_a_repository_mounts_nothing_from_it(client: httpx.Client) -> None:
    secret = digest_of(SECRET.encode())
    only_here = bearer(token(client, "repository:mine:pull,push"))
    assert client.post("mine/blobs/uploads/", params={"mount": secret, "from": SECRET}, headers=only_here).status_code == 202
    assert client.get(f"mine/blobs/{secret}", headers=only_here).status_code == 404
    assert client.post("mine/blobs/uploads/", params={"mount": digest_of(OPEN.encode()), "from": OPEN}, headers=only_here).status_code == 201
    both = bearer(token(client, "repository:mine:pull,push", f"repository:{SECRET}:pull"))
    assert client.post("mine/blobs/uploads/", params={"mount": secret, "from": SECRET}, headers=both).status_code == 201


def test_a_private_blob_is_not_to_be_had_through_another_repository(client: httpx.Client) -> None:
    for name in (OPEN, "nothing"):
        assert client.get(f"{name}/blobs/{digest_of(SECRET.encode())}").status_code == 404
    layers = image(SECRET.encode())[0]
    with httpx.Client(base_url=client.base_url, auth=AS_USER) as user:
        push_blob(user, OPEN, image(SECRET.encode())[1])
        # That the registry has the layer somewhere is not enough for a manifest either.
        assert code(put_manifest(user, OPEN, "2", layers.raw)) == (404, "MANIFEST_BLOB_UNKNOWN")


def test_a_token_outlives_a_restart(tmp_path: Path) -> None:
    users = htpasswd(tmp_path)
    with serving(tmp_path / "registry", users=users) as (_, client):
        kept = token(client, f"repository:{OPEN}:push")
    with serving(tmp_path / "registry", users=users) as (registry, client):
        assert client.post(f"{OPEN}/blobs/uploads/", headers=bearer(kept)).status_code == 202
        assert registry.requests[-1].user == USER
        assert (registry.path / "token-key").stat().st_mode & 0o777 == 0o600


def test_without_users_everybody_may_everything(tmp_path: Path) -> None:
    with serving(tmp_path / "registry") as (_, client):
        assert client.get("").status_code == 200
        push(client, OPEN, "1", b"layer")
        assert client.get(f"{OPEN}/tags/list", auth=("old", "credentials")).status_code == 200
        assert client.get(client.base_url.join("/token"), params={"scope": f"repository:{OPEN}:pull"}).status_code == 200
        assert client.delete(f"{OPEN}/manifests/1").status_code == 202


def test_users_may_be_given_as_names_and_passwords(tmp_path: Path) -> None:
    with serving(tmp_path / "registry", users={"bob": "pässword" * 20}, private=["*"]) as (_, client):
        assert client.get("").status_code == 401
        assert client.get("", auth=("bob", "pässword" * 20)).status_code == 200


def test_the_realm_is_where_the_client_has_found_the_registry(registry: Registry, client: httpx.Client) -> None:
    for host in ("registry.example", "registry.example:8443", "[::1]:5000", "my_registry:5000"):
        assert challenge(client.get("", headers={"Host": host}))["realm"] == f"http://{host}/token"
        behind_tls = {"Host": host, "X-Forwarded-Proto": "https"}
        assert challenge(client.get("", headers=behind_tls))["realm"] == f"https://{host}/token"
        assert challenge(client.get("", headers=behind_tls | {"X-Forwarded-Proto": 'x",y="'}))["realm"] == f"http://{host}/token"
    for strange in ('x",realm="http://evil.example', "a/b", "a b"):
        answer = client.get("", headers={"Host": strange})
        assert answer.status_code == 400 or challenge(answer)["realm"] == f"{registry.url}/token"


def test_where_the_client_does_not_say_a_host_the_realm_is_the_registrys_own_address(tmp_path: Path) -> None:
    addresses = Path("/proc/net/if_inet6")
    here = ["::1"] if addresses.exists() and "0" * 31 + "1" in addresses.read_text() else []
    for address in ("127.0.0.1", *here):
        with serving(tmp_path / address, users=htpasswd(tmp_path), address=address) as (registry, client):
            assert challenge(client.get("", headers={"Host": "a/b"}))["realm"] == f"{registry.url}/token"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "there is no user"),
        ("# nobody\n\n", "there is no user"),
        ("ada\n", "line 1"),
        ("# x\nada:$apr1$abc$def\n", "line 2"),
        ("ada:{SHA}abc\n", "line 1"),
        (":$2y$04$" + "a" * 53, "line 1"),
        ("ada:$2y$04$" + "a" * 52, "line 1"),
        ("\xff", "no file with users"),
    ],
)
def test_a_file_of_users_that_is_none_is_refused(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "htpasswd"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=why) as refused:
        Users.read(path)
    assert "\n" not in str(refused.value) and "htpasswd -B" in str(refused.value)
    with pytest.raises(UsageError):
        Registry(tmp_path / "registry", users=path).start()
    assert not (tmp_path / "registry").exists()


def test_users_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file with users"):
        Users.read(tmp_path / "missing")
    for name in ("", "a:b"):
        with pytest.raises(UsageError, match="no colon"):
            Users.of({name: "x"})
    with pytest.raises(UsageError, match="only users may pull what is private"):
        Access(Users(), ["*"], [])
    with pytest.raises(UsageError, match="only users may pull what is private"):
        Registry(tmp_path / "registry", private=["*"]).start()
    assert not (tmp_path / "registry").exists()
