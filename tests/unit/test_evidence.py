import dataclasses
import os
import re
from html import unescape

import pytest
from strangers import as_an_ordinary_user

from kernel_lab.kernel import evidence as module
from kernel_lab.kernel import procfs
from kernel_lab.kernel.evidence import Denied, Evidence, evidence, shown
from kernel_lab.kernel.procfs import CAPABILITIES, Capabilities, CgroupLine, IdRange, Ids, Namespace, Status

ALL = frozenset(CAPABILITIES)
NOBODY_IN_PARTICULAR = Evidence(
    status=Status("sh", "S", Ids(0, 0, 0, 0), Ids(0, 0, 0, 0), (), Capabilities(ALL, ALL, frozenset(), ALL, frozenset()), False, "disabled", (4711,)),
    namespaces={kind: Namespace(kind, 4026531000 + number, 4) for number, kind in enumerate(procfs.NAMESPACES)},
    uid_map=(IdRange(0, 0, 2**32 - 1),),
    gid_map=(IdRange(0, 0, 2**32 - 1),),
    mounts=(),
    cgroups=(CgroupLine(0, (), "/klab/4711"),),
    open_files={0: "/dev/null", 1: "pipe:[98765]"},
)


@pytest.fixture(autouse=True)
def _a_kernel_with_41_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Path, "read_text", lambda path: "40\n")


def other(**fields: object) -> Evidence:
    return dataclasses.replace(NOBODY_IN_PARTICULAR, **fields)


def with_namespace(kind: str) -> Evidence:
    mine = NOBODY_IN_PARTICULAR.namespaces
    assert not isinstance(mine, Denied)
    return other(namespaces={**mine, kind: Namespace(kind, 4026532999, 4)})


def with_status(**fields: object) -> Evidence:
    return other(status=dataclasses.replace(NOBODY_IN_PARTICULAR.status, **fields))


def with_capabilities(**sets: frozenset[str]) -> Evidence:
    return with_status(capabilities=NOBODY_IN_PARTICULAR.capabilities._replace(**sets))


@pytest.mark.parametrize("kind", procfs.NAMESPACES)
def test_one_namespace_differs(kind: str) -> None:
    difference = NOBODY_IN_PARTICULAR.differs(with_namespace(kind))
    assert difference.differing == (f"{kind} namespace",)
    assert difference[f"{kind} namespace"] == (f"{kind} namespace", f"{kind}:[A]", f"{kind}:[B]", "yes")
    assert len(difference.changes) == len(procfs.NAMESPACES)


def test_the_same_inode_on_another_device_is_another_namespace() -> None:
    mine = NOBODY_IN_PARTICULAR.namespaces
    assert not isinstance(mine, Denied)
    elsewhere = other(namespaces={**mine, "net": mine["net"]._replace(device=5)})
    assert NOBODY_IN_PARTICULAR.differs(elsewhere).differing == ("net namespace",)


def test_a_process_does_not_differ_from_itself() -> None:
    difference = NOBODY_IN_PARTICULAR.compare(NOBODY_IN_PARTICULAR)
    assert not difference
    assert not difference.differing
    assert all(change.before == change.after and change.differs == "no" for change in difference.changes)


@pytest.mark.parametrize(
    ("what", "after", "before_word", "after_word"),
    [
        ("user ids", with_status(uids=Ids(1000, 1000, 1000, 1000)), "0", "1000"),
        ("user ids", with_status(uids=Ids(1000, 0, 1000, 0)), "0", "real 1000, effective 0, saved 1000, filesystem 0"),
        ("group ids", with_status(gids=Ids(5, 5, 5, 5)), "0", "5"),
        ("further groups", with_status(groups=(4, 27)), "none", "4, 27"),
        ("user id map", other(uid_map=(IdRange(0, 1000, 1), IdRange(1, 100000, 65536))), "every id is itself", "0 is 1000; 1-65536 is 100000-165535"),
        ("group id map", other(gid_map=()), "every id is itself", "none"),
        ("no new privileges", with_status(no_new_privileges=True), "no", "yes"),
        ("seccomp", with_status(seccomp="filter"), "disabled", "filter"),
        ("capabilities", with_capabilities(effective=frozenset({"kill", "chown"})), "all 41", "chown, kill"),
        ("bounding set", with_capabilities(bounding=frozenset()), "all 41", "none"),
        ("mounts", other(mounts=(object(),)), "mounts:[A]", "mounts:[B]"),
        ("cgroups", other(cgroups=()), "cgroups:[A]", "cgroups:[B]"),
        ("files", other(open_files={}), "files:[A]", "files:[B]"),
    ],
)
def test_one_thing_differs(what: str, after: Evidence, before_word: str, after_word: str) -> None:
    difference = NOBODY_IN_PARTICULAR.compare(after)
    assert difference.differing == (what,)
    assert difference[what] == (what, before_word, after_word, "yes")


@pytest.mark.parametrize(
    ("have", "words"),
    [
        (ALL, "all 41"),
        (frozenset(), "none"),
        (ALL - {"sys_module", "bpf"}, "all 41 but bpf, sys_module"),
        (frozenset({"sys_admin"}), "sys_admin"),
    ],
)
def test_capabilities_in_few_words(have: frozenset[str], words: str) -> None:
    assert shown(have) == words


def test_an_older_kernel_has_fewer_and_they_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Path, "read_text", lambda path: "37\n")
    assert shown(frozenset(CAPABILITIES[:38])) == "all 38"


def test_the_tables_of_two_runs_are_the_same_text() -> None:
    """The numbers that change from run to run: process, namespace, pipe, cgroup."""
    later = dataclasses.replace(
        with_status(pids=(815,)),
        namespaces={kind: Namespace(kind, 4026540000 + number, 9) for number, kind in enumerate(procfs.NAMESPACES)},
        cgroups=(CgroupLine(0, (), "/klab/815"),),
        open_files={0: "/dev/null", 1: "pipe:[12345]"},
    )
    assert str(later) == repr(NOBODY_IN_PARTICULAR)
    assert later._repr_html_() == NOBODY_IN_PARTICULAR._repr_html_()
    box = with_namespace("net")
    later_box = dataclasses.replace(later, namespaces={**later.namespaces, "net": Namespace("net", 1, 9)})
    assert str(NOBODY_IN_PARTICULAR.differs(box)) == str(later.differs(later_box))
    assert not re.search(r"4711|40265|98765", f"{box}{NOBODY_IN_PARTICULAR.compare(box)}{box._repr_html_()}")


def test_the_table_of_two_processes_is_this() -> None:
    table = str(NOBODY_IN_PARTICULAR.differs(with_namespace("uts")).only("net namespace", "uts namespace"))
    assert table.split("\n") == [
        "               host     box      differs",
        "-------------  -------  -------  ---------",
        "net namespace  net:[A]  net:[A]  no",
        "uts namespace  uts:[A]  uts:[B]  yes",
    ]


def test_numbers_stand_like_words() -> None:
    table = str(NOBODY_IN_PARTICULAR.compare(with_status(uids=Ids(1000, 1000, 1000, 1000))).only("user ids"))
    assert table.split("\n")[2] == "user ids  0         1000     yes"


def test_the_columns_have_the_callers_names() -> None:
    difference = NOBODY_IN_PARTICULAR.compare(with_namespace("uts"), ("one", "two"))
    assert str(difference).split("\n")[0].split() == ["one", "two", "differs"]
    assert difference.only("seccomp").names == ("one", "two")


def test_the_html_table_has_the_same_cells() -> None:
    difference = NOBODY_IN_PARTICULAR.differs(with_namespace("net"))
    cells = [unescape(cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", difference._repr_html_())]
    assert cells == [word for change in difference.changes for word in change]


def test_html_is_escaped() -> None:
    assert "<b>" not in with_status(seccomp="<b>")._repr_html_()


def test_what_is_denied_is_said_and_is_no_difference() -> None:
    denied = other(namespaces=Denied.NOT_READABLE, open_files=Denied.NOT_READABLE, uid_map=Denied.NOT_READABLE)
    difference = NOBODY_IN_PARTICULAR.compare(denied)
    assert not difference
    assert difference["net namespace"] == ("net namespace", "net:[A]", "not readable", "not readable")
    assert difference["files"] == ("files", "files:[A]", "not readable", "not readable")
    assert difference["user id map"].differs == "not readable"
    assert denied.compare(NOBODY_IN_PARTICULAR)["files"] == ("files", "not readable", "files:[A]", "not readable")
    assert dict(denied.facts())["net namespace"] == dict(denied.facts())["files"] == "not readable"


def test_what_an_ordinary_user_sees_of_another_users_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = as_an_ordinary_user(lambda: evidence(1))
    assert found.namespaces is found.open_files is Denied.NOT_READABLE
    assert found.status.name == procfs.process(1).name
    assert found.cgroups == procfs.cgroups(1)


def test_the_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = evidence(os.getpid())
    assert not found.differs(evidence(os.getpid()))
    assert found.namespaces == procfs.namespaces(os.getpid())
    assert dict(found.facts())["user ids"] == str(os.getuid())
    assert not isinstance(found.mounts, Denied)
    assert any(mount.point == "/proc" for mount in found.mounts)


def test_a_process_that_is_not_there() -> None:
    with pytest.raises(ProcessLookupError, match="process 4194305 has ended"):
        evidence(2**22 + 1)


def test_a_number_that_was_given_again_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(procfs, "start_time", lambda pid: 1)
    with pytest.raises(ProcessLookupError, match="ended while it was looked at"):
        evidence(os.getpid())
