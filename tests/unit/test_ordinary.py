"""The ordinary user of the tests: has what an ordinary user has, and is gone afterwards with all that is its own."""

import os
import pwd
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab.course.ordinary import Ordinary, ordinary_user, readable

# Slow for `--quick`, which leaves the ordinary user out.
pytestmark = [pytest.mark.slow, pytest.mark.needs("root", "useradd", "usermod")]
ACCOUNT = f"klabunit{os.getpid()}"
ACCOUNTS = ("/etc/passwd", "/etc/group", "/etc/subuid", "/etc/subgid")


def asked(user: Ordinary, script: str) -> list[str]:
    """What a shell of the user's prints."""
    answer = user.home / "answer"
    assert user.run(["sh", "-c", f"exec >{answer}; {script}"], Path("/")) == 0
    return answer.read_text().splitlines()


def ranges(path: str, name: str) -> list[list[str]]:
    return [line.split(":")[1:] for line in Path(path).read_text().splitlines() if line.startswith(f"{name}:")]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def another_group() -> Iterator[None]:
    before = os.getgroups()
    os.setgroups([*before, 4242])
    yield
    os.setgroups(before)


@pytest.mark.usefixtures("another_group")
def test_it_has_nothing_of_roots() -> None:
    with ordinary_user(ACCOUNT) as user:
        assert asked(user, "id -u; id -g; id -G; id -un") == [str(user.uid), str(user.gid), str(user.gid), ACCOUNT]
        assert asked(user, "grep CapEff /proc/self/status; umask") == ["CapEff:\t0000000000000000", "0022"]
        assert asked(user, 'stat -c "%u %a" "$HOME" "$TMPDIR" "$XDG_RUNTIME_DIR"') == [f"{user.uid} 700"] * 3


def test_it_has_ranges_of_ids_for_a_whole_root_file_system() -> None:
    with ordinary_user(ACCOUNT):
        for path in ("/etc/subuid", "/etc/subgid"):
            [(_, count)] = ranges(path, ACCOUNT)
            assert count == "65536"


def test_roots_own_settings_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_LAB_RUN", "/run/of-root")
    monkeypatch.setenv("KERNEL_LAB_EXECUTOR", "helper")
    monkeypatch.setenv("PATH", f"/root/bin:{os.environ['PATH']}")
    with ordinary_user(ACCOUNT) as user:
        assert asked(user, 'echo "${KERNEL_LAB_RUN-none} $KERNEL_LAB_EXECUTOR $HOME"') == [f"none helper {user.home}"]
        assert asked(user, 'IFS=:; for folder in $PATH; do test -x "$folder" || echo "$folder"; done') == []


def test_account_files_and_processes_are_gone_afterwards() -> None:
    with ordinary_user(ACCOUNT) as user:
        [pid] = asked(user, "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!")
        assert runs(int(pid))
    assert not runs(int(pid))
    assert not user.home.exists()
    assert [path for path in ACCOUNTS if ACCOUNT in Path(path).read_text()] == []


def test_it_is_gone_after_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), ordinary_user(ACCOUNT):
        _ = 1 / 0
    assert [path for path in ACCOUNTS if ACCOUNT in Path(path).read_text()] == []


@pytest.mark.needs("newuidmap", "unshare", "setpriv")
def test_a_process_with_an_id_of_its_range_ends_too() -> None:
    nested = "unshare --user --map-root-user --map-auto setpriv --reuid 1 --clear-groups sh -c 'echo $$; exec sleep 1000'"
    with ordinary_user(ACCOUNT) as user:
        if not asked(user, "unshare --user true && echo allowed; true"):
            pytest.skip("needs user namespaces for an ordinary user: this machine refuses them")
        told = user.home / "told"
        asked(user, f"setsid {nested} </dev/null >{told} 2>&1 &")
        assert soon(lambda: told.exists() and told.read_text().strip()), "the process does not say that it runs"
        pid = told.read_text().strip()
        [(first, _)] = ranges("/etc/subuid", ACCOUNT)
        assert f"Uid:\t{first}" in Path(f"/proc/{pid}/status").read_text()
    assert not runs(int(pid))


def test_others_processes_live_on() -> None:
    with subprocess.Popen(["sleep", "1000"], user=65534, group=65534, extra_groups=[]) as other:
        try:
            with ordinary_user(ACCOUNT) as user:
                asked(user, "true")
            assert other.poll() is None
        finally:
            other.kill()


def test_what_a_killed_run_left_is_taken_away_first() -> None:
    make = f"from kernel_lab.course.ordinary import ordinary_user\nwith ordinary_user({ACCOUNT!r}):\n print('made', flush=True)\n input()"
    with subprocess.Popen([sys.executable, "-c", make], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "made\n"
        home = Path(pwd.getpwnam(ACCOUNT).pw_dir)
        first.kill()
        first.wait()
    with ordinary_user(ACCOUNT) as user:
        assert pwd.getpwnam(ACCOUNT).pw_uid == user.uid
    assert [path for path in ACCOUNTS if ACCOUNT in Path(path).read_text()] == []
    assert not home.exists()


def test_two_runs_take_turns() -> None:
    turn = f"from kernel_lab.course.ordinary import ordinary_user\nwith ordinary_user({ACCOUNT!r}):\n print('made', flush=True)"
    with ordinary_user(ACCOUNT):
        second = subprocess.Popen([sys.executable, "-c", turn], stdout=subprocess.PIPE, text=True)
        assert second.stdout
        assert second.stdout.readline() == f"another test run has the user {ACCOUNT}; waiting for it\n"
    assert second.stdout.read() == "made\n"
    assert second.wait() == 0


@pytest.mark.parametrize(("folder", "file", "place"), [(0o755, 0o755, True), (0o700, 0o755, False), (0o755, 0o700, False)])
def test_a_project_is_read_in_place_or_else_copied(folder: int, file: int, place: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        os.chmod(top, folder)
        project = Path(top, "the kit")
        (project / ".git").mkdir(parents=True)
        (project / ".git").chmod(0o700)
        (project / "tool").write_text("#!/bin/sh\necho it runs\n")
        (project / "tool").chmod(file)
        (project / "link").symlink_to("tool")
        (project / "nowhere").symlink_to("nothing")
        (project / "data").mkdir(mode=0o755 if place else 0o700)
        (project / "data" / "words").write_text("and reads\n")
        with ordinary_user(ACCOUNT) as user, readable(project, user) as there:
            assert asked(user, f"cd {shlex.quote(str(there))} && ./link && cat data/words") == ["it runs", "and reads"]
            assert (there == project) is place
            assert place or not (there / ".git").exists()
        assert (project / "tool").stat().st_mode & 0o777 == file
        assert there.exists() is place
