"""An image's name: what is added to a short one, what is refused, and that the whole one means itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images.reference import Reference

HEX = "0123456789abcdef" * 4
SHA256, SHA512 = f"sha256:{HEX}", f"sha512:{HEX}{HEX}"

label = st.from_regex("[A-Za-z0-9]([A-Za-z0-9-]{0,5}[A-Za-z0-9])?", fullmatch=True)
host = st.lists(label, min_size=2, max_size=3).map(".".join) | st.sampled_from(["localhost", "index.docker.io", "docker.io", "[::1]:5000", "Host"])
registry = host | st.builds("{}:{}".format, label | host.filter(lambda name: ":" not in name), st.integers(0, 99999))
component = st.from_regex("[a-z0-9]{1,4}(([._]|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)
repository = st.lists(component, min_size=1, max_size=4).map("/".join)
tag = st.from_regex("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digest = st.from_regex("sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}", fullmatch=True)
references = st.builds(Reference, registry, repository, st.none() | tag, st.none() | digest)


@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/some/app", "docker.io/some/app:latest"),
        ("some/app", "docker.io/some/app:latest"),
        ("some/app/deep:t", "docker.io/some/app/deep:t"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost", "docker.io/library/localhost:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("host:5000/x", "host:5000/x:latest"),
        ("host:5000/x:y", "host:5000/x:y"),
        ("host.example/x", "host.example/x:latest"),
        ("Host/x", "Host/x:latest"),
        ("[2001:db8::1]/x", "[2001:db8::1]/x:latest"),
        ("[::1]:5000/x:t", "[::1]:5000/x:t"),
        ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest"),
        ("a.b", "docker.io/library/a.b:latest"),
        ("a__b--c---d.e_f", "docker.io/library/a__b--c---d.e_f:latest"),
        ("x:_._-", "docker.io/library/x:_._-"),
        (f"busybox@{SHA256}", f"docker.io/library/busybox@{SHA256}"),
        (f"busybox:1@{SHA512}", f"docker.io/library/busybox:1@{SHA512}"),
        (f"host:5000/x:1@{SHA256}", f"host:5000/x:1@{SHA256}"),
        (HEX[1:], f"docker.io/library/{HEX[1:]}:latest"),
        (f"{HEX}:x", f"docker.io/library/{HEX}:x"),
        (f"docker.io/library/{HEX}", f"docker.io/library/{HEX}:latest"),
        ("a" * 247, f"docker.io/library/{'a' * 247}:latest"),
        ("x:" + "t" * 128, "docker.io/library/x:" + "t" * 128),
    ],
)
def test_a_short_name_means_a_whole_one(typed: str, whole: str) -> None:
    assert str(Reference.parse(typed)) == whole


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("", "the repository's name is missing"),
        (":tag", "the repository's name is missing"),
        ("host:5000/", "the repository's name is missing"),
        (f"@{SHA256}", "the repository's name is missing"),
        ("Busybox", "in lower case: 'busybox'"),
        ("some/App:X", "in lower case: 'some/app'"),
        ("docker.io/Some/app", "in lower case: 'some/app'"),
        (HEX, "are an image's id"),
        ("a" * 248, "at most 255 characters, and this has 256"),
        ("x:" + "t" * 129, "at most 128 characters, and this has 129"),
        ("https://host/x", "leave https:// away"),
        ("a b", "'a b' in 'a b' is no component"),
        ("-a", "'-a' in '-a' is no component"),
        ("a_", "is no component"),
        ("a..b", "is no component"),
        ("a___b", "is no component"),
        ("a._b", "is no component"),
        ("a//b", "'' in 'a//b' is no component"),
        ("/a", "'' in '/a' is no component"),
        ("a/", "'' in 'a/' is no component"),
        ("é", "is no component"),
        ("busybox\n", "is no component"),
        ("a_b.c/x", "'a_b.c' is no registry"),
        ("host:port/x", "'host:port' is no registry"),
        ("-host.example/x", "'-host.example' is no registry"),
        ("host:/x", "'host:' is no registry"),
        ("[::1/x", "is no registry"),
        ("x:", "'' is no tag"),
        ("x:.a", "'.a' is no tag"),
        ("x:-a", "'-a' is no tag"),
        ("x:a:b", "'a:b' is no tag"),
        ("x:a\n", "is no tag"),
        ("x:٣", "is no tag"),
        ("x@", "'' is no digest"),
        (f"x@sha1:{HEX[:40]}", "sha256 or sha512"),
        (f"x@sha384:{HEX}{HEX[:32]}", "sha256 or sha512"),
        (f"x@{SHA256}0", "come 64 of 0-9 and a-f, and here are 65"),
        (f"x@{SHA256.upper()}", "sha256 or sha512"),
        (f"x@sha256:{HEX.upper()}", "come 64 of 0-9 and a-f"),
        (f"x@sha512:{HEX}", "come 128 of 0-9 and a-f, and here are 64"),
        (f"x@{SHA256}@{SHA256}", "is no digest"),
    ],
)
def test_what_is_no_name_is_refused(typed: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        Reference.parse(typed)
    assert str(refused.value).startswith(repr(typed)) and why in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("docker.io/library/busybox", "busybox:latest"),
        ("docker.io/some/app:1", "some/app:1"),
        ("docker.io/library/some/app:1", "library/some/app:1"),
        ("quay.io/library/busybox", "quay.io/library/busybox:latest"),
        ("localhost/x:1", "localhost/x:1"),
        (f"docker.io/library/busybox@{SHA256}", f"busybox@{SHA256}"),
        (f"busybox:1@{SHA256}", f"busybox:1@{SHA256}"),
    ],
)
def test_docker_shows_a_short_name(typed: str, shown: str) -> None:
    assert Reference.parse(typed).familiar == shown


@given(reference=references)
def test_a_whole_name_means_itself(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference


@given(reference=references.filter(lambda reference: "." not in reference.repository))  # docker's own short names can be ambiguous there
def test_what_docker_shows_means_the_same(reference: Reference) -> None:
    assert Reference.parse(reference.familiar) == reference


@given(text=st.text(max_size=12) | st.text("aA0._-:/@[]", max_size=12))
def test_any_text_is_a_name_or_a_usage_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except UsageError as error:
        assert repr(text) in str(error)
    else:
        assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize("registry", ["somebody", "", "a/b", "a_b"])
def test_a_registry_that_would_be_taken_for_a_repository_is_refused(registry: str) -> None:
    with pytest.raises(UsageError):
        Reference(registry, "x")


def test_parts_alone_are_completed_too() -> None:
    assert Reference("docker.io", "busybox") == Reference.parse("busybox")
    assert Reference.parse("busybox").name == "docker.io/library/busybox"
    assert Reference.parse(f"busybox@{SHA256}").tag is None
