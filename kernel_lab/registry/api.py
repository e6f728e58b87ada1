"""The HTTP interface of a registry (OCI distribution specification v1.1), and its tokens; what it means is done by the modules beside this one."""

import asyncio
import errno
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from kernel_lab.images.descriptor import INDEXES, MANIFESTS, OCI_INDEX, Descriptor, Index, Manifest, digest_of
from kernel_lab.images.reference import wrong_repository, wrong_tag
from kernel_lab.kernel.errors import UsageError
from kernel_lab.registry.access import CATALOG, DELETE, PULL, PUSH, Caller
from kernel_lab.registry.receiving import PATIENCE, Receiver, progress
from kernel_lab.registry.refused import Refused
from kernel_lab.registry.repositories import Repositories, Repository, read_document, subject, valid_digest
from kernel_lab.registry.tokens import SERVICE, Tokens, Unauthorized
from kernel_lab.registry.uploads import Upload, Uploads

CALLER = web.RequestKey("caller", Caller)
CHECKING = 2  # passwords at once, each for as long as bcrypt takes
_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?")

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class File(web.FileResponse):
    """aiohttp knows ranges and conditions, and has the kernel send the file (sendfile(2)). `broken_off`: the client has not waited for all of it."""

    broken_off = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        try:
            return await super().prepare(request)
        except (ConnectionError, asyncio.CancelledError):
            self.broken_off = True
            raise


class Api:
    """What is answered, from these repositories and by the rules that these tokens have."""

    def __init__(self, repositories: Repositories, tokens: Tokens, patience: float = PATIENCE) -> None:
        self.repositories, self.tokens, self.access = repositories, tokens, tokens.access
        self.receiver = Receiver(patience)
        self.uploads = Uploads()
        # Threads of their own: those who send wrong passwords wait for each other, and nobody waits for them.
        self._passwords = ThreadPoolExecutor(CHECKING, "passwords")

    def close(self) -> None:
        """Leaves the uploads where they are, to be gone on with."""
        self.uploads.close()
        self._passwords.shutdown(cancel_futures=True)

    def application(self) -> web.Application:
        application = web.Application(middlewares=[_answering, self._knowing], client_max_size=1 << 16)
        application.on_response_prepare.append(_versioned)
        repository, upload = "/v2/{name:.+}", "/v2/{name:.+}/blobs/uploads/{upload:[^/]+}"
        blob, manifest = f"{repository}/blobs/{{digest:[^/]+}}", f"{repository}/manifests/{{reference:[^/]+}}"
        application.add_routes(
            [
                web.get("/v2/", self.version),
                web.get("/token", self.token),
                web.post("/token", self.token_by_form),
                web.get("/v2/_catalog", self.catalog),
                web.get(f"{repository}/tags/list", self.tags),
                web.get(f"{repository}/referrers/{{digest:[^/]+}}", self.referrers),
                web.post(f"{repository}/blobs/uploads/", self.begin),
                web.get(upload, self.progress),
                web.patch(upload, self.chunk),
                web.put(upload, self.finish),
                web.delete(upload, self.cancel),
                web.get(blob, self.blob),
                web.delete(blob, self.delete_blob),
                web.get(manifest, self.manifest),
                web.put(manifest, self.put_manifest),
                web.delete(manifest, self.delete_manifest),
            ]
        )
        return application

    # Who asks.

    async def version(self, request: web.Request) -> web.Response:
        # Clients learn here how to authenticate, if at all.
        if self.access.users and "Authorization" not in request.headers:
            self._challenge(request, "this registry has users; say who you are")
        return web.json_response({})

    async def token(self, request: web.Request) -> web.Response:
        user = request[CALLER].user
        return web.json_response(self.tokens.token(user, _scopes(request.query.getall("scope", []))))

    async def token_by_form(self, request: web.Request) -> web.Response:
        """The same by OAuth 2 (RFC 6749, "Resource Owner Password Credentials Grant")."""
        form = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        if form.get("grant_type") != "password":
            return web.json_response({"error": "unsupported_grant_type"}, status=400)
        user = await self._with_bcrypt(lambda: self._checked(request, form.get("username", ""), form.get("password", "")))
        scopes = form.get("scope", "").split()
        return web.json_response(self.tokens.token(user, scopes) | {"scope": " ".join(scopes)})

    # What there is.

    async def catalog(self, request: web.Request) -> web.Response:
        caller = request[CALLER]
        # podman asks for no scope until it is told of one.
        if self.access.users and caller.user and not caller.may_list_all:
            self._challenge(request, "this token is not for the catalog", scope=":".join((*CATALOG, "*")), error="insufficient_scope")
        names = await asyncio.to_thread(self.repositories.names)
        seen = [name for name in names if caller.may_list_all or not self.access.is_private(name)]
        return _page(request, "repositories", seen, {})

    async def tags(self, request: web.Request) -> web.Response:
        repository = await self._existing(request, PULL)
        contents = await asyncio.to_thread(repository.contents)
        return _page(request, "tags", sorted(contents.tags), {"name": request.match_info["name"]})

    async def referrers(self, request: web.Request) -> web.Response:
        about = valid_digest(request.match_info["digest"])
        repository = await self._found(request, PULL)
        found = await asyncio.to_thread(repository.referrers, about) if repository else []
        headers = {}
        if kind := request.query.get("artifactType"):
            found = [described for described in found if described.get("artifactType") == kind]
            headers["OCI-Filters-Applied"] = "artifactType"
        index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}).encode()
        return web.Response(body=index, content_type=OCI_INDEX, headers=headers)

    # Blobs.

    async def blob(self, request: web.Request) -> web.StreamResponse:
        digest = valid_digest(request.match_info["digest"])
        repository = await self._existing(request, PULL, Refused(404, "BLOB_UNKNOWN", f"{digest}: there is no such repository"))
        await self._retain(request, repository, digest)
        return _file(await asyncio.to_thread(repository.blob, digest), digest, "application/octet-stream")

    async def delete_blob(self, request: web.Request) -> web.Response:
        digest = valid_digest(request.match_info["digest"])
        repository = await self._existing(request, DELETE)
        await asyncio.to_thread(repository.remove_blob, digest)
        return web.Response(status=202)

    async def begin(self, request: web.Request) -> web.Response:
        name = self._allowed(request, PUSH)
        if (digest := request.query.get("mount")) and await self._mounted(request, name, valid_digest(digest)):
            return _created_blob(name, digest)
        if digest := request.query.get("digest"):
            return await self._whole(request, name, valid_digest(digest))
        path = await asyncio.to_thread(self.repositories.begin, name)
        return web.Response(status=202, headers=_place(name, path.name, 0))

    async def progress(self, request: web.Request) -> web.Response:
        repository = await self._existing(request, PUSH)
        path = await asyncio.to_thread(repository.upload, request.match_info["upload"])
        return web.Response(status=204, headers=_place(request.match_info["name"], path.name, path.stat().st_size))

    async def chunk(self, request: web.Request) -> web.Response:
        async with self._going_on(request) as (_, upload):
            await self.receiver.append(request, upload)
            return web.Response(status=202, headers=_place(request.match_info["name"], upload.path.name, upload.size))

    async def finish(self, request: web.Request) -> web.Response:
        digest = valid_digest(request.query.get("digest", ""))
        async with self._going_on(request, digest) as (repository, upload):
            await self.receiver.append(request, upload)
            await self._become(repository, upload, digest)
        return _created_blob(request.match_info["name"], digest)

    async def cancel(self, request: web.Request) -> web.Response:
        async with self._going_on(request) as (_, upload):
            await asyncio.to_thread(upload.discard)
        return web.Response(status=204)

    # Manifests.

    async def manifest(self, request: web.Request) -> web.StreamResponse:
        reference = _reference(request)
        repository = await self._existing(request, PULL, Refused(404, "MANIFEST_UNKNOWN", f"{reference}: there is no such repository"))
        found = await asyncio.to_thread(repository.manifest, reference)
        await self._retain(request, repository, found.digest)
        return _file(repository.layout.blob(found.digest), found.digest, found.media_type)

    async def put_manifest(self, request: web.Request) -> web.Response:
        name, reference = self._allowed(request, PUSH), _reference(request)
        raw = await self.receiver.document(request)
        algorithm, is_digest, _ = reference.partition(":")
        digest = digest_of(raw, algorithm if is_digest else "sha256")
        if is_digest and digest != reference:
            raise Refused(400, "DIGEST_INVALID", f"{reference}: what has come is something else: {digest}")
        media_type = _media_type(request, raw)
        try:
            document = read_document(raw, media_type)
            about = subject(document)
        except UsageError as error:
            raise Refused(400, "MANIFEST_INVALID", str(error)) from None
        if document.media_type not in (None, media_type):
            raise Refused(400, "MANIFEST_INVALID", f"Content-Type is {media_type}, and the manifest says {document.media_type}")
        descriptor = Descriptor(media_type, digest, len(raw))
        await asyncio.to_thread(self._add_manifest, name, raw, document, descriptor, None if is_digest else reference)
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        return web.Response(status=201, headers=headers | ({"OCI-Subject": about} if about else {}))

    async def delete_manifest(self, request: web.Request) -> web.Response:
        repository = await self._existing(request, DELETE)
        await asyncio.to_thread(repository.remove_manifest, _reference(request))
        return web.Response(status=202)

    # Inside: who may.

    @web.middleware
    async def _knowing(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        said = request.headers.get("Authorization")
        try:
            basic = said is not None and said.lower().startswith("basic")
            request[CALLER] = await self._with_bcrypt(lambda: self.tokens.caller(said)) if basic else self.tokens.caller(said)
        except Unauthorized as error:
            self._challenge(request, str(error), error="invalid_token")
        return await handler(request)

    async def _with_bcrypt(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._passwords, work)

    def _allowed(self, request: web.Request, action: str) -> str:
        """The name of the request's repository. Raises Refused."""
        name = request.match_info["name"]
        if why := wrong_repository(name):
            raise Refused(400, "NAME_INVALID", why[:300])
        if not request[CALLER].may(action, name):
            actions = PULL if action == PULL else f"{PULL},{PUSH}" if action == PUSH else DELETE
            insufficient = {"error": "insufficient_scope"} if "Authorization" in request.headers else {}
            self._challenge(request, f"{name}: not everybody may {action} here", scope=f"repository:{name}:{actions}", **insufficient)
        return name

    async def _found(self, request: web.Request, action: str) -> Repository | None:
        return await asyncio.to_thread(self.repositories.find, self._allowed(request, action))

    async def _existing(self, request: web.Request, action: str, otherwise: Refused | None = None) -> Repository:
        if (repository := await self._found(request, action)) is None:
            name = request.match_info["name"]
            raise otherwise or Refused(404, "NAME_UNKNOWN", f"{name}: there is no such repository; a push makes it")
        return repository

    def _checked(self, request: web.Request, name: str, password: str) -> str:
        try:
            return self.tokens.check(name, password)
        except Unauthorized as error:
            self._challenge(request, str(error))

    def _challenge(self, request: web.Request, message: str, **more: str) -> NoReturn:
        """How to authenticate (distribution's token specification). The realm is where the client has found us, unless that is no host."""
        host = request.host if _HOST.fullmatch(request.host) else _own_address(request)
        # A proxy in front of us may speak TLS in our place; whoever else says so can only hurt himself.
        scheme = "https" if request.headers.get("X-Forwarded-Proto", "").lower() == "https" else request.scheme
        said = {"realm": f"{scheme}://{host}/token", "service": SERVICE} | more
        header = "Bearer " + ",".join(f'{name}="{value}"' for name, value in said.items())
        raise Refused(401, "UNAUTHORIZED", message, {"WWW-Authenticate": header})

    async def _retain(self, request: web.Request, repository: Repository, digest: str) -> None:
        # Who finds something here does not push it, and must find it still when the manifest comes.
        if request.method == "HEAD" and request[CALLER].may(PUSH, request.match_info["name"]):
            await asyncio.to_thread(repository.retain, digest)

    # Inside: what comes.

    async def _mounted(self, request: web.Request, name: str, digest: str) -> bool:
        """Whether the blob could be taken over. Who may not pull from there learns nothing of what there is."""
        source = request.query.get("from", "")
        if wrong_repository(source) or not request[CALLER].may(PULL, source):
            return False
        found = await asyncio.to_thread(self.repositories.find, source)
        return found is not None and await asyncio.to_thread(self.repositories.mount, name, digest, found)

    @asynccontextmanager
    async def _going_on(self, request: web.Request, digest: str | None = None) -> AsyncIterator[tuple[Repository, Upload]]:
        """The request's upload, for this request alone; one that the disk has refused a part of goes. Raises Refused."""
        repository = await self._existing(request, PUSH)
        path = await asyncio.to_thread(repository.upload, request.match_info["upload"])
        with _unknown_if_gone(path):
            async with self.uploads.opened(path, digest and digest.partition(":")[0]) as upload:
                try:
                    yield repository, upload
                except OSError:
                    await asyncio.to_thread(upload.discard)
                    raise

    async def _whole(self, request: web.Request, name: str, digest: str) -> web.Response:
        """A blob in one request. Nobody knows the name of its upload, which is gone therefore if this fails."""
        path = await asyncio.to_thread(self.repositories.begin, name)
        async with self.uploads.opened(path, digest.partition(":")[0]) as upload:
            try:
                await self.receiver.append(request, upload)
                repository = await asyncio.to_thread(self.repositories.find, name)
                assert repository
                await self._become(repository, upload, digest)
            finally:
                await asyncio.to_thread(upload.discard)
        return _created_blob(name, digest)

    async def _become(self, repository: Repository, upload: Upload, digest: str) -> None:
        """Makes a finished upload a blob. Raises Refused, and removes the upload, when it is another one."""
        if upload.digest != digest:
            await asyncio.to_thread(upload.discard)
            raise Refused(400, "DIGEST_INVALID", f"{digest}: what has come is something else: {upload.digest}")
        with _unknown_if_gone(upload.path):
            await asyncio.to_thread(repository.add, upload.path, digest)
        upload.close()

    def _add_manifest(self, name: str, raw: bytes, document: Manifest | Index, descriptor: Descriptor, tag: str | None) -> None:
        path = self.repositories.begin(name)
        try:
            upload = Upload(path)
            upload.write([raw])
            upload.sync()
            upload.close()
            repository = self.repositories.find(name)
            assert repository
            repository.put_manifest(path, document, descriptor, tag)
        finally:
            path.unlink(missing_ok=True)


@web.middleware
async def _answering(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Everything that goes wrong becomes one of the specification's answers."""
    try:
        return await handler(request)
    except Refused as error:
        return error.response()
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return Refused(error.status, "UNSUPPORTED", f"{request.method} {request.path[:200]}: {error.reason}", headers).response()
    except ConnectionError:  # the client does not wait for the answer
        raise
    except OSError as error:
        return Refused(507 if _full(error) else 500, "UNKNOWN", f"the registry's disk: {error.strerror}").response()
    except UsageError as error:  # something in the registry's folder is damaged
        return Refused(500, "UNKNOWN", str(error)).response()


async def _versioned(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Docker-Distribution-API-Version"] = "registry/2.0"


def _full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _own_address(request: web.Request) -> str:
    host, port = (request.get_extra_info("sockname") or ("localhost", 0))[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reference(request: web.Request) -> str:
    """A tag or a digest. Raises Refused for what can be neither: nothing was ever pushed under it."""
    reference = request.match_info["reference"]
    if ":" in reference:
        return valid_digest(reference)
    if why := wrong_tag(reference):
        raise Refused(400, "MANIFEST_INVALID", why[:300]) if request.method == "PUT" else Refused(404, "MANIFEST_UNKNOWN", why[:300])
    return reference


def _media_type(request: web.Request, raw: bytes) -> str:
    """What a manifest is sent as, or says that it is."""
    media_type = request.content_type
    if "Content-Type" not in request.headers:
        with suppress(ValueError, RecursionError, AttributeError):
            media_type = str(json.loads(raw).get("mediaType"))
    if media_type not in (*MANIFESTS, *INDEXES):
        raise Refused(400, "MANIFEST_INVALID", f"{media_type[:100]}: only manifests and indexes of OCI and docker (version 2, schema 2) are kept")
    return media_type


def _place(name: str, upload: str, size: int) -> dict[str, str]:
    """Where an upload goes on, and how far it has come."""
    return {"Location": f"/v2/{name}/blobs/uploads/{upload}"} | progress(upload, size)


def _created_blob(name: str, digest: str) -> web.Response:
    return web.Response(status=201, headers={"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})


def _file(path: Path, digest: str, media_type: str) -> web.FileResponse:
    return File(path, headers={"Content-Type": media_type, "Docker-Content-Digest": digest})


def _page(request: web.Request, what: str, names: list[str], more: Mapping[str, str]) -> web.Response:
    """A list, or `n` of it after `last`; with a link to the next ones (distribution specification, "Listing Tags")."""
    most, last = request.query.get("n"), request.query.get("last", "")
    left = [name for name in names if name > last]
    if most is None:
        return web.json_response({**more, what: left})
    if not re.fullmatch("[0-9]{1,9}", most):
        raise Refused(400, "UNSUPPORTED", f"n={most[:20]!r}: a whole number is needed, 0 or more")
    page = left[: int(most)]
    next_one = f"{request.path}?{urlencode({'n': most, 'last': page[-1]})}" if page and len(page) < len(left) else None
    return web.json_response({**more, what: page}, headers={"Link": f'<{next_one}>; rel="next"'} if next_one else {})


def _scopes(values: list[str]) -> list[str]:
    """Clients write several into one parameter, or into several."""
    return [scope for value in values for scope in value.split()]


@contextmanager
def _unknown_if_gone(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Refused(404, "BLOB_UPLOAD_UNKNOWN", f"{path.name}: this upload has gone; begin another") from None
