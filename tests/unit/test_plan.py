"""Parts and commands put together, and everything that is wrong with them said before anything is made."""

import math
from itertools import permutations
from pathlib import Path

import pytest

from kernel_lab import PID, UTS, Bind, CgroupNS, Container, Mount, Net, Overlay, Part, Time, UsageError, User, call
from kernel_lab.command import PATH
from kernel_lab.kernel.flags import CLONE


@pytest.mark.parametrize("order", list(permutations([UTS("box"), PID(), Mount(), CgroupNS()])))
def test_the_callers_order_makes_no_difference(order: tuple[Part, ...]) -> None:
    assert Container(*order).program == Container(UTS("box"), PID(), Mount(), CgroupNS()).program


def test_users_come_first_and_the_network_last() -> None:
    calls = [row.call for row in Container(Mount(), Net(), UTS("box"), User()).setup]
    assert calls.index("write") < calls.index("sethostname") < calls.index("mount") < calls.index("socket")


class Junk(Part):
    def rows(self, plan):  # type: ignore[no-untyped-def]
        return ["sethostname"]


class Nothing(Part):
    def rows(self, plan):  # type: ignore[no-untyped-def]
        return None


class Forking(Part):
    def rows(self, plan):  # type: ignore[no-untyped-def]
        yield call("fork")


class Stopping(Part):
    flags = CLONE.VM | CLONE.NEWUTS


class Endless(Part):
    def rows(self, plan):  # type: ignore[no-untyped-def]
        while True:
            yield call("getpid")


BAD = {
    "a host name of 65 bytes": (lambda: Container(UTS("x" * 65)), "65 bytes long.*at most 64"),
    "a host name of 33 two-byte letters": (lambda: Container(UTS("é" * 33)), "66 bytes"),
    "a host name with a NUL": (lambda: Container(UTS("a\0b")), "NUL"),
    "an empty host name": (lambda: Container(UTS("")), "not empty"),
    "a long domain name": (lambda: Container(UTS("a", "d" * 65)), "domain name"),
    "a root that is a file": (lambda: Container(Mount("/etc/passwd")), "/etc/passwd.*not a directory"),
    "a root that is not there": (lambda: Container(Mount("/no/such")), "/no/such.*not a directory"),
    "the host's root": (lambda: Container(Mount("/")), "pivot_root"),
    "a read-only host": (lambda: Container(Mount(readonly=True)), "give a root"),
    "a bind of nothing": (lambda: Container(Mount(binds=["/no/such:/mnt"])), "/no/such"),
    "a bind without a target": (lambda: Container(Mount(binds=["/tmp"])), "SOURCE:TARGET"),
    "a bind with a strange mode": (lambda: Container(Mount(binds=["/tmp:/mnt:rx"])), "SOURCE:TARGET"),
    "a relative target": (lambda: Container(Mount("/usr", binds=["/tmp:mnt"])), "'mnt'.*absolute"),
    "a target above the root": (lambda: Container(Mount("/usr", tmpfs=["/a/../.."])), r"\.\."),
    "a place that the host lacks": (lambda: Container(Mount(tmpfs=["/no/such"])), "/no/such"),
    "an unknown part": (lambda: Container("UTS"), "'UTS' is no part"),
    "a part's class": (lambda: Container(UTS), "no part"),
    "the same part twice": (lambda: Container(UTS("a"), UTS("b")), "UTS twice"),
    "a part of junk rows": (lambda: Container(Junk()).program, "Junk.rows gave 'sethostname'"),
    "a part without rows": (lambda: Container(Nothing()).program, "Nothing.rows gave None"),
    "a part without end": (lambda: Container(Endless()).program, "Endless.rows"),
    "a part that would be two": (lambda: Container(Forking()).program, "Forking.rows gave fork"),
    "a part with flags of another kind": (lambda: Container(Stopping()), "Stopping.flags.*new namespaces"),
    "two mounts at one place": (lambda: Container(Mount("/usr", binds=["/tmp:/a/"], tmpfs=["/a"])), "'/a'.*twice"),
    "overlapping maps inside": (lambda: Container(User([(0, 1000, 10), (5, 5000, 10)])), "overlap inside, at 5"),
    "overlapping maps outside": (lambda: Container(User([(0, 1000, 10), (100, 1005, 10)])), "overlap outside, at 1005"),
    "an empty map": (lambda: Container(User([])), "1 to 340"),
    "a map of no ids": (lambda: Container(User([(0, 0, 0)])), "at least one id"),
    "a negative id": (lambda: Container(User([(0, -1, 1)])), "from 0 on"),
    "a map beyond the last id": (lambda: Container(User([(0, 2**32 - 2, 5)])), "largest id"),
    "a map that is no range": (lambda: Container(User([(0, 1)])), "no range"),  # type: ignore[list-item]
    "a clock that is no number": (lambda: Container(Time("soon")), "soon"),  # type: ignore[arg-type]
    "an endless clock": (lambda: Container(Time(math.inf)), "inf"),
    "no command": (lambda: Container(UTS("a")).run(), "command"),
    "a list for a command": (lambda: Container(UTS("a")).run(["true"]), "one text, or several"),  # type: ignore[arg-type]
    "an empty command": (lambda: Container(UTS("a")).run(""), "command"),
    "an unclosed quote": (lambda: Container(UTS("a")).run("echo 'a"), "quot"),
    "a NUL in an argument": (lambda: Container(UTS("a")).run("echo", "a\0"), "NUL"),
    "an environment without a name": (lambda: Container(UTS("a")).run("true", env={"": "x"}), "environment"),
    "an environment name with =": (lambda: Container(UTS("a")).run("true", env={"a=b": "x"}), "a=b"),
    "an unknown limit": (lambda: Container(UTS("a")).run("true", rlimits={"files": 3}), "nofile"),
    "a soft limit above the hard one": (lambda: Container(UTS("a")).run("true", rlimits={"nofile": (9, 3)}), "setrlimit"),
    "an unknown user": (lambda: Container(UTS("a")).run("true", user="nobody-knows"), "nobody-knows"),
    "a group that is unknown": (lambda: Container(UTS("a")).run("true", user="0:nobody-knows"), "nobody-knows"),
    "a user beyond the last": (lambda: Container(UTS("a")).run("true", user=2**32), "ids end"),
    "an empty directory": (lambda: Container(UTS("a")).run("true", cwd=""), "cwd"),
    "a relative directory": (lambda: Container(UTS("a")).run("true", cwd="tmp"), "'tmp'.*absolute"),
    "a signal that there is not": (lambda: Container(UTS("a")).signal(99), r"signal\(99\): there are 1 to 64"),
    "a signal's name": (lambda: Container(UTS("a")).signal("TERM"), r"signal\('TERM'\)"),  # type: ignore[arg-type]
    "layers in a list": (lambda: Overlay(["/usr", "/etc"]), "one by one"),  # type: ignore[arg-type]
    "nothing to wait for": (lambda: Container(UTS("a")).wait(), "not been started"),
    "nothing to kill": (lambda: Container(UTS("a")).kill(), "not been started"),
    "nothing to join": (lambda: Container(UTS("a")).exec("true"), "not running"),
    "a name that is none": (lambda: Container(UTS("a"), name="a b").start("true"), "'a b'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_error_that_names_value_and_rule(what: str) -> None:
    act, text = BAD[what]
    with pytest.raises(UsageError, match=text) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_a_bind_as_docker_writes_it() -> None:
    assert Bind.parse("/tmp:/mnt:ro") == Bind("/tmp", "/mnt", readonly=True)
    assert Bind.parse("/tmp:/mnt") == Bind("/tmp", "/mnt")


def test_the_environment_is_small_with_a_root_and_the_callers_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OF_THE_CALLER", "1")
    rooted, host = Container(Mount(tmp_path)), Container(UTS("a"))
    assert dict(rooted.command(("true",)).env) == {"PATH": PATH, "HOME": "/root", "container": "kernel-lab"}
    assert dict(host.command(("true",), {"OF_THE_CALLER": "2"}).env)["OF_THE_CALLER"] == "2"


def test_a_name_is_looked_for_along_path_and_a_path_is_not(tmp_path: Path) -> None:
    box = Container(Mount(tmp_path))
    rows = [row for row in box.table(box.command(("tool",), {"PATH": "/a:/b"})).program if row.call == "execve"]
    assert [row.args[0] for row in rows] == ["/a/tool", "/b/tool"]
    assert [bool(row.tolerate) for row in rows] == [True, False]
    assert box.command(("./tool",)).candidates == ["./tool"]


def test_users_by_the_roots_own_files(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:\nweb:x:33:44::/:\n")
    (tmp_path / "etc/group").write_text("web:x:44:\nlog:x:55:web,other\n")
    user = Container(Mount(tmp_path)).command(("true",), user="web").user
    assert user and (user.uid, user.gid, user.groups) == (33, 44, (55,))
    other = Container(Mount(tmp_path)).command(("true",), user="web:log").user
    assert other and other.gid == 55
