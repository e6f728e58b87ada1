"""COPY, ADD and WORKDIR: which files come where, as what, and what is refused. No container is needed for any of it."""

import hashlib
import os
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from builds import TIME, USERS, File, Kitchen, archive, contents, layer
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_lab import UsageError
from kernel_lab.images.draft import Draft, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.snapshots import beside


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def copied(kitchen: Kitchen, *lines: str, base: str = "scratch") -> dict[str, File]:
    """The last layer of these instructions."""
    return layer(kitchen.build("\n".join([f"FROM {base}", *lines])).image)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("COPY a /x", {"x": "a"}),
        ("COPY a x", {"x": "a"}),
        ("COPY a /x/", {"x/a": "a"}),
        ("COPY a .", {"a": "a"}),
        ("COPY a x/.", {"x/a": "a"}),
        ("COPY a /x/../y", {"y": "a"}),
        ("COPY /a ./a ../a /x/", {"x/a": "a"}),
        ("COPY d /x", {"x/e/f": "d/e/f", "x/g": "d/g"}),
        ("COPY d/ /x/", {"x/e/f": "d/e/f", "x/g": "d/g"}),
        ("COPY d/e ./d/../a /x/", {"x/f": "d/e/f", "x/a": "a"}),
        ("COPY . /", {"a": "a", "b.txt": "b.txt", "d/e/f": "d/e/f", "d/g": "d/g"}),
        ("COPY ? /x/", {"x/a": "a", "x/e/f": "d/e/f", "x/g": "d/g"}),
        ("COPY *.txt /x/", {"x/b.txt": "b.txt"}),
        ("COPY *.txt /x", {"x": "b.txt"}),
        ("COPY d/*/f /x", {"x": "d/e/f"}),
        ("COPY [a-b]* /x/", {"x/a": "a", "x/b.txt": "b.txt"}),
        ("COPY [^a].* /x/", {"x/b.txt": "b.txt"}),
        ('COPY ["a", "/with space"]', {"with space": "a"}),
        ("COPY --exclude=*.txt --exclude=d/e . /x", {"x/a": "a", "x/d/g": "d/g"}),
        ("COPY --exclude=g d /x", {"x/e/f": "d/e/f"}),
        ("COPY --exclude=b* * /x/", {"x/a": "a", "x/e/f": "d/e/f", "x/g": "d/g"}),
        ("COPY --parents d/e/f a /x/", {"x/d/e/f": "d/e/f", "x/a": "a"}),
        ("COPY --parents d/./e/f /x/", {"x/e/f": "d/e/f"}),
        ("COPY --parents d/e /x/", {"x/d/e/f": "d/e/f"}),
        ("COPY --parents d/*/f /x/", {"x/d/e/f": "d/e/f"}),
        ("COPY --link a /x", {"x": "a"}),
        ("COPY <<E /x\n$one\nE", {"x": "\n"}),
        ("COPY <<'E' <<-F a /x/\n$one\nE\n\ttabs\nF", {"x/a": "a", "x/E": "$one\n", "x/F": "tabs\n"}),
        ("ADD a /x", {"x": "a"}),
    ],
)  # fmt: skip
def test_files_come_where_docker_has_them(instruction: str, expected: dict[str, str], kitchen: Kitchen) -> None:
    kitchen.write("a", "b.txt", "d/e/f", "d/g")
    assert contents(kitchen.build(f"FROM scratch\n{instruction}\n").image) == expected


def test_copied_files_are_roots_and_keep_modes_and_times(kitchen: Kitchen) -> None:
    kitchen.write("d/run", mode=0o4750)
    os.symlink("run", kitchen.context / "d/link")
    os.link(kitchen.context / "d/run", kitchen.context / "d/same")
    (kitchen.context / "d").chmod(0o700)
    kitchen.age(kitchen.context / "d/link", kitchen.context / "d")
    assert copied(kitchen, "COPY d /x/y") == {
        "x": File("directory", 0o755, (0, 0)),
        "x/y": File("directory", 0o755, (0, 0)),  # the directory itself is not copied
        "x/y/link": File("link", 0o777, (0, 0), "run"),
        "x/y/run": File("file", 0o4750, (0, 0), "d/run"),
        "x/y/same": File("hard link", 0o4750, (0, 0), "x/y/run"),
    }


@pytest.mark.parametrize(
    ("flags", "owner", "mode"),
    [
        ("--chown=app", (1000, 1001), 0o644),
        ("--chown=app:more", (1000, 1002), 0o644),
        ("--chown=7", (7, 7), 0o644),
        ("--chown=1000", (1000, 1000), 0o644),
        ("--chown=7:more", (7, 1002), 0o644),
        ("--chmod=755", (0, 0), 0o755),
        ("--chmod=04711 --chown=1:2", (1, 2), 0o4711),
    ],
)
def test_chown_and_chmod(flags: str, owner: tuple[int, int], mode: int, kitchen: Kitchen) -> None:
    kitchen.base("base", USERS)
    kitchen.write("d/f")
    made = copied(kitchen, f"COPY {flags} d /new/x", base="base")
    assert made["new/x/f"] == File("file", mode, owner, "d/f")
    assert made["new"].owner == made["new/x"].owner == owner and made["new/x"].mode == 0o755


def test_directories_of_the_image_stay_as_they_are(kitchen: Kitchen) -> None:
    tmp = tarfile.TarInfo("tmp")
    tmp.type, tmp.mode, tmp.uid, tmp.gid, tmp.mtime = tarfile.DIRTYPE, 0o1777, 5, 6, 42
    kitchen.base("base", {}, {}, tmp)
    kitchen.write("a")
    # They are in the archive, since other engines do not look them up below; and with them nothing else.
    assert copied(kitchen, "COPY a /tmp/", base="base") == {
        "tmp": File("directory", 0o1777, (5, 6), "", 42),
        "tmp/a": File("file", 0o644, (0, 0), "a"),
    }


def test_the_same_files_are_the_same_layer(kitchen: Kitchen, tmp_path: Path) -> None:
    kitchen.write("d/a", "d/b")
    first = kitchen.build("FROM scratch\nCOPY d /x/\n", cache=False).image
    second = kitchen.build("FROM scratch\nCOPY d /x/\n", cache=False).image
    assert first.layers == second.layers


def test_links_of_the_image_lead_where_they_would_in_a_container(kitchen: Kitchen) -> None:
    links = {"abs": "-> /real", "up": "-> ../../../real/up", "gone": "-> /later/on", "tofile": "-> file", "s/abs": "-> /real"}
    kitchen.base("base", {"real/": "", "file": "old", "s/": ""} | links)
    kitchen.write("a")
    assert contents(kitchen.build("FROM base\nCOPY a /abs/x\n").image) == {"real/x": "a"}
    assert contents(kitchen.build("FROM base\nCOPY a /s/abs/x\n").image) == {"real/x": "a"}
    assert contents(kitchen.build("FROM base\nCOPY a /abs/\n").image) == {"real/a": "a"}
    assert contents(kitchen.build("FROM base\nCOPY a /up/sub/\n").image) == {"real/up/sub/a": "a"}
    assert contents(kitchen.build("FROM base\nCOPY a /gone/\n").image) == {"later/on/a": "a"}
    assert contents(kitchen.build("FROM base\nCOPY a /tofile\n").image) == {"file": "a"}
    assert contents(kitchen.build("FROM base\nWORKDIR /abs\nCOPY a .\n").image) == {"real/a": "a"}


def test_a_link_in_a_circle_is_an_error(kitchen: Kitchen) -> None:
    kitchen.base("base", {"one": "-> two", "two": "-> one"})
    kitchen.write("a")
    with pytest.raises(UsageError, match="Dockerfile:2: COPY: /one/: leads through more than 40 links"):
        kitchen.build("FROM base\nCOPY a /one/\n")


def test_nothing_outside_the_context_is_copied(kitchen: Kitchen, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    kitchen.write("in")
    for name, target in (("abs", "/in"), ("out", "../secret"), ("deep", f"{'../' * 30}{tmp_path}/secret"), ("host", "/etc/passwd")):
        os.symlink(target, kitchen.context / name)
    assert contents(kitchen.build("FROM scratch\nCOPY abs /x\n").image) == {"x": "in"}  # / is the context
    for name in ("out", "deep", "host"):
        with pytest.raises(UsageError, match=f"Dockerfile:2: COPY: /{name}: a link to"):
            kitchen.build(f"FROM scratch\nCOPY {name} /x\n")
    with pytest.raises(UsageError, match="there is no such file"):
        kitchen.build("FROM scratch\nCOPY ../secret /x\n")
    # As they are, links are copied with the directory that they are in.
    assert contents(kitchen.build("FROM scratch\nCOPY . /x\n").image)["x/host"] == "/etc/passwd"


@pytest.mark.parametrize(
    ("instruction", "why"),
    [
        ("COPY missing /x", "missing: there is no such file$"),
        ("COPY no*thing /x", r"no\*thing: there is no such file$"),
        ("COPY a d /x", "/x: several files or directories"),
        ("COPY [ad]* /x", "/x: several files or directories"),
        ("COPY --chown=nobody-knows a /x", "user 'nobody-knows'"),
        ("COPY --chown=app:nobody-knows a /x", "group 'nobody-knows'"),
        ("COPY --chown=app: a /x", "--chown=app:: it is written USER or USER:GROUP"),
        ("COPY --chmod=a+x a /x", r"--chmod=a\+x: it is an octal number"),
        ("COPY --chmod=77777 a /x", "octal"),
        ("COPY d /file", "/file: is no directory in the image"),
        ("COPY a /file/x", "/file: is no directory in the image"),
        ("COPY d /", "/e: what is copied there is a directory, and in the image it is no directory"),
        ("COPY a /", "/a: what is copied there is no directory, and in the image it is one"),
        ("COPY up /", "/n/m: what is copied there is a directory"),
        ("COPY .wh.a /", "/.wh.a: no file of a layer can have a name that begins"),
        ("COPY --from=none a /x", "'none': there is no image of this name"),
        ("ADD --checksum=sha256:0 a /x", "--checksum is for what is fetched"),
        ("ADD ftp://host.invalid/a /x", "ADD fetches files by HTTP"),
        ("ADD https://host.invalid/a.git /x", "ADD fetches files by HTTP"),
        ("ADD http://host.invalid/ /x/", "ends with no name"),
        ("WORKDIR /file/x", "/file: is no directory in the image"),
        ("USER nobody-knows\nWORKDIR /new", "user 'nobody-knows'"),
    ],
)
def test_what_is_refused_says_where_and_why_and_leaves_nothing(instruction: str, why: str, kitchen: Kitchen) -> None:
    kitchen.base("base", {**USERS, "file": "", "e": "", "a/": "", "n/": "", "n/m": ""})
    kitchen.write("a", "d/e/f", ".wh.a", "up/n/m/f")
    before = kitchen.store.images()
    with pytest.raises(UsageError) as error:
        kitchen.build(f"FROM base\n{instruction}\n")
    line = 1 + len(instruction.splitlines())
    assert str(error.value).startswith(f"Dockerfile:{line}: {instruction.splitlines()[-1].split()[0]}: ")
    assert why.rstrip("$").replace("\\", "") in str(error.value)
    if line == 2:
        assert kitchen.store.images() == before
    assert kitchen.store.verify() == {} and kitchen.store.prune() == ((), ())
    assert not list((kitchen.context.parent / "builds").iterdir())


def test_what_dockerignore_excludes_is_not_there(kitchen: Kitchen) -> None:
    kitchen.write("a", "b.log", "d/c.log", "d/keep.log", "e/f")
    kitchen.write(**{".dockerignore": "**/*.log\n!d/keep.log\ne\n"})
    assert set(contents(kitchen.build("FROM scratch\nCOPY . /\n").image)) == {".dockerignore", "a", "d/keep.log"}
    with pytest.raises(UsageError, match=r"b\.log: there is no such file; see whether \.dockerignore excludes it"):
        kitchen.build("FROM scratch\nCOPY b.log /\n")


def test_a_socket_is_left_out_and_said_so(kitchen: Kitchen) -> None:
    kitchen.write("d/a")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(kitchen.context / "d/socket"))
    assert list(copied(kitchen, "COPY d /x")) == ["x", "x/a"]
    assert "/d/socket: a socket, which no archive can have, is left out\n" in kitchen.output


# Of stages and images.


def test_files_of_a_stage_and_an_image_keep_their_owners(kitchen: Kitchen) -> None:
    mine = tarfile.TarInfo("d/mine")
    mine.uid, mine.gid, mine.mtime = 1000, 1001, TIME
    kitchen.base("base", {"d/": "", "link": "-> /d"}, {}, mine)
    kitchen.write("a")
    text = "FROM base AS one\nCOPY a /d/a\nCOPY --chown=5:6 a /d/b\nFROM scratch\nCOPY --from={0} /link/ /x/\n"
    for origin in ("one", "0"):
        made = layer(kitchen.build(text.format(origin)).image)
        assert {name: file.owner for name, file in made.items()} == {"x": (0, 0), "x/a": (0, 0), "x/b": (5, 6), "x/mine": (1000, 1001)}
    made = copied(kitchen, "COPY --from=base --chown=7:8 /d/m* /x/")
    assert made["x/mine"].owner == (7, 8) and list(made) == ["x", "x/mine"]


def test_a_whiteout_counts_when_files_are_copied_from_an_image(kitchen: Kitchen) -> None:
    kitchen.base("base", {"d/": "", "d/a": "a", "d/b": "b"})
    with kitchen.store.adding() as adding:
        top = put_layer(adding, [archive({"d/.wh.a": "", "d/c": "c"})])
        Draft.on(Image.find(kitchen.store, "base")).with_layer(top).put(adding, "less")
    assert contents(kitchen.build("FROM scratch\nCOPY --from=less /d /x\n").image) == {"x/b": "b", "x/c": "c"}


# Archives.


def test_add_unpacks_an_archive_by_what_is_in_it(kitchen: Kitchen) -> None:
    owned = tarfile.TarInfo("./d/owned")
    owned.mode, owned.uid, owned.gid, owned.mtime = 0o4755, 7, 8, TIME
    hard = tarfile.TarInfo("d/hard")
    hard.type, hard.linkname, hard.mtime = tarfile.LNKTYPE, "./d/owned", TIME
    (kitchen.context / "data").write_bytes(archive({"./": "", "./d/": "", "d/f": "f", "l": "-> d/f"}, owned, hard))
    (kitchen.context / "no.tar").write_text("no archive")
    made = copied(kitchen, "ADD data /x")
    assert made == {
        "x": File("directory", 0o755, (0, 0), "", made["x"].mtime),
        "x/d": File("directory", 0o755, (0, 0)),
        "x/d/f": File("file", 0o644, (0, 0), "f"),
        "x/l": File("link", 0o777, (0, 0), "d/f"),
        "x/d/owned": File("file", 0o4755, (7, 8)),
        "x/d/hard": File("hard link", 0o644, (0, 0), "x/d/owned"),
    }
    assert contents(kitchen.build("FROM scratch\nADD no.tar /x/\n").image) == {"x/no.tar": "no archive"}
    assert list(contents(kitchen.build("FROM scratch\nCOPY data /x/\n").image)) == ["x/data"]
    assert {file.owner for file in copied(kitchen, "ADD --chown=1:2 data /x").values()} == {(1, 2)}


def test_an_archive_goes_through_links_inside_the_root_alone(kitchen: Kitchen, tmp_path: Path) -> None:
    kitchen.base("base", {"usr/": "", "usr/lib/": "", "lib": "-> usr/lib", "host": f"-> {tmp_path}"})
    (kitchen.context / "a.tar").write_bytes(archive({"lib/new": "1", "host/evil": "2", "own": "-> ../../../../elsewhere", "own/evil": "3"}))
    image = kitchen.build("FROM base\nADD a.tar /\n").image
    where = str(tmp_path).lstrip("/")
    assert contents(image) == {"usr/lib/new": "1", f"{where}/evil": "2", "own": "../../../../elsewhere", "elsewhere/evil": "3"}
    directory = beside(kitchen.store).directories(image)[0]
    assert (directory / "elsewhere/evil").read_text() == "3" and not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["../up", "a/../../up"])
def test_an_archive_that_leads_out_is_refused(name: str, kitchen: Kitchen) -> None:
    (kitchen.context / "a.tar").write_bytes(archive({name: "1"}))
    with pytest.raises(UsageError, match=r"Dockerfile:2: ADD: .*goes up by '\.\.'"):
        kitchen.build("FROM scratch\nADD a.tar /x\n")


def test_an_archive_replaces_what_is_in_its_way(kitchen: Kitchen) -> None:
    kitchen.base("base", {"file": "old", "d/": "", "d/inner": "", "link": "-> /d"})
    (kitchen.context / "a.tar").write_bytes(archive({"file/": "", "file/new": "1", "d": "now a file", "link/": "", "link/new": "2"}))
    image = kitchen.build("FROM base\nADD a.tar /\n").image
    top = beside(kitchen.store).directories(image)[0]
    assert (top / "file/new").read_text() == "1" and (top / "d").read_text() == "now a file" and (top / "link/new").read_text() == "2"


def test_a_sparse_file_of_an_archive_is_whole(kitchen: Kitchen, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    subprocess.run(["tar", "-C", tmp_path, "--sparse", "-cf", kitchen.context / "a.tar", "sparse"], check=True)
    image = kitchen.build("FROM scratch\nADD a.tar /\n").image
    assert contents(image)["sparse"] == "\0" * (1 << 20) + "end"


# Addresses.


class Server(HTTPServer):
    asked = 0


@pytest.fixture
def address() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.asked += 1  # type: ignore[attr-defined]
            if self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", "/file.tar")
            elif self.path.startswith("/file"):
                self.send_response(200)
                self.send_header("Last-Modified", "Fri, 14 Jul 2017 02:40:00 GMT")
            else:
                self.send_response(404)
            self.end_headers()
            if self.path.startswith("/file"):
                self.wfile.write(archive({"inner": "1"}))

        def log_message(self, *words: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_add_fetches_what_is_at_an_address_and_unpacks_nothing(address: str, kitchen: Kitchen) -> None:
    made = copied(kitchen, f"ADD {address}/file.tar?x=1 {address}/moved%2Fname /x/")
    assert list(made) == ["x", "x/file.tar", "x/name"]
    assert made["x/file.tar"].mode == 0o600 and made["x/file.tar"].mtime == TIME and made["x/file.tar"].content.startswith("inner")
    right = f"sha256:{hashlib.sha256(archive({'inner': '1'})).hexdigest()}"
    assert list(copied(kitchen, f"ADD --checksum={right} --chmod=644 {address}/file.tar /y")) == ["y"]
    again = kitchen.build(f"FROM scratch\nADD {address}/file.tar?x=1 {address}/moved%2Fname /x/\n")
    assert again.steps[1].cached
    wrong = f"--checksum=sha256:{'0' * 64}"
    for line, why in ((f"ADD {address}/none /x", "the server says 404"), (f"ADD {wrong} {address}/file.tar /y", "has the checksum")):
        with pytest.raises(UsageError, match=f"Dockerfile:2: ADD: .*{why}"):
            kitchen.build(f"FROM scratch\n{line}\n")
    with pytest.raises(UsageError, match=r"Dockerfile:2: ADD: http://127\.0\.0\.1:1/x: "):
        kitchen.build("FROM scratch\nADD http://127.0.0.1:1/x /x\n")


# WORKDIR.


def test_workdir_is_made_and_is_the_users(kitchen: Kitchen) -> None:
    kitchen.base("base", USERS | {"there/": ""})
    made = kitchen.build("FROM base\nUSER app\nWORKDIR /there\nWORKDIR new/sub\n")
    assert made.steps[2].layer is None  # it was there
    owners = {name: file.owner for name, file in layer(made.image).items()}
    assert owners == {"there": (0, 0), "there/new": (1000, 1001), "there/new/sub": (1000, 1001)}
    assert made.image.settings["WorkingDir"] == "/there/new/sub"


# Whatever is copied, an unpacked image has it.

characters = st.characters(codec="utf-8", exclude_characters="/\0")
names = st.text(characters, min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))


@given(st.dictionaries(st.lists(names, min_size=1, max_size=3).map(tuple), st.binary(max_size=2000), max_size=6))
@settings(max_examples=40)
def test_a_tree_comes_out_as_it_went_in(tmp_path_factory: pytest.TempPathFactory, files: dict[tuple[str, ...], bytes]) -> None:
    kitchen = Kitchen(tmp_path_factory.mktemp("kitchen"))
    for parts, content in files.items():
        path = kitchen.context.joinpath("top", *parts)
        if not any(above.is_file() for above in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (kitchen.context / "top").mkdir(exist_ok=True)
    image = kitchen.build("FROM scratch\nCOPY top /top\n").image
    unpacked = beside(kitchen.store).directories(image)[0]
    assert found(unpacked / "top") == found(kitchen.context / "top")


def found(top: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in top.rglob("*")}
