"""What is measured is the container that is promised: seen from inside, by a command, and from outside, by what is left. No test asserts a time."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab.benchmarks import floor, start
from kernel_lab.benchmarks.compiled import compiled
from kernel_lab.benchmarks.contestant import Absent, Contestant, Ground, Start, command
from kernel_lab.benchmarks.engines import Docker, Engine
from kernel_lab.benchmarks.ground import ground
from kernel_lab.benchmarks.hybrid import without_v2
from kernel_lab.benchmarks.peers import Crun, Runc
from kernel_lab.benchmarks.start import CONTESTANTS, bench_start, measure

pytestmark = [pytest.mark.slow, pytest.mark.needs("userns", "cc")]

NEW = ("user", "uts", "mnt", "ipc", "pid", "net")
# What a container says of itself, a line each.
ASKED = "hostname; echo $$; id -u; cat /proc/self/uid_map; ip link show lo; ls -di /; " + "; ".join(
    f"readlink /proc/self/ns/{kind}" for kind in (*NEW, "cgroup", "time")
)
OF_A_VETH = "ip -o -4 addr show dev eth0; ip route; nc -w 20 {0} {1}"
ROOTS_ALONE = ("crun", "runc")
OTHERS = [one for one in CONTESTANTS if not isinstance(one, Engine)]


def program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH where nothing is installed but what the ground is made of; the floor is compiled already."""
    floor.compiled()
    busybox = shutil.which("busybox")
    assert busybox
    place = tmp_path / "bin"
    place.mkdir()
    (place / "busybox").symlink_to(busybox)
    monkeypatch.setenv("PATH", str(place))
    return place


def said(run: Start) -> list[str]:
    assert run.code == 0, run.stderr
    return run.stdout.splitlines()


def ours(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")


@pytest.fixture
def asking() -> Iterator[Ground]:
    with ground(False, ("/bin/sh", "-c", ASKED)) as made:
        yield made


def check_inside(lines: list[str], place: Ground, hostname: bool = True, loopback: bool = True) -> None:
    """The six namespaces are new and the others are not, root inside is the caller outside, and the root is the ground's."""
    name, number, user, mapped, lo, *rest = lines
    assert number == "1" and user == "0"
    assert mapped.split() == ["0", str(os.geteuid()), "1"]
    assert (name == place.hostname) is hostname
    assert ("UP" in lo.partition("<")[2].partition(">")[0].split(",")) is loopback
    inode, *namespaces = [line for line in rest if "link/" not in line]
    assert inode.split()[0] == str(place.root.stat().st_ino)
    assert not {ours(kind) for kind in NEW} & set(namespaces)
    assert namespaces[len(NEW) :] == [ours("cgroup"), ours("time")]


def check_inside_an_engine(lines: list[str], place: Ground) -> None:
    """An engine's container has a root of its own, an image, and the machine's users."""
    name, number, *_ = lines
    assert (name, number) == (place.hostname, "1")
    assert not {ours(kind) for kind in NEW if kind != "user"} & set(lines)


@pytest.mark.parametrize("one", CONTESTANTS, ids=lambda one: one.who)
def test_everybody_runs_the_same_command_in_the_same_container_or_says_why_not(one: Contestant, asking: Ground) -> None:
    if os.geteuid() and one.who in ROOTS_ALONE:
        pytest.skip("needs root: this is an ordinary user")
    try:
        with one.ready(asking) as run:
            lines = said(run())
            again = said(run())
    except Absent as absent:
        program = getattr(one, "program", "cc")
        assert str(absent).startswith("installed, but" if shutil.which(program) else "not installed")
        return
    for seen in (lines, again):
        if isinstance(one, Engine):
            check_inside_an_engine(seen, asking)
            continue
        check_inside(seen, asking, hostname=not one.who.startswith("unshare"), loopback=not one.who.startswith("unshare"))


@pytest.mark.needs("root")
@pytest.mark.parametrize("one", OTHERS, ids=lambda one: one.who)
def test_everybody_has_the_overlay_and_the_limits_or_says_why_not(one: Contestant) -> None:
    asked = "sed -n 's/.* \\/ \\/ .* - \\([a-z]*\\) .*/\\1/p' /proc/self/mountinfo; cat /proc/self/cgroup"
    with ground(False, ("/bin/sh", "-c", asked), layered=True) as place:
        try:
            with one.ready(place) as run:
                seen = [said(run()), said(run())]
        except Absent as absent:
            assert str(absent) in ("it makes no control groups", "not installed")
            return
        assert [list(left.iterdir()) for left in place.layers.iterdir()] in ([], [[]])
    ours = Path("/proc/self/cgroup").read_text().splitlines()
    for root, *groups in seen:
        assert root == "overlay"
        others = [line for line in groups if line not in ours]
        assert len({line.rpartition("/")[2] for line in others}) == 1 and others, groups


@contextmanager
def greeting(address: str) -> Iterator[int]:
    """Who connects to the port on this address is told `hello`."""
    with socket.create_server((address, 0)) as server, ThreadPoolExecutor(1) as thread:
        server.settimeout(20)

        def greet() -> None:
            visitor, _ = server.accept()
            with visitor:
                visitor.sendall(b"hello\n")

        greeted = thread.submit(greet)
        yield server.getsockname()[1]
        greeted.result()


@pytest.mark.needs("root", "ip", "nsenter", "unshare")
@pytest.mark.parametrize("one", OTHERS, ids=lambda one: one.who)
def test_everybody_has_the_veth_the_address_and_the_route_and_reaches_the_host(one: Contestant) -> None:
    with ground(True) as place:
        assert place.network
        gateway = place.network.gateway
        with greeting(gateway) as port:
            asked = replace(place, command=("/bin/sh", "-c", OF_A_VETH.format(gateway, port)))
            with one.ready(asked) as run:
                address, *routes, greeted = said(run())
    assert f" inet {place.network.address.rpartition('.')[0]}." in address
    assert any(route.startswith(f"default via {gateway} dev eth0") for route in routes)
    assert greeted == "hello"


def test_the_floor_mounts_its_root_and_proc_and_nothing_else() -> None:
    with ground(False, ("/bin/cat", "/proc/mounts")) as place, floor.Server().ready(place) as run:
        assert [line.split()[1] for line in said(run())] == ["/", "/proc"]


def test_the_floors_command_has_no_descriptor_but_three_and_no_input() -> None:
    # The fourth is the directory that ls itself reads.
    with ground(False, ("/bin/sh", "-c", "cat; cd /proc/self/fd; exec ls")) as place, Path("/dev/zero").open() as kept:
        words = [floor.compiled(), *floor.arguments(place)]
        done = subprocess.run(words, stdin=kept, capture_output=True, text=True, pass_fds=(kept.fileno(),))
    assert done.stdout.split() == ["0", "1", "2", "3"], done.stderr


def test_the_floor_answers_as_the_command_does() -> None:
    with ground(False, ("/bin/sh", "-c", "echo out; echo err >&2; exit 3")) as place:
        for one in (floor.Server(), floor.Anew()):
            with one.ready(place) as run:
                begun = run()
        assert (begun.code, begun.stdout, begun.stderr) == (3, "out\n", "err\n")
        assert begun.seconds > 0


def test_the_floor_says_which_step_was_refused() -> None:
    with ground(False, ("/bin/nothing",)) as place:
        for one in (floor.Server(), floor.Anew()):
            with one.ready(place) as run:
                refused = run()
            assert refused.code == 125 and refused.stderr == "floor: /bin/nothing: No such file or directory\n"


def test_the_floor_reads_more_than_a_pipe_holds() -> None:
    with ground(False, ("/bin/sh", "-c", "yes | head -c 1000000 >&2; yes | head -c 100000")) as place, floor.Server().ready(place) as run:
        for begun in (run(), run()):
            assert (begun.code, len(begun.stdout), len(begun.stderr)) == (0, 65536, 65536)  # what it keeps


def test_the_floor_is_dead_when_its_creator_is() -> None:
    with ground(False, ("/bin/sleep", "1000")) as place:
        words = [str(floor.compiled()), *floor.arguments(place)]
        creator = subprocess.Popen(words)
        children = Path(f"/proc/{creator.pid}/task/{creator.pid}/children")
        assert soon(lambda: (pids := children.read_text().split()) and Path(f"/proc/{pids[0]}/comm").read_text() == "sleep\n")
        child = Path("/proc") / children.read_text().split()[0]
        creator.kill()
        creator.wait()
        assert soon(lambda: not child.exists() or "Z" in (child / "stat").read_text().rpartition(")")[2].split()[0])


@pytest.mark.parametrize("words", [[], ["/"], ["--server"], ["--veth", "a", "b"], ["--wrong", "/", "true"]])
def test_the_floor_explains_its_words(words: list[str]) -> None:
    done = subprocess.run([floor.compiled(), *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("floor [--hostname NAME]")


def test_without_a_compiler_the_floor_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Absent, match=r"not installed: a C compiler \(cc\)"):
        floor.compiled()
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_named_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "bin/cc", 'echo half > "$3"; echo broken >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    with pytest.raises(Absent, match="cc cannot compile it: broken"):
        floor.compiled()
    assert not list((tmp_path / "data").iterdir())


def test_the_programs_of_other_sources_go_and_who_runs_one_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (data := tmp_path / "data").mkdir()
    monkeypatch.setenv("KERNEL_LAB_DATA", str(data))
    others = {data / "one-more-0123456789ab", data / "one-0123456789ab.p1t2"}
    for other in others:
        other.touch()
    source = tmp_path / "one.c"
    source.write_text("#include <stdio.h>\nint main(void) { return getchar(); }\n")
    with subprocess.Popen([old := compiled("one", [source])], stdin=subprocess.PIPE) as process:
        source.write_text("int main(void) { return 0; }\n")
        new = compiled("one", [source])
        assert set(data.iterdir()) == {new, *others} and not old.exists()
        process.communicate(b"*")
    assert process.returncode == ord("*")


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the 500 MB, and with the fewest rounds: what is tested is not how long it takes."""
    monkeypatch.setattr(start, "burden", nullcontext)
    monkeypatch.setattr(start, "WARM_UP", 1)


@pytest.mark.slow
def test_a_whole_run_has_a_row_for_everybody_in_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_start(2, json=True) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["case"], row["who"]) for row in rows] == [(case, one.who) for case in start.CASES for one in CONTESTANTS]
    for row in rows:
        measured = row["median_ms"] is not None
        assert measured == (row["p95_ms"] is not None) == (row["times_floor"] is not None) == (row["note"] == ""), row
        assert not measured or 0 < row["median_ms"] <= row["p95_ms"]
    kits = [row for row in rows if row["who"] in ("C floor", "kit", "kit, built anew") and not (os.geteuid() and row["case"] != "six namespaces")]
    assert all(row["median_ms"] for row in kits)
    assert all(row["times_floor"] == 1.0 for row in kits if row["who"] == "C floor")


def test_who_is_not_installed_is_a_row_that_says_so(light: None, bare: Path) -> None:
    report = measure(2, ["six"])
    notes = {row.who: row.note for row in report.rows}
    assert {who for who, note in notes.items() if note == "not installed"} == {
        "unshare (util-linux)", "bubblewrap", "crun", "runc", "podman", "docker"
    }  # fmt: skip
    assert not notes["kit"] and not notes["C floor"]
    assert report.machine["peers"] == {}


def test_without_a_floor_there_are_times_and_no_ratios(light: None, bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    report = measure(2, ["six namespaces"])
    assert report.row("six namespaces", "C floor").note == "not installed: a C compiler (cc)"
    assert report.row("six namespaces", "kit").median_ms and report.row("six namespaces", "kit").times_floor is None


def test_who_fails_once_is_out_with_its_own_words(light: None, bare: Path) -> None:
    begun = bare.parent / "begun"
    program(bare / "bwrap", f'test "$1" = --version && exit 0\ntest -e {begun} && {{ echo "bwrap: no more" >&2; exit 1; }}\n: > {begun}')
    row = measure(3, ["six"]).row("six namespaces", "bubblewrap")
    assert (row.median_ms, row.note) == (None, "failed: bwrap: no more")


def test_an_interrupt_leaves_nothing(light: None, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = floor.compiled().parent
    before = set(data.iterdir())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kernel_lab.benchmarks.kit._timed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(2, ["six"])
    assert set(data.iterdir()) == before


def test_an_ordinary_user_is_told_that_a_bridge_needs_root(light: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    report = measure(1, ["veth"])
    assert {row.note for row in report.rows} == {"needs root, as bridges and limits do"}


@pytest.mark.needs("root", "crun", "runc")
@pytest.mark.parametrize("one", [Crun(), Runc()], ids=lambda one: one.who)
def test_a_runtime_leaves_no_state_and_no_cgroup(one: Crun | Runc, asking: Ground) -> None:
    cgroups = [str(path) for path in Path("/sys/fs/cgroup").rglob("klab-bench-*")]
    with one.ready(asking) as run:
        said(run())
        assert not list((asking.folder / one.program / "state").glob("*"))
    assert [str(path) for path in Path("/sys/fs/cgroup").rglob("klab-bench-*")] == cgroups


@pytest.mark.needs("root")
def test_only_the_thread_that_needs_it_leaves_the_mount_namespace() -> None:
    mounts, namespace = Path("/proc/self/mountinfo").read_text(), ours("mnt")
    with without_v2(command) as run:
        inside = run(["cat", "/proc/self/mountinfo"]).stdout
    assert (ours("mnt"), Path("/proc/self/mountinfo").read_text()) == (namespace, mounts)
    v2 = Path("/sys/fs/cgroup/unified/cgroup.controllers")
    assert ("/sys/fs/cgroup/unified" in inside) is (v2.exists() and not v2.read_text().strip())


ENGINE = """
echo "$@" | sed "s|klab-bench-[0-9]*|IMAGE|g" >> {log}
case $1 in
    import) cat > /dev/null;;
    run) test -e {log}.fails && {{ echo "no such runtime" >&2; exit 125; }}; echo inside;;
    network) test -e {log}.fails && {{ echo "Error: no pool. Try another." >&2; exit 1; }};;
esac
exit 0
"""


def test_an_engine_gets_an_image_and_leaves_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asking: Ground) -> None:
    log = tmp_path / "log"
    program(tmp_path / "bin/docker", ENGINE.format(log=log))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with Docker().ready(asking) as run:
        assert said(run()) == ["inside"]
    words = [line.split() for line in log.read_text().splitlines()]
    assert [line[0] for line in words if line[0] != ";"][:3] == ["ps", "import", "run"]
    assert words[2][:4] == ["run", "--rm", "--network=none", "--hostname=box"]
    assert words[-1] == ["rmi", "--force", "IMAGE"]


@pytest.mark.needs("root")
def test_an_engine_without_its_network_is_absent_and_its_image_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program(tmp_path / "bin/docker", ENGINE.format(log=log))
    (tmp_path / "log.fails").touch()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with ground(True) as place, pytest.raises(Absent, match=r"installed, but `docker network` fails: Error: no pool$"), Docker().ready(place):
        pass
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["ps", "import", "network", "rmi"]
