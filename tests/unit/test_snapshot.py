"""Whose a process is, on made-up machines; what the readers see of the real one, as far as no privilege is needed."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab import janitor
from kernel_lab.kernel import inventory, procfs
from kernel_lab.kernel import snapshot as module
from kernel_lab.kernel.procfs import Process
from kernel_lab.kernel.snapshot import Leak, Leaks, Snapshot, at_work, differences, others, ours, snapshot

ME, INIT, RUN = 100, 1, "/run/klab-tests-x"


def process(pid: int, parent: int = INIT, group: int = 0, session: int = 0, started: int = 1, name: str = "sh") -> Process:
    return Process(pid, name, "S", parent, group or pid, session or pid, started)


BEFORE = (process(INIT, 0), process(50, INIT), process(ME, 50), process(60, 50, 60, 50))


def machine(*new: Process, held: dict[str, set[int]] | None = None, things: dict[str, set[str]] | None = None, run: str | None = RUN) -> Snapshot:
    processes = {one.pid: one for one in (*BEFORE, *new)}
    private = {pid for inside in (held or {}).values() for pid in inside}
    spaces = {"net:[host]": frozenset(processes.keys() - private), **{name: frozenset(inside) for name, inside in (held or {}).items()}}
    return Snapshot(processes, spaces, {what: frozenset(names) for what, names in (things or {}).items()}, run, ME)


def whose(now: Snapshot, environments: dict[int, dict[str, str]] | None = None, alone: bool = True) -> set[int]:
    return set(ours(machine(), now, alone=alone, environ=lambda pid: (environments or {}).get(pid, {})))


@pytest.mark.parametrize("alone", [True, False])
class TestWhoseAProcessIs:
    def test_a_descendant(self, alone: bool) -> None:
        assert whose(machine(process(200, ME), process(201, 200), process(202, 201, held_group := 202, held_group)), alone=alone) == {200, 201, 202}

    def test_somebody_elses_child(self, alone: bool) -> None:
        assert whose(machine(process(200, 60), process(201, INIT), process(202, 50)), alone=alone) == set()

    def test_a_number_that_was_given_again(self, alone: bool) -> None:
        assert whose(machine(process(60, ME, started=2)), alone=alone) == {60}
        assert whose(machine(process(60, INIT, started=2)), {60: {"KERNEL_LAB_RUN": RUN}}, alone) == {60}

    @pytest.mark.parametrize(("run", "is_ours"), [(RUN, True), (f"{RUN}/deeper", True), (f"{RUN}2", False), ("/run/else", False), ("", False)])
    def test_an_orphan_with_a_run_directory(self, run: str, is_ours: bool, alone: bool) -> None:
        assert whose(machine(process(200)), {200: {"KERNEL_LAB_RUN": run}}, alone) == ({200} if is_ours else set())

    def test_an_orphan_when_we_have_no_run_directory(self, alone: bool) -> None:
        found = ours(machine(run=None), machine(process(200), run=None), alone=alone, environ=lambda pid: {"KERNEL_LAB_RUN": "/run/x"})
        assert found == set()

    def test_an_orphan_in_the_session_of_our_child(self, alone: bool) -> None:
        assert whose(machine(process(200, ME), process(300, INIT, session=200)), alone=alone) == {200, 300}

    def test_an_orphan_in_the_process_group_of_our_child(self, alone: bool) -> None:
        assert whose(machine(process(200, ME, 200, 50), process(300, INIT, 200, 50)), alone=alone) == {200, 300}

    def test_a_session_and_a_group_that_were_there_before_say_nothing(self, alone: bool) -> None:
        assert whose(machine(process(200, ME, 60, 50), process(300, INIT, 60, 50)), alone=alone) == {200}

    def test_an_orphan_in_the_new_namespace_of_our_child(self, alone: bool) -> None:
        now = machine(process(200, ME), process(300), process(301), held={"uts:[new]": {200, 300}})
        assert whose(now, alone=alone) == {200, 300}

    def test_a_namespace_that_was_there_before_says_nothing(self, alone: bool) -> None:
        held = {"uts:[theirs]": {60}}
        now = machine(process(200, ME), process(300), held={"uts:[theirs]": {60, 200, 300}})
        assert set(ours(machine(held=held), now, alone=alone, environ=lambda pid: {})) == {200}

    def test_who_is_ours_by_another_makes_others_ours(self, alone: bool) -> None:
        now = machine(process(200, ME), process(300, INIT, session=200), process(400, INIT), held={"uts:[new]": {300, 400}})
        assert whose(now, alone=alone) == {200, 300, 400}

    def test_a_container_that_lost_its_creator(self, alone: bool) -> None:
        now = machine(process(200), process(201), held={"net:[new]": {200}})
        kit = {"container": "kernel-lab"}
        assert whose(now, {200: kit, 201: kit}, alone) == ({200} if alone else set())

    def test_another_kits_container(self, alone: bool) -> None:
        assert whose(machine(process(200), held={"net:[new]": {200}}), {200: {"container": "podman"}}, alone) == set()


def changes(before: Snapshot, now: Snapshot, mine: set[int] | None = None, alone: bool = True) -> set[tuple[str, str, str]]:
    return {(leak.what, leak.change, leak.which) for leak in differences(before, now, frozenset(mine or ()), alone=alone)}


def test_a_process_of_ours_is_a_leak_only_if_it_is_new() -> None:
    now = machine(process(200, ME), process(201))
    assert changes(machine(), now, {200}) == {("process", "appeared", "200, started 1")}
    assert changes(machine(process(200, ME)), now, {200}) == set()


@pytest.mark.parametrize(("parent", "leaks"), [(ME, True), (200, True), (INIT, False)])
def test_a_zombie_is_a_leak_of_the_parent_that_does_not_wait_for_it(parent: int, leaks: bool) -> None:
    now = machine(process(200, ME), process(201, parent)._replace(state="Z"))
    assert changes(machine(process(200, ME)), now, {200, 201}) == ({("process", "appeared", "201, started 1")} if leaks else set())


def test_a_namespace_is_a_leak_if_one_of_ours_is_in_it() -> None:
    now = machine(process(200, ME), process(201), held={"uts:[a]": {200, 201}, "net:[b]": {201}, "ipc:[c]": {ME}})
    assert changes(machine(process(200, ME)), now, {200}) == {("namespace", "appeared", "uts:[a]"), ("namespace", "appeared", "ipc:[c]")}


@pytest.mark.parametrize("what", ["mount", "link", "nft table"])
def test_what_the_host_had_must_stay(what: str) -> None:
    before, now = machine(things={what: {"a", "b"}}), machine(things={what: {"b", "c"}})
    assert changes(before, now) == {(what, "vanished", "a"), (what, "appeared", "c")}


@pytest.mark.parametrize("what", ["descriptor", "own namespace", "record", "cgroup", "ipc", "queue"])
def test_what_may_go_at_any_time(what: str) -> None:
    assert changes(machine(things={what: {"a"}}), machine(things={what: set()})) == set()
    assert changes(machine(things={what: {"a"}}), machine(things={what: {"a", "b"}})) == {(what, "appeared", "b")}


@pytest.mark.parametrize(
    ("what", "judged"),
    [
        *((what, True) for what in ("descriptor", "own namespace", "record")),
        *((what, False) for what in ("mount", "link", "nft table", "cgroup", "ipc", "queue")),
    ],
)
def test_beside_another_run_only_what_has_an_owner_is_judged(what: str, judged: bool) -> None:
    now = machine(things={what: {"somebody's"}})
    assert bool(changes(machine(), now, alone=False)) is judged
    assert changes(machine(), now, alone=True)
    named = machine(things={what: {f"tmpfs on {RUN}/x"}})
    assert changes(machine(), named, alone=False)


def test_no_leaks_are_false_and_say_so() -> None:
    assert not Leaks()
    assert str(Leaks()) == "nothing is left behind"


def test_leaks_are_a_table() -> None:
    leaks = Leaks((Leak("process", "appeared", "7, started 1", "sleep"),), ("process 9 (python)",))
    assert leaks
    lines = str(leaks).split("\n")
    assert lines[0].split() == ["what", "change", "which", "by"]
    assert lines[2].split() == ["process", "appeared", "7,", "started", "1", "sleep"]
    assert lines[3] == "not judged what has no owner: also at work is process 9 (python)"
    assert "<td>process</td>" in leaks._repr_html_().replace(" ", "")


def test_a_path_that_is_no_text_can_be_printed() -> None:
    str(Leaks((Leak("mount", "appeared", os.fsdecode(b"/\xff")),))).encode()


# From here on: the real machine.


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "run"
    place.mkdir()
    monkeypatch.setenv("KERNEL_LAB_RUN", str(place))
    return place


OWNED = {"process", "namespace", "descriptor", "own namespace", "record"}


def found(leaks: Leaks) -> list[tuple[str, str]]:
    """What and which, of the kinds that have an owner: the rest of the machine changes as others please."""
    return [(leak.what, leak.which) for leak in leaks.found if leak.what in OWNED]


def test_nothing_is_left_of_nothing(run: Path) -> None:
    assert not snapshot().leaks(patience=20)


def test_a_child_is_seen_until_it_is_waited_for(run: Path) -> None:
    before = snapshot()
    child = subprocess.Popen(["sleep", "300"])
    this = [("process", f"{child.pid}, started {procfs.start_time(child.pid)}")]
    assert found(before.leaks()) == this
    child.kill()
    assert soon(lambda: procfs.process(child.pid).state == "Z")
    assert found(before.leaks()) == this, "a zombie is a child that nobody waited for"
    child.wait()
    assert not before.leaks(patience=20)


DAEMON = """
import os, sys
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
for fd in (0, 2): os.dup2(os.open("/dev/null", os.O_RDWR), fd)
os.write(1, str(os.getpid()).encode())
os.dup2(0, 1)
os.execv("/bin/sleep", ["sleep", "300"])
"""


@pytest.fixture
def daemon(run: Path) -> Iterator[tuple[Snapshot, int]]:
    """A snapshot, and after it a process that has left its parent, its session and its process group behind."""
    before = snapshot()
    started = subprocess.run([sys.executable, "-I", "-S", "-c", DAEMON], stdout=subprocess.PIPE, check=True)
    pid = int(started.stdout)
    start = procfs.start_time(pid)
    yield before, pid
    assert start is not None
    if procfs.alive(pid, start):
        os.kill(pid, 9)
    # Its parent may take its time to wait for it.
    assert soon(lambda: not procfs.alive(pid, start))


def test_a_daemon_is_seen_whoever_its_parent_is_now(daemon: tuple[Snapshot, int]) -> None:
    before, pid = daemon
    assert procfs.process(pid).parent != os.getpid()
    leaks = before.leaks(patience=0.05)
    assert ("process", f"{pid}, started {procfs.start_time(pid)}") in found(leaks)
    os.kill(pid, 9)
    assert not before.leaks(patience=20)


def test_what_goes_in_time_is_no_leak_and_what_comes_later_neither(run: Path) -> None:
    before = snapshot()
    first = subprocess.Popen(["sleep", "300"])
    looks = 0

    def look(place: object) -> Snapshot:
        nonlocal looks, second
        looks += 1
        if looks == 3:
            second = subprocess.Popen(["sleep", "300"])
            first.kill()
            first.wait()
        return snapshot(str(run))

    second: subprocess.Popen[bytes] | None = None
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "snapshot", look)
            assert not before.leaks(patience=20)
        assert looks >= 3
        assert [what for what, _ in found(before.leaks())] == ["process"], "the second one is seen by who looks from now on"
    finally:
        for child in filter(None, (first, second)):
            child.kill()
            child.wait()


def test_descriptors_are_counted_by_what_they_are_open_on(run: Path, tmp_path: Path) -> None:
    one, two = socket.socketpair()
    with one, two:
        before = snapshot()
        one.close()
        with socket.socket():
            assert not found(before.leaks()), "closed and opened anew"
            with socket.socket():
                assert [(what, which.split(",")[0]) for what, which in found(before.leaks())] == [("descriptor", "socket")]
        file = open(tmp_path / "file", "w")  # noqa: SIM115
        assert found(before.leaks()) == [("descriptor", f"{tmp_path}/file, number 1")]
        assert not found(before.leaks(but=("descriptor",)))
        file.close()
        assert not found(before.leaks())


def test_records_are_left_behind_and_locks_are_not(run: Path) -> None:
    before = snapshot()
    (run / "containers").mkdir()
    (run / "containers" / "lock").touch()
    assert not found(before.leaks())
    (run / "containers" / "one.json").touch()
    (run / "link").symlink_to("nowhere")
    assert found(before.leaks()) == [("record", f"{run}/containers/one.json"), ("record", f"{run}/link")]


def test_a_run_directory_that_the_caller_names(tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    (tmp_path / "one").touch()
    assert found(before.leaks()) == [("record", f"{tmp_path}/one")]


def test_cgroups_by_prefix_at_any_depth_and_all_that_is_in_them(tmp_path: Path) -> None:
    for name in ("a/klab1/x/y/z/w/v", "b/c/d/e/f/g/h/klab2", "b/c/d/e/f/g/h/i/klab3", "klab", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "klab-file").touch()
    links = (tmp_path / "a").stat().st_nlink
    if links == 1:
        pytest.skip("needs a file system that counts directories in their link count, as cgroups do")
    names = {entry.partition(" ")[0].removeprefix(f"{tmp_path}/") for entry in inventory.cgroups("klab", str(tmp_path))}
    assert names == {"a/klab1", "a/klab1/x", "a/klab1/x/y", "a/klab1/x/y/z", "a/klab1/x/y/z/w", "a/klab1/x/y/z/w/v", "b/c/d/e/f/g/h/klab2", "klab"}


def test_a_thread_that_left_for_another_namespace_would_be_seen(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot()
    monkeypatch.setattr(inventory, "own_namespaces", lambda: before.things["own namespace"] | {"net:[1]"})
    assert found(before.leaks()) == [("own namespace", "net:[1]")]


def test_every_thread_is_asked_for_its_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(inventory, "_namespaces", lambda directory: asked.append(directory) or ())
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    inventory.own_namespaces()
    done.set()
    thread.join()
    assert {f"/proc/self/task/{os.getpid()}/ns", f"/proc/self/task/{thread.native_id}/ns"} <= set(asked)


def test_another_run_is_known_by_its_sign(run: Path) -> None:
    code = "from kernel_lab.kernel.snapshot import at_work\nimport sys\nwith at_work(): print('ready', flush=True); sys.stdin.read()"
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=paths) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        now = snapshot()
        mine = f"process {child.pid} ("
        assert not any(other.startswith(mine) for other in others(now, str(run))), "it is a child of ours"
        orphaned = Snapshot({**now.processes, child.pid: now.processes[child.pid]._replace(parent=1)}, now.held, now.things, now.run)
        assert any(other.startswith(mine) for other in others(orphaned, str(run)))
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
        assert not any(other.startswith(mine) for other in others(orphaned, str(run))), "the sign goes with its process"


def test_our_own_sign_is_not_anothers(run: Path) -> None:
    with at_work():
        assert not any(f"process {os.getpid()} " in other for other in others(snapshot(), str(run)))


@pytest.mark.parametrize(("value", "foreign"), [("another", True), ("", False), ("deeper", False)])
def test_another_run_is_known_by_its_run_directory(run: Path, value: str, foreign: bool) -> None:
    place = {"another": f"{run}2", "": "", "deeper": f"{run}/deeper"}[value]
    child = subprocess.Popen(["sleep", "300"], env={"KERNEL_LAB_RUN": place})
    try:
        assert soon(lambda: procfs.environ(child.pid).get("KERNEL_LAB_RUN") == place)
        now = snapshot()
        orphaned = Snapshot({**now.processes, child.pid: now.processes[child.pid]._replace(parent=1)}, now.held, now.things, now.run)
        assert any(other.startswith(f"process {child.pid} (") for other in others(orphaned, str(run))) is foreign
        assert not any(other.startswith(f"process {child.pid} (") for other in others(now, str(run)))
    finally:
        child.kill()
        child.wait()


def test_another_run_is_known_by_its_janitor(run: Path) -> None:
    watched = subprocess.Popen(["sleep", "300"])
    descriptor = os.pidfd_open(watched.pid)
    code = f"import sys; open('/proc/self/comm', 'w').write({module.JANITOR!r}); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-I", "-S", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor], env={}) as guard:
        os.close(descriptor)
        assert guard.stdout is not None
        assert guard.stdout.readline() == b"ready\n"

        def seen() -> bool:
            now = snapshot()
            orphans = {pid: now.processes[pid]._replace(parent=1) for pid in (watched.pid, guard.pid) if pid in now.processes}
            named = others(Snapshot({**now.processes, **orphans}, now.held, now.things, now.run), str(run))
            return f"process {watched.pid} (sleep)" in named

        # As if neither had been started with our KERNEL_LAB_RUN: then they would be our own.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "environ", lambda pid: {})
            assert soon(seen)
            watched.kill()
            watched.wait()
            assert not seen()
        assert guard.stdin is not None
        guard.stdin.close()


def test_the_janitor_has_the_name_that_it_is_looked_for_by() -> None:
    assert module.JANITOR == janitor.NAME
