"""`klab run -t` and `klab exec -t`: a terminal that is the container's own, and a person at another one in front of it."""

import fcntl
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest
from here import busybox, users
from waiting import soon

from kernel_lab import PID, Container, KernelError, Mount
from kernel_lab.foreground import attached
from kernel_lab.process import Streams

pytestmark = pytest.mark.slow

KLAB = [sys.executable, "-m", "kernel_lab.cli"]
SIZE = (33, 77)


def klab(*words: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*KLAB, *words], capture_output=True, text=True, timeout=120, **settings)  # type: ignore[call-overload,no-any-return]


class Person:
    """Somebody at a terminal, who has typed a `klab` command."""

    def __init__(self, *words: str) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            _resize(0, *SIZE)
            os.execv(KLAB[0], [*KLAB, *words])
        self.shown = ""
        self.code: int | None = None

    def __enter__(self) -> "Person":
        return self

    def __exit__(self, *_: object) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.end()
        os.close(self.terminal)

    def until(self, text: str, patience: float = 60.0) -> None:
        """Looks until this is shown."""
        end = time.monotonic() + patience
        while text not in self.shown:
            assert time.monotonic() < end, f"{text!r} does not come; there is {self.shown!r}"
            if self._something_new(0.1):
                self.shown += self._read() or pytest.fail(f"it has ended, and {text!r} has not come; there is {self.shown!r}")

    def _something_new(self, seconds: float) -> bool:
        return bool(select.select([self.terminal], [], [], seconds)[0])

    def _read(self) -> str:
        try:
            return os.read(self.terminal, 4096).decode(errors="replace")
        except OSError:  # EIO: nobody has the other end any more
            return ""

    def type(self, text: str) -> None:
        """And forgets what has been shown before."""
        self.shown = ""
        os.write(self.terminal, text.encode())

    def type_until(self, text: str, answer: str) -> None:
        """Types the same again until it is answered: who reads the keys changes between a shell's line editor and a command."""

        def answered() -> bool:
            if self._something_new(0.3):
                self.shown += self._read()
            else:
                os.write(self.terminal, text.encode())
            return answer in self.shown

        self.shown = ""
        assert soon(answered), f"{text!r} is not answered; there is {self.shown!r}"

    def type_all_that_goes_in(self, text: str) -> None:
        """Returns when nobody takes any more."""
        os.set_blocking(self.terminal, False)
        while select.select([], [self.terminal], [], 0.5)[1]:
            os.write(self.terminal, text.encode())
        os.set_blocking(self.terminal, True)

    def resize(self, rows: int, columns: int) -> None:
        _resize(self.terminal, rows, columns)

    def end(self) -> int:
        """The exit code, once all is shown."""
        while text := self._read():
            self.shown += text
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


def _resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


@pytest.fixture
def web() -> Iterator[str]:
    """A container in the background, and its name."""
    made = klab("run", "-d", "--name", "web", "busybox", "sleep", "1000")
    assert made.returncode == 0, made.stderr
    yield "web"
    klab("rm", "-f", "web")
    assert soon(lambda: "web" not in klab("ps", "-a").stdout)


def look_around(shell: Person, name: str = "/dev/pts/0") -> None:
    """What is so in every container with a terminal of its own."""
    shell.until("# ")
    shell.type("tty; test -e $(tty) && test -t 0 && test -t 1 && test -t 2 && echo own-$((40+2))\n")
    shell.until("own-42")
    assert f"{name}\r\n" in shell.shown
    shell.type("stty size\n")
    shell.until("33 77")
    shell.type("echo through-$((1+1)) > /dev/tty\n")
    shell.until("through-2")


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("options", [[], ["--init"]])
def test_a_shell_in_a_terminal_of_the_container(options: list[str]) -> None:
    with Person("run", "-it", *options, "busybox", "sh") as shell:
        look_around(shell)
        assert "job control" not in shell.shown
        shell.type("echo on-the-$((1+1))nd > /dev/console; ls -l /dev/console | cut -c1\n")
        shell.until("on-the-2nd\r\nc\r\n")
        shell.type("trap 'echo int-$((1+1))' INT; echo set-$((1+1))\n")
        shell.until("set-2")  # not only the prompt, which may be that of before: Ctrl-C would discard what has been typed
        shell.type("\x03")
        shell.until("int-2")
        shell.type("cat\n")
        shell.until("cat\r\n")
        shell.type_until("typed\n", "typed\r\ntyped\r\n")
        shell.type("\x03")
        shell.until("# ")
        shell.type("exit 5\n")
        assert shell.end() == 5


def test_jobs_stop_and_go_on() -> None:
    with Person("run", "-it", "busybox", "sh") as shell:
        shell.until("# ")
        shell.type("cat\n")
        shell.until("cat\r\n")
        shell.type_until("typed\n", "typed\r\ntyped\r\n")
        shell.type("\x1a")
        shell.until("Stopped")
        shell.type("fg\n")
        shell.until("fg\r\ncat\r\n")
        shell.type_until("again\n", "again\r\nagain\r\n")
        shell.type("\x04")
        shell.until("# ")
        shell.type("exit\n")
        assert shell.end() == 0


@pytest.mark.usefixtures("executor")
def test_terminals_in_a_running_container(web: str) -> None:
    with Person("exec", "-it", web, "sh") as first:
        look_around(first)
        with Person("exec", "-it", web, "sh") as second:
            look_around(second, "/dev/pts/1")
            for shell in (first, second):
                shell.type("hostname; exit 3\n")
                assert shell.end() == 3
                assert "web" in shell.shown


def test_the_hosts_tree_has_the_hosts_terminals() -> None:
    with Person("run", "-it", "host", "sh", "-c", "test -e $(tty) && echo a-$((40+2))-terminal") as shell:
        assert shell.end() == 0
        assert "a-42-terminal" in shell.shown


@pytest.mark.usefixtures("executor")
def test_the_rows_alone_make_it_as_large_as_the_callers_and_give_the_creator_its_other_end() -> None:
    box = Container(*users(), PID(), Mount(busybox()))
    console, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keyboard, screen = map(FileIO, pty.openpty(), ("r+", "r+"))
    with console, theirs, keyboard, screen:
        _resize(screen.fileno(), *SIZE)
        box.launch(box.command(("cat",), terminal=True), Streams(theirs.fileno(), screen.fileno(), screen.fileno()))
        _, (master,), _, _ = socket.recv_fds(console, 1, 1)
        with box, FileIO(master, "r+") as terminal:
            assert struct.unpack("4H", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))[:2] == SIZE
            terminal.write(b"typed\n")
            assert terminal.read(100).startswith(b"typed\r\n")


def test_its_size_changes() -> None:
    script = "trap 'stty size; exit 7' WINCH; echo ready; while :; do sleep 0.05; done"
    with Person("run", "-t", "--init", "busybox", "sh", "-c", script) as shell:
        shell.until("ready")
        shell.resize(20, 50)
        shell.until("20 50")
        assert shell.end() == 7


@pytest.mark.needs("root")
def test_it_belongs_to_the_commands_user() -> None:
    with Person("run", "-it", "-u", "7:7", "busybox", "sh", "-c", "ls -ln $(tty); echo anew > $(tty)") as shell:
        assert shell.end() == 0
        assert "crw--w----" in shell.shown and " 7 " in shell.shown and "anew" in shell.shown


def test_nothing_is_read_unless_told_to() -> None:
    ours, theirs = os.pipe()
    try:
        os.write(theirs, b"text\n")
        assert klab("run", "-t", "busybox", "true", stdin=ours).returncode == 0
        assert os.read(ours, 10) == b"text\n"
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("text", ["", "a line\n", "a line\nand no end of one"])
def test_input_that_ends_is_ended_for_the_command(text: str) -> None:
    done = klab("run", "-it", "busybox", "cat", input=text)
    assert done.returncode == 0 and text in done.stdout


def test_more_is_typed_than_is_read(tmp_path: Path) -> None:
    script = "stty raw -echo; echo ready; while ! test -e /mnt/go; do sleep 0.05; done; echo on-$((40+2)); exit 3"
    with Person("run", "-it", "-v", f"{tmp_path}:/mnt", "busybox", "sh", "-c", script) as person:
        person.until("ready")
        person.type_all_that_goes_in("x" * 1000)
        (tmp_path / "go").touch()
        person.until("on-42")
        assert person.end() == 3


def test_keys_arrive_though_nobody_looks(tmp_path: Path) -> None:
    # In blocks, so that the last one that fits does so in part.
    blocks = "for block in 1 2 3 4 5 6 7 8; do head -c 3000 /dev/zero; sleep 0.05; done"
    script = f"trap 'touch /mnt/stopped; exit 4' INT; {blocks}; touch /mnt/full; yes"
    with Person("run", "-it", "-v", f"{tmp_path}:/mnt", "busybox", "sh", "-c", script) as person:
        assert soon((tmp_path / "full").exists)
        person.type("\x03")
        assert soon((tmp_path / "stopped").exists)
        assert person.end() == 4


def test_one_that_lets_go_of_its_terminal_may_take_it_again() -> None:
    script = "exec 0<&- 1>&- 2>&-; for word in back and again; do sleep 0.2; echo $word-$((40+2)) > /dev/tty; done"
    with Person("run", "-t", "busybox", "sh", "-c", script) as shell:
        assert shell.end() == 0
        assert all(f"{word}-42" in shell.shown for word in ("back", "and", "again"))


def test_a_container_without_dev_has_no_terminal() -> None:
    box = Container(*users(), PID(), Mount(busybox(), dev=False))
    with pytest.raises(KernelError, match=r'openat.*"/dev/ptmx".*ENOENT'):
        attached(lambda streams: box.launch(box.command(("true",), terminal=True), streams), False, True)


def test_the_table_shows_how_it_is_made() -> None:
    rows = ('"/dev/ptmx", O_RDWR', "TIOCSPTLCK", "TIOCGPTPEER", "{SCM_RIGHTS, 0}", "TIOCSCTTY", '"/dev/console"')
    shown, without = klab("program", "-t", "busybox", "sh").stdout, klab("program", "busybox", "sh").stdout
    assert [row in shown for row in rows] == [True] * len(rows)
    assert [row in without for row in rows] == [False] * len(rows)
