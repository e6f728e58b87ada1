"""Who sends a request, and the tokens that say what somebody may do (distribution's "Token Authentication Specification")."""

import base64
import os
import time
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import jwt

from kernel_lab.images.reference import wrong_repository
from kernel_lab.registry.access import CATALOG, Access, Caller, Scope

SERVICE = "kernel-lab-registry"
SECONDS = 300
ALGORITHM = "HS256"
KEY_BYTES = 32


class Unauthorized(Exception):
    """These credentials are none."""


class Tokens:
    """Tokens for what the rules allow, signed with a key that nobody else has."""

    def __init__(self, access: Access, key: bytes) -> None:
        self.access = access
        self._key = key

    def caller(self, authorization: str | None) -> Caller:
        """Who has sent this header. Takes as long as bcrypt does. Raises Unauthorized."""
        if authorization is None or not self.access.users:
            return Caller(self.access)
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "basic":
            return Caller(self.access, self._user(value))
        if scheme.lower() == "bearer":
            return self._bearer(value.strip())
        raise Unauthorized(f"{scheme[:20]!r}: only Basic and Bearer are understood")

    def check(self, name: str, password: str) -> str:
        """The name of a user with this password. Raises Unauthorized."""
        if not self.access.users.right(name, password):
            raise Unauthorized("there is no user of this name with this password")
        return name

    def token(self, user: str | None, scopes: Iterable[str]) -> dict[str, Any]:
        """A token for what of these scopes the user may have, as the token server answers (distribution's token specification)."""
        now = int(time.time())
        granted = [{"type": kind, "name": name, "actions": sorted(actions)} for (kind, name), actions in self._granted(user, scopes).items()]
        claims = {"iss": SERVICE, "aud": SERVICE, "sub": user or "", "jti": uuid.uuid4().hex, "access": granted}
        token = jwt.encode(claims | {"iat": now, "nbf": now, "exp": now + SECONDS}, self._key, ALGORITHM)
        issued = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        return {"token": token, "access_token": token, "expires_in": SECONDS, "issued_at": issued}

    def _user(self, encoded: str) -> str:
        try:
            name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            raise Unauthorized("Basic: these are no credentials") from None
        return self.check(name, password)

    def _bearer(self, token: str) -> Caller:
        try:
            claims = jwt.decode(token, self._key, [ALGORITHM], audience=SERVICE, issuer=SERVICE, options={"require": ["exp", "sub", "aud", "iss"]})
        except (jwt.InvalidTokenError, ValueError) as error:  # a header may have any characters
            raise Unauthorized(f"token: {error}") from None
        granted = {(entry["type"], entry["name"]): frozenset(entry["actions"]) for entry in claims["access"]}
        return Caller(self.access, claims["sub"] or None, granted)

    def _granted(self, user: str | None, scopes: Iterable[str]) -> dict[Scope, frozenset[str]]:
        granted: dict[Scope, frozenset[str]] = {}
        for kind, name, actions in filter(None, map(_parsed, scopes)):
            allowed = self._allowed_in(user, kind, name)
            given = allowed if "*" in actions else allowed.intersection(actions)
            if given:
                granted[kind, name] = granted.get((kind, name), frozenset()) | given
        return granted

    def _allowed_in(self, user: str | None, kind: str, name: str) -> frozenset[str]:
        if (kind, name) == CATALOG:
            return frozenset("*") if self.access.is_user(user) else frozenset()
        return self.access.allowed(user, name) if kind == "repository" and not wrong_repository(name) else frozenset()


def own_key(path: Path) -> bytes:
    """The key in this file, for its owner alone; it is made unless it is there whole, so that tokens outlive a restart."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
        key = file.read()
        if len(key) != KEY_BYTES:
            key = os.urandom(KEY_BYTES)
            file.seek(0)
            file.truncate()
            file.write(key)
    return key


def _parsed(scope: str) -> tuple[str, str, Collection[str]] | None:
    kind, _, rest = scope.partition(":")
    name, colon, actions = rest.rpartition(":")
    # A class may stand behind the type: repository(plugin).
    return (kind.partition("(")[0], name, actions.split(",")) if colon else None
