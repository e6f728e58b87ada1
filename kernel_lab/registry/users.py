"""The users of a registry, and their passwords as bcrypt keeps them (htpasswd(1))."""

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import bcrypt

from kernel_lab.kernel.errors import UsageError

LONGEST_PASSWORD = 72  # bytes; bcrypt knows no more of one, and htpasswd leaves the rest away
_BCRYPT = re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}")


class Users:
    """Names, and their passwords as bcrypt keeps them."""

    def __init__(self, hashes: Mapping[str, str] | None = None) -> None:
        self._hashes = {name: value.encode() for name, value in (hashes or {}).items()}

    @classmethod
    def of(cls, passwords: Mapping[str, str]) -> "Users":
        """Of names and passwords. Raises UsageError for a name that cannot be one."""
        for name in passwords:
            if not name or ":" in name:
                raise UsageError(f"{name!r}: a user's name is not empty and has no colon, which ends it when it is sent (RFC 7617)")
        return cls({name: bcrypt.hashpw(_bytes(password), bcrypt.gensalt()).decode() for name, password in passwords.items()})

    @classmethod
    def read(cls, path: Path) -> "Users":
        """Of a file that `htpasswd -B` has made. Raises UsageError, which names the line."""
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: no file with users: {error}; htpasswd -B -c {path} NAME makes one") from None
        hashes = {}
        for number, line in enumerate(lines, 1):
            name, colon, value = line.partition(":")
            if not line.strip() or line.startswith("#"):
                continue
            if not name or not colon or not _BCRYPT.fullmatch(value):
                what = "a name, a colon and a password as bcrypt keeps it are needed"
                raise UsageError(f"{path}: line {number}: {what}; htpasswd -B {path} NAME writes them")
            hashes[name] = value
        if not hashes:
            raise UsageError(f"{path}: there is no user in it; htpasswd -B {path} NAME adds one")
        return cls(hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def __contains__(self, name: object) -> bool:
        return name in self._hashes

    def right(self, name: str, password: str) -> bool:
        """Whether this is the user's password. It takes as long for a name that nobody has: the time must not tell who is a user."""
        known = self._hashes.get(name)
        return bcrypt.checkpw(_bytes(password), known or self._nobody) and known is not None

    @cached_property
    def _nobody(self) -> bytes:
        cost = max((int(value[4:6]) for value in self._hashes.values()), default=4)
        return bcrypt.hashpw(os.urandom(16).hex().encode(), bcrypt.gensalt(cost))


def _bytes(password: str) -> bytes:
    return password.encode()[:LONGEST_PASSWORD]
