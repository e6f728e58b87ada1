"""The first and the last cell of a lab, the cells that fail on purpose, and the other tools."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from kernel_lab.course import session
from kernel_lab.course.session import audit, fails, lab, peer, user
from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.kernel.snapshot import Leak, Leaks
from kernel_lab.namespaces.user import User


class Seen:
    """A snapshot that finds what the test says."""

    left: Sequence[Leak] = ()
    unsure: Sequence[str] = ()

    def leaks(self, patience: float, *, but: Sequence[str] = ()) -> Leaks:
        return Leaks(tuple(leak for leak in self.left if leak.what not in but), tuple(self.unsure))


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seen:
    seen = Seen()
    monkeypatch.setattr(session, "snapshot", lambda run: seen)
    monkeypatch.setattr(session, "start_one", lambda: None)
    monkeypatch.setenv("KERNEL_LAB_RUN", str(tmp_path))
    monkeypatch.setattr(session, "_begun", [])
    return seen


def be(uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)


@pytest.mark.parametrize(("uid", "how"), [(0, "as root"), (1000, "rootless")])
def test_a_lab_says_what_it_has_and_audits_itself(uid: int, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    be(uid, monkeypatch)
    lab("02", "sh")
    audit()
    assert capsys.readouterr().out.splitlines() == [
        f"Lab 02: what it needs is here. Containers start {how}.",
        "Nothing is left: no namespace, process, control group, mount, link, rule, open descriptor or record.",
    ]


def test_a_missing_need_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    be(1000, monkeypatch)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"^lab 07 cannot run here: root is missing \(run it as root\); ip is missing \(apt-get install iproute2\)$"):
        lab("07", "root", "ip")


def test_an_audit_shows_what_is_left(seen: Seen) -> None:
    lab("02")
    seen.left = [Leak("mount", "appeared", "/mnt/klab")]
    with pytest.raises(AssertionError, match=r"lab 02 left something behind(?s:.*)/mnt/klab"):
        audit()


def test_a_record_counts_only_while_no_other_notebook_has_containers(seen: Seen) -> None:
    lab("02")
    seen.left = [Leak("record", "appeared", "box")]
    with pytest.raises(AssertionError, match="box"):
        audit()
    seen.unsure = ["process 7 (python)"]
    audit()


def test_an_audit_without_a_beginning_says_so() -> None:
    with pytest.raises(UsageError, match="first code cell"):
        audit()


def test_an_ordinary_user_gets_a_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    be(1000, monkeypatch)
    assert [type(part) for part in user()] == [User]
    be(0, monkeypatch)
    assert user() == ()


@pytest.mark.parametrize("error", [UsageError("a\nlong  name"), KernelError(1, "mount()")])
def test_what_fails_on_purpose_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with fails():
        raise error
    assert capsys.readouterr().out == f"{type(error).__name__}: {' '.join(str(error).split())}\n"


def test_what_should_fail_and_does_not_is_an_error() -> None:
    with pytest.raises(AssertionError, match="did not"), fails():
        pass


def test_another_error_than_the_expected_one_passes() -> None:
    with pytest.raises(ZeroDivisionError), fails():
        raise ZeroDivisionError
    with fails(ZeroDivisionError):
        raise ZeroDivisionError
    with pytest.raises(UsageError), fails(ZeroDivisionError):
        raise UsageError("no")


def test_a_peer_is_shown_or_said_to_be_missing() -> None:
    assert peer("sh -c 'echo one; echo two'") == "one\ntwo"
    assert peer("sh -c 'echo no >&2; exit 3'") == "sh: exit 3: no"
    assert peer("klab-no-such-tool -x") == "klab-no-such-tool is not installed here (apt-get install klab-no-such-tool)"
    assert peer("cat") == ""
