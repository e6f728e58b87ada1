"""ADD from an address: a file that comes over HTTP."""

import hashlib
import os
import re
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kernel_lab.kernel.errors import UsageError

REMOTE = re.compile(r"(https?|git|ssh|ftp)://|git@", re.IGNORECASE)
MODE = 0o600  # docker's, whatever the server says
SILENCE = 60.0  # seconds that a server may say nothing
_CHECKSUM = re.compile("sha256:[a-f0-9]{64}")


def is_remote(source: str) -> bool:
    """Whether a source of ADD is an address."""
    return bool(REMOTE.match(source))


def fetch(address: str, directory: Path, checksum: str | None = None) -> Path:
    """The file, in a directory, with the name that the address ends with; as old as the server says, or of this moment.

    Raises UsageError for an address that has no file, and for content that has another checksum.
    """
    if checksum and not _CHECKSUM.fullmatch(checksum):
        raise UsageError(f"--checksum={checksum}: it is written sha256: and 64 digits")
    import httpx  # no other step needs it, and it takes as long to be loaded as a step

    split = urlsplit(address)
    if split.scheme.lower() not in ("http", "https") or split.path.endswith(".git"):
        raise UsageError(f"{address}: ADD fetches files by HTTP; a repository is cloned by RUN git clone")
    name = unquote(split.path).rpartition("/")[2]
    if name in ("", ".", ".."):
        raise UsageError(f"{address}: ends with no name that the file could have")
    path = directory / name
    try:
        found, modified = _fetched(address, path)
    except httpx.HTTPError as error:
        raise UsageError(f"{address}: {error or type(error).__name__}") from error
    if checksum not in (None, found):
        raise UsageError(f"{address}: has the checksum {found}, and {checksum} was asked for")
    path.chmod(MODE)
    if modified is not None:
        os.utime(path, (modified, modified))
    return path


def _fetched(address: str, path: Path) -> tuple[str, float | None]:
    import httpx

    hashed = hashlib.sha256()
    with httpx.stream("GET", address, follow_redirects=True, timeout=SILENCE) as answer, path.open("xb") as file:
        if answer.status_code != httpx.codes.OK:
            raise UsageError(f"{address}: the server says {answer.status_code} {answer.reason_phrase}")
        for chunk in answer.iter_bytes():
            hashed.update(chunk)
            file.write(chunk)
    return f"sha256:{hashed.hexdigest()}", _time(answer.headers.get("Last-Modified"))


def _time(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:  # of no form that RFC 9110 has
        return None
