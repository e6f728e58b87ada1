"""A registry that serves: in a thread of its own with its own event loop, from a notebook's cell as well as from the command line."""

import asyncio
import errno
import fcntl
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry.access import Access
from kernel_lab.registry.api import CALLER, Api, File
from kernel_lab.registry.collect import GRACE, Collected, collect
from kernel_lab.registry.receiving import PATIENCE
from kernel_lab.registry.repositories import Repositories
from kernel_lab.registry.tokens import Tokens, own_key
from kernel_lab.registry.users import Users

LOOPBACK = "127.0.0.1"
KEY, SERVING = "token-key", "serving"
MOST_REQUESTS = 10_000
GOODBYE = 1.0  # seconds that requests have to end when the registry is told to
IDLE = 75.0  # seconds until a connection that has had a request, and has no other, is closed


@dataclass
class Answered:
    """A request, and how it was answered: bytes of its body, and of the answer's; None of an answer that the client has not waited for."""

    user: str | None
    method: str
    path: str
    status: int
    received: int
    sent: int | None

    def __str__(self) -> str:
        sent = "broken off" if self.sent is None else f"{self.sent} bytes out"
        return f"{self.user or '-'} {self.method} {self.path} {self.status} {self.received} bytes in, {sent}"


ANSWERED = web.RequestKey("answered", Answered)


class Registry:
    """A registry of what is in a folder, which is made unless it is there.

    with Registry(path, users={"ada": "secret"}, private=["lab/*"]) as registry:
        registry.address

    users: names and passwords, or a file that `htpasswd -B` has made; without any, everybody may do everything.
    private: patterns of the names of repositories that only users may pull from; public: exceptions from these.
    certificate, key: files in PEM, for TLS.
    port: 0 takes one that is free.
    shown: called with each request that has been answered, in the registry's thread. `requests` has the latest ones: each is in it before its
        client has the answer.

    Raises UsageError for what the caller can mend, before it serves: a port that is taken, a certificate that does not fit, another registry
    that serves this folder.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        address: str = LOOPBACK,
        port: int = 0,
        users: Mapping[str, str] | Path | None = None,
        private: Iterable[str] = (),
        public: Iterable[str] = (),
        certificate: Path | None = None,
        key: Path | None = None,
        shown: Callable[[Answered], None] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.path = Path(path)
        self.requests: deque[Answered] = deque(maxlen=MOST_REQUESTS)
        self._place = (address, port)
        self._users = users if isinstance(users, Path) else dict(users or {})
        self._private, self._public = tuple(private), tuple(public)
        self._tls = _context(certificate, key)
        self._shown, self._patience = shown, patience
        self._stop: Callable[[], object] = _nothing

    @property
    def address(self) -> str:
        """Where it is found, as it stands in an image's name: `127.0.0.1:5000`."""
        host, port = self._bound
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}"

    def start(self) -> Self:
        """Returns when it serves."""
        users = Users.read(self._users) if isinstance(self._users, Path) else Users.of(self._users)
        access = Access(users, self._private, self._public)
        with ExitStack() as undone:
            self._socket = undone.enter_context(_listening(*self._place))
            self.repositories = Repositories(self.path)
            self._lock = undone.enter_context(_alone(self.path / SERVING))
            api = Api(self.repositories, Tokens(access, own_key(self.path / KEY)), self._patience)
            undone.pop_all()
        self._bound = self._socket.getsockname()[:2]
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(api, ready), name="registry", daemon=True)
        self._thread.start()
        ready.result()
        return self

    def stop(self) -> None:
        """Returns when it serves no more. Requests that take longer than a second are broken off; an upload can be gone on with later."""
        self._stop()
        self._thread.join()

    def collect(self, grace: float = GRACE, untagged: bool = False) -> Collected:
        """Removes what no manifest needs, and has not been new for `grace` seconds; see kernel_lab.registry.collect."""
        return collect(self.repositories, grace, untagged)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _run(self, api: Api, ready: "Future[None]") -> None:
        try:
            asyncio.run(self._serve(api, ready))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)
        finally:
            api.close()
            self._socket.close()
            self._lock.close()

    async def _serve(self, api: Api, ready: "Future[None]") -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        application = api.application()
        application.on_response_prepare.append(self._answering)
        runner = web.AppRunner(
            application,
            handle_signals=False,
            access_log_class=_logger(self._ended),
            auto_decompress=False,  # a digest is of the bytes as they were sent
            keepalive_timeout=IDLE,
            shutdown_timeout=GOODBYE,
        )
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket, ssl_context=self._tls).start()
            self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
            ready.set_result(None)
            await stopped.wait()
        finally:
            self._stop = _nothing
            await runner.cleanup()

    async def _answering(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        caller = request.get(CALLER)
        sent = 0 if request.method == "HEAD" else response.content_length or 0
        answered = Answered(caller and caller.user, request.method, request.path_qs, response.status, request.content.total_bytes, sent)
        request[ANSWERED] = answered
        self.requests.append(answered)

    def _ended(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        answered = request[ANSWERED]
        if isinstance(response, File) and response.broken_off:
            answered.sent = None
        if self._shown:
            self._shown(answered)


def _logger(ended: Callable[[web.BaseRequest, web.StreamResponse], None]) -> type[AbstractAccessLogger]:
    class Logger(AbstractAccessLogger):
        def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
            # What was no HTTP, such as a try to speak TLS, has got no answer of ours.
            if ANSWERED in request:
                ended(request, response)

    return Logger


def _nothing() -> None:
    pass


def _listening(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=128)
    except OSError as error:
        hint = {
            errno.EADDRINUSE: "somebody listens there already; choose another port, or 0 for one that is free",
            errno.EACCES: "ports below 1024 are root's; choose another",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }.get(error.errno or 0, str(error))
        raise UsageError(f"{address}:{port}: {hint}") from None
    except OverflowError:
        raise UsageError(f"port {port}: ports are numbered 0 to 65535") from None


def _alone(path: Path) -> BinaryIO:
    # What is known of an upload is in one process's memory.
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(f"{path.parent}: another registry serves this folder; end it, or choose another folder") from None
    return file


def _context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("TLS needs both: a certificate, and its key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # With a password, if only an empty one: it would be asked for at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(f"{certificate}, {key}: these are no certificate and its key, in PEM and without a password: {error}") from None
    return context
