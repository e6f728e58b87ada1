"""The same Dockerfiles built by the kit and by buildah: the same files, owners, modes, times and settings.

Both images are unpacked by containers/storage, so that nothing of the kit's reads what is compared. Where buildah differs from docker, DIFFERENCES
says so, and the kit is with docker.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kernel_lab.images import base
from kernel_lab.images.build import build
from kernel_lab.images.store import Store

DOCKERFILES = Path(__file__).parents[1] / "dockerfiles"
TIME = 1_500_000_000
SETTINGS = ("Env", "Cmd", "Entrypoint", "WorkingDir", "User", "ExposedPorts", "Volumes", "Labels", "StopSignal", "Healthcheck", "OnBuild", "Shell")
ARGS = {"02_environment": {"GIVEN": "given"}}
DEBIAN = ("19_python", "20_static_c")
# What buildah mounts on while RUN works stays in the image, empty.
STUBS = ("dev", "etc/hostname", "etc/hosts", "etc/resolv.conf")

pytestmark = [pytest.mark.needs("root", "buildah", "skopeo"), pytest.mark.slow]


class Difference(NamedTuple):
    """Of a Dockerfile: a file or a setting, and what both have; `why`: whose way is docker's."""

    dockerfile: str
    what: str
    ours: Any
    theirs: Any
    why: str


DIFFERENCES = [
    Difference("10_shells", "Cmd", ["/bin/busybox", "sh", "-c", "with the other shell"], ["/bin/sh", "-c", "with the other shell"],
               "SHELL counts for CMD (dockerfile reference, SHELL); this buildah asks it for RUN alone"),
    Difference("10_shells", "Entrypoint", ["/bin/sh", "-e", "-u", "-c", "exec cat"], ["/bin/sh", "-c", "exec cat"], "and for ENTRYPOINT"),
    Difference("11_settings", "ExposedPorts", ["443/tcp", "53/udp", "80/tcp", "8000/tcp", "8001/tcp", "8002/tcp"],
               ["443/tcp", "53/udp", "80/tcp", "8000-8002/tcp"], "a range is so many ports (go-connections, nat.ParsePortSpec)"),
    Difference("12_links", "link-to-target", ("lrwxrwxrwx", b"/target"), ("-rw-r--r--", "file"),
               "a destination that is a link leads to what is written (classic: FollowSymlinkInScope; BuildKit: fs.RootPath)"),
    Difference("12_links", "target", ("-rw-r--r--", "file"), ("-rw-r--r--", "old"), "so this is what changes"),
    Difference("16_files", "copied/suid", ("-rwsr-sr-x", "x"), ("-rwxr-xr-x", "x"), "docker keeps these bits, buildah takes them away in a context"),
    Difference("16_files", "again/suid", ("-rwsr-sr-x", "x"), ("-rwxr-xr-x", "x"), "and in a copy of the copy"),
]  # fmt: skip


class Buildah:
    """In a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.options = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
        self.storage = f"containers-storage:[vfs@{folder / 'root'}+{folder / 'run'}]"

    def __call__(self, *words: str | Path) -> str:
        return said("buildah", *self.options, *words)

    def take(self, store: Store, name: str) -> None:
        said("skopeo", "copy", "-q", f"oci:{store.path}:docker.io/{name}:latest", f"{self.storage}localhost/{name.removeprefix('library/')}")

    def build(self, context: Path, name: str, args: Mapping[str, str]) -> None:
        # Isolation chroot has no network but the host's; an OCI image has no HEALTHCHECK.
        options = ["--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker", "--no-cache", "--identity-label=false"]
        self("build", *options, *(f"--build-arg={name}={value}" for name, value in args.items()), "-t", name, context)

    def root(self, name: str) -> Path:
        return Path(self("mount", self("from", "--pull-never", f"localhost/{name}").strip()).strip())

    def config(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(said("skopeo", "inspect", "--config", "--raw", f"{self.storage}localhost/{name}"))
        return config

    def forget(self) -> None:
        self("rm", "--all")
        self("rmi", "--all", "--force")


def said(*words: str | Path) -> str:
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, f"{' '.join(map(str, words))}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("kit") / "images")
    base.make("busybox", made)
    return made


@pytest.fixture(scope="module")
def buildah(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    made = Buildah(tmp_path_factory.mktemp("buildah"))
    made.take(store, "library/busybox")
    yield made
    made.forget()


@pytest.fixture(scope="module")
def debian(store: Store, buildah: Buildah) -> None:
    base.make("debian", store, "debian")
    buildah.take(store, "library/debian")


def archives(context: Path) -> None:
    tree = context / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d").chmod(0o700)
    for name in ("f", "d/g"):
        (tree / name).write_text(name)
    os.chown(tree / "d/g", 5, 6)
    os.link(tree / "f", tree / "hard")
    os.symlink("f", tree / "soft")
    for name, mode in (("plain.tar", "w"), ("gzip.tgz", "w:gz"), ("bzip2.data", "w:bz2"), ("xz.tar.xz", "w:xz")):
        with tarfile.open(context / name, mode) as written:
            written.add(tree, ".")
    shutil.rmtree(tree)


def links(context: Path) -> None:
    for name, target in (
        ("link-to-file", "tree/../file"),
        ("link-to-directory", "/tree"),
        ("tree/outside", "/etc/passwd"),
        ("tree/inner", "sub"),
    ):
        os.symlink(target, context / name)


def modes(context: Path) -> None:
    (context / "tree/run.sh").chmod(0o755)
    (context / "tree/closed").chmod(0o700)


def kinds(context: Path) -> None:
    for name in ("plain", "long" * 50, "new\nline", "sp ace", "ünï", "\udcff\udcfe", "suid", "closed"):
        (context / name).write_text(name[:1].encode("ascii", "replace").decode())
    (context / "empty").touch()
    (context / "suid").write_text("x")
    (context / "suid").chmod(0o6755)
    (context / "closed").chmod(0)
    os.link(context / "plain", context / "hard")
    os.symlink("nowhere", context / "dangling")
    os.setxattr(context / "plain", "user.note", b"value")
    os.mkfifo(context / "fifo")
    (context / "sticky").mkdir()
    (context / "sticky").chmod(0o1777)


# What no repository keeps.
PREPARED: Mapping[str, Callable[[Path], None]] = {"08_archives": archives, "12_links": links, "13_owners": modes, "16_files": kinds}


def prepared(name: str, context: Path) -> Path:
    """The context of a Dockerfile: the same on every machine, whatever the umask is there."""
    shutil.copytree(DOCKERFILES / name, context)
    for path in context.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    PREPARED.get(name, lambda context: None)(context)
    for path in (context, *context.rglob("*")):
        os.utime(path, (TIME, TIME), follow_symlinks=False)
    return context


def files(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything of every file: kind and mode, content or where it leads, owner, attributes, its other name, and its time if it has been copied."""
    found: dict[str, tuple[Any, ...]] = {}
    names: dict[tuple[int, int], str] = {}
    top = os.fsencode(root)
    for directory, inner, others in os.walk(top):
        for name in (b"", *inner, *others):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            where = os.fsdecode(os.path.relpath(path, top))
            content: object = status.st_rdev
            other = None
            if stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
                other = names.setdefault((status.st_dev, status.st_ino), where) if status.st_nlink > 1 else None
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
            time = status.st_mtime if status.st_mtime == TIME and not stat.S_ISDIR(status.st_mode) else None
            found[where] = (stat.filemode(status.st_mode), _short(content), status.st_uid, status.st_gid, attributes, other, time)
    return found


def _short(content: object) -> object:
    if not isinstance(content, bytes) or len(content) < 200:
        return content
    return hashlib.sha256(content).hexdigest()


def differences(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is different, but for what DIFFERENCES has of it."""
    found = {what: (ours.get(what), theirs.get(what)) for what in sorted(ours.keys() | theirs.keys()) if ours.get(what) != theirs.get(what)}
    for known in (known for known in DIFFERENCES if known.dockerfile == name and known.what in found):
        both = found.pop(known.what)
        for has, said_ in zip(both, (known.ours, known.theirs), strict=True):
            assert _plain(has) == _plain(said_), known
    return found


def _plain(value: Any) -> Any:
    """Of a file its mode and its content; of a set of names, these."""
    if isinstance(value, tuple):
        mode, content = value[:2]
        return mode, content.decode().strip() if isinstance(content, bytes) else content
    return sorted(value) if isinstance(value, dict) else value


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: config["config"].get(name) or None for name in SETTINGS}
    # docker leaves a variable that changes in its place, and buildah moves it to the end.
    return found | {"Env": sorted(found["Env"] or ()), "author": config.get("author")}


def commands(config: Mapping[str, Any]) -> list[str]:
    """What has been run, and of all other steps what kind they were."""
    lines = [" ".join(line["created_by"].split()) for line in config["history"]]
    return [line.partition("#(nop) ")[2].partition(" ")[0] or line for line in lines]


NAMES = sorted(path.name for path in DOCKERFILES.iterdir())


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.needs("mmdebstrap") if name in DEBIAN else ()) for name in NAMES])
def test_the_image_is_that_of_buildah(name: str, store: Store, buildah: Buildah, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if name in DEBIAN:
        request.getfixturevalue("debian")
    context, args = prepared(name, tmp_path / "context"), ARGS.get(name, {})
    said_: list[str] = []
    # apt works with the host's network; nothing else uses any.
    build(context, store, [f"ours/{name}"], args=args, network=None, output=said_.append)
    assert f"Successfully tagged ours/{name}:latest" in "".join(said_)
    buildah.build(context, f"theirs/{name}", args)
    buildah.take(store, f"ours/{name}")
    ours, theirs = (files(buildah.root(f"{whose}/{name}")) for whose in ("ours", "theirs"))
    for stub in STUBS:
        if stub not in ours and theirs.get(stub, ("", 0))[1] in (b"", 0):
            theirs.pop(stub, None)
    assert differences(name, ours, theirs) == {}
    mine, others = buildah.config(f"ours/{name}"), buildah.config(f"theirs/{name}")
    assert differences(name, settings(mine), settings(others)) == {}
    assert len(mine["history"]) == len(others["history"])
    if name not in ("02_environment", "10_shells"):  # buildah names an ARG that ENV has replaced, and never another SHELL
        assert commands(mine) == commands(others)
    buildah("rm", "--all")
