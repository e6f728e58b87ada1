"""A container from its start to its end, on every executor."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import pytest
from here import IS_ROOT, busybox, gone, users
from waiting import soon

from kernel_lab import IPC, PID, UTS, CgroupNS, CommandError, Container, KernelError, Mount, Net, Part, Time, UsageError, User, call
from kernel_lab.kernel.flags import CLONE

pytestmark = pytest.mark.usefixtures("executor")

KINDS = {UTS: "uts", Mount: "mnt", IPC: "ipc", User: "user", PID: "pid", Net: "net", CgroupNS: "cgroup", Time: "time"}
MAKERS = {UTS: lambda: UTS("box"), Mount: Mount, IPC: IPC, User: User, PID: PID, Net: Net, CgroupNS: CgroupNS, Time: lambda: Time(100, 100)}
SHOW = "for kind in uts mnt ipc user pid net cgroup time; do readlink /proc/self/ns/$kind; done"


def namespaces() -> dict[str, str]:
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS.values()}


def seen_by(container: Container) -> dict[str, str]:
    # The shell's children are born into the PID and time namespaces that it was made with.
    lines = container.run("sh", "-c", SHOW, check=True).stdout.split()
    return {line.split(":")[0]: line for line in lines}


@pytest.mark.parametrize("size", range(len(KINDS) + 1))
def test_parts_work_in_every_combination(size: int) -> None:
    for kinds in combinations(KINDS, size):
        if not IS_ROOT and User not in kinds:
            continue
        inside = seen_by(Container(*(MAKERS[kind]() for kind in reversed(kinds))))
        new = {kind for kind, name in namespaces().items() if inside[kind] != name}
        assert new == {KINDS[kind] for kind in kinds}


def test_the_creator_stays_where_it_was() -> None:
    before, cwd, root = namespaces(), os.getcwd(), os.stat("/").st_ino
    Container(*users(), UTS("box"), Mount(busybox()), IPC(), PID(), Net()).run("/bin/true", check=True)
    assert (namespaces(), os.getcwd(), os.stat("/").st_ino) == (before, cwd, root)


def test_output_code_and_time() -> None:
    result = Container(*users(), UTS("box")).run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.code) == ("out\n", "err\n", 3)
    assert result.seconds > 0
    assert result.program[0].call == "prctl" and result.program.answers[0] == 0


def test_a_signal_is_a_code_above_128() -> None:
    assert Container(*users(), UTS("box")).run("sh", "-c", "kill -USR1 $$").code == 128 + signal.SIGUSR1


def test_input_reaches_the_command_whole() -> None:
    text = "line\n" * 100_000
    assert Container(*users(), PID()).run("cat", input=text).stdout == text


def test_input_that_nobody_reads_is_no_error() -> None:
    assert Container(*users(), PID()).run("true", input="x" * 1_000_000).code == 0


def test_output_of_any_size_and_any_bytes() -> None:
    result = Container(*users(), PID()).run("sh", "-c", "head -c 3000000 /dev/zero; printf '\\377' >&2")
    assert len(result.stdout) == 3_000_000 and result.stderr == "\ufffd"


def test_output_is_whole_though_somebody_else_holds_the_pipe() -> None:
    """A process that was forked in the middle of a start has a copy of the pipe's end, and keeps it open."""
    code = """
import os, sys, time
from kernel_lab import *
from kernel_lab import streams
made, forked = streams.Pipes.__init__, []
def make(self, text):
    made(self, text)
    forked.append(os.fork())
    if not forked[-1]:
        time.sleep(1000)
streams.Pipes.__init__ = make
result = Container(*([] if os.geteuid() == 0 else [User()]), PID()).run("sh", "-c", "head -c 50000 /dev/zero; echo end")
os.kill(forked[0], 9)
os.waitpid(forked[0], 0)
print(len(result.stdout))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "50004\n"


def test_one_text_is_split_as_a_shell_does_and_several_are_not() -> None:
    box = Container(*users(), UTS("box"))
    assert box.run("printf '%s|' 'a b' c").stdout == "a b|c|"
    assert box.run("printf", "%s|", "a b", "c d").stdout == "a b|c d|"


def test_environment_directory_and_limits() -> None:
    box = Container(*users(), PID(), Mount(busybox()))
    result = box.run("sh", "-c", "echo $NAME $container; pwd; ulimit -n", env={"NAME": "value"}, cwd="/tmp", rlimits={"nofile": (64, 64)})
    assert result.stdout.split() == ["value", "kernel-lab", "/tmp", "64"]
    assert "SHELL" not in box.run("env").stdout


@pytest.mark.needs("root")
def test_a_user_by_number_and_by_name() -> None:
    box = Container(PID(), Mount(busybox()))
    assert box.run("sh -c 'id -u; id -g'", user="12:34").stdout.split() == ["12", "34"]
    assert box.run("id -un", user="root").stdout == "root\n"
    with pytest.raises(UsageError, match="nobody-knows"):
        box.run("true", user="nobody-knows")


def test_nothing_of_the_creators_is_open_inside() -> None:
    with open("/dev/null") as file:
        os.set_inheritable(file.fileno(), True)
        listing = Container(*users(), PID()).run("ls -l /proc/self/fd").stdout
    numbers = {line.split()[-3] for line in listing.splitlines() if " -> " in line}
    assert numbers == {"0", "1", "2", "3"}  # 3 is what ls reads the directory with


def test_signals_are_as_a_new_program_expects_them() -> None:
    status = Container(*users(), PID()).run("cat /proc/self/status").stdout
    masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
    assert int(masks["SigBlk"], 16) == 0
    assert not int(masks["SigIgn"], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


@pytest.mark.parametrize("words", [("no-such-command",), ("/no/such/file",)])
def test_a_missing_command_is_127_and_one_line(words: tuple[str, ...]) -> None:
    result = Container(*users(), UTS("box")).run(*words)
    assert result.code == 127 and result.stdout == ""
    assert result.stderr.startswith(f"{words[0]}: not found") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc"])
def test_what_cannot_be_executed_is_126_and_one_line(path: str) -> None:
    result = Container(*users(), UTS("box")).run(path)
    assert result.code == 126 and result.stderr.startswith(f"{path}: ") and result.stderr.count("\n") == 1


def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    result = Container(*users(), UTS("box")).run(str(script))
    assert result.code == 127 and "/no/such/interpreter" in result.stderr


class Refused(Part):
    order = 45

    def rows(self, plan):  # type: ignore[no-untyped-def]
        yield call("chdir", "/no/such/directory", why="fails")


def test_a_refused_row_is_named_with_its_place_and_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"row \d+, chdir\(\"/no/such/directory\"\): ENOENT") as caught:
        Container(*users(), UTS("box"), Refused()).run("touch", str(tmp_path / "ran"))
    program = caught.value.program
    assert program.answer("sethostname") == 0 and program.answer("chdir") == -2 and program.answer("execve") is None
    assert not list(tmp_path.iterdir())


def test_a_row_that_does_not_return_is_ended_too() -> None:
    class Waits(Part):
        def rows(self, plan):  # type: ignore[no-untyped-def]
            yield call("pause")

    with pytest.raises(TimeoutError, match="row does not return"):
        Container(*users(), Waits()).run("true", timeout=0.2)


def test_a_timeout_ends_all(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="sleep"):
        Container(*users(), PID()).run("sleep 1000", timeout=0.2)


def test_check_raises_with_the_code() -> None:
    with pytest.raises(RuntimeError, match="ended with 4: why"):
        Container(*users(), UTS("box")).run("sh", "-c", "echo why >&2; exit 4", check=True)


def test_a_started_container_lives_until_it_is_killed() -> None:
    box = Container(*users(), UTS("box"), PID())
    box.start("sh", "-c", "echo started; exec sleep 1000")
    pid = box.pid
    assert not gone(pid) and box.running
    assert soon(lambda: box.logs() == "started\n")
    with pytest.raises(UsageError, match="runs already"):
        box.start("true")
    assert box.kill() == 128 + signal.SIGKILL
    assert gone(pid) and not box.running and box.logs() == "started\n"
    with pytest.raises(UsageError, match="not running"):
        box.exec("true")


def test_wait_signal_and_context() -> None:
    with Container(*users(), UTS("box")).start("sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done") as box:
        assert soon(lambda: "ready" in box.logs())
        with pytest.raises(TimeoutError):
            box.wait(timeout=0.05)
        box.signal(signal.SIGTERM)
        assert box.wait() == 5 and box.wait() == 5
        pid = box._first.pid  # type: ignore[union-attr]
    assert gone(pid)


def test_started_again_after_its_end() -> None:
    box = Container(*users(), PID())
    with box.start("true"):
        box.wait()
        box.start("sh", "-c", "echo second")
        assert box.wait() == 0 and soon(lambda: box.logs() == "second\n")


def test_start_of_what_cannot_run_raises_and_leaves_nothing() -> None:
    with pytest.raises(CommandError, match="no-such-command: not found") as caught:
        Container(*users(), UTS("box")).start("no-such-command")
    assert caught.value.code == 127
    with pytest.raises(KernelError, match="chdir"):
        Container(*users(), Refused()).start("true")


def test_exec_joins_every_namespace() -> None:
    parts = [MAKERS[kind]() for kind in KINDS if IS_ROOT or kind is not CgroupNS]
    with Container(*parts).start("sleep 1000") as box:
        ours = {kind: os.readlink(f"/proc/{box.pid}/ns/{kind}") for kind in KINDS.values()}
        joined = box.exec("sh", "-c", SHOW, check=True).stdout.split()
        assert {line.split(":")[0]: line for line in joined} == ours


def test_exec_has_its_own_streams_code_and_settings() -> None:
    with Container(*users(), PID(), Mount(busybox())).start("sleep 1000") as box:
        result = box.exec("sh", "-c", "cat; pwd; echo $A; echo err >&2; exit 9", input="in\n", cwd="/tmp", env={"A": "b"})
        assert (result.stdout, result.stderr, result.code) == ("in\n/tmp\nb\n", "err\n", 9)
        assert box.exec("no-such-command").code == 127
        assert box.exec("ps").stdout.count("sleep 1000") == 1


def test_the_whole_tree_ends_with_process_1() -> None:
    result = Container(*users(), PID()).run("sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & exit 0")
    assert result.code == 0  # the audit finds whoever is left


def test_daemons_end_without_a_pid_namespace_too() -> None:
    command = "(trap '' TERM HUP; setsid sleep 1000 & ) ; setsid sh -c 'sleep 1000 & sleep 1000' & exit 0"
    assert Container(*users(), UTS("box")).run("sh", "-c", command).code == 0
    assert Container(*users()).run("sh", "-c", "sleep 1000 & exit 0").code == 0


def test_init_reaps_orphans_and_passes_signals_on() -> None:
    box = Container(*users(), PID(init=True), Mount(busybox()))
    orphan = "(sleep 0.05 &) ; trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    with box.start("sh", "-c", orphan):
        assert soon(lambda: "ready" in box.logs())
        assert soon(lambda: "[sleep]" not in box.exec("ps").stdout)
        assert "    1 root     init" in box.exec("ps").stdout
        box.signal(signal.SIGTERM)
        assert box.wait() == 7
    assert Container(*users(), PID(init=True)).run("sh", "-c", "kill -KILL $$").code == 128 + signal.SIGKILL
    assert Container(*users(), PID(init=True)).run("no-such-command").code == 127


@pytest.mark.slow
def test_a_hundred_containers_from_eight_threads() -> None:
    box = Container(*users(), UTS("box"), PID())
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda number: box.run("echo", str(number)).stdout, range(100)))
    assert results == [f"{number}\n" for number in range(100)]


def test_what_a_thread_starts_outlives_the_thread() -> None:
    made: list[Container] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: made.append(Container(*users(), PID()).start("sleep 1000")))
        thread.start()
        thread.join()
    try:
        assert len(made) == 3 and all(box.running and box.exec("echo up").stdout == "up\n" for box in made)
    finally:
        for box in made:
            box.kill()


def test_evidence_of_a_container_that_is_not_running_and_of_one_that_is() -> None:
    box = Container(*users(), UTS("box"), IPC())
    expected = {"uts namespace", "ipc namespace"} | (set() if IS_ROOT else {"user namespace"})
    assert set(box.evidence().differing) == expected
    with box.start("sleep 1000"):
        assert set(box.evidence().differing) == expected


def test_evidence_of_one_with_a_reaper() -> None:
    assert "pid namespace" in Container(*users(), PID(init=True)).evidence().differing


def test_the_table_is_known_before_and_made_of_what_runs() -> None:
    box = Container(*users(), UTS("box"))
    assert [row.call for row in box.setup][-1] == "sethostname"
    result = box.run("true")
    assert result.program == box.program


def test_reused_and_remade_containers_are_the_same() -> None:
    box = Container(*users(), UTS("box"), PID())
    assert [box.run("hostname").stdout for _ in range(5)] == ["box\n"] * 5
    assert box.run("echo", "other").stdout == "other\n"


INTERRUPTED = """
import os, signal, sys, threading, time
from kernel_lab import *
from kernel_lab.kernel.procfs import children
parts = [] if os.geteuid() == 0 else [User()]
box = Container(*parts, UTS("box"), *([PID()] if sys.argv[1] == "pid" else []))
box.run("true")
hit = 0
for number in range(60):
    delay = number / 60 * 0.012
    timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        try:
            timer.start()
            box.run("sleep 0.004")
        finally:
            while timer.ident is None or timer.is_alive():
                time.sleep(0.001)
        time.sleep(0.01)
    except KeyboardInterrupt:
        hit += 1
    while True:
        try:
            os.waitpid(-1, os.WNOHANG)
            sys.exit(f"a child is left after interrupt {number}")
        except ChildProcessError:
            break
print("interrupted", hit > 0)
"""


@pytest.mark.parametrize("kind", ["pid", "none"])
def test_an_interrupt_at_any_moment_leaves_nothing(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, kind], capture_output=True, text=True, timeout=200)
    assert done.stdout == "interrupted True\n", done.stderr


@pytest.mark.parametrize("parts", ["Stuck()", "Stuck(), PID()"])
def test_a_start_that_does_not_come_on_can_be_interrupted(parts: str) -> None:
    code = f"""
import os, signal, threading
from kernel_lab import *
class Stuck(Part):
    def rows(self, plan):
        yield call("ppoll", None, 0, None, None, 8, why="never comes back")
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    Container(*([] if os.geteuid() == 0 else [User()]), {parts}).run("true")
except KeyboardInterrupt:
    print("interrupted")
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "interrupted\n"


def test_wait_can_be_interrupted() -> None:
    code = """
import os, signal, threading
from kernel_lab import *
box = Container(*([] if os.geteuid() == 0 else [User()]), PID())
with box.start("sleep 1000"):
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        box.wait()
    except KeyboardInterrupt:
        print("interrupted")
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "interrupted\n"


@pytest.mark.needs("root", "cgroup2")
def test_born_in_a_cgroup() -> None:
    place = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2")
    group = Path(place) / f"klab-test-{os.getpid()}"
    group.mkdir()
    try:
        with Container(UTS("box"), PID()).start("sleep 1000", cgroup=group) as box:
            assert group.joinpath("cgroup.procs").read_text().split() == [str(box.pid)]
    finally:
        assert soon(lambda: not group.joinpath("cgroup.procs").read_text())
        group.rmdir()


def test_flags_are_asked_for_once() -> None:
    assert Container(UTS("a"), IPC(), PID()).plan.flags == CLONE.NEWUTS | CLONE.NEWIPC | CLONE.NEWPID
