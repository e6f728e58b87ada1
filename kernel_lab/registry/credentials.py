"""Names and passwords for registries: in `~/.docker/config.json` and in credential helpers, where docker, podman and skopeo find them too.

The file and the helpers' protocol are docker's (docker login, "Credential stores", "Credential helpers"; docker-credential-helpers).
"""

import base64
import binascii
import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel_lab.images.reference import DOCKER_HUB
from kernel_lab.kernel.errors import UsageError

HUB_KEY = "https://index.docker.io/v1/"  # under which docker keeps those of the Hub, and asks helpers for them
TOKEN = "<token>"  # the name with which a helper says that the secret is an identity token
NOT_FOUND = "credentials not found in native keychain"  # what a helper says, and fails
PATIENCE = 120  # seconds for a helper, which may ask its user
Entries = dict[str, Any]


@dataclass(frozen=True)
class Credential:
    """Who somebody is: a name and a password, or an identity token, which is shown to a token server alone."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The header of basic authentication (RFC 7617)."""
        return "Basic " + _encoded(self)


def find(registry: str) -> Credential | None:
    """What is kept for a registry: with its helper, with the helper of all, in docker's file, or in podman's."""
    config = _read(config_path())
    if (helper := _helper(config, registry)) and (found := _ask(helper, "get", _key(registry))) is not None:
        return _from_helper(helper, found)
    for path in (config_path(), _podmans()):
        entries = _object(_read(path).get("auths", {}), path, "auths")
        found_here = (_from_entry(_object(entries[key], path, key), path, key) for key in _keys(entries, registry))
        if credential := next(filter(None, found_here), None):
            return credential
    return None


def store(registry: str, credential: Credential) -> str:
    """Keeps it, with the registry's helper or else in docker's file. Where, in words."""
    with _changing() as config:
        entry: Entries = {}
        if helper := _helper(config, registry):
            said = {"ServerURL": _key(registry), "Username": credential.username or TOKEN, "Secret": credential.password or credential.identity_token}
            try:
                _ask(helper, "store", json.dumps(said))
            except UsageError as error:  # in which the helper may have repeated what it was told
                raise UsageError(str(error).replace(said["Secret"], "********")) from None
        else:
            entry = {"auth": _encoded(credential)} | ({"identitytoken": credential.identity_token} if credential.identity_token else {})
        auths = _object(config.setdefault("auths", {}), config_path(), "auths")
        auths[_key(registry)] = entry
    return f"docker-credential-{helper}" if helper else str(config_path())


def erase(registry: str) -> bool:
    """Forgets it. Whether there was one in docker's file or with the registry's helper; what podman keeps stays."""
    if not config_path().exists():
        return False
    with _changing() as config:
        helper = _helper(config, registry)
        kept = bool(helper) and _ask(helper or "", "get", _key(registry)) is not None
        if kept and helper:
            _ask(helper, "erase", _key(registry))
        auths = _object(config.get("auths", {}), config_path(), "auths")
        gone = _keys(auths, registry)
        for key in gone:
            del auths[key]
    return kept or bool(gone)


def config_path() -> Path:
    """docker's own file."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def _podmans() -> Path:
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(named)
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.geteuid()}", "containers/auth.json")


def _key(registry: str) -> str:
    return HUB_KEY if registry == DOCKER_HUB else registry


def _keys(auths: Entries, registry: str) -> list[str]:
    """Those of a registry, its own first."""
    hosts = (registry, _host(_key(registry)))
    return sorted((key for key in auths if _host(key) in hosts), key=_key(registry).__eq__, reverse=True)


def _host(key: str) -> str:
    """The host that a key is for: older clients wrote a URL there."""
    found = re.fullmatch(r"(?:https?://)?([^/]+)(?:/v[12])?/?", key)
    return found[1] if found else key


# Files.


def _read(path: Path) -> Entries:
    try:
        return _object(json.loads(path.read_bytes()), path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:  # whose message could show what is in the file
        raise UsageError(f"{path}: this is no JSON; mend it, or name another directory with DOCKER_CONFIG") from None


@contextmanager
def _changing() -> Iterator[Entries]:
    """docker's file, to be changed; then it is replaced, and only its user may read it."""
    folder = config_path().parent
    folder.mkdir(0o700, parents=True, exist_ok=True)
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        config = _read(config_path())
        before = json.dumps(config)
        yield config
        if json.dumps(config) != before:
            # Where the file is a link, as people have it who keep their settings elsewhere, it stays one.
            _replace(Path(os.path.realpath(config_path())), json.dumps(config, indent="\t") + "\n")
    finally:
        os.close(place)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        # Made with this mode: there is no moment at which others could read it.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _object(value: Any, path: Path, *names: str) -> Entries:
    if not isinstance(value, dict):
        raise UsageError(": ".join((str(path), *names, "a JSON object is needed here")))
    return value


def _from_entry(entry: Entries, path: Path, key: str) -> Credential | None:
    username, password = entry.get("username", ""), entry.get("password", "")
    if auth := entry.get("auth"):
        try:
            username, colon, password = base64.b64decode(auth, validate=True).decode().rstrip("\0").partition(":")
        except (binascii.Error, ValueError, TypeError):
            colon = ""
        if not colon:
            raise UsageError(f"{path}: auths: {key}: auth: the base64 form of NAME:PASSWORD is needed; log in again")
    token = entry.get("identitytoken", "")
    return Credential(username, password, token) if username or token else None


def _encoded(credential: Credential) -> str:
    return base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()


# Helpers.


def _helper(config: Entries, registry: str) -> str | None:
    """The name of the program that keeps the credentials of a registry."""
    helpers = _object(config.get("credHelpers", {}), config_path(), "credHelpers")
    names = (helpers.get(_key(registry)), helpers.get(registry), config.get("credsStore"))
    name = next(filter(None, names), None)
    if name is not None and not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", str(name)):
        raise UsageError(f"{config_path()}: {name!r} is no credential helper's name, which is NAME in docker-credential-NAME")
    return name


def _ask(helper: str, action: str, said: str) -> str | None:
    """What a helper answers; None where it keeps nothing. Raises UsageError when it fails."""
    program = f"docker-credential-{helper}"
    path = shutil.which(program)
    if path is None:
        raise UsageError(f"{config_path()}: wants {program}, which is not on the PATH; install it, or take it out of the file")
    try:
        done = subprocess.run([path, action], input=said, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{program} {action}: has not answered for {PATIENCE} seconds") from None
    if done.returncode == 0:
        return done.stdout
    if action == "get" and NOT_FOUND in done.stdout:
        return None
    # On failure the protocol has the reason on standard output.
    why = " ".join((done.stdout or done.stderr).split())[:200] or f"exit code {done.returncode}"
    raise UsageError(f"{program} {action}: {why}")


def _from_helper(helper: str, answer: str) -> Credential:
    try:
        found = json.loads(answer)
        username, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, TypeError, KeyError):  # whose message could show the secret
        raise UsageError(f"docker-credential-{helper} get: an object with Username and Secret is needed") from None
    return Credential(identity_token=secret) if username == TOKEN else Credential(username, secret)
