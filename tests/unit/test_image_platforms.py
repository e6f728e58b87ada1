"""Platforms: Go's words and what others call them, what runs on what, and which of several images is taken."""

import platform as machine

import pytest

from kernel_lab import UsageError
from kernel_lab.images.descriptor import OCI_MANIFEST, Descriptor, Platform, digest_of
from kernel_lab.images.platforms import choose, fits, here, parse, words


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("LINUX/AMD64", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/arm64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("arm64/v8", "linux/arm64"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("windows/amd64", "windows/amd64"),
        ("linux/mips64le", "linux/mips64le"),
        ("linux/loongarch64", "linux/loong64"),
    ],
)
def test_what_a_word_means(text: str, means: str) -> None:
    assert words(parse(text)) == means
    assert parse(words(parse(text))) in (parse(text), Platform("arm64", "linux"))


@pytest.mark.parametrize(
    "text", ["", "/", "linux", "linux/", "/amd64", "linux/amd64/v3/x", "linux amd64", "vax", "arm/v7/x", "linux/amd64\n", "lïnux/amd64"]
)
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(UsageError, match="platform"):
        parse(text)


@pytest.mark.parametrize(
    ("uname", "means"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7"), ("i686", "linux/386"), ("riscv64", "linux/riscv64")],
)
def test_this_machine_in_gos_words(uname: str, means: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine", lambda: uname)
    assert words(here()) == means


@pytest.mark.parametrize(
    ("offered", "wanted", "runs"),
    [
        ("amd64", "amd64", True),
        ("amd64", "arm64", False),
        ("386", "amd64", False),
        ("windows/amd64", "linux/amd64", False),
        # A later variant has instructions that an earlier processor lacks (containerd's platforms, Only).
        ("linux/amd64/v3", "linux/amd64", False),
        ("linux/amd64/v1", "linux/amd64", True),
        ("linux/amd64", "linux/amd64/v3", True),
        ("linux/amd64/v2", "linux/amd64/v3", True),
        ("linux/arm", "linux/arm/v7", True),
        ("linux/arm", "linux/arm/v6", False),
        ("linux/arm/v6", "linux/arm/v7", True),
        ("linux/arm/v8", "linux/arm/v7", False),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm64/v9", "linux/arm64", False),
        ("linux/arm64/v8.1", "linux/arm64/v8.2", True),
        ("linux/riscv64/rva20u64", "linux/riscv64", False),
        ("linux/riscv64/rva20u64", "linux/riscv64/rva20u64", True),
    ],
)
def test_what_runs_on_what(offered: str, wanted: str, runs: bool) -> None:
    assert fits(parse(offered), parse(wanted)) is runs


def test_an_image_may_have_others_words() -> None:
    assert fits(Platform("aarch64", "linux"), parse("arm64")) and fits(Platform("arm", "linux", "7"), parse("arm/v7"))


def offer(*platforms: str | None) -> list[Descriptor]:
    read = [None if text is None else Platform(*text.split("/")[1:2], *text.split("/")[:1], *text.split("/")[2:]) for text in platforms]
    return [Descriptor(OCI_MANIFEST, digest_of(str(number).encode()), 1, platform=platform) for number, platform in enumerate(read)]


@pytest.mark.parametrize(
    ("offered", "wanted", "taken"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
        (["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/arm/v5", "linux/arm/v7"], "linux/arm/v6", 0),
        (["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"], "linux/amd64/v3", 2),
        (["linux/amd64/v3", "linux/amd64"], "linux/amd64", 1),
        (["unknown/unknown", "linux/amd64"], "linux/amd64", 1),
        (["unknown/unknown", "linux/arm64"], "linux/amd64", None),
        ([None], "linux/amd64", 0),
        ([None, "linux/amd64"], "linux/amd64", 1),
        ([None, None], "linux/amd64", None),
        ([], "linux/amd64", None),
    ],
)
def test_which_of_several_is_taken(offered: list[str | None], wanted: str, taken: int | None) -> None:
    several = offer(*offered)
    assert choose(several, parse(wanted)) == (None if taken is None else several[taken])
