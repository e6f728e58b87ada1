"""Who we are, as a registry wants to hear it: basic authentication, or a token from the server that the registry names.

A registry that answers 401 says how it wants to be asked (RFC 9110, 11.6.1). The token's way is the distribution project's "Token Authentication
Specification", with "OAuth2 Token Authentication" for identity tokens.
"""

import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx

from kernel_lab.registry.credentials import Credential
from kernel_lab.registry.oneline import one_line
from kernel_lab.registry.transport import Answer, RegistryError, Transport

CLIENT = "kernel-lab"
LIFE = 60  # seconds, of a token that does not say how long it lives
WORN = 0.8  # the part of its life after which a token is not used any more: what is asked with it may take a while
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9-]*)(?:\s+|$|(?=,))(?!=)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True)
class Challenge:
    """One way to be asked: the scheme, in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class _Token:
    header: str
    worn: float  # on the monotonic clock


class Authentication:
    """The authorizations for one registry, each for a scope: what is to be done with which repository. Threads may share it."""

    def __init__(self, transport: Transport, credential: Credential | None) -> None:
        self._transport = transport
        self._credential = credential
        self._basic: str | None = None
        self._tokens: dict[str, _Token] = {}
        self._lock = threading.Lock()

    def header(self, scope: str) -> str | None:
        """What is to be sent, as far as it is known."""
        token = self._tokens.get(scope)
        return token.header if token and time.monotonic() < token.worn else self._basic

    def answer(self, challenges: Iterable[Challenge], scope: str, refused: str | None, what: str) -> str:
        """What a registry wants, which has refused what it was sent. Raises RegistryError when there is nothing better to send."""
        with self._lock:
            if (known := self.header(scope)) not in (None, refused):  # another thread has been here
                return str(known)
            ways = {challenge.scheme: challenge.parameters for challenge in challenges}
            if "bearer" in ways:
                self._tokens[scope] = self._token(ways["bearer"], scope, what)
                return self._tokens[scope].header
            if "basic" in ways:
                self._basic = self._basic_header(refused, what)
                return self._basic
            how = f"in a way that is not known here ({one_line(', '.join(ways))})" if ways else "and does not say how"
            raise RegistryError(f"{what}: {self._transport.endpoint} wants to know who asks, {how}", 401)

    def _basic_header(self, refused: str | None, what: str) -> str:
        registry = self._transport.endpoint.registry
        if self._credential is None or not self._credential.username:
            raise RegistryError(f"{what}: unauthorized: {registry} wants a name and a password; log in with: klab login {registry}", 401)
        if refused == self._credential.basic:
            raise _not_accepted(what, registry, self._credential)
        return self._credential.basic

    def _token(self, parameters: Mapping[str, str], scope: str, what: str) -> _Token:
        registry = self._transport.endpoint.registry
        realm = _url(parameters.get("realm", ""))
        if realm is None or realm.scheme not in ("http", "https") or realm.userinfo:
            raise RegistryError(f"{what}: {registry} names no place where tokens are to be had", 401)
        scopes = _together(parameters.get("scope", ""), scope)
        service = {"service": parameters["service"]} if "service" in parameters else {}
        try:
            answer = self._ask(realm, service, scopes, f"a token of {realm.netloc.decode()} for {what}")
        except RegistryError as error:
            if error.status in (400, 401, 403) and self._credential:
                raise _not_accepted(what, registry, self._credential) from None
            raise
        try:
            document = answer.json()
            token, life = str(document.get("token") or document["access_token"]), float(document.get("expires_in") or LIFE)
        except (ValueError, OverflowError, TypeError, AttributeError, KeyError):
            raise RegistryError(f"{what}: {realm.netloc.decode()} has answered, and not with a token") from None
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(f"{what}: {realm.netloc.decode()} has answered with what cannot be a token")
        return _Token(f"Bearer {token}", time.monotonic() + life * WORN)

    def _ask(self, realm: httpx.URL, service: Mapping[str, str], scopes: list[str], what: str) -> Answer:
        credential = self._credential
        if credential and credential.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": credential.identity_token, "client_id": CLIENT, "scope": " ".join(scopes)}
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._transport.ask("POST", realm, what, headers=kind, body=urlencode({**form, **service}).encode())
        query = [*service.items(), *(("scope", part) for part in scopes)]
        if credential:
            query.append(("account", credential.username))
        for name, value in query:
            realm = realm.copy_add_param(name, value)
        return self._transport.ask("GET", realm, what, headers={"Authorization": credential.basic} if credential else {})


def challenges(headers: httpx.Headers) -> list[Challenge]:
    """The challenges of an answer; there may be several of these headers, and several challenges in one."""
    found = []
    for line in headers.get_list("WWW-Authenticate"):
        at = 0
        while scheme := _SCHEME.match(line, at):
            at = scheme.end()
            parameters = {}
            while parameter := _PARAMETER.match(line, at):
                at = parameter.end()
                quoted, plain = parameter[2], parameter[3]
                parameters[parameter[1].lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def _url(text: str) -> httpx.URL | None:
    try:
        return httpx.URL(text)
    except httpx.InvalidURL:
        return None


def _together(named: str, ours: str) -> list[str]:
    """The scopes that a registry names, and ours of which it says nothing: of a mount it may have thought of one repository alone."""
    scopes = named.split()
    resources = {scope.rpartition(":")[0] for scope in scopes}
    return scopes + [scope for scope in ours.split() if scope.rpartition(":")[0] not in resources]


def _not_accepted(what: str, registry: str, credential: Credential) -> RegistryError:
    who = f"the name {credential.username!r} and its password" if credential.username else "the token that is kept"
    return RegistryError(f"{what}: unauthorized: {registry} does not accept {who}; log in again with: klab login {registry}", 401)
