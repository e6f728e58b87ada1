"""`klab` as a user types it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from here import IS_ROOT
from waiting import soon

KLAB = [sys.executable, "-m", "kernel_lab.cli"]


def klab(*words: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*KLAB, *words], capture_output=True, text=True, timeout=120, **settings)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def web() -> Iterator[str]:
    """A container in the background."""
    made = klab("run", "-d", "--name", "web", "busybox", "sh", "-c", "echo started; trap 'exit 3' TERM; while :; do sleep 0.05; done")
    assert made.returncode == 0, made.stderr
    assert soon(lambda: "started" in klab("logs", "web").stdout)
    yield made.stdout.strip()
    klab("rm", "-f", "web")
    assert soon(lambda: "web" not in klab("ps", "-a").stdout)


def test_run_prints_and_ends_as_the_command_does() -> None:
    done = klab("run", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)
    assert klab("run", "busybox", "sh", "-c", "kill -KILL $$").returncode in (0, 137)  # process 1 does not hear itself


@pytest.mark.slow
def test_run_has_namespaces_of_its_own() -> None:
    shown = klab("run", "-h", "inside", "busybox", "sh", "-c", "hostname; echo $$; ls /proc | grep -c '^[0-9]'").stdout.split()
    assert shown == ["inside", "1", "3"]


@pytest.mark.slow
def test_run_reads_only_when_told_to() -> None:
    assert klab("run", "-i", "busybox", "cat", input="text").stdout == "text"
    assert klab("run", "busybox", "cat", input="text").stdout == ""


@pytest.mark.slow
def test_a_directory_and_the_hosts_root(tmp_path: Path) -> None:
    assert klab("run", "host", "cat", "/proc/self/comm").stdout == "cat\n"
    done = klab("run", str(tmp_path / "missing"), "true")
    assert done.returncode == 125 and str(tmp_path / "missing") in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_options_reach_the_command(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("bound\n")
    options = ["-e", "A=b", "-w", "/tmp", "-v", f"{tmp_path}:/mnt:ro", "--tmpfs", "/home", "--read-only", "--ulimit", "nofile=33"]
    shown = klab("run", *options, "busybox", "sh", "-c", "echo $A; pwd; cat /mnt/file; ulimit -n; touch /home/x && touch /x || echo locked")
    assert shown.stdout.split() == ["b", "/tmp", "bound", "33", "locked"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["run", "busybox", "no-such-command"], 127, "no-such-command: not found"),
        (["run", "busybox", "/etc/passwd"], 126, "/etc/passwd: permission denied"),
        (["run", "-h", "x" * 65, "busybox", "true"], 125, "64"),
        (["run", "-v", "/tmp", "busybox", "true"], 125, "SOURCE:TARGET"),
        (["run", "-u", "nobody-knows", "busybox", "true"], 125, "nobody-knows"),
        (["run", "--ulimit", "nofile=many", "busybox", "true"], 125, "NAME=SOFT"),
        (["run", "--network", "docker0", "busybox", "true"], 125, "docker0"),
        (["run", "--ip", "10.88.0.9", "busybox", "true"], 125, "--ip 10.88.0.9"),
        (["run", "--ip", "10.88.0.9", "--network", "host", "busybox", "true"], 125, "--network host"),
        (["run", "--ip", "10.88.0.9", "--network", "user", "busybox", "true"], 125, "--network user"),
        (["exec", "no-such-box", "true"], 125, "no-such-box"),
        (["stop", "no-such-box"], 125, "no-such-box"),
        (["kill", "-s", "NOSUCH", "no-such-box"], 125, "no-such-box"),
        (["frobnicate"], 2, "frobnicate"),
        (["run"], 2, "ROOT"),
    ],
)
def test_mistakes_are_one_line_and_a_code(words: list[str], code: int, text: str) -> None:
    done = klab(*words)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr
    assert klab("ps", "-q").stdout == ""


@pytest.mark.slow
def test_the_life_of_one_in_the_background(web: str) -> None:
    assert klab("ps", "-q").stdout.strip() == web
    row = json.loads(klab("ps", "--json").stdout)[0]
    assert row["name"] == "web" and row["state"] == "running" and row["id"] == web
    assert klab("exec", "web", "sh", "-c", "hostname; exit 4").stdout == "web\n"
    assert klab("exec", web[:6], "sh", "-c", "exit 4").returncode == 4
    assert klab("exec", "-i", "web", "cat", input="in").stdout == "in"
    assert json.loads(klab("inspect", "web").stdout)[0]["id"] == web
    again = klab("run", "-d", "--name", "web", "busybox", "true")
    assert again.returncode == 125 and "'web'" in again.stderr
    assert klab("rm", "web").returncode == 125
    assert klab("stop", "-t", "20", "web").stdout == "web\n"
    assert klab("wait", "web").stdout == "3\n"
    assert "Exited (3)" in klab("ps", "-a").stdout and "web" not in klab("ps").stdout
    assert klab("logs", "web").stdout == "started\n"
    assert klab("exec", "web", "true").returncode == 125
    assert klab("rm", "web").stdout == "web\n"
    assert "web" not in klab("ps", "-a").stdout


@pytest.mark.slow
def test_kill_sends_a_signal(web: str) -> None:
    assert klab("kill", "-s", "TERM", "web").stdout == "web\n"
    assert klab("wait", "web").stdout == "3\n"


@pytest.mark.slow
def test_one_that_is_not_kept_goes_by_itself() -> None:
    identifier = klab("run", "-d", "--rm", "busybox", "true").stdout.strip()
    assert len(identifier) == 12
    assert soon(lambda: identifier not in klab("ps", "-a").stdout)


@pytest.mark.slow
def test_a_background_command_that_cannot_run_says_so_at_once() -> None:
    done = klab("run", "-d", "busybox", "no-such-command")
    assert done.returncode == 127 and "not found" in done.stderr and done.stdout == ""


@pytest.mark.slow
def test_program_prints_the_table_and_makes_nothing() -> None:
    before = Path("/proc/self/mountinfo").read_bytes()
    shown = klab("program", "busybox", "echo", "hi").stdout
    for word in ("sethostname" if IS_ROOT else "uid_map", "pivot_root", '"/bin/echo", ["echo", "hi"]', "execve"):
        assert word in shown
    assert Path("/proc/self/mountinfo").read_bytes() == before and klab("ps", "-aq").stdout == ""


def test_doctor_names_state_and_remedy() -> None:
    rows = json.loads(klab("doctor", "--json").stdout)
    by_name = {row["thing"]: row for row in rows}
    assert by_name["busybox"]["state"] == "ok" and by_name["executor loop"]["state"] in ("ok", "optional")
    assert all(row["mend"] for row in rows if row["state"] != "ok")
    assert klab("doctor").returncode == (1 if any(row["state"] == "lacking" for row in rows) else 0)


@pytest.mark.slow
def test_doctor_sees_what_is_missing(tmp_path: Path) -> None:
    for name in ("unshare",):
        os.symlink(f"/usr/bin/{name}", tmp_path / name)
    rows = json.loads(klab("doctor", "--json", env={**os.environ, "PATH": str(tmp_path)}).stdout)
    tcpdump = next(row for row in rows if row["thing"] == "mmdebstrap")
    assert tcpdump["state"] == "optional" and tcpdump["mend"] == "apt-get install mmdebstrap"


def test_cleanup_of_nothing_and_help() -> None:
    assert klab("cleanup").stdout == "nothing is left behind\n"
    assert "run" in klab("--help").stdout and klab("version").stdout.startswith("kernel_lab ")


@pytest.mark.slow
def test_one_who_insists_ends_a_process_1_that_ignores_signals() -> None:
    stubborn = ["sh", "-c", "trap '' INT TERM; echo ready; exec sleep 1000"]
    with subprocess.Popen([*KLAB, "run", "busybox", *stubborn], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        for number in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 137


def test_an_ended_container_keeps_its_name_until_it_is_removed() -> None:
    assert klab("run", "-d", "--name", "once", "busybox", "true").returncode == 0
    assert klab("wait", "once").stdout == "0\n"
    again = klab("run", "-d", "--name", "once", "busybox", "true")
    assert again.returncode == 125 and "has this name; choose another, or klab rm" in again.stderr
    assert klab("rm", "once").returncode == 0
    assert klab("run", "--name", "once", "busybox", "true").returncode == 0


def test_an_empty_place_in_memory_with_options() -> None:
    assert klab("run", "--tmpfs", "/mnt:size=1m,mode=0700", "busybox", "sh", "-c", "df /mnt | tail -1; stat -c %a /mnt").stdout.split()[1] == "1024"


@pytest.mark.slow
def test_signals_go_to_the_command() -> None:
    words = ["run", "busybox", "sh", "-c", "trap 'echo got; exit 6' INT; echo ready; while :; do sleep 0.05; done"]
    with subprocess.Popen([*KLAB, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "got\n" and process.wait() == 6
