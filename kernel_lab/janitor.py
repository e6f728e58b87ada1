"""The process that cleans up when its creator cannot any more.

A container with a PID namespace dies with its first process, and that one with its creator (PR_SET_PDEATHSIG). Without one, its daemons live on when
the notebook is killed; and bridges, leases, records and directories stay in any case. So every creator has one janitor, in a session of its own,
which learns of the creator's end from the kernel, kills what is still guarded, and takes away what dead creators have left.

The janitor is to be there at once, so what its own side needs only at the end, and the creator's side alone, is imported where it is used.
"""

import itertools
import os
import resource
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from kernel_lab.members import KINDS, Members

NAME = "klab-janitor"
# The package's own __init__ may import half of the kit: an empty module in its place, with the same path, keeps the start short.
START = """
import sys
kit = type(sys)("kernel_lab")
kit.__path__ = [sys.argv[1]]
sys.modules["kernel_lab"] = kit
sys.path += sys.argv[4:]
from kernel_lab import janitor

def clean():
    from kernel_lab.cleanup import of_dead_creators
    of_dead_creators()

janitor.main(int(sys.argv[2]), int(sys.argv[3]), clean)
"""
LOST = (BrokenPipeError, ConnectionResetError, EOFError, TimeoutError)
# An answer takes far less than a millisecond; a janitor that gives none in this time has been stopped, and another takes its place.
PATIENCE = 30.0


class Guard:
    """The members of one container, which the janitor kills when this process ends before `release()`."""

    def __init__(self, members: Members) -> None:
        self.number = next(_numbers)
        self.members = members

    def kill_all(self) -> None:
        """Kill all members; before the first process is reaped."""
        self.members.kill_all()

    def release(self) -> None:
        """The members are no longer to be killed."""
        with _lock:
            # After a fork, the parent's guards are unknown here, and not ours to release.
            if _guards.pop(self.number, None) and _janitor:
                with suppress(*LOST):
                    _janitor.agree()
        self.members.close()


class _Janitor:
    """The creator's end of the conversation: one question, one answer, both numbered, since an interrupted question leaves its answer behind."""

    def __init__(self) -> None:
        self.questions = itertools.count(1)
        self.places: set[tuple[str, str]] = set()
        self.told: set[int] = set()
        self.socket = _start()

    def ask(self, verb: str, *words: object, files: Iterable[FileIO] = ()) -> None:
        question = next(self.questions)
        text = "\0".join(map(str, (question, verb, *words)))
        socket.send_fds(self.socket, [os.fsencode(text)], [file.fileno() for file in files])
        answer = 0
        while answer != question:
            received = self.socket.recv(64)
            if not received:
                raise EOFError("the janitor has ended")
            answer = int(received)

    def agree(self) -> None:
        """Bring the janitor's knowledge up to ours; whatever an interrupt keeps from being told is told the next time."""
        from kernel_lab import state

        place = os.fspath(state.run_dir()), os.fspath(state.data_path())
        if place not in self.places:
            self.ask("watch", *place)
            self.places.add(place)
        for number in self.told - _guards.keys():
            self.ask("release", number)
            self.told.discard(number)
        for number in _guards.keys() - self.told:
            self.told.add(number)
            members = _guards[number].members
            self.ask("guard", number, members.session, *members.namespaces, files=members.namespaces.values())


_numbers = itertools.count(1)
_lock = threading.Lock()
_guards: dict[int, Guard] = {}
_janitor: _Janitor | None = None


def guard(pid: int, kinds: Iterable[str] = KINDS) -> Guard:
    """Have every member of a container killed when this process ends. `pid`: its first process, which must not go on before this returns.
    `kinds`: which of its namespaces are its own, if they are not this process's too: all but those of another container that it has joined."""
    made = Guard(Members.of(pid, kinds))
    try:
        with _lock:
            _guards[made.number] = made
            _tell()
    except BaseException:
        # The janitor is not asked now: it may be what the interrupt has come for. It hears of it the next time.
        _guards.pop(made.number, None)
        made.members.close()
        raise
    return made


def watch_leftovers() -> None:
    """Have what this process leaves behind taken away when it ends."""
    with _lock:
        _tell()


def _tell() -> None:
    """Have a janitor that knows everything: the one that there is, or where somebody has killed it, a new one."""
    global _janitor
    if _janitor:
        try:
            return _janitor.agree()
        except LOST:
            _janitor = None
    janitor = _Janitor()
    janitor.agree()
    _janitor = janitor
    return None


def _start() -> socket.socket:
    import subprocess

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    package = os.path.dirname(__file__)
    paths = [path for path in sys.path if os.path.isabs(path)]
    # Told by `watch` instead: what carries the variable is taken for something that a container has left behind.
    environment = {name: value for name, value in os.environ.items() if name != "KERNEL_LAB_RUN"}
    with theirs, FileIO(os.pidfd_open(os.getpid())) as me:
        command = [sys.executable, "-I", "-S", "-c", START, package, str(theirs.fileno()), str(me.fileno()), *paths]
        started = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(), me.fileno()),
            start_new_session=True,
            cwd="/",
            env=environment,
            check=False,
        )
    if started.returncode:
        raise RuntimeError(f"the janitor does not start: {started.stderr.decode(errors='replace')}")
    ours.settimeout(PATIENCE)
    return ours


def _forget() -> None:
    """In a forked child: the janitor is its parent's."""
    global _lock, _janitor
    _lock = threading.Lock()
    _guards.clear()
    if _janitor:
        _janitor.socket.close()
    _janitor = None


os.register_at_fork(after_in_child=_forget)


def main(descriptor: int, creator: int, clean: Callable[[], None]) -> None:
    """The janitor's life; `clean` takes away what dead creators have left, and is loaded only when there is time."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # One descriptor for each namespace that is guarded.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.dup2(0, 2)
    # A process of nobody's: no child of the creator, which would have to wait for it, or would kill it with its other children.
    if os.fork():
        os._exit(0)
    Path("/proc/self/comm").write_text(NAME)
    with socket.socket(fileno=descriptor) as conversation:
        guarded, places = _listen(conversation, creator)
    for members in guarded.values():
        _attempt(places, members.kill_all)
        members.close()
    # Its files are closed before it is counted among the dead.
    creator_ends = select.poll()
    creator_ends.register(creator, select.POLLIN)
    creator_ends.poll(30_000)
    for run, data in places:
        if not os.path.isdir(run) and not os.path.isdir(data):
            continue
        os.environ.update(KERNEL_LAB_RUN=run, KERNEL_LAB_DATA=data)
        _attempt(places, clean)


Places = list[tuple[str, str]]


def _listen(conversation: socket.socket, creator: int) -> tuple[dict[int, Members], Places]:
    """Do as the creator says until it ends."""
    guarded: dict[int, Members] = {}
    places: Places = []
    # Not the conversation's end alone: a child that the creator was just making has a copy of the other end.
    events = select.poll()
    events.register(conversation, select.POLLIN)
    events.register(creator, select.POLLIN)
    while True:
        # What the creator said last is still to be read when it has ended.
        if conversation.fileno() not in dict(events.poll()):
            return guarded, places
        with suppress(*LOST):
            data, descriptors, _, _ = socket.recv_fds(conversation, 1 << 16, 16)
            if not data:
                return guarded, places
            question, verb, *words = os.fsdecode(data).split("\0")
            if verb == "guard":
                number, session, *kinds = words
                guarded[int(number)] = Members(int(session), {kind: FileIO(file) for kind, file in zip(kinds, descriptors, strict=True)})
            elif verb == "release":
                # An interrupted guard() may release what it never came to tell.
                guarded.pop(int(words[0]), None)
            elif verb == "watch":
                places.append((words[0], words[1]))
            conversation.send(question.encode())


def _attempt(places: Places, what: Callable[[], None]) -> None:
    """One failure must not keep the others from being tried; there is nobody left to tell it to but a file."""
    try:
        what()
    except Exception:
        for run, _ in places[:1]:
            with suppress(OSError), open(f"{run}/janitor.log", "a") as log:
                traceback.print_exc(file=log)
