"""The bodies of requests, as they come: into uploads, whose digest is computed meanwhile, and as documents."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import ClientPayloadError, StreamReader, web

from kernel_lab.images.store import LARGEST_DOCUMENT
from kernel_lab.registry.refused import Refused
from kernel_lab.registry.uploads import Upload

BATCH = 1 << 19  # bytes that are hashed and written at once, while the next ones come
PATIENCE = 60.0
_CONTENT_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


@dataclass(frozen=True)
class Receiver:
    """Receives bodies. A client may be silent for `patience` seconds in the middle of one."""

    patience: float = PATIENCE

    async def append(self, request: web.Request, upload: Upload) -> None:
        """Adds a body to an upload. When this returns, the disk has it.

        Raises Refused; what has come by then is kept, unless it is a chunk of a wrong size.
        """
        length = _chunk_length(request, upload)
        refuse_if_no_room(request, upload)
        mark = upload.mark()
        await self._receive(request.content, upload, length)
        came = upload.size - mark[0]
        if length not in (None, came):
            await asyncio.to_thread(upload.rewind, mark)
            raise Refused(400, "SIZE_INVALID", f"Content-Range announces {length} bytes, and {'more' if came > (length or 0) else came} have come")
        await asyncio.to_thread(upload.sync)

    async def document(self, request: web.Request) -> bytes:
        """A body that is read at once. Raises Refused for one that is too large."""
        pieces: list[bytes] = []
        size, announced = 0, request.content_length or 0
        while max(size, announced) <= LARGEST_DOCUMENT and (piece := await self._piece(request.content)):
            pieces.append(piece)
            size += len(piece)
        if max(size, announced) > LARGEST_DOCUMENT:
            raise Refused(413, "SIZE_INVALID", f"a manifest has at most {LARGEST_DOCUMENT} bytes")
        return b"".join(pieces)

    async def _receive(self, content: StreamReader, upload: Upload, most: int | None) -> None:
        """While one part is hashed and written, the next one comes. Ends at once when more comes than was announced."""
        writing: asyncio.Future[None] | None = None
        received = 0
        try:
            async for pieces in self._batches(content):
                if writing:
                    await writing
                received += sum(map(len, pieces))
                writing = asyncio.ensure_future(asyncio.to_thread(upload.write, pieces))
                if most is not None and received > most:
                    return
        finally:
            if writing:
                await writing

    async def _batches(self, content: StreamReader) -> AsyncIterator[list[bytes]]:
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await self._piece(content):
                pieces.append(piece)
                size += len(piece)
                if size >= BATCH:
                    yield pieces
                    pieces, size = [], 0
        except Refused:
            yield pieces  # what has come counts, and need not come again
            raise
        yield pieces

    async def _piece(self, content: StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self.patience):
                return await content.readany()
        except TimeoutError:
            raise Refused(408, "BLOB_UPLOAD_INVALID", f"nothing has come for {self.patience:g} seconds", {"Connection": "close"}) from None
        except (ConnectionError, ClientPayloadError) as error:
            raise Refused(400, "BLOB_UPLOAD_INVALID", f"the body has broken off: {error}") from None


def refuse_if_no_room(request: web.Request, upload: Upload) -> None:
    """Raises Refused for what the disk has no room for, before any of it comes."""
    free = shutil.disk_usage(upload.path.parent).free
    if (request.content_length or 0) > free:
        raise Refused(507, "UNKNOWN", f"{request.content_length} bytes are announced, and the registry's disk has room for {free}")


def progress(upload: str, size: int) -> dict[str, str]:
    """The headers that say how far an upload has come."""
    # The specification has no notation for nothing; this is distribution's.
    return {"Range": f"0-{max(size - 1, 0)}", "Docker-Upload-UUID": upload}


def _chunk_length(request: web.Request, upload: Upload) -> int | None:
    """The bytes of a chunk that says where it belongs. Raises Refused when it does not come next."""
    if (said := request.headers.get("Content-Range")) is None:
        return None
    if not (found := _CONTENT_RANGE.fullmatch(said)):
        raise Refused(400, "BLOB_UPLOAD_INVALID", f"Content-Range: {said[:50]!r}: the first and the last byte are needed, as in 0-1023")
    first, last = int(found[1]), int(found[2])
    if first != upload.size or last < first:
        headers = {"Location": request.path} | progress(upload.path.name, upload.size)
        raise Refused(416, "BLOB_UPLOAD_INVALID", f"Content-Range: {said}: the next byte is {upload.size}", headers)
    length = last - first + 1
    if request.content_length not in (None, length):
        raise Refused(400, "SIZE_INVALID", f"Content-Range announces {length} bytes, and Content-Length {request.content_length}")
    return length
