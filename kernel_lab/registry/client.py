"""A registry's interface, call by call: the OCI distribution specification (its sections are named below), as docker's registry speaks it too.

with Client("127.0.0.1:5000") as client:
    list(client.tags("busybox"))
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import BinaryIO

import httpx

from kernel_lab.images.descriptor import INDEXES, MANIFESTS, Descriptor, digest_of
from kernel_lab.images.reference import HEX_DIGITS, wrong_digest, wrong_tag
from kernel_lab.registry import credentials
from kernel_lab.registry.authentication import Authentication, challenges
from kernel_lab.registry.credentials import Credential
from kernel_lab.registry.endpoints import Endpoint, Endpoints
from kernel_lab.registry.transport import PASSING, TRIES, Answer, Body, RegistryError, Transport, pause

PIECE = 1 << 18
CHUNKED_FROM = 64 << 20  # larger blobs are sent in chunks, so that a lost connection costs one
CHUNK = 16 << 20
MOST_PAGES = 10_000  # of a list of tags
SCHEMA_1 = ("application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws")
OCTETS = "application/octet-stream"

Moved = Callable[[int], None]  # is told how many bytes more have been moved, or, where a part has to be sent once more, fewer


class Client:
    """One registry, at one of its endpoints. Threads may share it.

    The credential is the one that is kept for it, unless one is given; None for nobody. All calls raise RegistryError.
    """

    def __init__(self, registry: str | Endpoint, credential: Credential | str | None = "kept", endpoints: Endpoints | None = None) -> None:
        endpoints = endpoints or Endpoints.configured()
        self.endpoint = registry if isinstance(registry, Endpoint) else endpoints.itself(registry)
        self._transport = Transport(self.endpoint, endpoints)
        kept = credentials.find(self.endpoint.registry) if isinstance(credential, str) else credential
        self._authentication = Authentication(self._transport, kept)
        self._base: httpx.URL | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def cancel(self) -> None:
        """Ends what other threads are about, with transport.Cancelled."""
        self._transport.cancel()

    def wait(self, seconds: float) -> None:
        """Raises transport.Cancelled at once when the work is given up."""
        self._transport.wait(seconds)

    # What is there.

    def ping(self) -> None:
        """Whether a registry answers, and lets us in ("Determining Support")."""
        self._ask("GET", "", "", self.endpoint.registry)

    def manifest(self, repository: str, version: str) -> tuple[Descriptor, bytes]:
        """A manifest or index by its tag or digest: what it is, and its bytes ("Pulling manifests").

        Those of a digest are those that were asked for; those of a tag have the digest that the registry says.
        """
        what = self._named(repository, version)
        accept = ", ".join((*INDEXES, *MANIFESTS, *SCHEMA_1))
        answer = self._ask("GET", f"{repository}/manifests/{version}", _pull(repository), what, headers={"Accept": accept})
        wanted = version if not wrong_digest(version) else answer.headers.get("Docker-Content-Digest", "")
        algorithm = wanted.partition(":")[0]
        found = digest_of(answer.content, algorithm if algorithm in HEX_DIGITS else "sha256")
        if algorithm in HEX_DIGITS and found != wanted:
            raise RegistryError(f"{what}: {self.endpoint} has sent something else, whose digest is {found}: damaged on the way, or not to be trusted")
        return Descriptor(answer.media_type, found, len(answer.content)), answer.content

    def has_manifest(self, repository: str, version: str) -> bool:
        """Whether there is a manifest of this tag or digest."""
        accept = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}
        return self._has(f"{repository}/manifests/{version}", _pull(repository), self._named(repository, version), accept)

    def blob(self, repository: str, blob: Descriptor, start: int = 0, lost: Callable[[float], None] | None = None) -> Iterator[bytes]:
        """A blob from its byte `start` on, in pieces, and never more bytes than it is said to have ("Pulling blobs").

        Where the connection is lost it goes on from there; `lost` is told for how many seconds it waits before. Who reads it checks the digest.
        """
        at, tries = start, 0
        while at < blob.size:
            before = at
            try:
                for piece in self._piece_by_piece(repository, blob, at):
                    yield piece
                    at += len(piece)
                why = RegistryError(f"{self._named(repository, blob.digest)}: {self.endpoint} ends it after {at} of {blob.size} bytes", passing=True)
            except httpx.TransportError as error:
                why = self._transport.unreachable(error)
            tries = 0 if at > before else tries + 1
            if at < blob.size:
                if tries == TRIES:
                    raise why
                seconds = pause(tries)
                if lost:
                    lost(seconds)
                self.wait(seconds)

    def has_blob(self, repository: str, digest: str, to_push: bool = False) -> bool:
        """Whether a repository has a blob ("Checking if content exists in the registry"). Who is going to push needs the right to do so."""
        scope = _push(repository) if to_push else _pull(repository)
        return self._has(f"{repository}/blobs/{digest}", scope, self._named(repository, digest))

    def tags(self, repository: str) -> Iterator[str]:
        """All tags of a repository, however many pages they are ("Content Discovery")."""
        what = f"{self.endpoint.registry}/{repository}"
        url: httpx.URL | None = self._url(f"{repository}/tags/list")
        seen: set[httpx.URL] = set()
        while url is not None:
            if url in seen or len(seen) == MOST_PAGES or not self._own(url):
                raise RegistryError(f"{what}: {self.endpoint} sends from one page of tags to the next, without end or to somebody else")
            seen.add(url)
            answer = self._ask("GET", url, _pull(repository), what)
            yield from self._page(answer, what)
            following = _next(answer)
            try:
                url = None if following is None else answer.url.join(following)
            except httpx.InvalidURL:
                raise RegistryError(f"{what}: {self.endpoint} says that the next page of tags is at what is no URL") from None

    # What changes it.

    def mount(self, repository: str, blob: Descriptor, source: str) -> bool:
        """Gives a repository a blob that another one has ("Mounting a blob from another repository"). Whether it was possible."""
        what = self._named(repository, blob.digest)
        path = f"{repository}/blobs/uploads/?mount={blob.digest}&from={source}"
        try:
            answer = self._ask("POST", path, f"{_push(repository)} {_pull(source)}", what, expect=(201, 202))
        except RegistryError as error:
            if error.status in (401, 403, 404, 405):  # of the other repository perhaps; what concerns this one shows when the blob is sent
                return False
            raise
        if answer.status == 202:  # an upload has begun instead
            with suppress(RegistryError):
                location = self._location(answer, what)
                if self._own(location):  # it could name anything of somebody else's
                    self._ask("DELETE", location, _push(repository), what, expect=(204,), tries=1)
        return answer.status == 201

    def upload(self, repository: str, blob: Descriptor, open_blob: Callable[[], BinaryIO], moved: Moved = lambda count: None) -> None:
        """Sends a blob ("Pushing blobs"): at once, or a large one in chunks, of which a lost one is sent again."""
        what = self._named(repository, blob.digest)
        for number in range(TRIES):
            sent = _Count(moved)
            try:
                self._upload(repository, blob, open_blob, sent, what)
                return
            except RegistryError as error:
                sent.back_to(0)
                if not error.passing or number + 1 == TRIES:
                    raise
            self.wait(pause(number))

    def put_manifest(self, repository: str, version: str, manifest: Descriptor, content: bytes) -> None:
        """Makes a manifest or index that of a tag or digest; all that it needs comes before it ("Pushing Manifests")."""
        what = self._named(repository, version)
        headers = {"Content-Type": manifest.media_type}
        answer = self._ask("PUT", f"{repository}/manifests/{version}", _push(repository), what, expect=(201,), headers=headers, body=content)
        self._agreed(answer, manifest, what)

    def delete_manifest(self, repository: str, version: str) -> None:
        """Removes a manifest with all its tags by its digest, or a tag alone ("Deleting Manifests", "Deleting tags")."""
        self._ask("DELETE", f"{repository}/manifests/{version}", _delete(repository), self._named(repository, version), expect=(202,))

    def delete_blob(self, repository: str, digest: str) -> None:
        """Removes a blob ("Deleting Blobs")."""
        self._ask("DELETE", f"{repository}/blobs/{digest}", _delete(repository), self._named(repository, digest), expect=(202,))

    # Inside: reading.

    def _piece_by_piece(self, repository: str, blob: Descriptor, start: int) -> Iterator[bytes]:
        what = self._named(repository, blob.digest)
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._stream(f"{repository}/blobs/{blob.digest}", _pull(repository), what, headers, (200, 206)) as response:
            # A server need not know of ranges (RFC 9110, 14.2); then it begins at the beginning.
            skip, at = (start, 0) if response.status_code == 200 else (0, start)
            if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise RegistryError(f"{what}: {self.endpoint} was asked for the bytes from {start} on, and sends others")
            length = response.headers.get("Content-Length", "")
            if length.isdecimal() and at + int(length) > blob.size:
                raise RegistryError(f"{what}: {at + int(length)} bytes at {self.endpoint}, and the manifest says {blob.size}")
            # As they come: gathered into larger pieces, what has come would be lost with the connection.
            for piece in response.iter_raw():
                at += len(piece)
                if at > blob.size:
                    raise RegistryError(f"{what}: the manifest says {blob.size} bytes, and {self.endpoint} sends more")
                dropped = min(skip, len(piece))
                skip -= dropped
                if rest := piece[dropped:]:
                    yield rest

    def _page(self, answer: Answer, what: str) -> list[str]:
        try:
            tags = answer.json()["tags"] or []  # docker's registry says null where none is left
            if not any(map(wrong_tag, tags)):
                return list(tags)
        except (ValueError, TypeError, KeyError):
            pass
        raise RegistryError(f"{what}: {self.endpoint} was asked for tags, and has answered something else")

    def _has(self, path: str, scope: str, what: str, headers: Mapping[str, str] | None = None) -> bool:
        return self._ask("HEAD", path, scope, what, expect=(200, 404), headers=headers).status == 200

    # Inside: writing.

    def _upload(self, repository: str, blob: Descriptor, open_blob: Callable[[], BinaryIO], sent: "_Count", what: str) -> None:
        begun = self._ask("POST", f"{repository}/blobs/uploads/", _push(repository), what, expect=(202,), headers={"Content-Length": "0"})
        location = self._location(begun, what)
        body, length = partial(_section, open_blob, 0, blob.size, sent), blob.size
        if blob.size >= CHUNKED_FROM:
            least = begun.headers.get("OCI-Chunk-Min-Length", "")
            chunk = max(CHUNK, int(least) if least.isdecimal() else 0)
            location = self._in_chunks(repository, blob, open_blob, location, chunk, sent, what)
            body, length = partial(_section, open_blob, 0, 0, sent), 0
        joint = "&" if location.query else "?"
        location = httpx.URL(f"{location}{joint}digest={blob.digest}")
        headers = {"Content-Type": OCTETS, "Content-Length": str(length)}
        answer = self._ask("PUT", location, _push(repository), what, expect=(201,), headers=headers, body=body, tries=1)
        self._agreed(answer, blob, what)

    def _in_chunks(
        self, repository: str, blob: Descriptor, open_blob: Callable[[], BinaryIO], location: httpx.URL, chunk: int, sent: "_Count", what: str
    ) -> httpx.URL:
        """Where the upload is to be closed ("Pushing a blob in chunks")."""
        at, tries = 0, 0
        while at < blob.size:
            before, end = at, min(at + chunk, blob.size)
            headers = {"Content-Type": OCTETS, "Content-Length": str(end - at), "Content-Range": f"{at}-{end - 1}"}
            body = partial(_section, open_blob, at, end, sent)
            try:
                answer = self._ask("PATCH", location, _push(repository), what, expect=(202,), headers=headers, body=body, tries=1)
            except RegistryError as error:
                if not (error.passing or error.status == 416):
                    raise
                self.wait(pause(tries))
                answer = self._ask("GET", location, _push(repository), what, expect=(204,))
            location, at = self._location(answer, what), _received(answer)
            sent.back_to(at)
            tries = 0 if at > before else tries + 1
            if tries == TRIES or at > blob.size:
                raise RegistryError(f"{what}: {self.endpoint} has {at} of {blob.size} bytes, and does not take what comes next")
        return location

    def _location(self, answer: Answer, what: str) -> httpx.URL:
        location = answer.headers.get("Location")
        if not location:
            raise RegistryError(f"{what}: {self.endpoint} does not say where to send it")
        try:
            return answer.url.join(location)
        except httpx.InvalidURL:
            raise RegistryError(f"{what}: {self.endpoint} says that it is to be sent to what is no URL") from None

    def _agreed(self, answer: Answer, sent: Descriptor, what: str) -> None:
        received = answer.headers.get("Docker-Content-Digest", sent.digest)
        if received.partition(":")[0] == sent.digest.partition(":")[0] and received != sent.digest:
            raise RegistryError(f"{what}: {sent.digest} was sent, and {self.endpoint} says that it has received {received}")

    # Inside: every request.

    def _ask(
        self,
        method: str,
        path: str | httpx.URL,
        scope: str,
        what: str,
        *,
        expect: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        tries: int = TRIES,
    ) -> Answer:
        """An answer, once the registry knows who asks, if it wants to."""
        url = self._url(path) if isinstance(path, str) else path
        sent = self._with_authorization(url, scope, headers)
        answer = self._transport.ask(method, url, what, expect=(*expect, 401), headers=sent, body=body, tries=tries)
        if answer.status != 401:
            return answer
        sent["Authorization"] = self._authorization(answer.url, answer.headers, scope, sent, what)
        return self._transport.ask(method, url, what, expect=expect, headers=sent, body=body, tries=tries)

    @contextmanager
    def _stream(self, path: str, scope: str, what: str, headers: Mapping[str, str], expect: tuple[int, ...]) -> Iterator[httpx.Response]:
        url = self._url(path)
        sent = self._with_authorization(url, scope, headers)
        with self._transport.stream(url, what, expect=(*expect, 401), headers=sent) as response:
            if response.status_code != 401:
                yield response
                return
        sent["Authorization"] = self._authorization(response.url, response.headers, scope, sent, what)
        with self._transport.stream(url, what, expect=expect, headers=sent) as response:
            yield response

    def _with_authorization(self, url: httpx.URL, scope: str, headers: Mapping[str, str] | None) -> dict[str, str]:
        """Headers; who we are stands in them only where the registry itself is asked: a place for an upload may be anywhere."""
        authorization = self._authentication.header(scope) if self._own(url) else None
        return {**(headers or {}), **({"Authorization": authorization} if authorization else {})}

    def _authorization(self, url: httpx.URL, headers: httpx.Headers, scope: str, sent: Mapping[str, str], what: str) -> str:
        """The answer to a challenge of the registry itself: whoever it sends us to could name a token server that wants the password."""
        if not self._own(url):
            raise RegistryError(f"{what}: {self.endpoint} sends to {url.netloc.decode()}, which wants to know who asks, and is not told", 401)
        return self._authentication.answer(challenges(headers), scope, sent.get("Authorization"), what)

    def _own(self, url: httpx.URL) -> bool:
        return (url.scheme, url.netloc) == (self._url("").scheme, self._url("").netloc)

    def _url(self, path: str) -> httpx.URL:
        with self._lock:
            if self._base is None:
                self._base = self._found()
        return self._base.join(path)

    def _found(self) -> httpx.URL:
        """Where the registry answers: by HTTPS, and where that is not spoken, by HTTP if this is allowed."""
        *others, last = [httpx.URL(f"{scheme}://{self.endpoint.host}/v2/") for scheme in self.endpoint.schemes]
        for url in others:
            with suppress(Unreachable):
                return self._answering(url)
        return self._answering(last)

    def _answering(self, url: httpx.URL) -> httpx.URL:
        what = self.endpoint.registry
        try:
            # Once, so that a wrong name is told at once; a registry that is too busy now is one all the same.
            answer = self._transport.ask("GET", url, what, expect=(200, 401, *PASSING), tries=1)
        except RegistryError as error:
            if error.status is None:
                raise (Unreachable(str(error), passing=True) if error.passing else error) from None
            raise RegistryError(f"{what}: this is no registry, or not one of version 2: {error}") from None
        if answer.media_type == "text/html" and answer.status == 200:
            raise RegistryError(f"{what}: this is no registry: {self.endpoint} answers with a web page")
        return url

    def _named(self, repository: str, version: str) -> str:
        return f"{self.endpoint.registry}/{repository}{':' if wrong_digest(version) else '@'}{version}"


class Unreachable(RegistryError):
    """Nobody answers there, or not in this protocol."""


class _Count:
    """How many bytes of a blob have been sent."""

    def __init__(self, moved: Moved) -> None:
        self._moved = moved
        self._at = 0

    def add(self, count: int) -> None:
        self._at += count
        self._moved(count)

    def back_to(self, at: int) -> None:
        """So many have arrived."""
        self.add(at - self._at)


def _section(open_blob: Callable[[], BinaryIO], start: int, end: int, sent: _Count) -> Iterable[bytes]:
    with open_blob() as file:
        file.seek(start)
        while start < end and (piece := file.read(min(PIECE, end - start))):
            start += len(piece)
            yield piece
            sent.add(len(piece))


def _received(answer: Answer) -> int:
    """How many bytes an upload has, from the range of them, whose last is included; 0-0 is what docker's registry says of none."""
    found = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,18})", answer.headers.get("Range", ""))
    last = int(found[1]) if found else 0
    return last + 1 if last else 0


def _next(answer: Answer) -> str | None:
    """The next page (RFC 8288)."""
    return answer.headers.get("Link") and httpx.Response(200, headers=answer.headers).links.get("next", {}).get("url")


def _pull(repository: str) -> str:
    return f"repository:{repository}:pull"


def _push(repository: str) -> str:
    return f"repository:{repository}:pull,push"


def _delete(repository: str) -> str:
    return f"repository:{repository}:delete"
