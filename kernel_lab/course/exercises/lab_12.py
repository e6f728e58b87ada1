"""Lab 12: where a token is to be had, a push that sends only what is missing, and a download that goes on."""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import bcrypt
import httpx

from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.images.descriptor import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Config, Descriptor, Manifest, digest_of
from kernel_lab.registry.client import Client
from kernel_lab.registry.credentials import Credential
from kernel_lab.registry.server import Answered, Registry

ADA = Credential("ada", "correct horse")
APP = "team/app"


@dataclass(frozen=True)
class Small:
    """An image of a few bytes."""

    manifest: Manifest
    blobs: Mapping[str, bytes]

    @classmethod
    def of(cls, *layers: bytes) -> "Small":
        # Without a type of its own: only who sends it says what it is.
        config = Config("amd64", "linux", tuple(map(digest_of, layers))).raw
        manifest = Manifest(Descriptor.of(OCI_CONFIG, config), tuple(Descriptor.of(OCI_LAYER, layer) for layer in layers), media_type=None)
        return cls(manifest, {digest_of(content): content for content in (config, *layers)})


@contextmanager
def serving(*private: str) -> Iterator[tuple[Registry, httpx.Client]]:
    """An empty registry, with a user if some repositories are private; and a client of it that is nobody in particular."""
    with TemporaryDirectory(prefix="lab12-") as folder:
        users = Path(folder, "users")
        users.write_text(f"{ADA.username}:{bcrypt.hashpw(ADA.password.encode(), bcrypt.gensalt(4)).decode()}\n")  # 4: at its quickest
        with (
            Registry(Path(folder, "registry"), users=users if private else None, private=private) as registry,
            httpx.Client(base_url=registry.url, trust_env=False) as client,
        ):
            yield registry, client


Asked = Callable[[str], object]


@exercise(
    "12.1",
    wants="a function of the text of a WWW-Authenticate header, which returns a URL",
    accepts=inspect.isfunction,
    hints={
        "realm": "The URL begins with what the registry calls its `realm`, without the quotes. What comes behind a `?`?",
        "service": "The token is for one registry: it says which, as `service`, and wants to hear it again.",
        "scope": "Nobody gets a token for everything. Which part of the challenge says what it is to be for?",
        "comma": "Look at the end of your scope. A comma between quotes separates nothing.",
        "bare": "`GET /v2/` is about no repository. What does its challenge not have?",
        "encoded": "Not every character may stand in a URL. Which function of `urllib.parse` writes the others?",
    },
)
def token_url(answer: Asked) -> str | NotYet:
    with serving("*") as (registry, client):
        _push(registry, Small.of(b"layer"))
        manifest = client.get(f"/v2/{APP}/manifests/1.0", headers={"Accept": OCI_MANIFEST})
        for refused in (manifest, client.post(f"/v2/{APP}/blobs/uploads/"), client.get("/v2/")):
            challenge = refused.headers["WWW-Authenticate"]
            if wrong := _wrong_url(answer, challenge):
                return wrong
            token = client.get(str(answer(challenge)), auth=(ADA.username, ADA.password)).json()["token"]
            known = {"Accept": refused.request.headers["Accept"], "Authorization": f"Bearer {token}"}
            again = client.request(refused.request.method, refused.url, headers=known)
            assert again.is_success, again.text
        scopes = "repository:team/app:pull,push repository:team/base:pull"
        elsewhere = f'Bearer service="somebody\'s registry",scope="{scopes}",realm="https://tokens.example/get"'
        if wrong := _wrong_url(answer, elsewhere):
            return wrong
    return "with the tokens from there an image was pulled from a private repository, and a push begun"


def _push(registry: Registry, image: Small) -> None:
    with Client(registry.address, ADA) as client:
        for blob in (image.manifest.config, *image.manifest.layers):
            client.upload(APP, blob, partial(BytesIO, image.blobs[blob.digest]))
        client.put_manifest(APP, "1.0", Descriptor.of(OCI_MANIFEST, image.manifest.raw), image.manifest.raw)


def _wrong_url(answer: Asked, challenge: str) -> NotYet | None:
    said = _parameters(challenge)
    try:
        url = str(answer(challenge))
    except (LookupError, ValueError, TypeError) as error:
        if "scope" in said and "," not in said["scope"]:
            raise
        return not_yet("comma" if "scope" in said else "bare", f"of {challenge.partition(',')[2]} it ended in {type(error).__name__}")
    if not url.startswith(said["realm"]) or not url.removeprefix(said["realm"]).startswith("?"):
        return not_yet("realm", f"it is {url[:80]}")
    if " " in url or '"' in url:
        return not_yet("encoded", f"the URL has a {'space' if ' ' in url else 'quote'} in it")
    parameters = httpx.URL(url).params
    if parameters.get("service") != said["service"]:
        return not_yet("service", f"the service in the URL is {parameters.get('service')}")
    scopes, wanted = " ".join(parameters.get_list("scope")), said.get("scope")
    if wanted is None:
        return not_yet("bare", f"the scope in the URL is {scopes!r}") if "scope" in parameters else None
    if scopes == wanted:
        return None
    return not_yet("comma" if scopes and wanted.startswith(scopes) else "scope", f"the scope in the URL is {scopes or None}")


def _parameters(challenge: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="(.*?)"', challenge))


Call = Callable[..., httpx.Response]
Send = Callable[[Call, str, str, bytes, Mapping[str, bytes]], object]


@exercise(
    "12.2",
    wants="a function send(call, repository, tag, manifest, blobs)",
    accepts=inspect.isfunction,
    hints={
        "order": "A registry takes a manifest when it has all that stands in it, and so pulls never find half an image. What is to be sent last?",
        "type": "A registry keeps many kinds of documents. Which header said above that this is a manifest?",
        "place": "Who begins an upload is told where it goes on. Which header of the answer says so?",
        "digest": "The registry keeps a blob under its digest, and checks it. When does it learn the digest that you mean?",
        "again": "Ask first: `HEAD` costs no bytes, and its status says whether a blob is there.",
        "nothing": "Compare with the requests above, one by one: two for each blob, and one for the manifest, under its tag.",
    },
)
def send(answer: Send) -> str | NotYet:
    first, second = Small.of(b"base" * 100, b"app"), Small.of(b"base" * 100, b"other")
    with serving() as (registry, client):

        def call(method: str, path: str, content: bytes = b"", headers: Mapping[str, str] | None = None) -> httpx.Response:
            return client.request(method, path, content=content, headers=headers)

        there: set[str] = set()
        for image, tag in ((first, "1.0"), (first, "again"), (second, "2.0")):
            registry.requests.clear()
            answer(call, APP, tag, image.manifest.raw, dict(image.blobs))
            found = client.get(f"/v2/{APP}/manifests/{tag}", headers={"Accept": OCI_MANIFEST})
            if wrong := _wrong_push(list(registry.requests)[:-1], sum(digest not in there for digest in image.blobs)):
                return wrong
            if found.content != image.manifest.raw:
                return not_yet("nothing", f"the registry has no manifest with the tag {tag}")
            there |= image.blobs.keys()
    return "an image came whole, its manifest last; under another tag only its manifest; and of another one only what was not there"


def _wrong_push(log: Sequence[Answered], missing: int) -> NotYet | None:
    manifests = [request for request in log if request.method == "PUT" and "/manifests/" in request.path]
    uploads = [request for request in log if request.method in ("PUT", "PATCH") and "/blobs/" in request.path]
    if refused := next((request for request in uploads if request.status >= 400), None):
        line = re.sub("[0-9a-f]{32,}", "…", f"{refused.method} {refused.path}")
        return not_yet("place" if refused.status in (404, 405) else "digest", f"{line} was refused with {refused.status}")
    if refused := next((request for request in manifests if request.status >= 400), None):
        return not_yet("order" if refused.status == 404 else "type", f"the manifest was refused with {refused.status}")
    begun = sum(request.method == "POST" and request.status < 300 for request in log)
    if begun > missing:
        return not_yet("again", f"{begun} uploads were begun, and {missing} blobs were missing")
    return None


@dataclass
class Line:
    """A connection that breaks off: after as many pieces as `breaks` says, the first time, the second, and so on; then no more."""

    content: bytes
    breaks: Sequence[int] = ()
    starts: list[int] = field(default_factory=list)
    came: list[int] = field(default_factory=lambda: [0])  # bytes from the beginning of the blob, or of what was asked for, at the end of each try

    PIECES = (1000, 1, 4000, 300)

    def get(self, start: int) -> Iterator[bytes]:
        tried = len(self.starts)
        self.starts.append(start)
        self.came.append(start)
        left = self.breaks[tried] if tried < len(self.breaks) else None
        for number, end in enumerate(accumulate(self._sizes(start), initial=start)):
            if number:
                if left == number - 1:
                    break
                yield self.content[self.came[-1] : end]
                self.came[-1] = end
        if left is not None:
            raise ConnectionError("the connection has broken off")

    def _sizes(self, start: int) -> Iterator[int]:
        number = 0
        while start < len(self.content):
            size = min(self.PIECES[number % len(self.PIECES)], len(self.content) - start)
            yield size
            start, number = start + size, number + 1


Get = Callable[[int], Iterator[bytes]]
Fetch = Callable[[Get, str], object]
BREAKS = (5, 0, 0, 3, 1, 0)


@exercise(
    "12.3",
    wants="a function fetch(get, digest), which returns bytes",
    accepts=inspect.isfunction,
    hints={
        "plain": "First without any trouble: `get(0)` yields all of it, piece by piece, and it is to be returned as one.",
        "gives up": "A connection may break off more than once, and sometimes before anything has come. What is to go on until there is no error?",
        "anew": "What has come before the error is good. Where is it when the error comes: in your hands, or in a function that has not returned?",
        "doubled": "Compare the lengths: what has come by then, and the byte from which on you ask for more.",
        "lost": "The error comes in the middle. Who has seen it, and goes on as if that had been the end?",
        "verified": "It came over a network, from somebody. What do you know of it before you have looked? If it is something else, raise an error.",
    },
)
def fetch(answer: Fetch) -> str | NotYet:
    content = hashlib.shake_256(b"lab 12").digest(40_000)
    whole = Line(content)
    if answer(whole.get, digest_of(content)) != content:
        return not_yet("plain", "nothing broke off, and it returned something else")
    line = Line(content, BREAKS)
    try:
        found = answer(line.get, digest_of(content))
    except ConnectionError:
        return not_yet("gives up", f"it ended when the connection broke off for the {_ordinal(len(line.starts))} time")
    except Exception as error:
        found = error
    if wrong := _wrong_starts(line):
        return wrong
    if found != content:
        return not_yet("lost", f"of {len(content)} bytes it returned {len(found)}" if isinstance(found, bytes) else f"it ended in {found!r:.60}")
    for other in (content[:-1] + b"?", content[:-1]):
        with suppress(Exception):
            answer(Line(other).get, digest_of(content))
            return not_yet("verified", "somebody has sent other bytes, and it returned them")
    return f"the connection broke off {len(BREAKS)} times, each byte was sent once, and what is something else was refused"


def _wrong_starts(line: Line) -> NotYet | None:
    for start, came in zip(line.starts, line.came, strict=False):
        if start < came:
            return not_yet("doubled" if start else "anew", f"{came} bytes had come, and it asked from byte {start} on")
        if start > came:
            return not_yet("doubled", f"{came} bytes had come, and it asked from byte {start} on")
    return None


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def token_url_of(challenge: str) -> str:
    """The lab's own answer to 12.1."""
    return _parted(challenge, "service", "scope")


def _parted(challenge: str, *names: str) -> str:
    said = _parameters(challenge)
    return f"{said['realm']}?{urlencode({name: said[name] for name in names if name in said})}"


def _at_commas(challenge: str) -> str:
    said = dict(part.replace('"', "").split("=", 1) for part in challenge.removeprefix("Bearer ").split(",") if "=" in part)
    return f"{said.pop('realm')}?{urlencode(said)}"


def _at_all_commas(challenge: str) -> str:
    said = dict(part.replace('"', "").split("=", 1) for part in challenge.removeprefix("Bearer ").split(","))
    return f"{said.pop('realm')}?{urlencode(said)}"


def _in_any_case(challenge: str) -> str:
    said = _parameters(challenge)
    return f"{said['realm']}?{urlencode({'service': said['service'], 'scope': said.get('scope', '')})}"


def _unwritten(challenge: str) -> str:
    said = _parameters(challenge)
    return f"{said.pop('realm')}?" + "&".join(f"{name}={value}" for name, value in said.items())


def sent(call: Call, repository: str, tag: str, manifest: bytes, blobs: Mapping[str, bytes]) -> None:
    """The lab's own answer to 12.2."""
    _blobs(call, repository, blobs)
    _last(call, repository, tag, manifest)


def _blobs(call: Call, repository: str, blobs: Mapping[str, bytes], ask: bool = True, place: str = "", digest: bool = True) -> None:
    for name, content in blobs.items():
        if ask and call("HEAD", f"/v2/{repository}/blobs/{name}").status_code == 200:
            continue
        begun = call("POST", f"/v2/{repository}/blobs/uploads/")
        call("PUT", (place or begun.headers["Location"]) + (f"?digest={name}" if digest else ""), content=content)


def _last(call: Call, repository: str, tag: str, manifest: bytes, media_type: str = OCI_MANIFEST) -> None:
    call("PUT", f"/v2/{repository}/manifests/{tag}", content=manifest, headers={"Content-Type": media_type})


def _at_first(call: Call, repository: str, tag: str, manifest: bytes, blobs: Mapping[str, bytes]) -> None:
    _last(call, repository, tag, manifest)
    sent(call, repository, tag, manifest, blobs)


def _begun_too_often(call: Call, repository: str, tag: str, manifest: bytes, blobs: Mapping[str, bytes]) -> None:
    for _ in blobs:
        call("POST", f"/v2/{repository}/blobs/uploads/")
    sent(call, repository, tag, manifest, blobs)


def _with(media_type: str = OCI_MANIFEST, **otherwise: Any) -> Send:
    def send(call: Call, repository: str, tag: str, manifest: bytes, blobs: Mapping[str, bytes]) -> None:
        _blobs(call, repository, blobs, **otherwise)
        _last(call, repository, tag, manifest, media_type)

    return send


def going_on(get: Get, digest: str) -> bytes:
    """The lab's own answer to 12.3."""
    content = _gathered(get)
    if digest_of(content) != digest:
        raise ValueError(f"{digest}: something else has come")
    return content


def _gathered(get: Get, tries: int = 100, off: int = 0, keep: bool = True) -> bytes:
    came = b""
    for _ in range(tries):
        try:
            for piece in get(max(0, len(came) - off)):
                came += piece
            return came
        except ConnectionError:
            came = came if keep else b""
    raise ConnectionError("too often")


def _as_if_whole(get: Get, digest: str) -> bytes:
    came = b""
    with suppress(ConnectionError):
        for piece in get(0):
            came += piece
    return came


token_url.answers(
    right=[token_url_of, lambda challenge: _parted(challenge, "scope", "service")],
    wrong={
        "realm": [lambda challenge: challenge, lambda challenge: _parameters(challenge)["realm"], lambda challenge: None],
        "service": [lambda challenge: _parted(challenge, "scope")],
        "scope": [lambda challenge: _parted(challenge, "service")],
        "comma": [_at_commas, _at_all_commas],
        "bare": [_in_any_case, lambda challenge: _parted(challenge, "service", _parameters(challenge)["scope"] and "scope")],
        "encoded": [_unwritten],
    },
)
send.answers(
    right=[sent],
    wrong={
        "order": [_at_first, lambda call, repository, tag, manifest, blobs: _last(call, repository, tag, manifest)],
        "type": [_with(media_type="application/json")],
        "place": [_with(place=f"/v2/{APP}/blobs/uploads/"), _with(place=f"/v2/{APP}/blobs/uploads/1")],
        "digest": [_with(digest=False)],
        "again": [_with(ask=False), _begun_too_often],
        "nothing": [
            lambda *given: None,
            lambda call, repository, tag, manifest, blobs: sent(call, repository, digest_of(manifest), manifest, blobs),
            lambda call, repository, tag, manifest, blobs: sent(call, "team/other", tag, manifest, blobs),
        ],
    },
)
fetch.answers(
    right=[going_on],
    wrong={
        "plain": [lambda get, digest: None, lambda get, digest: list(get(0)), lambda get, digest: next(get(0))],
        "gives up": [lambda get, digest: b"".join(get(0)), lambda get, digest: _gathered(get, tries=2)],
        "anew": [lambda get, digest: _gathered(get, keep=False)],
        "doubled": [lambda get, digest: _gathered(get, off=1)],
        "lost": [_as_if_whole],
        "verified": [lambda get, digest: _gathered(get)],
    },
)
