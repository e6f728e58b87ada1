"""Where a registry is reached: through its mirrors first, and by plain HTTP only where that was allowed.

What a user allows stands in `registries.json` in the kit's data directory, in the words of docker's daemon.json, and in two environment variables,
whose entries, separated by commas, are added:

    {"registry-mirrors": ["https://mirror.example"], "insecure-registries": ["registry.lan:5000"]}

A mirror is one of docker.io, as with docker. An insecure registry is one that may be spoken to by HTTP where it has no HTTPS; certificates are
checked all the same.
"""

import ipaddress
import json
import os
from dataclasses import dataclass

import httpx

from kernel_lab import state
from kernel_lab.images.reference import DOCKER_HUB, wrong_registry
from kernel_lab.kernel.errors import UsageError

HUB_HOST = "registry-1.docker.io"  # the Hub's name in references has another purpose
FILE = "registries.json"
MIRRORS, INSECURE = "registry-mirrors", "insecure-registries"
VARIABLES = {MIRRORS: "KERNEL_LAB_REGISTRY_MIRRORS", INSECURE: "KERNEL_LAB_INSECURE_REGISTRIES"}


@dataclass(frozen=True)
class Endpoint:
    """One server: `registry` is the one whose credentials it gets, `host` its name with or without a port."""

    registry: str
    host: str
    schemes: tuple[str, ...]  # to be tried in this order

    def __str__(self) -> str:
        return self.host


@dataclass(frozen=True)
class Endpoints:
    """What the user allows. `mirrors` are URLs, `insecure` hosts with or without a port."""

    mirrors: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for mirror in self.mirrors:
            if why := _wrong_mirror(mirror):
                raise UsageError(f"{MIRRORS}: {why}")

    @classmethod
    def configured(cls) -> "Endpoints":
        """Those of the file and of the environment. Raises UsageError for what cannot be understood."""
        return cls(_entries(MIRRORS), _entries(INSECURE))

    def of(self, registry: str) -> tuple[Endpoint, ...]:
        """Where images of a registry are fetched from, in this order: the last is the registry itself."""
        mirrors = map(httpx.URL, self.mirrors if registry == DOCKER_HUB else ())
        return (*(Endpoint(_host(url), _host(url), (url.scheme,)) for url in mirrors), self.itself(registry))

    def itself(self, registry: str) -> Endpoint:
        """Where images of a registry are sent to. Raises UsageError for a name that is none."""
        if why := wrong_registry(registry):
            raise UsageError(why)
        host = HUB_HOST if registry == DOCKER_HUB else registry
        return Endpoint(registry, host, ("https", "http") if self.plain(httpx.URL(f"http://{host}")) else ("https",))

    def plain(self, url: httpx.URL) -> bool:
        """Whether this may be spoken to without encryption."""
        if is_loopback(url.host) or {url.host, _host(url)} & set(self.insecure):
            return True
        return any(_host(url) == _host(httpx.URL(mirror)) for mirror in self.mirrors if mirror.startswith("http:"))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by a name or address that nobody can give to another (RFC 6761, 6.3)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _entries(name: str) -> tuple[str, ...]:
    path = state.data_path() / FILE
    from_environment = (entry.strip() for entry in os.environ.get(VARIABLES[name], "").split(","))
    return (*_from_file(str(path), name), *filter(None, from_environment))


def _from_file(path: str, name: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            entries = json.load(file).get(name, [])
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path}: this is no JSON object: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UsageError(f"{path}: {name}: an array of strings is needed")
    return entries


def _wrong_mirror(mirror: str) -> str | None:
    url = httpx.URL(mirror) if mirror.startswith(("http://", "https://")) else None
    # docker's rule; and a name and password would show up in every message.
    if url is None or not url.host or url.userinfo or url.raw_path != b"/":
        return "a mirror is a URL of a scheme, a host and nothing else, as in https://mirror.example:5000"
    return None


def _host(url: httpx.URL) -> str:
    return url.netloc.decode()
