"""How an image is called: `registry/repository:tag@digest`, and the shorter forms that people type.

The grammar, and what is added where something is left out, are those of github.com/distribution/reference, which docker and podman use; the
digests are the OCI image specification's (descriptor.md, "Digests").
"""

import re
from dataclasses import dataclass

from kernel_lab.kernel.errors import UsageError

DOCKER_HUB = "docker.io"
OFFICIAL = "library/"  # where the Hub keeps the repositories whose name has one component
LATEST = "latest"
HEX_DIGITS = {"sha256": 64, "sha512": 128}  # of the registered algorithms (descriptor.md)
LONGEST_REPOSITORY, LONGEST_TAG = 255, 128

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[A-Fa-f0-9:]+\])(?::[0-9]+)?")
_COMPONENT = re.compile("[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]*")
_IDENTIFIER = re.compile("[a-f0-9]{64}")


@dataclass(frozen=True)
class Reference:
    """A name of an image, whole: a name with neither tag nor digest means the tag `latest`.

    Raises UsageError for what the grammar does not allow.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        registry = DOCKER_HUB if self.registry == f"index.{DOCKER_HUB}" else self.registry
        object.__setattr__(self, "registry", registry)
        if registry == DOCKER_HUB and "/" not in self.repository:
            object.__setattr__(self, "repository", OFFICIAL + self.repository)
        if self.tag is None and self.digest is None:
            object.__setattr__(self, "tag", LATEST)
        if why := self._wrong():
            raise UsageError(why)

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """What a name means that somebody has typed: `busybox` is `docker.io/library/busybox:latest`."""
        if _IDENTIFIER.fullmatch(text):
            raise UsageError(f"{text!r}: 64 hexadecimal digits are an image's id, and no repository's name; for the id, write sha256:{text}")
        rest, at, digest = text.partition("@")
        head, slash, last = rest.rpartition("/")  # a colon before the last slash belongs to the registry's port
        last, colon, tag = last.partition(":")
        try:
            return cls(*_split(head + slash + last), tag if colon else None, digest if at else None)
        except UsageError as error:
            raise UsageError(f"{text!r}: {error}") from None

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """As docker shows it: what it would add by itself is left out, but for the tag."""
        return self.familiar_name + self._version()

    @property
    def familiar_name(self) -> str:
        """Registry and repository, as docker shows them."""
        if self.registry != DOCKER_HUB:
            return self.name
        official = self.repository.removeprefix(OFFICIAL)
        return self.repository if "/" in official else official

    def __str__(self) -> str:
        return self.name + self._version()

    def _version(self) -> str:
        return (f":{self.tag}" if self.tag is not None else "") + (f"@{self.digest}" if self.digest is not None else "")

    def _wrong(self) -> str | None:
        reasons = (
            wrong_registry(self.registry),
            wrong_repository(self.repository),
            None if self.tag is None else wrong_tag(self.tag),
            None if self.digest is None else wrong_digest(self.digest),
        )
        return next(filter(None, reasons), None)


def familiar(name: str) -> str:
    """A name as docker shows it; what is none, as it is."""
    try:
        return Reference.parse(name).familiar
    except UsageError:
        return name


def wrong_registry(registry: str) -> str | None:
    """What is wrong with it, in words."""
    if registry in ("http:", "https:"):
        return f"the name begins with the registry itself; leave {registry}// away"
    if not _REGISTRY.fullmatch(registry):
        return f"{registry!r} is no registry, which is a host's name or address with or without a port, as in registry.example:5000/busybox"
    if not _is_registry(registry):
        return f"{registry!r} would be taken for a part of the repository; write a registry with a dot or a port, as in {registry}:443"
    return None


def wrong_repository(repository: str) -> str | None:
    """What is wrong with it, in words."""
    if repository in ("", OFFICIAL):
        return "the repository's name is missing, as in busybox:latest"
    if repository != repository.lower():
        return f"a repository's name is in lower case: {repository.lower().removeprefix(OFFICIAL)!r}"
    if len(repository) > LONGEST_REPOSITORY:
        return f"a repository's name has at most {LONGEST_REPOSITORY} characters, and this has {len(repository)}"
    for component in repository.split("/"):
        if not _COMPONENT.fullmatch(component):
            what = f"{component!r} in {repository.removeprefix(OFFICIAL)!r} is no component of a repository's name"
            return f"{what}: letters a-z and digits, with one of . _ __ or any number of - only between them, as in my-app/web_2"
    return None


def wrong_tag(tag: str) -> str | None:
    """What is wrong with it, in words."""
    if len(tag) > LONGEST_TAG:
        return f"a tag has at most {LONGEST_TAG} characters, and this has {len(tag)}"
    if not _TAG.fullmatch(tag):
        return f"{tag!r} is no tag: letters, digits and any of _ . - but no . or - at the beginning, as in busybox:1.36"
    return None


def wrong_digest(digest: str) -> str | None:
    """What is wrong with it, in words."""
    algorithm, _, encoded = digest.partition(":")
    if algorithm not in HEX_DIGITS:
        return f"{digest!r} is no digest: sha256 or sha512, a colon, and the hexadecimal digits"
    digits = HEX_DIGITS[algorithm]
    if not re.fullmatch(f"[a-f0-9]{{{digits}}}", encoded):
        return f"{digest!r} is no digest: after {algorithm}: come {digits} of 0-9 and a-f, and here are {len(encoded)} characters"
    return None


def _split(name: str) -> tuple[str, str]:
    """Registry and repository; a name without a registry is the Hub's."""
    first, slash, rest = name.partition("/")
    return (first, rest) if slash and _is_registry(first) else (DOCKER_HUB, name)


def _is_registry(component: str) -> bool:
    """Whether the first component of a name is a registry: no repository's component has any of this."""
    return component == "localhost" or "." in component or ":" in component or component != component.lower()
