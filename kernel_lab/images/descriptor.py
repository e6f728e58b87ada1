"""What an image is made of, as JSON: descriptors, indexes, manifests, configurations (OCI image specification; docker's "schema 2" beside it).

Each of these says with a digest what it means, and is itself found by a digest: of its bytes, so that what was read is kept as it was. Fields that
are not known here are kept too. What has a wrong shape is refused with UsageError, which names the field.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kernel_lab.images.reference import wrong_digest
from kernel_lab.kernel.errors import UsageError

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = f"{OCI_LAYER}+gzip"
OCI_LAYER_ZSTD = f"{OCI_LAYER}+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = f"{DOCKER_LAYER}.gzip"
INDEXES = (OCI_INDEX, DOCKER_INDEX)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)

NAME = "org.opencontainers.image.ref.name"  # annotations.md; of a descriptor in an image layout's index.json
CONTAINERD_NAME = "io.containerd.image.name"

T = TypeVar("T")
Reader = Callable[[Any, str], T]  # of a JSON value, which takes its place in words for what it has to say about it
_REQUIRED: Any = object()


def digest_of(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def chain_ids(diff_ids: Iterable[str]) -> tuple[str, ...]:
    """The ChainID of each layer, which names it together with all below it, the lowest first (config.md, "Layer ChainID")."""
    chain: list[str] = []
    for own in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {own}".encode()) if chain else own)
    return tuple(chain)


@dataclass(frozen=True)
class Platform:
    """What an image runs on, in Go's words: amd64, arm64 (image-index.md)."""

    architecture: str
    os: str
    variant: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, value: Any, where: str = "platform") -> "Platform":
        fields = _Fields(value, where)
        return cls(fields.take("architecture", text), fields.take("os", text), fields.take("variant", text, None), fields.others)

    def json(self) -> dict[str, Any]:
        return _present(self.others, architecture=self.architecture, os=self.os, variant=self.variant)


@dataclass(frozen=True)
class Descriptor:
    """What some content is, its digest, and its size in bytes (descriptor.md)."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, value: Any, where: str = "descriptor") -> "Descriptor":
        fields = _Fields(value, where)
        return cls(
            fields.take("mediaType", text),
            fields.take("digest", digest),
            fields.take("size", number),
            fields.take("annotations", mapping(text), {}),
            fields.take("platform", Platform.read, None),
            fields.others,
        )

    @classmethod
    def of(cls, media_type: str, content: bytes) -> "Descriptor":
        """The descriptor of these bytes."""
        return cls(media_type, digest_of(content), len(content))

    def json(self) -> dict[str, Any]:
        platform = self.platform and self.platform.json()
        own = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return own | _present(self.others, annotations=self.annotations or None, platform=platform)


@dataclass(frozen=True)
class _Document:
    """JSON that is found by the digest of its bytes."""

    # No argument, and so not taken over by dataclasses.replace: something changed has other bytes.
    _read: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def raw(self) -> bytes:
        """The bytes that it was read from, or what is to be written."""
        # Sorted and without spaces: what is the same has the same digest.
        return self._read if self._read is not None else json.dumps(self.json(), sort_keys=True, separators=(",", ":")).encode()

    def json(self) -> dict[str, Any]:
        raise NotImplementedError

    def _of(self: T, raw: bytes) -> T:
        object.__setattr__(self, "_read", raw)
        return self


@dataclass(frozen=True)
class Index(_Document):
    """Manifests, or further indexes: of several platforms, or all that an image layout has (image-index.md)."""

    manifests: tuple[Descriptor, ...] = ()
    media_type: str | None = OCI_INDEX
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, raw: bytes, where: str = "index") -> "Index":
        fields = _versioned(raw, where, INDEXES, no=("config", "layers"))
        return cls(
            fields.take("manifests", listing(Descriptor.read), _REQUIRED, null=()),
            *_common(fields),
        )._of(raw)

    def json(self) -> dict[str, Any]:
        return _versioned_json(self, manifests=[descriptor.json() for descriptor in self.manifests])


@dataclass(frozen=True)
class Manifest(_Document):
    """An image of one platform: its configuration, and its layers, the lowest first (manifest.md; docker's "Image Manifest V 2, Schema 2")."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str | None = OCI_MANIFEST
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, raw: bytes, where: str = "manifest") -> "Manifest":
        fields = _versioned(raw, where, MANIFESTS, no=("manifests",))
        return cls(
            fields.take("config", Descriptor.read),
            fields.take("layers", listing(Descriptor.read), _REQUIRED, null=()),
            *_common(fields),
        )._of(raw)

    def json(self) -> dict[str, Any]:
        return _versioned_json(self, config=self.config.json(), layers=[layer.json() for layer in self.layers])


@dataclass(frozen=True)
class Config(_Document):
    """How an image is run, and how it came to be (config.md).

    `config` has the words of the specification: Entrypoint, Cmd, Env, User, WorkingDir and so on; so have the entries of `history`.
    """

    architecture: str
    os: str
    diff_ids: tuple[str, ...]
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    history: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    others: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, raw: bytes, where: str = "config") -> "Config":
        fields = _Fields(decoded(raw, where), where)
        rootfs = _Fields(fields.take("rootfs", anything), f"{where}: rootfs")
        if (kind := rootfs.take("type", text)) != "layers":
            raise UsageError(f"{where}: rootfs: type: {kind!r}; the specification has one type alone, layers")
        return cls(
            fields.take("architecture", text),
            fields.take("os", text),
            rootfs.take("diff_ids", listing(digest), _REQUIRED, null=()),
            fields.take("variant", text, None),
            fields.take("created", text, None),
            fields.take("author", text, None),
            fields.take("config", known(EXECUTION), {}),
            fields.take("history", listing(known(HISTORY)), ()),
            fields.others,
        )._of(raw)

    def json(self) -> dict[str, Any]:
        rootfs = {"type": "layers", "diff_ids": list(self.diff_ids)}
        own = {"architecture": self.architecture, "os": self.os, "rootfs": rootfs}
        said = {"variant": self.variant, "created": self.created, "author": self.author}
        return own | _present(self.others, **said, config=self.config or None, history=list(self.history) or None)


def anything(value: Any, where: str) -> Any:
    return value


def text(value: Any, where: str) -> str:
    return _kind(value, where, str, "a string")


def number(value: Any, where: str) -> int:
    # To Python, true is an integer.
    if isinstance(value, bool) or _kind(value, where, int, "a whole number") < 0:
        raise UsageError(f"{where}: {json.dumps(value)}; a whole number is needed, 0 or more")
    return int(value)


def truth(value: Any, where: str) -> bool:
    return _kind(value, where, bool, "true or false")


def digest(value: Any, where: str) -> str:
    if why := wrong_digest(text(value, where)):
        raise UsageError(f"{where}: {why}")
    return str(value)


def listing(reader: Reader[T]) -> Reader[tuple[T, ...]]:
    """A reader of an array."""

    def read(value: Any, where: str) -> tuple[T, ...]:
        return tuple(reader(item, f"{where}[{at}]") for at, item in enumerate(_kind(value, where, list, "an array")))

    return read


def mapping(reader: Reader[T]) -> Reader[Mapping[str, T]]:
    """A reader of an object whose names are free."""

    def read(value: Any, where: str) -> Mapping[str, T]:
        return {name: reader(item, f"{where}: {name}") for name, item in _kind(value, where, dict, "an object").items()}

    return read


def known(readers: Mapping[str, Reader[Any]]) -> Reader[Mapping[str, Any]]:
    """A reader of an object that is kept as it is, once the fields that are known have the right shapes."""

    def read(value: Any, where: str) -> Mapping[str, Any]:
        fields = _Fields(value, where)
        for name, reader in readers.items():
            fields.take(name, reader, None)
        return dict(value)

    return read


EXECUTION: Mapping[str, Reader[Any]] = {
    "User": text,
    "ExposedPorts": mapping(anything),
    "Env": listing(text),
    "Entrypoint": listing(text),
    "Cmd": listing(text),
    "Volumes": mapping(anything),
    "WorkingDir": text,
    "Labels": mapping(text),
    "StopSignal": text,
}
HISTORY: Mapping[str, Reader[Any]] = {"created": text, "created_by": text, "author": text, "comment": text, "empty_layer": truth}


class _Fields:
    """A JSON object whose fields are taken one by one; `others` are those that nobody has taken."""

    def __init__(self, value: Any, where: str) -> None:
        self.others = dict(_kind(value, where, dict, "an object"))
        self.where = where

    def take(self, name: str, reader: Reader[T], default: Any = _REQUIRED, null: Any = None) -> T:
        """The field, read. One that is null is none: Go's programs write an empty list so, which is then `null`."""
        there = name in self.others
        value = self.others.pop(name, None)
        if value is not None:
            return reader(value, f"{self.where}: {name}")
        if there and null is not None:
            return null  # type: ignore[no-any-return]
        if default is _REQUIRED:
            raise UsageError(f"{self.where}: {name} is missing")
        return default  # type: ignore[no-any-return]


def _versioned(raw: bytes, where: str, media_types: tuple[str, ...], no: tuple[str, ...]) -> _Fields:
    """The fields of an index or a manifest, without the version."""
    fields = _Fields(decoded(raw, where), where)
    if (version := fields.take("schemaVersion", number)) != 2:
        raise UsageError(f"{where}: schemaVersion: {version}; only 2 is understood")
    media_type = fields.others.get("mediaType")
    if media_type is not None and media_type not in media_types:
        raise UsageError(f"{where}: mediaType: {json.dumps(media_type)}; here it is one of {', '.join(media_types)}")
    # What could be read as either would have one digest and two meanings (CVE-2021-41190; manifest.md).
    if both := [name for name in no if name in fields.others]:
        raise UsageError(f"{where}: {both[0]}: no document has the fields of a manifest and of an index")
    return fields


def _common(fields: _Fields) -> tuple[str | None, Mapping[str, str], Mapping[str, Any]]:
    """What an index and a manifest both have, and what is not known: to be taken last."""
    return fields.take("mediaType", text, None), fields.take("annotations", mapping(text), {}), fields.others


def _versioned_json(document: Index | Manifest, **own: Any) -> dict[str, Any]:
    annotations = document.annotations or None
    return _present(document.others, schemaVersion=2, mediaType=document.media_type, annotations=annotations, **own)


def decoded(raw: bytes, where: str) -> Any:
    """What a JSON document says."""
    try:
        return json.loads(raw.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: this is no JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is Python's and JavaScript's alone")


def _kind(value: Any, where: str, kind: type[T], words: str) -> T:
    if not isinstance(value, kind):
        shown = json.dumps(value)
        raise UsageError(f"{where}: {shown if len(shown) <= 60 else f'{shown[:57]}...'}; {words} is needed")
    return value


def _present(others: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The fields that are there, and those that are not known here."""
    return {name: value for name, value in fields.items() if value is not None} | dict(others)
