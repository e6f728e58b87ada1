"""Lab 09: a whiteout, a root of layers as rows, and which layer a file comes from."""

import inspect
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from kernel_lab import rootfs, state
from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.course.session import user
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import CLONE, MS
from kernel_lab.kernel.program import Row, call
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.part import Part, Plan
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.root import Directory
from kernel_lab.unionfs.whiteouts import AUFS, TRUSTED, USER, Notation

OWN: Notation = TRUSTED if os.geteuid() == 0 else USER  # what the kernel reads of a layer
USERXATTR = "" if os.geteuid() == 0 else ",userxattr"
KINDS = {stat.S_IFREG: "a file", stat.S_IFDIR: "a directory", stat.S_IFCHR: "a device", stat.S_IFIFO: "a fifo", stat.S_IFLNK: "a symbolic link"}


class Merged(Part):
    """The layers as one, at a directory; only to be read."""

    flags = CLONE.NEWNS

    def __init__(self, at: Path, *layers: Path) -> None:
        self.at, self.layers = at, layers

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("mount", None, "/", None, MS.REC | MS.PRIVATE)
        yield call("mount", "overlay", str(self.at), "overlay", MS.RDONLY, f"lowerdir={':'.join(map(str, self.layers))}{USERXATTR}")


@contextmanager
def shelf(*names: str) -> Iterator[tuple[Path, ...]]:
    """New directories beside one another, on a file system that overlay can write on."""
    place = Path(mkdtemp(prefix=f"lab09-{state.Creator.this().stamp}-", dir=state.data_dir()))
    place.chmod(0o755)
    try:
        for name in names:
            (place / name).mkdir()
        yield tuple(place / name for name in names)
    finally:
        state.discard(place)


@contextmanager
def merged(place: Path, *layers: Path) -> Iterator[Path]:
    """What the kernel shows of the layers."""
    with Container(*user(), Merged(place, *layers)) as box:
        box.start("sleep", "1d")
        yield Path(f"/proc/{box.pid}/root{place}")


@exercise(
    "09.1",
    wants="a function of a layer, a directory, and a name",
    accepts=inspect.isfunction,
    hints={
        "nothing": "Something must be in the layer afterwards. Which entry of `upper` stands for the file that was deleted, and what is it?",
        "shown": "In a union a name that is in the upper layer is shown, whatever it is. One kind of file alone is not: which was it in `upper`?",
        "another's": "A name that begins with `.wh.` is a mark to AUFS and to docker. To overlay it is a file like any other: what does overlay use?",
        "base": "The layer below may be the base of others too, who still want the file. Only the layer that you are given may change.",
    },
)
def whiteout(answer: Callable[[Path, str], object]) -> str | NotYet:
    with shelf("base", "layer", "merged") as (base, layer, place):
        for name in ("hosts", "motd", "a name with spaces"):
            (base / name).touch()
        for name in ("motd", "a name with spaces"):
            answer(layer, name)
            if not (base / name).exists():
                return not_yet("base", f"{name!r} is gone from the base")
            if not list(layer.iterdir()):
                return not_yet("nothing", "the layer is empty")
            with merged(place, layer, base) as seen:
                if (layer / f".wh.{name}").exists() and (seen / name).exists():
                    return not_yet("another's", f"{name!r} is still seen, and .wh.{name} as well")
                with suppress(FileNotFoundError):
                    return not_yet("shown", f"{name!r} is still seen, as {KINDS.get(stat.S_IFMT(os.lstat(seen / name).st_mode), 'something')}")
        with merged(place, layer, base) as seen:
            left = sorted(os.listdir(seen))
    return f"overlay shows the name no more, the base still has it, and of the others it shows {', '.join(left)}"


@exercise(
    "09.2",
    wants="a class made from Directory",
    accepts=lambda answer: isinstance(answer, type) and issubclass(answer, Directory),
    hints={
        "refused": "The error names the row. Compare it with the second row of the union by hand: five arguments, the last one a text of options.",
        "no commands": "It lacks the files of the base. The rows after yours make the working directory the root: which is it then?",
        "order": "Both layers have the file. In `lowerdir`, is the topmost layer the first or the last? What did the union by hand show?",
        "read only": "With lower layers alone there is nothing to write into. Which two options name the directories for that?",
        "base": "What a container writes has to go into upper/. Is it the union that has become the root, or one of its layers?",
    },
)
def layered(answer: Callable[[str], Directory]) -> str | NotYet:
    with shelf("app", "app/etc", "upper", "work", "merged") as (app, *_):
        place = app.parent
        shutil.copytree(rootfs.busybox(), place / "base", symlinks=True)
        (place / "base/etc/motd").write_text("base\n")
        (app / "etc/motd").write_text("app\n")
        box = Container(*user(), PID(), Mount(answer(str(place))))
        try:
            said = box.run("/bin/sh", "-c", "cat /etc/motd; echo new > /etc/new && rm /etc/hosts")
        except KernelError as error:
            return not_yet("refused", f"the kernel refused {error.call.partition('(')[0]}: {error.strerror}")
        if said.code in (126, 127):
            return not_yet("no commands", "there is no /bin/sh in it")
        if not (place / "base/etc/hosts").exists() or any(path.exists() for path in (place / "base/etc/new", app / "etc/new")):
            return not_yet("base", "what was written is in a lower layer")
        if said.stdout != "app\n":
            return not_yet("order", f"/etc/motd is that of {said.stdout.strip() or 'none'}")
        if said.code or not (place / "upper/etc/new").exists():
            return not_yet("read only", f"a write said: {said.stderr.strip().rpartition(': ')[2]}")
    return "both layers are seen, the upper one first; what was written and deleted is in upper/, and nowhere else"


# The layers, the topmost first: their files, whiteouts, and opaque directories.
TREE: dict[str, tuple[str, str, str]] = {
    "mine": ("etc/motd etc/hosts", "etc/passwd srv", "var/log"),
    "app": ("etc/motd opt/app var/log/app", "etc/fstab", ""),
    "base": ("etc/motd etc/passwd etc/fstab etc/group bin/sh srv/www/index var/log/base var/lib/status", "", ""),
}
# What is asked for, and the hint for whoever does not know it.
ASKED = {
    "nowhere": "lost",
    "bin/sh": "lost",
    "opt/app": "lost",
    "etc/group": "lost",
    "var/lib/status": "lost",
    "etc/hosts": "order",
    "etc/motd": "order",
    "etc/passwd": "whiteout",
    "etc/fstab": "whiteout",
    "srv/www/index": "directory",
    "var/log/app": "opaque",
    "var/log/base": "opaque",
}


def _fill(layer: Path, notation: Notation) -> None:
    files, whiteouts, opaque = (names.split() for names in TREE[layer.name])
    for path in (*files, *whiteouts, *(f"{path}/mark" for path in opaque)):
        (layer / path).parent.mkdir(parents=True, exist_ok=True)
    for path in files:
        (layer / path).write_text(layer.name)
    for path in whiteouts:
        notation.hide(str((layer / path).parent), os.path.basename(path))
    for path in opaque:
        notation.make_opaque(str(layer / path))


@exercise(
    "09.3",
    wants="a function of a list of layers and a path, which returns one of the layers, or None",
    accepts=inspect.isfunction,
    hints={
        "lost": "Only three things end the search: the file itself, and two kinds of marks. In which layer was yours ended, and by what?",
        "order": "The list begins with the topmost layer. Which of several layers that have the file is asked first?",
        "whiteout": "Before you go on to the layer below: is there a `.wh.` and the file's name beside where the file would be?",
        "directory": "A directory can be deleted as well, with all that is in it. On the way from the top to the file, where may a whiteout be?",
        "opaque": "`look('shipped')` has shown var and the mark in it. What does it say about the files that the layers below have in there?",
    },
)
def comes_from(answer: Callable[[list[Path], str], Path | None]) -> str | NotYet:
    with shelf("docker", "kernel", "seen") as (docker, kernel, place):
        for name in TREE:
            for top, notation in ((docker, AUFS), (kernel, OWN)):
                (top / name).mkdir()
                _fill(top / name, notation)
        layers = [docker / name for name in TREE]
        with merged(place, *(kernel / name for name in TREE)) as seen:
            for path, state in ASKED.items():
                truth = (seen / path).read_text() if (seen / path).exists() else None
                found = answer(list(layers), path)
                if (found and found.name) != truth:
                    return not_yet(state, f"{path}: you say {found and found.name}, the kernel says {truth}")
    return f"of {len(ASKED)} paths it finds the layer that the kernel's overlay shows, or none where it shows none"


def _device(layer: Path, name: str) -> None:
    os.mknod(layer / name, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def _docker(layer: Path, name: str) -> None:
    (layer / f".wh.{name}").touch()


def _in_base(layer: Path, name: str) -> None:
    (layer.parent / "base" / name).unlink()


class _Layered(Directory):
    """Three rows, of which each may be another."""

    options = "lowerdir=app:base,upperdir=upper,workdir=work"
    root = "merged"

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("chdir", self.path)
        yield call("mount", "overlay", "merged", "overlay", 0, self.options + USERXATTR)
        yield call("chdir", self.root)


class _Upside(_Layered):
    options = "lowerdir=base:app,upperdir=upper,workdir=work"


class _ReadOnly(_Layered):
    options = "lowerdir=app:base"


class _WithoutWork(_Layered):
    options = "lowerdir=app:base,upperdir=upper"


class _AppAlone(_Layered):
    options = "lowerdir=app,upperdir=upper,workdir=work"


class _Bound(_Layered):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("chdir", self.path)
        yield call("mount", "base", "base", None, MS.BIND)
        yield call("chdir", "base")


class _Nothing(_Layered):
    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("chdir", f"{self.path}/merged")


def _has(layer: Path, path: str) -> bool:
    return os.path.lexists(layer / path)


def _search(layers: list[Path], path: str, whole: bool = True, opaque: bool = True) -> Path | None:
    for layer in layers:
        if _has(layer, path):
            return layer
        above = [Path(path), *list(Path(path).parents)[:-1]][: None if whole else 1]
        if any(_has(layer, str(name.parent / f".wh.{name.name}")) for name in above):
            return None
        if opaque and any(_has(layer, str(name / ".wh..wh..opq")) for name in Path(path).parents):
            return None
    return None


def _without_marks(layers: list[Path], path: str) -> Path | None:
    return next((layer for layer in layers if _has(layer, path)), None)


whiteout.answers(
    right=[_device],
    wrong={
        "nothing": [lambda layer, name: None],
        "shown": [lambda layer, name: (layer / name).touch(), lambda layer, name: os.mkfifo(layer / name)],
        "another's": [_docker],
        "base": [_in_base],
    },
)
layered.answers(
    right=[_Layered],
    wrong={
        "refused": [_WithoutWork, _Nothing],
        "no commands": [_AppAlone],
        "order": [_Upside],
        "read only": [_ReadOnly],
        "base": [_Bound],
    },
)
comes_from.answers(
    right=[_search],
    wrong={
        "lost": [lambda layers, path: None, lambda layers, path: layers[0] if _has(layers[0], path) else None],
        "order": [lambda layers, path: _search(layers[::-1], path), lambda layers, path: _without_marks(layers[::-1], path)],
        "whiteout": [_without_marks],
        "directory": [lambda layers, path: _search(layers, path, whole=False)],
        "opaque": [lambda layers, path: _search(layers, path, opaque=False)],
    },
)
