"""Lab 11: what has to be built again, an image that only the last layer of changes, and a builder of one's own."""

import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from kernel_lab import state
from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.course.images import run, traces, write
from kernel_lab.course.session import user
from kernel_lab.images import base
from kernel_lab.images.build import Build, BuildError, build
from kernel_lab.images.commit import commit
from kernel_lab.images.dockerfile import Dockerfile
from kernel_lab.images.draft import Draft, PutLayer
from kernel_lab.images.image import Image
from kernel_lab.images.root import ImageRoot
from kernel_lab.images.store import Store
from kernel_lab.kernel.errors import UsageError
from kernel_lab.namespaces.mnt import Mount
from kernel_lab.namespaces.pid import PID
from kernel_lab.unionfs.changes import ADDED, DELETED, Change, difference


@contextmanager
def workshop(files: Mapping[str, str]) -> Iterator[tuple[Path, Store]]:
    """A context with these files, and a store with a base image."""
    place = Path(mkdtemp(prefix=f"lab11-{state.Creator.this().stamp}-", dir=state.data_dir()))
    try:
        place.chmod(0o755)
        write(place / "context", files)
        store = Store(place / "images")
        base.make("busybox", store)
        yield place / "context", store
    finally:
        state.discard(place)


def _built(context: Path, store: Store, lines: Sequence[str], **more: object) -> Build:
    return build(context, store, dockerfile=Dockerfile.parse("\n".join(lines)), output=lambda text: None, **more)  # type: ignore[arg-type]


class Case(NamedTuple):
    """Two builds; the hint for whoever does not know where the second one begins to work."""

    hint: str
    before: tuple[str, ...]
    now: tuple[str, ...]
    changed: tuple[str, ...] = ()


NAMES = ("needs", "README", "src/main", "srcs/main", "lib/main")
LINES = ("FROM busybox", "RUN echo README > /note", "WORKDIR /app", "COPY needs .", "COPY src lib/", 'CMD ["sh"]')
WHOLE = ("FROM busybox", "WORKDIR /app", "COPY . .", 'CMD ["sh"]')
# Each RUN once, since what has been built before is found again.
OTHER_RUN, ANOTHER_RUN, OTHER_CMD = (
    (*LINES[:place], text, *LINES[place + 1 :])
    for place, text in ((1, "RUN echo other > /note"), (1, "RUN echo another > /note"), (5, 'CMD ["true"]'))
)
CASES = (
    Case("nothing", LINES, LINES),
    Case("instruction", LINES, OTHER_RUN),
    Case("instruction", LINES, OTHER_CMD),
    Case("instruction", LINES, (*LINES[:3], LINES[4], LINES[3], LINES[5])),
    Case("length", LINES, (*LINES, "USER nobody")),
    Case("length", LINES, LINES[:-1]),
    Case("copied", LINES, LINES, ("needs",)),
    Case("mentioned", LINES, LINES, ("README",)),
    Case("mentioned", LINES, LINES, ("lib/main",)),
    Case("directory", LINES, LINES, ("src/main",)),
    Case("directory", LINES, LINES, ("srcs/main",)),
    Case("directory", WHOLE, WHOLE, ("README",)),
    Case("earliest", LINES, ANOTHER_RUN, ("src/main",)),
    Case("earliest", LINES, OTHER_CMD, ("needs", "src/main")),
)


@cache
def _truth() -> tuple[int | None, ...]:
    """For each case the first step that the kit's builder has carried out again."""
    with workshop({}) as (context, store):
        return tuple(_first_again(number, case, context, store) for number, case in enumerate(CASES))


def _first_again(number: int, case: Case, context: Path, store: Store) -> int | None:
    write(context, dict.fromkeys(NAMES, f"before {number}"))
    _built(context, store, case.before)
    write(context, dict.fromkeys(case.changed, f"now {number}"))
    steps = _built(context, store, case.now).steps
    return next((place for place, step in enumerate(steps, 1) if place > 1 and not step.cached), None)


@exercise(
    "11.1",
    wants="a function of two lists of instructions and the files that have changed",
    accepts=inspect.isfunction,
    hints={
        "nothing": "Nothing is another: no instruction, and no file. What does the function return when its loop has come to the end?",
        "count": "That is one less than the build says. docker's steps are counted from 1.",
        "instruction": "The same step of the last build must have had the same text. Does the order count?",
        "length": "One of the lists may be longer. What was there in the last build at this place, and what has to be done for what is gone?",
        "copied": "The text of `COPY needs .` has not changed. What else went into its key, in the table of the cache?",
        "mentioned": "A file counts only where it is *copied*. What of that does a RUN know, and what is the last word of a COPY?",
        "directory": "A COPY of a directory copies all in it, and `.` is the whole context. Is `srcs/main` in the directory `src`?",
        "earliest": "Several things have changed. Everything from the first one on is done again: which step do you come to first?",
    },
)
def first_again(answer: Callable[[list[str], list[str], set[str]], int | None]) -> str | NotYet:
    for case, truth in zip(CASES, _truth(), strict=True):
        found = answer(list(case.before), list(case.now), set(case.changed))
        if found == truth:
            continue
        saw = f"{_shown(case)}: you say {found}, the build says {truth}"
        return not_yet("count" if truth is not None and found == truth - 1 else case.hint, saw)
    return f"in {len(CASES)} pairs of builds it is the step with which the second one has begun to work"


def _shown(case: Case) -> str:
    added = [line for line in case.now if line not in case.before] or ["other instructions"]
    what = [f"changed: {', '.join(case.changed)}"] if case.changed else []
    return "; ".join((["nothing changed"] if case.now == case.before else [f"now {added[0]}"]) * (case.now != case.before or not what) + what)


KEY = "swordfish"
PRESS = """\
# the press makes prices of rates
test -s /run/secrets/key || { echo "press: there is no key in /run/secrets/key" >&2; exit 1; }
awk '{ print $1, $2 * 119 / 100 }'
"""
MENU = """\
echo "{day}:"
cat /srv/prices
"""
RATES = "book 100\ncoffee 200\n"
FILES = {"menu": MENU.format(day="today"), "press": PRESS, "rates": RATES, "key": f"{KEY}\n"}
PRICES = "book 119\ncoffee 238\n"


@exercise(
    "11.2",
    wants="the text of a Dockerfile",
    accepts=lambda answer: isinstance(answer, str),
    hints={
        "broken": "The builder has named the line. Which step needs what, and which of the earlier ones has put it there?",
        "says": "Run by hand what its CMD runs: `sh menu` wants to read /srv/prices. Which one is not there, or not to be read?",
        "root": "Ask a container of it for `id`. Which instruction says who a container is?",
        "secret": "Whoever has the image has all of its layers, and its history. Which of the six ways in the table above has left nothing?",
        "press": "What is in a layer stays there. Where can something be made without a layer of the image, so that only the result is taken along?",
        "layers": "`menu` changes every day. Which instruction copies it, and which layers are made after that one?",
    },
)
def dockerfile(answer: str) -> str | NotYet:
    with workshop(FILES) as (context, store):
        made: list[Image] = []
        for day in ("today", "tomorrow"):
            write(context, {"menu": MENU.format(day=day)})
            printed: list[str] = []
            try:
                image = build(context, store, dockerfile=Dockerfile.parse(answer), secrets={"key": KEY.encode()}, output=printed.append).image
                said = run(image)
                number = run(image, "id", "-u").stdout.strip()
            except (UsageError, BuildError) as error:
                return not_yet("broken", f"{error} {_last(printed)}")
            if said.stdout != f"{day}:\n{PRICES}":
                return not_yet("says", f"its container says {said.stdout[:60]!r} {said.stderr.strip()[:60]}")
            if number == "0":
                return not_yet("root", "its container is root")
            made.append(image)
        return _looked_at(*made)


def _looked_at(before: Image, after: Image) -> str | NotYet:
    for hint, text in (("secret", KEY), ("press", PRESS)):
        if found := traces(after, text):
            return not_yet(hint, f"the {'key' if text == KEY else 'press'} stands in {', '.join(found)}")
    diff_ids = [layer.diff_id for layer in after.layers]
    new = [number for number, diff_id in enumerate(diff_ids, 1) if diff_id not in before.config.diff_ids]
    if len(new) != 1 or new != [len(diff_ids)]:
        return not_yet("layers", f"on the next day, of its {len(diff_ids)} layers these are others: {', '.join(map(str, new))}")
    return f"its container is not root, press and key have left no trace, and on the next day only the last of its {len(diff_ids)} layers is another"


def _last(printed: Sequence[str]) -> str:
    lines = "".join(printed).strip().splitlines()
    return f"({lines[-1]})" if lines and not lines[-1].startswith((" --->", "Step")) else ""


SHOP = {"shop": "echo open\n"}
RECIPE = (
    "FROM busybox",
    "RUN mkdir /srv; for word in one two; do echo $word >> /srv/words; done",
    "COPY shop /opt/shop",
    "RUN wc -l < /srv/words > /srv/count; rm /srv/words",
    'CMD ["sh", "/opt/shop"]',
)
Builder = Callable[[list[str], Path, Store, Path], Image]


@exercise(
    "11.3",
    wants="a function of instructions, a context, a store and an empty directory, which returns an image",
    accepts=inspect.isfunction,
    hints={
        "nothing": "The image that stands after the last instruction is what is wanted. What does `commit` return?",
        "from": "The first instruction names an image that is there already. Which layers must be below all that you make?",
        "copy": "A COPY needs no container: what lies in `upper` is committed. Is the file there, at the path that the line says?",
        "run": "A RUN is a text for a shell, and runs on the image *so far*. Which image was its container's root, and was its `upper` committed?",
        "cmd": 'CMD writes nothing. Its words, `["sh", "/opt/shop"]`, are JSON, and belong into the image\'s settings: what of `commit` takes these?',
        "layers": "Each RUN and each COPY is a layer, and in it is what this instruction alone has written. Which directory did the next one get?",
        "fails": "`RUN false` was built as if nothing were wrong. What does `run` do when it is told `check=True`?",
    },
)
def builder(answer: Builder) -> str | NotYet:
    with workshop(SHOP) as (context, store):
        try:
            image = answer(list(RECIPE), context, store, _new(store, "work"))
        except RuntimeError as error:
            return not_yet("run", str(error))
        if not isinstance(image, Image):
            return not_yet("nothing", f"it returned {type(image).__name__}")
        kits = _built(context, store, RECIPE).image
        if image.layers[:1] != kits.layers[:1]:
            return not_yet("from", "the lowest layer is another than busybox's")
        if wrong := [change for change in difference(ImageRoot(image).lower, ImageRoot(kits).lower) if _counts(change)]:
            return not_yet("copy" if wrong[0].path.startswith("/opt") else "run", f"beside the kit's image of the same lines: {wrong[0]}")
        if image.settings.get("Cmd") != kits.settings["Cmd"]:
            return not_yet("cmd", f"its Cmd is {image.settings.get('Cmd')}")
        if traces(image, "one\ntwo\n") != ["layer 2"] or traces(image, SHOP["shop"]) != ["layer 3"]:
            return not_yet("layers", "what one instruction has written is not in one layer of its own")
        try:
            answer(["FROM busybox", "RUN false"], context, store, _new(store, "again"))
        except Exception:
            said = run(image).stdout.strip()
            return f"the same files as the kit's, each instruction's in a layer of its own; its container says {said}; and RUN false fails"
        return not_yet("fails")


def _new(store: Store, name: str) -> Path:
    path = store.path.parent / name
    path.mkdir()
    path.chmod(0o755)
    return path


def _counts(change: Change) -> bool:
    """Times and the umask are nobody's fault."""
    return change.kind in (ADDED, DELETED) or "content" in change.what


Copies = Callable[[str, str], bool]


def _copies(source: str, file: str) -> bool:
    return source in (".", file) or file.startswith(f"{source}/")


def _first(before: list[str], now: list[str], changed: set[str], copies: Copies = _copies, end: int | None = -1) -> int | None:
    for number, instruction in enumerate(now, 1):
        word, *words = instruction.split()
        copied = word == "COPY" and any(copies(source, file) for source in words[:end] for file in changed)
        if before[number - 1 : number] != [instruction] or copied:
            return number
    return None


def _least(*numbers: int | None) -> int | None:
    return min(filter(None, numbers), default=None)


def _of_a_set(before: list[str], now: list[str], changed: set[str]) -> int | None:
    return _least(*(number for number, instruction in enumerate(now, 1) if instruction not in before), _first(now, now, changed))


def _mentioned(before: list[str], now: list[str], changed: set[str]) -> int | None:
    mentions = (number for number, instruction in enumerate(now, 1) if changed & set(instruction.split()))
    return _least(*mentions, _first(before, now, changed))


def _one_less(before: list[str], now: list[str], changed: set[str]) -> int | None:
    found = _first(before, now, changed)
    return found and found - 1


def _what_is_gone(before: list[str], now: list[str], changed: set[str]) -> int | None:
    return len(now) + 1 if len(now) < len(before) else _first(before, now, changed)


first_again.answers(
    right=[_first],
    wrong={
        "nothing": [lambda before, now, changed: len(now), lambda before, now, changed: 1],
        "count": [_one_less],
        "instruction": [lambda before, now, changed: _first(now, now, changed), _of_a_set],
        "length": [lambda before, now, changed: _first([*before, *now[len(before) :]], now, changed), _what_is_gone],
        "copied": [lambda before, now, changed: _first(before, now, set())],
        "mentioned": [_mentioned, lambda before, now, changed: _first(before, now, changed, end=None)],
        "directory": [
            lambda before, now, changed: _first(before, now, changed, lambda source, file: source == file),
            lambda before, now, changed: _first(before, now, changed, lambda source, file: source == "." or file.startswith(source)),
            lambda before, now, changed: _first(before, now, changed, lambda source, file: source == file or file.startswith(f"{source}/")),
        ],
        "earliest": [
            lambda before, now, changed: _first(now, now, changed) or _first(before, now, set()),
            lambda before, now, changed: _first(before, now, set()) or _first(now, now, changed),
        ],
    },
)

STAGED = """\
FROM busybox AS maker
COPY press rates /
RUN --mount=type=secret,id=key sh /press < /rates > /prices
FROM busybox
COPY --from=maker /prices /srv/
WORKDIR /srv
USER nobody
CMD ["sh", "menu"]
COPY menu .
"""
COPIED_KEY = STAGED.replace("COPY press rates /", "COPY key /run/secrets/\nCOPY press rates /").replace(" --mount=type=secret,id=key", "")
dockerfile.answers(
    right=[STAGED, COPIED_KEY],
    wrong={
        "broken": ["", "FROM busybox\nINSTALL menu\n", STAGED.replace(" --mount=type=secret,id=key", ""), STAGED.replace("press rates", "press")],
        "says": [STAGED.replace("COPY menu .\n", ""), STAGED.replace("/srv/\n", "/\n"), STAGED.replace("> /prices", "> /prices; chmod 600 /prices")],
        "root": [STAGED.replace("USER nobody\n", "")],
        "secret": [
            STAGED.replace("COPY menu .", "COPY . ."),
            STAGED.replace("COPY menu .", f"ENV KEY={KEY}\nCOPY menu ."),
            STAGED.replace("COPY menu .", "COPY key /tmp/\nRUN rm /tmp/key\nCOPY menu .").replace("USER nobody\n", "") + "USER nobody\n",
        ],
        "press": [
            STAGED.replace("COPY menu .", "COPY press .\nCOPY menu ."),
            STAGED.replace("FROM busybox\nCOPY --from=maker /prices", "RUN mkdir /srv; mv /prices"),
        ],
        "layers": [
            STAGED.replace("COPY menu .\n", "").replace("COPY --from", "COPY menu /srv/\nCOPY --from"),
            STAGED + "USER root\nRUN touch /srv/open\nUSER nobody\n",
        ],
    },
)


def _builder(**without: object) -> Builder:
    """One that is right, but for what is named: another way to do it."""

    def answer(lines: list[str], context: Path, store: Store, work: Path) -> Image:
        made = Image.find(store, "busybox")
        for number, line in enumerate(lines[1:]):
            upper = work / str(0 if "same" in without else number)
            upper.mkdir(exist_ok=True)
            word, _, rest = line.partition(" ")
            settings: dict[str, object] = {}
            if word == "RUN":
                root = ImageRoot(Image.find(store, "busybox") if "on_base" in without else made, upper=None if "lost" in without else upper)
                Container(*user(), PID(), Mount(root)).run("sh", "-c", rest, check="unchecked" not in without)
            elif word == "COPY" and "copy" not in without:
                source, target = rest.split()
                path = upper / ("shop" if "target" in without else target.lstrip("/"))
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(context / source, path)
            elif word == "CMD" and "cmd" not in without:
                settings["Cmd"] = [rest] if "text" in without else json.loads(rest)
            made = commit(upper, made, settings=settings, created_by=line)
        return made

    return answer


def _alone(lines: list[str], context: Path, store: Store, work: Path) -> Image:
    layer = _builder()(lines, context, store, work).layers[1]
    with store.adding() as adding:
        return Draft.scratch().with_layer(PutLayer(layer.blob, layer.diff_id)).put(adding)


builder.answers(
    right=[_builder()],
    wrong={
        "nothing": [lambda lines, context, store, work: None],
        "from": [_alone],
        "copy": [_builder(copy=True), _builder(target=True)],
        "run": [_builder(lost=True), _builder(on_base=True)],
        "cmd": [_builder(cmd=True), _builder(text=True)],
        "layers": [_builder(same=True)],
        "fails": [_builder(unchecked=True)],
    },
)
