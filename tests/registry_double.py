"""A registry for tests of clients, in this process: it keeps what it is given in memory, remembers what it was asked, and misbehaves when told to."""

import asyncio
import base64
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

import pytest
from aiohttp import web

from kernel_lab.images import platforms
from kernel_lab.images.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Config, Descriptor, Index, Manifest, Platform, digest_of
from kernel_lab.registry import endpoints, transport

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
USER, PASSWORD = "olga", "pass:word €"


def nobodys_settings(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Nobody's own settings, a machine that is known, and no long waits."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REGISTRY_AUTH_FILE", *endpoints.VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(folder / "docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    monkeypatch.setenv("KERNEL_LAB_DATA", str(folder / "data"))
    monkeypatch.setattr(transport, "BACKOFF", 0.001)
    monkeypatch.setattr(platforms, "here", lambda: Platform("amd64", "linux"))


class Double:
    """A registry on a port of its own. `faults` are asked first, and may answer in its place; those that return None let it answer."""

    def __init__(self, auth: str | None = None, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.auth = auth
        self.host = host
        self.faults: list[Fault] = []
        self.asked: list[web.Request] = []
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.tokens: dict[str, str] = {}  # and their scopes
        self.upload_headers: dict[str, str] = {}
        self.page = 1000
        self.names_lenders = True  # whether it asks for a right to what a mount comes from
        self._sessions = 0
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> "Double":
        self._thread.start()
        self._runner = web.AppRunner(web.Application(client_max_size=1 << 30), shutdown_timeout=0)
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._runner.app.router.add_route("*", "/{rest:.*}", self._answer)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, 0, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.name = f"{self.host}:{self.port}"
        self.url = f"http{'s' if self._tls else ''}://{self.name}"

    async def _stop(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # one that is silent on purpose
        await self._runner.cleanup()

    # What it has.

    def add(self, repository: str, content: bytes, media_type: str = OCI_LAYER) -> Descriptor:
        """A blob."""
        self.blobs[repository, digest_of(content)] = content
        return Descriptor(media_type, digest_of(content), len(content))

    def image(self, repository: str, tag: str | None, *layers: bytes, **config: str) -> Descriptor:
        """An image; without a tag it is found by its digest."""
        blobs = tuple(self.add(repository, layer) for layer in layers)
        settings = {"architecture": "amd64", "os": "linux"} | config
        own = self.add(repository, Config(diff_ids=tuple(blob.digest for blob in blobs), **settings).raw, OCI_CONFIG)  # type: ignore[arg-type]
        return self.document(repository, tag, OCI_MANIFEST, Manifest(own, blobs).raw)

    def index(self, repository: str, tag: str, **images: Descriptor) -> Descriptor:
        """An index of images: amd64, arm_v7."""
        platforms = {name: Platform(name.partition("_")[0], "linux", name.partition("_")[2] or None) for name in images}
        listed = tuple(Descriptor(image.media_type, image.digest, image.size, platform=platforms[name]) for name, image in images.items())
        return self.document(repository, tag, OCI_INDEX, Index(listed).raw)

    def document(self, repository: str, tag: str | None, media_type: str, raw: bytes) -> Descriptor:
        """Anything under a tag and its digest."""
        for version in filter(None, (tag, digest_of(raw))):
            self.manifests[repository, version] = media_type, raw
        return Descriptor(media_type, digest_of(raw), len(raw))

    def requests(self, method: str, pattern: str = "") -> list[str]:
        """The paths that were asked with a method."""
        return [request.path_qs for request in self.asked if request.method == method and re.search(pattern, request.path_qs)]

    # What it answers.

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        for fault in self.faults:
            if (answer := await fault(request)) is not None:
                return answer
        if request.path == "/token":
            return await self._token(request)
        if (refused := self._refused(request)) is not None:
            return refused
        if request.path == "/v2/":
            return web.json_response({})
        for pattern, handler in (
            ("/v2/(.+)/manifests/([^/]+)", self._manifest),
            ("/v2/(.+)/blobs/uploads/([^/]*)", self._upload),
            ("/v2/(.+)/blobs/([^/]+)", self._blob),
            ("/v2/(.+)/tags/(list)", self._tags),
        ):
            if found := re.fullmatch(pattern, request.path):
                return await handler(request, found[1], found[2])
        return web.Response(status=404)

    def _refused(self, request: web.Request) -> web.Response | None:
        sent = request.headers.get("Authorization")
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.auth is None or (self.auth == "basic" and sent == basic):
            return None
        if self.auth == "basic":
            return problem(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": 'Basic realm="double, here"'})
        scope = self._scope(request)
        granted = self.tokens.get((sent or "").removeprefix("Bearer "))
        if granted is not None and all(part in granted.split() for part in scope.split()):
            return None
        how = f'Bearer realm="{self.url}/token",service="double",scope="{scope}"'
        return problem(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": how})

    def _may_pull(self, request: web.Request, repository: str) -> bool:
        granted = self.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "), "")
        return self.auth != "bearer" or f"repository:{repository}:pull" in granted.split()

    def _scope(self, request: web.Request) -> str:
        found = re.match("/v2/(.+)/(manifests|blobs|tags)/", request.path)
        if not found:
            return ""
        action = "pull" if request.method in ("GET", "HEAD") else "delete" if request.method == "DELETE" else "pull,push"
        source = f" repository:{request.query['from']}:pull" if self.names_lenders and "from" in request.query else ""
        return f"repository:{found[1]}:{action}{source}"

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        sent, basic = request.headers.get("Authorization"), "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if sent not in (None, basic) or (request.method == "POST" and form["refresh_token"] != PASSWORD):
            return problem(401, "UNAUTHORIZED", "wrong")
        scopes = str(form["scope"]).split(" ") if request.method == "POST" else request.query.getall("scope", [])
        known = sent is not None or request.method == "POST"
        token = hashlib.sha256(f"{len(self.tokens)}".encode()).hexdigest()
        self.tokens[token] = " ".join(scope for scope in scopes if known or scope.endswith(":pull"))
        return web.json_response({"token": token, "expires_in": 300})

    async def _manifest(self, request: web.Request, repository: str, version: str) -> web.Response:
        if request.method == "PUT":
            raw = await request.read()
            listed = json.loads(raw)
            needed = [*listed.get("layers", []), *filter(None, [listed.get("config")])]
            if any((repository, blob["digest"]) not in self.blobs for blob in needed) or any(
                (repository, child["digest"]) not in self.manifests for child in listed.get("manifests", [])
            ):
                return problem(404, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
            found = self.document(repository, version, request.content_type, raw)
            return web.Response(status=201, headers={"Docker-Content-Digest": found.digest, "Location": request.path})
        if (repository, version) not in self.manifests:
            return problem(404, "MANIFEST_UNKNOWN", "manifest unknown")
        if request.method == "DELETE":
            del self.manifests[repository, version]
            return web.Response(status=202)
        media_type, raw = self.manifests[repository, version]
        return web.Response(body=raw, headers={"Content-Type": media_type, "Docker-Content-Digest": digest_of(raw)})

    async def _blob(self, request: web.Request, repository: str, digest: str) -> web.Response:
        content = self.blobs.get((repository, digest))
        if content is None:
            return problem(404, "BLOB_UNKNOWN", "blob unknown to registry")
        if request.method == "DELETE":
            del self.blobs[repository, digest]
            return web.Response(status=202)
        start = int(re.findall("[0-9]+", request.headers.get("Range", "0"))[0])
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if "Range" in request.headers else {}
        return web.Response(status=206 if headers else 200, body=content[start:], headers=headers)

    async def _upload(self, request: web.Request, repository: str, session: str) -> web.Response:
        query = request.query
        if request.method == "POST":
            content = self.blobs.get((query["from"], query["mount"])) if "mount" in query and self._may_pull(request, query["from"]) else None
            if content is not None:
                self.blobs[repository, query["mount"]] = content
                return web.Response(status=201, headers={"Location": "/"})
            self._sessions += 1
            session = f"session{self._sessions}"
            self.uploads[session] = bytearray()
            return web.Response(status=202, headers={"Location": f"/v2/{repository}/blobs/uploads/{session}?state=a%3Db"} | self.upload_headers)
        if session not in self.uploads:
            return problem(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown")
        held = self.uploads[session]
        if request.method == "DELETE":
            del self.uploads[session]
            return web.Response(status=204)
        if request.method == "PATCH":
            if not request.headers["Content-Range"].startswith(f"{len(held)}-"):
                return web.Response(status=416, headers={"Range": f"0-{max(0, len(held) - 1)}"})
            async for chunk in request.content.iter_any():
                held += chunk
        if request.method == "PUT":
            content = bytes(held) + await request.read()
            if digest_of(content) != query["digest"]:
                return problem(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            self.blobs[repository, query["digest"]] = content
            return web.Response(status=201, headers={"Location": "/", "Docker-Content-Digest": query["digest"]})
        status = 202 if request.method == "PATCH" else 204
        return web.Response(status=status, headers={"Location": request.path_qs, "Range": f"0-{max(0, len(held) - 1)}"})

    async def _tags(self, request: web.Request, repository: str, _: str) -> web.Response:
        tags = sorted(version for owner, version in self.manifests if owner == repository and ":" not in version)
        if not tags:
            return problem(404, "NAME_UNKNOWN", "repository name not known to registry")
        rest = [tag for tag in tags if tag > request.query.get("last", "")]
        page = rest[: self.page]
        link = {"Link": f'</v2/{repository}/tags/list?last={page[-1]}&n={self.page}>; rel="next"'} if len(rest) > self.page else {}
        return web.json_response({"name": repository, "tags": page}, headers=link)


def problem(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error in the specification's form."""
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status, headers=headers)


async def part_of(request: web.Request, content: bytes, headers: dict[str, str], status: int = 200) -> web.StreamResponse:
    """Sends this much, and breaks the connection."""
    response = web.StreamResponse(status=status, headers=headers)
    await response.prepare(request)
    await response.write(content)
    await asyncio.sleep(0.05)  # that it is on its way before the connection ends
    assert request.transport is not None
    request.transport.abort()
    return response
