"""The leak audit sees what is left in the kernel; each test leaves something, looks, and takes it away again."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nbformat
import pytest
from waiting import soon

from kernel_lab.course.execute import execute
from kernel_lab.kernel import procfs
from kernel_lab.kernel.executors import available
from kernel_lab.kernel.snapshot import Leaks, Snapshot, snapshot

ROOT = os.geteuid() == 0
HERE = Path(__file__).parent
# An ordinary user makes the other namespaces inside a user namespace of his own.
UNSHARE = ["unshare", "--uts", *([] if ROOT else ["--user", "--map-root-user"])]


def whose(leaks: Leaks, what: str) -> set[str]:
    return {leak.which.partition(",")[0] for leak in leaks.found if leak.what == what}


def run(*command: str) -> None:
    subprocess.run(command, check=True)


@contextmanager
def daemon(*setting: str) -> Iterator[int]:
    """A process that has left its parent and its session, in a UTS namespace of its own."""
    script = 'setsid sh -c "echo \\$\\$; exec sleep 300 >/dev/null" & exit 0'
    started = subprocess.run([*UNSHARE, "env", *setting, "sh", "-c", script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True)
    pid = int(started.stdout)
    began = procfs.start_time(pid)
    try:
        yield pid
    finally:
        # Whoever is its parent now, a killed process is gone, or waits as a zombie for a parent that is not us.
        os.kill(pid, 9)
        assert began is not None
        assert soon(lambda: not procfs.alive(pid, began))


@pytest.mark.needs("unshare", "userns")
def test_a_daemon_in_a_new_namespace_is_reported_with_the_namespace() -> None:
    before = snapshot()
    with daemon() as pid:
        assert procfs.process(pid).parent != os.getpid()
        assert procfs.process(pid).session != os.getsid(0)
        namespace = str(procfs.namespaces(pid)["uts"])
        leaks = before.leaks(patience=0.1)
        assert str(pid) in whose(leaks, "process")
        assert namespace in whose(leaks, "namespace")
        assert "sleep" in str(leaks)
    assert not before.leaks(patience=20)


@pytest.mark.needs("unshare", "userns")
def test_a_daemon_that_only_the_kits_mark_betrays() -> None:
    before = snapshot()
    with daemon("-i", "container=kernel-lab", f"PATH={os.environ['PATH']}") as pid:
        leaks = before.leaks(patience=0.1)
        # Beside another run of the kit it may be that one's.
        assert str(pid) in whose(leaks, "process") or leaks.unsure or before.leaks().unsure
    assert not before.leaks(patience=20)


Undo = Callable[[str, str], None]


@pytest.fixture
def before() -> Iterator[Snapshot]:
    taken = snapshot()
    yield taken
    assert not taken.leaks(patience=20)


def appeared(before: Snapshot, what: str, text: str) -> bool:
    """Whether the machine's own thing is seen, and reported unless another run of the kit is at work: then nobody can say whose it is."""
    leaks = before.leaks()
    seen = any(text in which for which in snapshot().things[what])
    return seen and (any((leak.what, leak.change) == (what, "appeared") and text in leak.which for leak in leaks.found) or bool(leaks.unsure))


@pytest.mark.needs("root", "ip")
def test_a_link(before: Snapshot) -> None:
    name = f"klabz{os.getpid()}"[:15]
    run("ip", "link", "add", name, "type", "bridge")
    try:
        assert appeared(before, "link", name)
    finally:
        run("ip", "link", "del", name)


@pytest.mark.needs("root", "nft")
def test_tables_of_rules(before: Snapshot) -> None:
    # So many with so long names that the kernel answers in several messages.
    names = [f"klab_audit_{os.getpid()}_{number}_{'x' * 200}" for number in range(400)]
    run("nft", "".join(f"add table ip {name}; " for name in names))
    try:
        assert all(appeared(before, "nft table", f"{name} (family 2,") for name in (names[0], names[-1]))
    finally:
        run("nft", "".join(f"delete table ip {name}; " for name in names))


@pytest.mark.needs("root")
def test_a_mount_and_a_mount_that_is_gone(before: Snapshot, run_directory: Path) -> None:
    point = run_directory / "mounted"
    point.mkdir()
    run("mount", "-n", "-t", "tmpfs", "audit", str(point))
    try:
        assert whose(before.leaks(), "mount"), "it carries the name of our run directory, whoever else is at work"
        with_it = snapshot()
    finally:
        run("umount", "-n", str(point))
    assert ("mount", "vanished") in {(leak.what, leak.change) for leak in with_it.leaks().found}


@pytest.mark.needs("ipcmk", "ipcrm")
def test_system_v_objects(before: Snapshot) -> None:
    for kind, option in (("msg", "-Q"), ("sem", "-S"), ("shm", "-M")):
        made = subprocess.run(["ipcmk", option, *(["16"] if option != "-Q" else [])], stdout=subprocess.PIPE, text=True, check=True)
        number = made.stdout.split()[-1]
        try:
            assert appeared(before, "ipc", f"{kind} {number}, ")
        finally:
            run("ipcrm", option.lower(), number)


@pytest.mark.needs("unshare", "root")
def test_a_namespace_that_a_descriptor_keeps(before: Snapshot) -> None:
    command = ["unshare", "--net", "sh", "-c", "echo ready; read end"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell, ExitStack() as kept:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"ready\n"
        kept.enter_context(open(f"/proc/{shell.pid}/ns/net"))
        assert shell.stdin is not None
        shell.stdin.close()
        shell.wait()
        shell.stdout.close()
        assert whose(before.leaks(), "descriptor") == {"net"}


LEAKING = """
import os, subprocess, sys
import pytest

def test_clean():
    subprocess.run(["true"], check=True)
    os.close(os.open("/", os.O_RDONLY))

def test_leaks_a_descriptor():
    os.open("/", os.O_RDONLY)

def test_is_clean_again():
    assert os.environ["KERNEL_LAB_RUN"] != "outside"
    assert os.path.isdir(os.environ["KERNEL_LAB_RUN"])

class Cycle:
    def __init__(self):
        self.me = self
        self.file = open("/dev/null")

@pytest.mark.filterwarnings("ignore")
def test_garbage_that_can_be_collected_is_no_leak():
    Cycle()

@pytest.mark.needs("no-such-tool")
def test_needs_a_tool():
    raise AssertionError("never run")

@pytest.mark.needs("root" if os.geteuid() else "user")
def test_needs_the_other_user():
    raise AssertionError("never run")

def test_on_every_executor(executor):
    assert os.environ["KERNEL_LAB_EXECUTOR"] == executor
    print("executor:", executor)

def test_writes_a_record():
    open(os.environ["KERNEL_LAB_RUN"] + "/record", "w").close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("quick", ["0", "1"])
def test_a_test_that_leaks_fails_and_no_other(tmp_path: Path, quick: str) -> None:
    conftest = (HERE / "conftest.py").read_text()
    assert "PATIENCE = 20.0" in conftest
    (tmp_path / "conftest.py").write_text(conftest.replace("PATIENCE = 20.0", "PATIENCE = 0.1"))
    (tmp_path / "test_leaking.py").write_text(LEAKING)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent), *sys.path])
    command = [sys.executable, "-m", "pytest", "-rAs", "-p", "no:cacheprovider", "--import-mode=importlib", str(tmp_path)]
    setting = {**os.environ, "PYTHONPATH": paths, "KERNEL_LAB_QUICK": quick, "KERNEL_LAB_RUN": "outside"}
    output = subprocess.run(command, cwd=tmp_path, env=setting, stdout=subprocess.PIPE, text=True, check=False).stdout
    executors = available()[:1] if quick == "1" else available()
    found = {line for line in output.split("\n") if line.startswith(("ERROR ", "FAILED "))}
    assert {line.partition(" - ")[0] for line in found} == {
        "ERROR test_leaking.py::test_leaks_a_descriptor",
        "ERROR test_leaking.py::test_writes_a_record",
    }, output
    assert "left behind by the whole session" in output
    assert "needs no-such-tool: not on the PATH" in output
    assert ("needs user: this is root" if ROOT else "needs root: this is an ordinary user") in output
    assert [line for line in output.split("\n") if line.startswith("executor:")] == [f"executor: {name}" for name in executors]


@pytest.mark.slow
@pytest.mark.needs("userns")
def test_what_a_large_output_opens_in_a_notebook_is_not_the_labs(tmp_path: Path) -> None:
    cells = ["from kernel_lab.course.session import audit, lab\nlab('99')", "b'x' * 200_000", "audit()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    assert execute(notebook, tmp_path, strict=True).error == ""
