"""Requests over HTTP that end in an answer or in one line of what went wrong: with several tries, and with bounds for time and size.

Every URL that is asked goes through here, those of redirections too: none is spoken to without encryption unless that was allowed.
"""

import email.utils
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from kernel_lab.images.store import LARGEST_DOCUMENT
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry.endpoints import Endpoint, Endpoints, is_loopback
from kernel_lab.registry.oneline import one_line

TRIES = 5
BACKOFF = 0.5  # seconds before the second try; doubled before each further one
LONGEST_WAIT = 60.0  # seconds that a server may ask for
TIMEOUT = httpx.Timeout(60, connect=15)
PATIENT = httpx.Timeout(600, connect=15)  # a registry reads a large blob once more before it says that it has it
PASSING = (429, 500, 502, 503, 504)  # what another try may mend
CERTIFICATES = Path("/etc/docker/certs.d")  # docker's own place for the certificates of a registry's authority
REDIRECTIONS = 5

T = TypeVar("T")
Body = bytes | Callable[[], Iterable[bytes]]  # made anew for each try


class RegistryError(UsageError):
    """What a registry refused, or that it could not be reached.

    status: HTTP's, if there was an answer. codes: the distribution specification's ("Error Codes"). passing: another try may mend it.
    """

    def __init__(self, message: str, status: int | None = None, codes: tuple[str, ...] = (), passing: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.codes = codes
        self.passing = passing


class Cancelled(Exception):
    """Somebody else has given up the work that this was a part of."""


class _Again(Exception):
    """A try that failed, the error if it was the last, and the seconds that the server asks for."""

    def __init__(self, error: RegistryError, delay: float | None = None) -> None:
        self.error = error
        self.delay = delay


@dataclass(frozen=True)
class Answer:
    """An answer whose content is a document."""

    status: int
    headers: httpx.Headers
    url: httpx.URL
    content: bytes

    @property
    def media_type(self) -> str:
        """What the content is, without parameters."""
        return str(self.headers.get("Content-Type", "")).partition(";")[0].strip()

    def json(self) -> Any:
        """Raises ValueError."""
        try:
            return json.loads(self.content)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class Transport:
    """The connections to one endpoint, and to where it sends us. Threads may share it."""

    def __init__(self, endpoint: Endpoint, endpoints: Endpoints) -> None:
        self.endpoint = endpoint
        self._endpoints = endpoints
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[Any] = set()
        trust = _trust(endpoint.host)
        try:
            self._http = httpx.Client(
                verify=trust,
                event_hooks={"request": [self._check]},
                # A proxy cannot reach this machine's own addresses; Go's clients know that too.
                mounts={f"all://{host}": httpx.HTTPTransport(verify=trust) for host in _direct(endpoint.host)},
                headers={"User-Agent": "kernel-lab", "Accept-Encoding": "identity"},
            )
        except (ImportError, ValueError) as error:
            raise UsageError(f"the proxy that the environment names cannot be used: {one_line(str(error))}") from None

    def close(self) -> None:
        self._http.close()

    def cancel(self) -> None:
        """Ends all that waits, in whatever thread, with Cancelled."""
        self._cancelled.set()
        with self._lock:
            for socket in self._sockets:
                with suppress(OSError):
                    socket.shutdown(2)

    def wait(self, seconds: float) -> None:
        """Raises Cancelled at once when the work is given up."""
        if self._cancelled.wait(seconds):
            raise Cancelled

    def ask(
        self,
        method: str,
        url: httpx.URL,
        what: str,
        *,
        expect: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        tries: int = TRIES,
    ) -> Answer:
        """The answer with its content, which is a document's at most. Raises RegistryError when it has another status than those expected."""

        def attempt() -> Answer:
            with self._answered(method, url, what, expect, headers or {}, body) as response:
                content = _read(response, what)
                return Answer(response.status_code, response.headers, response.url, content)

        return self._patiently(attempt, tries)

    @contextmanager
    def stream(
        self, url: httpx.URL, what: str, *, expect: tuple[int, ...] = (200,), headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """The answer to GET, to be read piece by piece; what breaks off then is the reader's: httpx.TransportError."""
        with ExitStack() as stack:
            yield self._patiently(lambda: stack.enter_context(self._answered("GET", url, what, expect, headers or {}, None)), TRIES)

    def unreachable(self, error: httpx.TransportError) -> RegistryError:
        """An error of the connection, in words."""
        host = self.endpoint.host
        with suppress(RuntimeError):  # of an error that no request is known for
            host = error.request.url.netloc.decode()
        why = one_line(str(error)) or type(error).__name__
        if _any_cause(error, ssl.SSLCertVerificationError):
            advice = f"put the certificate of its authority into {CERTIFICATES / host}/ca.crt, or name it with SSL_CERT_FILE"
            return RegistryError(f"{host}: its certificate is not trusted ({why}); {advice}")
        if isinstance(error, httpx.UnsupportedProtocol):
            return RegistryError(f"{host}: {why}")
        return RegistryError(f"{host}: not reachable: {why}; see whether the name is right, and the network, a proxy or a firewall", passing=True)

    # Inside.

    def _patiently(self, attempt: Callable[[], T], tries: int) -> T:
        for number in range(tries):
            try:
                return attempt()
            except httpx.TransportError as error:
                again = _Again(self.unreachable(error))
            except httpx.TooManyRedirects:
                raise RegistryError(f"{self.endpoint}: sends from one place to the next, without end") from None
            except httpx.InvalidURL as error:
                raise RegistryError(f"{self.endpoint}: sends to what is no URL: {one_line(str(error))}") from None
            except _Again as error:
                again = error
            if self._cancelled.is_set():
                raise Cancelled
            delay = pause(number) if again.delay is None else again.delay
            if not again.error.passing or number + 1 == tries or delay > LONGEST_WAIT:
                raise again.error from None
            self.wait(delay)
        raise AssertionError("at least one try")

    @contextmanager
    def _answered(
        self, method: str, url: httpx.URL, what: str, expect: tuple[int, ...], headers: Mapping[str, str], body: Body | None
    ) -> Iterator[httpx.Response]:
        if self._cancelled.is_set():
            raise Cancelled
        content, timeout = body() if callable(body) else body, PATIENT if method == "PUT" else TIMEOUT
        request = self._http.build_request(method, url, headers=headers, content=content, timeout=timeout)
        response = self._followed(request)
        try:
            with self._interruptible(response):
                if response.status_code not in expect:
                    raise _Again(self._refusal(response, what), _retry_after(response))
                yield response
        finally:
            response.close()

    def _followed(self, request: httpx.Request) -> httpx.Response:
        """The answer to a request, or to where it leads; what is sent is never sent elsewhere."""
        response = self._http.send(request, stream=True)
        for _ in range(REDIRECTIONS):
            if response.next_request is None or request.method not in ("GET", "HEAD"):
                return response
            # Unread, which httpx itself would not do: it may never end. httpx takes Authorization away where the next one is of another origin.
            response.close()
            # With an authentication that adds nothing, since httpx would otherwise take one from the URL.
            response = self._http.send(response.next_request, auth=httpx.Auth(), stream=True)
        if response.next_request is not None:
            response.close()
            raise httpx.TooManyRedirects("too many", request=request)
        return response

    @contextmanager
    def _interruptible(self, response: httpx.Response) -> Iterator[None]:
        """While somebody reads this answer, `cancel` may end it: a server that falls silent is not waited for."""
        stream = response.extensions.get("network_stream")
        socket = stream.get_extra_info("socket") if stream else None
        with self._lock:
            self._sockets |= {socket} if socket else set()
        try:
            if self._cancelled.is_set():
                raise Cancelled
            yield
        finally:
            with self._lock:
                self._sockets.discard(socket)

    def _check(self, request: httpx.Request) -> None:
        url = request.url
        # A registry that is spoken to with encryption alone must not lead to what this machine, or its network, offers without.
        if url.scheme != "https" and not (url.scheme == "http" and "http" in self.endpoint.schemes and self._endpoints.plain(url)):
            advice = "name both in insecure-registries if this is meant"
            raise RegistryError(f"{self.endpoint}: sends to {url.scheme}://{url.netloc.decode()}, which is not encrypted; {advice}")

    def _refusal(self, response: httpx.Response, what: str) -> RegistryError:
        status, host = response.status_code, response.url.netloc.decode()
        codes, said = _said(_read(response, what))
        said = f": {said}" if said else ""
        login = f"klab login {self.endpoint.registry}"
        match status:
            case 401:
                message = f"{what}: unauthorized{said}; log in with: {login}"
            case 403:
                message = f"{what}: denied{said}; whoever may do this logs in with: {login}"
            case 404:
                message = f"{what}: {host} does not have it{said}"
            case _:
                asked = _retry_after(response)
                later = f"; try again in {asked:.0f} seconds" if asked and asked > LONGEST_WAIT else ""
                message = f"{what}: {host} answered {status} {response.reason_phrase}{said}{later}"
        return RegistryError(message, status, codes, status in PASSING)


def pause(tries: int) -> float:
    """Seconds to wait after so many tries; not the same for all, who would come back all at once."""
    return float(BACKOFF * 2**tries * random.uniform(0.75, 1.25))


def _trust(host: str) -> ssl.SSLContext:
    """The machine's own authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR, and those of this registry."""
    context = ssl.create_default_context()
    for path in sorted((CERTIFICATES / host).glob("*.crt")):
        try:
            context.load_verify_locations(path)
        except (ssl.SSLError, OSError) as error:
            raise UsageError(f"{path}: cannot be read as certificates: {error}") from None
    return context


def _direct(host: str) -> set[str]:
    bare = httpx.URL(f"http://{host}").host
    own = {"localhost", "127.0.0.1", "[::1]"}
    return own | {f"[{bare}]" if ":" in bare else bare} if is_loopback(bare) else own


def _read(response: httpx.Response, what: str) -> bytes:
    """A document, and no more: a server that never ends is cut off."""
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > LARGEST_DOCUMENT:
            raise RegistryError(f"{what}: {response.url.netloc.decode()} sends more than {LARGEST_DOCUMENT} bytes, the most that a document may have")
    return bytes(content)


def _said(content: bytes) -> tuple[tuple[str, ...], str]:
    """The codes and the messages of an error (distribution specification, "Error Codes"); of anything else, nothing."""
    codes, messages = [], []
    with suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
        for error in json.loads(content)["errors"]:
            codes.append(str(error["code"]))
            messages.append(str(error.get("message") or error["code"]))
    return tuple(codes), one_line("; ".join(messages))


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _any_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
