"""A stage while it is built: each instruction makes an image of the one before, unless the cache has it."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from pathlib import Path

from kernel_lab import records
from kernel_lab.cgroups.part import Cgroup
from kernel_lab.command import PATH, identity
from kernel_lab.images import archive, build_cache, build_copy, build_fetch, build_mounts, build_run, build_settings, dockerignore, platforms, scope
from kernel_lab.images.build_copy import Copying, Source
from kernel_lab.images.build_layer import Growing, New
from kernel_lab.images.build_mounts import Given
from kernel_lab.images.build_output import Output
from kernel_lab.images.build_run import Task
from kernel_lab.images.build_settings import Settings
from kernel_lab.images.descriptor import Platform
from kernel_lab.images.dockerfile import Stage
from kernel_lab.images.draft import Draft, PutLayer, now, put_layer
from kernel_lab.images.image import Image
from kernel_lab.images.instructions import Add, Arg, Cmd, Copy, Env, Inline, Instruction, Run, Workdir
from kernel_lab.images.scope import Scope
from kernel_lab.images.snapshots import Snapshots
from kernel_lab.images.store import Addition
from kernel_lab.images.tree import ImageTree, Tree
from kernel_lab.kernel.errors import UsageError
from kernel_lab.namespaces.net import Net

INLINE_MODE = 0o644
TRIES = 3


@dataclass
class Work:
    """What the stages of a build share.

    directory: for what is needed meanwhile. caches: for what stays. files: those of a stage or an image, as `--from` names it.
    """

    adding: Addition
    snapshots: Snapshots
    until: ExitStack
    output: Output
    directory: Path
    caches: Path
    context: Tree
    files: Callable[[Stage, Instruction, str], Tree] = field(init=False)
    uses_cache: bool = True
    network: Net | None = None
    group: Cgroup | None = None
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)

    def tree(self, image: Image | None) -> Tree:
        """The files of an image, whose layers nobody removes before the build ends."""
        if image is None:
            return Tree(())
        if image.id not in self.trees:
            self.trees[image.id] = ImageTree(image, self._standing(image))
        return self.trees[image.id]

    def _standing(self, image: Image) -> tuple[Path, ...]:
        for left in reversed(range(TRIES)):
            directories = self.snapshots.directories(image)
            try:
                self.until.enter_context(self.snapshots.standing_on(directories))
            except UsageError:  # somebody has pruned them just now
                if not left:
                    raise
            else:
                break
        return directories

    def folder(self) -> Path:
        """An empty directory that goes with the build."""
        path = self.directory / os.urandom(8).hex()
        path.mkdir(parents=True)
        return path


class Building:
    """The image of a stage so far; None: there is nothing in it yet."""

    def __init__(self, work: Work, stage: Stage, image: Image | None, platform: Platform, scope: Scope) -> None:
        self._work = work
        self._stage = stage
        self.image = image
        self.platform = platform
        self.scope = scope
        self._has_cmd = False
        self._is_base = True

    @property
    def triggers(self) -> tuple[str, ...]:
        """What the base image has for those who build upon it."""
        return tuple(self.settings.get("OnBuild") or ())

    @property
    def environment(self) -> dict[str, str]:
        """The image's variables, with the PATH that it gets if it has none."""
        return {"PATH": PATH} | build_settings.environment(self.settings)

    @property
    def settings(self) -> Settings:
        """How the image is run so far."""
        return self.image.config.config if self.image else {}

    def step(self, instruction: Instruction) -> bool:
        """Carries an instruction out; whether the cache had the image."""
        match instruction:
            case Run():
                return self._run(instruction)
            case Copy() | Add():
                return self._copy(instruction.expanded(self.scope.variables))
            case Workdir():
                return self._workdir(instruction.expanded(self.scope.variables))
            case Arg():
                self.scope.declare(instruction)
                return self._change(instruction)
            case Env():
                return self._change(self.scope.set(instruction))
        return self._change(instruction.expanded(self.scope.variables))

    def _made(self, words: str, changes: Settings, layer: Callable[[], PutLayer | None], more: str = "", author: str | None = None) -> bool:
        """The image of a step, from the cache or else of the layer that is made now. more: what the outcome depends on besides."""
        parent = self.image.id if self.image else f"{build_cache.SCRATCH} {platforms.words(self.platform)}"
        settings = {**self._settings(), **changes}
        key = build_cache.key(parent, words, settings, more)
        found = build_cache.find(self._work.adding, key) if self._work.uses_cache else None
        if found:
            self._work.output.arrow("Using cache")
        self.image = found or self._anew(words, settings, layer(), author).put(self._work.adding, annotations=build_cache.marks(parent, key))
        self._is_base = False
        self._work.output.arrow(self.image.short_id)
        return found is not None

    def _anew(self, words: str, settings: Settings, layer: PutLayer | None, author: str | None) -> Draft:
        draft = Draft.on(self.image) if self.image else Draft.scratch(self.platform)
        said = {"created_by": words} | ({"author": author} if author else {})
        draft = draft.with_settings(settings)
        return draft.with_layer(layer, **said) if layer else draft.with_history(**said)

    def _settings(self) -> Settings:
        """As they are for those who build upon the image: docker gives each a PATH, and what ONBUILD says is not for their own."""
        if not self._is_base:
            return self.settings
        return {**self.settings, "Env": [f"{name}={value}" for name, value in self.environment.items()], "OnBuild": None}

    def _change(self, instruction: Instruction) -> bool:
        changed = build_settings.changed(instruction, self._settings(), self._has_cmd)
        self._has_cmd = self._has_cmd or isinstance(instruction, Cmd)
        # A new SHELL is the one that docker names for its own step.
        words = build_settings.in_history(changed.words, {**self._settings(), **changed.settings})
        return self._made(words, changed.settings, lambda: None, author=changed.author)

    def _workdir(self, instruction: Workdir) -> bool:
        changed = build_settings.changed(instruction, self._settings())
        words = build_settings.in_history(changed.words, self._settings())
        return self._made(words, changed.settings, lambda: self._directory(str(changed.settings["WorkingDir"])))

    def _directory(self, path: str) -> PutLayer | None:
        """A layer with a directory that is missing; it is the user's, as with BuildKit."""
        growing = Growing(self._work.tree(self.image))
        if growing.find(path).is_directory:
            return None
        user = identity(str(self.settings.get("User") or "0:0"), growing.root.found)
        assert user
        return put_layer(self._work.adding, chain(growing.directory(path, New(_now(), (user.uid, user.gid))), [archive.END]))

    def _copy(self, copy: Copy | Add) -> bool:
        copying = self._copying(copy)
        flags = [f"--{name}={value}" for name, value in (("chown", copy.chown), ("chmod", copy.chmod)) if value]
        digest = copying.digest
        words = build_settings.in_history(" ".join((copy.keyword, *flags, digest, "in", copying.destination)), self._settings())

        def layer() -> PutLayer:
            tree = self._work.tree(self.image)
            owned = replace(copying, owner=build_copy.owner(copy.chown, tree) if copy.chown else None)
            made = put_layer(self._work.adding, owned.layer(tree, self._work.output.line))
            # Under the key of other files it would be found again when these are back.
            if copying.digest != digest:
                raise UsageError("files have changed while they were copied; build again")
            return made

        return self._made(words, {}, layer)

    def _copying(self, copy: Copy | Add) -> Copying:
        fetched = [word for word in copy.sources if isinstance(copy, Add) and build_fetch.is_remote(word)]
        files = [word for word in copy.sources if word not in fetched]
        if isinstance(copy, Add):
            checksum, origin, parents = copy.checksum, None, False
        else:
            checksum, origin, parents = None, copy.origin, copy.parents
        if checksum and not fetched:
            raise UsageError("--checksum is for what is fetched from an address")
        tree = self._files(copy, origin)
        return Copying(
            (*build_copy.sources(tree, files, parents), *self._inline(copy.inline), *(self._fetched(word, checksum) for word in fetched)),
            build_copy.destination(copy.destination, build_settings.workdir(self.settings)),
            dockerignore.patterns(copy.exclude, "--exclude"),
            mode=build_copy.mode(copy.chmod) if copy.chmod else None,
            unpacks=isinstance(copy, Add),
        )

    def _files(self, instruction: Instruction, origin: str | None) -> Tree:
        return self._work.files(self._stage, instruction, origin) if origin else self._work.context

    def _inline(self, files: Sequence[Inline]) -> Iterator[Source]:
        for file in files:
            folder = self._work.folder()
            path = folder / "file"
            path.write_bytes(file.content.encode("utf-8", "surrogateescape"))
            path.chmod(INLINE_MODE)
            os.utime(path, ns=(_now(), _now()))
            tree = Tree([folder])
            yield Source(tree, tree.find("file"), file.name)

    def _fetched(self, address: str, checksum: str | None) -> Source:
        folder = self._work.folder()
        tree = Tree([folder])
        name = build_fetch.fetch(address, folder, checksum).name
        return Source(tree, tree.find(name), name, fetched=True)

    def _run(self, run: Run) -> bool:
        run = run.expanded(self.scope.variables)
        if run.security not in (None, "sandbox"):
            raise UsageError(f"--security={run.security}: no container here is without its limits")
        settings = self._settings()
        variables = build_settings.environment(settings)
        arguments = {name: value for name, value in self.scope.arguments().items() if name in self.scope.variables and name not in variables}
        argv = run.words(build_settings.shell(settings))
        words = build_settings.run_words(argv, arguments)
        cwd = build_settings.workdir(settings)
        with ExitStack() as until:
            given = Given(lambda name: self._files(run, name), self._work.secrets, self._work.caches)
            mounts = build_mounts.of(run, cwd, given, self._work.folder, until)
            task = Task(
                argv,
                {**scope.proxies(self.scope.given), **arguments, **variables},
                cwd,
                str(settings.get("User") or "") or None,
                self._network(run.network),
                self._work.group,
                mounts,
            )
            more = "\n".join(filter(None, (*run.mounts, run.network, mounts.key, *_unclear(run, argv, arguments))))
            return self._made(words, {}, lambda: self._carried_out(task), more)

    def _carried_out(self, task: Task) -> PutLayer | None:
        if self.image is None:
            raise UsageError("there is nothing in scratch that could run; COPY a program into it first")
        tree = self._work.tree(self.image)  # and its layers stay
        if whose := build_mounts.resolver(task.network):
            task.mounts.add_resolver(tree, whose)
        output, identifier = self._work.output, records.new_id()
        output.arrow(f"Running in {identifier}")
        layer = build_run.run(task, self.image, self._work.adding, identifier, output.text)
        output.line(f"Removing intermediate container {identifier}")
        return layer

    def _network(self, word: str | None) -> Net | None:
        if word not in (None, "default", "none", "host"):
            raise UsageError(f"--network={word}: there is none, host, and default: what the whole build was given")
        # Whoever writes a Dockerfile does not decide about this machine.
        if word == "host" and self._work.network is not None:
            raise UsageError("--network=host: this machine's network is to be given to the whole build first: klab build --network host")
        return Net() if word == "none" else None if word == "host" else self._work.network


def _unclear(run: Run, argv: Sequence[str], arguments: Mapping[str, str]) -> Iterator[str]:
    """What the words of the history do not tell apart: where one word of a command ends, and one value of an ARG."""
    if not isinstance(run.command, str):
        yield json.dumps(list(argv))
    if any(" " in value for value in arguments.values()):
        yield json.dumps(sorted(arguments.items()))


def _now() -> int:
    """In nanoseconds; or SOURCE_DATE_EPOCH."""
    return int(datetime.fromisoformat(now()).timestamp()) * 10**9
