"""What .dockerignore leaves out: each kind of pattern, their order, what a walk of a directory finds, and what docker's client sends."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images.dockerignore import Ignore, patterns

PARTS = ("*", "**", "?", "/", "/", "a", "b", "c", ".x", ".", "..", "[ab]", "[^a]", "[b-c]", "\\*", "!", "-", "$", "(", "+", " ")
files = st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join), max_size=4).map("\n".join)
names = st.sampled_from(["a", "b", "c", "ab", "a.x", "b.x", "*", "-", "$"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("text", "excluded", "kept"),
    [
        ("", [], ["a", "a/b"]),
        ("a", ["a", "a/b", "a/b/c"], ["b", "b/a", "ab"]),
        ("a/b", ["a/b", "a/b/c"], ["a", "b", "a/c", "c/a/b"]),
        # All that is no part of a pattern: slashes around it, spaces, comments, empty lines, a byte order mark.
        ("/a", ["a"], ["b/a"]),
        ("a/", ["a", "a/b"], []),
        ("./a//b/../c/", ["a/c"], ["a/b"]),
        (" a \t\r\n\n\nb", ["a", "b"], ["c"]),
        ("#a\n #b", ["#b"], ["a", "#a", "b"]),
        ("\ufeffa", ["a"], []),
        ("a b", ["a b"], ["a", "b"]),
        (".", [], ["a"]),
        ("/", [], ["a"]),
        ("../a", [], ["a"]),
        # Within one name.
        ("*", ["a", ".a", "a/b"], []),
        ("*.x", ["a.x", ".x", "a.x/b"], ["b/a.x", "a.xy"]),
        ("a?c", ["abc"], ["ac", "a/c", "abbc"]),
        ("*/a", ["b/a", "b/a/c"], ["a", "b/c/a"]),
        ("[ab]c", ["ac", "bc"], ["cc", "abc"]),
        ("[^a]c", ["bc"], ["ac", "c"]),
        ("[b-d]", ["b", "c", "d"], ["a", "e"]),
        ("\\*", ["*"], ["a"]),
        ("\\!a", ["!a"], ["a"]),
        ("[*]a", ["*a"], ["ba"]),
        ("a.x(1)+$", ["a.x(1)+$"], ["aax(1)+$"]),
        ("{a,b}", ["{a,b}"], ["a"]),
        # Any number of directories.
        ("**", ["a", "a/b"], []),
        ("**/a", ["a", "b/a", "b/c/a", "b/a/c"], ["ba", "b/ba"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab"]),
        ("a/**/b", ["a/b", "a/c/b", "a/c/d/b"], ["b", "a", "a/cb"]),
        ("**/*.x", ["a.x", "b/a.x"], ["a.y"]),
        ("**.x", ["a.x", "b/a.x", ".x"], ["a.xy"]),
        ("**/a/**", ["a/b", "c/a/b"], ["a", "c/a"]),
        ("a**", ["a", "ab", "a/b"], ["b"]),
        # What is taken back, and the last that counts.
        ("*\n!a", ["b", "b/a"], ["a", "a/b"]),
        ("!a\n*", ["a", "b"], []),
        ("a\n!a/b\na/b/c", ["a", "a/c", "a/b/c"], ["a/b", "a/b/d"]),
        ("*.x\n!a*.x\nab.x", ["b.x", "ab.x"], ["ac.x"]),
        ("a\n! /a/b/", ["a/c"], ["a/b"]),
        ("**\n!**/*.x", ["a", "b/a"], ["a.x", "b/a.x"]),
    ],
)
def test_patterns_leave_out(text: str, excluded: list[str], kept: list[str]) -> None:
    ignore = Ignore.parse(text)
    assert [path for path in (*excluded, *kept) if ignore.excludes(path)] == excluded


@pytest.mark.parametrize("line", ["!", "! ", "!/", "[", "[]", "[a", "[]a]", "[-a]", "[a-]", "[b-a]", "a\\", "!a[", "[^]"])
def test_what_is_no_pattern_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(UsageError) as refused:
        Ignore.parse(f"a\n\n{line}\n", "my.dockerignore")
    assert str(refused.value).startswith(f"my.dockerignore:3: {line.strip()!r}: ")


def test_patterns_stand_elsewhere_too() -> None:
    assert [path for path in ("a.o", "b/a.o", "c") if patterns(["**/*.o", "!b"], "COPY").excludes(path)] == ["a.o"]


@given(text=files | st.text(max_size=20), path=paths)
def test_any_text_is_read_or_refused(text: str, path: str) -> None:
    try:
        ignore = Ignore.parse(text)
    except UsageError as error:
        assert str(error).startswith(".dockerignore:")
    else:
        assert ignore.excludes(path) in (True, False)


@given(path=paths)
def test_a_path_that_is_escaped_is_a_pattern_of_itself(path: str) -> None:
    ignore = Ignore.parse("".join(char if char in "/abcx" else f"\\{char}" for char in path))
    assert ignore.excludes(path) and ignore.excludes(f"{path}/inner") and not ignore.excludes(f"{path}_")


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path)
    return root


def test_the_file_beside_the_dockerfile_comes_before_that_of_the_context(tmp_path: Path) -> None:
    context = tree(tmp_path / "context", "a", "b", "c")
    dockerfiles = tree(tmp_path / "dockerfiles", "Dockerfile", "Dockerfile.dev")
    assert list(Ignore.read(context, dockerfiles / "Dockerfile").walk(context)) == ["a", "b", "c"]
    (context / ".dockerignore").write_text("a")
    (dockerfiles / "Dockerfile.dev.dockerignore").write_text("b")
    assert list(Ignore.read(context).walk(context)) == [".dockerignore", "b", "c"]
    assert list(Ignore.read(context, dockerfiles / "Dockerfile").walk(context)) == [".dockerignore", "b", "c"]
    assert list(Ignore.read(context, dockerfiles / "Dockerfile.dev").walk(context)) == [".dockerignore", "a", "c"]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, ".dockerignore/")
    with pytest.raises(UsageError, match=r"\.dockerignore: Is a directory; it has to be a file"):
        Ignore.read(tmp_path)


def test_the_dockerfile_can_be_left_out_like_any_other(tmp_path: Path) -> None:
    tree(tmp_path, "Dockerfile", "a").joinpath(".dockerignore").write_text(".dockerignore\nDockerfile")
    assert list(Ignore.read(tmp_path).walk(tmp_path)) == ["a"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ["a", "a/b", "a/b/c", "a/d", "e", "l", "m"]),
        ("a", ["e", "l", "m"]),
        ("*\n!a/b/c", ["a", "a/b", "a/b/c"]),
        ("*\n!**/c", ["a", "a/b", "a/b/c"]),
        ("*\n!a/x", []),
        ("a/b\ne", ["a", "a/d", "l", "m"]),
        ("**/b/*\nl", ["a", "a/b", "a/d", "e", "m"]),
    ],
)
def test_a_walk_finds_what_is_left(tmp_path: Path, text: str, found: list[str]) -> None:
    tree(tmp_path, "a/b/c", "a/d", "e/")
    (tmp_path / "l").symlink_to("a")
    (tmp_path / "m").symlink_to("nowhere")
    assert list(Ignore.parse(text).walk(tmp_path)) == found


def test_a_directory_is_not_entered_for_nothing(tmp_path: Path) -> None:
    tree(tmp_path, "big/deep/a", "other/a")
    entered = []
    scandir = os.scandir
    try:
        os.scandir = lambda path: (entered.append(Path(path).name), scandir(path))[1]  # type: ignore[assignment]
        assert list(Ignore.parse("*\n!other/a").walk(tmp_path)) == ["other", "other/a"]
    finally:
        os.scandir = scandir
    assert entered == [tmp_path.name, "other"]


@given(text=files)
def test_a_walk_finds_what_is_left_of_all_paths(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "walked"
    tree(root, "a/a/b", "a/b.x", "b/c/a", "b/ab", "c", "a.x/")
    every = {str(path.relative_to(root)) for path in root.rglob("*")}
    try:
        ignore = Ignore.parse(text)
    except UsageError:
        return
    kept = {path for path in every if not ignore.excludes(path)}
    above = {str(parent) for path in kept for parent in Path(path).parents} - {"."}
    assert list(ignore.walk(root)) == sorted(kept | above, key=lambda path: path.split("/"))


class Daemon(ThreadingUnixStreamServer):
    """As much of docker's daemon as its client needs to send a context."""

    context = b""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Daemon

    def do_GET(self) -> None:
        self._answer(b"OK")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.server.context = content
        self._answer(b'{"stream": "done"}\n')

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        for name, value in (
            ("Api-Version", "1.41"),
            ("OSType", "linux"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(content))),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content if self.command != "HEAD" else b"")

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def daemon(path: Path) -> Iterator[Daemon]:
    with Daemon(str(path), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.needs("docker")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "*.x",
        "/a",
        "*/b*",
        "**/c",
        "**.x",
        "a/**",
        "a\n!a/b",
        "*\n!a/b/c\n!e.x",
        "a/b\n#e.x\n e.x ",
        "!a\n*",
        "[a-b]/[^b]*",
        "a/?\n!a/d",
        "\\*",
        "Dockerfile\n.dockerignore\n*.x",
    ],
)
def test_dockers_client_sends_the_same(tmp_path: Path, text: str) -> None:
    context = tree(tmp_path / "context", "a/b/c", "a/d", "a/bb.x", "b/c", "e.x", "*", "Dockerfile", ".dockerignore")
    (context / ".dockerignore").write_text(text)
    with daemon(tmp_path / "socket") as server:
        command = ["docker", "-H", f"unix://{tmp_path}/socket", "build", "-q", str(context)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DOCKER_BUILDKIT": "0"}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    with tarfile.open(fileobj=io.BytesIO(server.context)) as archive:
        sent = {member.name for member in archive if member.isfile()}
    ours = {path for path in Ignore.read(context).walk(context) if (context / path).is_file()}
    # The builder needs these two, so they are always sent, and only COPY does not see them.
    assert sent - {"Dockerfile", ".dockerignore"} == ours - {"Dockerfile", ".dockerignore"}
