"""The table of rules on machines that are not this one: each is a folder that looks like /proc."""

from dataclasses import dataclass
from errno import E2BIG, EACCES, EAGAIN, EBUSY, EINVAL, ENODEV, ENOENT, ENOSPC, ENOSYS, EPERM, ESRCH
from pathlib import Path

import pytest

from kernel_lab.kernel.flags import AT_FD, CLONE, MS, S_IF, O
from kernel_lab.kernel.program import Handle, Strings, call
from kernel_lab.kernel.rules import RULES, Context, Machine, clone_refused, refused, why

ROOT, NOTHING = "000001ffffffffff", "0000000000000000"
USER = CLONE.NEWUSER
FIRST, INNER = "0 0 4294967295", "0 100000 65536"


@dataclass(frozen=True)
class Proc:
    """A /proc in a folder."""

    folder: Path

    def machine(self, capabilities: str = ROOT, seccomp: int = 0, ids: str = FIRST, root: str = "ext4", **settings: int) -> Machine:
        self.write("self/status", f"Name:\tpython\nCapEff:\t{capabilities}\nSeccomp:\t{seccomp}\n")
        self.write("self/uid_map", ids + "\n")
        self.write("self/mountinfo", f"21 1 8:1 / / rw,relatime shared:1 - {root} /dev/root rw\n22 21 0:3 / /proc rw - proc proc rw\n")
        for name, value in settings.items():
            self.write(f"sys/{name.replace('__', '/')}", f"{value}\n")
        return Machine(self.folder)

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def clone(errno: int, flags: CLONE, machine: Machine) -> str:
    return str(clone_refused(errno, flags, machine))


def test_ubuntu_24_04_takes_the_capabilities(proc: Proc) -> None:
    machine = proc.machine(NOTHING, kernel__apparmor_restrict_unprivileged_userns=1)
    said = clone(EPERM, USER | CLONE.NEWUTS, machine)
    assert said.startswith("clone3({CLONE_NEWUTS|CLONE_NEWUSER}): EPERM: AppArmor")
    assert "sysctl kernel.apparmor_restrict_unprivileged_userns=0" in said
    for row, errno in (
        (call("write", "/proc/self/uid_map", "0 1000 1"), EPERM),
        (call("mount", None, "/", None, MS.REC | MS.PRIVATE), EACCES),
        (call("sethostname", "box", 3), EPERM),
    ):
        assert "AppArmor" in str(refused(row, 3, errno, Context(USER, machine=machine)))


def test_apparmor_is_not_blamed_for_root_nor_without_a_user_namespace(proc: Proc) -> None:
    as_root = proc.machine(ROOT, kernel__apparmor_restrict_unprivileged_userns=1)
    assert "AppArmor" not in clone(EPERM, USER, as_root)
    as_user = proc.machine(NOTHING, kernel__apparmor_restrict_unprivileged_userns=1)
    assert "AppArmor" not in clone(EPERM, CLONE.NEWUTS, as_user)


def test_a_debian_kernel_that_is_closed(proc: Proc) -> None:
    said = clone(EPERM, USER, proc.machine(NOTHING, kernel__unprivileged_userns_clone=0))
    assert "sysctl kernel.unprivileged_userns_clone=1" in said
    assert "unprivileged_userns_clone" not in clone(EPERM, USER, proc.machine(NOTHING, kernel__unprivileged_userns_clone=1))


def test_a_limit_of_none(proc: Proc) -> None:
    said = clone(ENOSPC, USER | CLONE.NEWNET, proc.machine(user__max_user_namespaces=0, user__max_net_namespaces=100))
    assert "user.max_user_namespaces is 0" in said
    assert "sysctl user.max_user_namespaces=15000" in said


def test_a_limit_that_is_reached(proc: Proc) -> None:
    said = clone(ENOSPC, CLONE.NEWNET, proc.machine(user__max_user_namespaces=0, user__max_net_namespaces=100))
    assert "user.max_net_namespaces is 100" in said
    assert "max_user" not in said


def test_an_outer_container_filters(proc: Proc) -> None:
    filtered = proc.machine(NOTHING, seccomp=2)
    assert "seccomp=unconfined" in clone(EPERM, USER, filtered)
    assert "seccomp=unconfined" in clone(ENOSYS, CLONE.NEWUTS, filtered)
    assert "Linux 5.3" in clone(ENOSYS, CLONE.NEWUTS, proc.machine())
    mount = call("mount", "tmpfs", "/tmp", "tmpfs", 0, None)
    assert "seccomp" in str(refused(mount, 0, EPERM, Context(CLONE.NEWNS, machine=proc.machine(seccomp=2))))


def test_an_ordinary_user_needs_a_user_namespace(proc: Proc) -> None:
    user = proc.machine(NOTHING)
    assert "Add User()" in clone(EPERM, CLONE.NEWUTS, user)
    assert "Add User()" not in clone(EPERM, USER | CLONE.NEWUTS, user)
    assert "chroot" in clone(EPERM, USER | CLONE.NEWUTS, user)
    mount = call("mount", "tmpfs", "/tmp", "tmpfs", 0, None)
    assert "add User() and Mount()" in str(refused(mount, 0, EPERM, Context(machine=user)))
    assert "add User() and UTS()" in str(refused(call("sethostname", "box", 3), 0, EPERM, Context(machine=user)))


@pytest.mark.parametrize(
    ("errno", "words"),
    [
        (EAGAIN, "RLIMIT_NPROC"),
        (EBUSY, "no internal processes"),
        (EACCES, "cgroup.procs"),
        (ENODEV, "CLONE_INTO_CGROUP"),
        (EINVAL, "no combination that this kernel knows"),
    ],
)
def test_other_refusals_of_clone(errno: int, words: str, proc: Proc) -> None:
    assert words in clone(errno, CLONE.NEWUTS, proc.machine())


def test_a_notebook_cannot_unshare_its_user_namespace(proc: Proc) -> None:
    said = str(refused(call("unshare", USER), None, EINVAL, Context(machine=proc.machine())))
    assert "more than one thread" in said
    assert "Container(User())" in said


@pytest.mark.parametrize(
    ("before", "new", "old", "words"),
    [
        ([], "/new", "/new", "MS_REC|MS_PRIVATE"),
        (["private"], "/new", "/new", "not a mount point"),
        (["private", "bind"], "/new", "/elsewhere", 'Use "/new/old"'),
        (["private", "bind"], "/new", "/new", "not one that came locked"),
        (["private", "bind", "chdir"], ".", ".", "not one that came locked"),
        (["private", "chdir"], ".", ".", "not a mount point"),
        (["private", "bind", "shared"], "/new", "/new", "shared propagation"),
    ],
)
def test_pivot_root_knows_what_came_before(before: list[str], new: str, old: str, words: str, proc: Proc) -> None:
    rows = {
        "private": call("mount", None, "/", None, MS.REC | MS.PRIVATE),
        "shared": call("mount", None, "/", None, MS.REC | MS.SHARED),
        "bind": call("mount", "/new", "/new", None, MS.BIND | MS.REC),
        "chdir": call("chdir", "/new"),
    }
    context = Context(CLONE.NEWNS, [rows[name] for name in before], proc.machine())
    assert words in str(refused(call("pivot_root", new, old), 9, EINVAL, context))


def test_pivot_root_out_of_an_initramfs(proc: Proc) -> None:
    said = str(refused(call("pivot_root", ".", "."), 4, EINVAL, Context(CLONE.NEWNS, machine=proc.machine(root="rootfs"))))
    assert "initramfs" in said
    assert "switch_root(8)" in said


def test_cgroups_that_are_full(proc: Proc) -> None:
    context = Context(machine=proc.machine())
    assert "65535" in str(refused(call("mkdirat", AT_FD.FDCWD, "/sys/fs/cgroup/memory/klab", 0o755), 0, ENOSPC, context))
    opened = call("openat", AT_FD.FDCWD, "/sys/fs/cgroup/cpuset/klab/tasks", O.WRONLY, into=Handle("tasks"))
    context = Context(before=[opened], machine=proc.machine())
    assert "cpuset.mems" in str(refused(call("write", Handle("tasks"), "0", 1), 1, ENOSPC, context))
    assert "no space" in str(refused(call("mkdirat", AT_FD.FDCWD, "/tmp/klab", 0o755), 0, ENOSPC, context))


def test_a_process_inside_a_user_namespace_already(proc: Proc) -> None:
    node = call("mknodat", AT_FD.FDCWD, "/dev/null", S_IF.CHR | 0o666, 0x103)
    assert "first user namespace" in str(refused(node, 0, EPERM, Context(machine=proc.machine(ids=INNER))))
    assert "Run as root" in str(refused(node, 0, EPERM, Context(machine=proc.machine())))


def test_a_program_is_looked_for_where_the_rows_have_led(proc: Proc, tmp_path: Path) -> None:
    (tmp_path / "root/shop").mkdir(parents=True)
    (tmp_path / "root/shop/tool").write_text("#!/bin/gone\n")
    (tmp_path / "root/shop/tool").chmod(0o755)
    start = call("execve", "./tool", Strings(("tool",)), Strings(()))
    moves = [call("chdir", str(tmp_path / "root")), call("pivot_root", ".", "."), call("chdir", "/"), call("chdir", "/shop")]
    said = str(refused(start, 4, ENOENT, Context(before=moves, machine=proc.machine())))
    assert f"/bin/gone does not exist in the root {tmp_path}/root" in said
    joined = Context(before=[call("chdir", "/shop")], machine=proc.machine(), root=str(tmp_path / "root"))
    assert f"/bin/gone does not exist in the root {tmp_path}/root" in str(refused(start, 1, ENOENT, joined))


def test_arguments_are_weighed(proc: Proc) -> None:
    context = Context(machine=proc.machine())
    long = call("execve", "/bin/true", Strings(("true",)), Strings(("A=1", "LONG=" + "x" * 200_000)))
    assert "the variable LONG has 200005 bytes" in str(refused(long, 0, E2BIG, context))
    many = call("execve", "/bin/true", Strings(("true", *["x" * 91] * 1000)), Strings(()))
    assert f"{1000 * 100 + 13} bytes" in str(refused(many, 0, E2BIG, context))


def test_what_nobody_has_written_down_still_names_the_call(proc: Proc) -> None:
    error = refused(call("getpid"), 2, ESRCH, Context(machine=proc.machine()))
    assert str(error) == "row 2, getpid(): ESRCH: No such process."
    assert (error.rule, error.look) == ("", "")


def every_pair() -> list[tuple[str, int]]:
    return sorted({(name, errno) for rule in RULES for name in (rule.calls or {"read"}) for errno in rule.errnos})


ODD = [(), (None,) * 6, (0,) * 6, (Handle("x"),) * 6, (b"\xff",) * 6, ("",) * 6, (Strings(("a",)),) * 6, (2**63,) * 6]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("capabilities", [ROOT, NOTHING])
def test_every_call_and_errno_is_explained_in_one_line(mapped: bool, capabilities: str, proc: Proc) -> None:
    machine = proc.machine(capabilities)
    for name, errno in every_pair():
        for args in ODD:
            found = why(call(name, *args), errno, Context(USER if mapped else CLONE(0), machine=machine))
            if found is None:
                continue
            for text in (found.rule, found.look):
                assert "\n" not in text and "  " not in text, (name, errno, text)
                assert text.endswith(".") or text.startswith("chmod"), (name, errno, text)


def test_every_pair_has_an_answer_whatever_the_arguments(proc: Proc) -> None:
    conditional = {("write", EINVAL), ("write", EBUSY), ("openat", EBUSY)}
    context = Context(machine=proc.machine())
    silent = {(name, errno) for name, errno in every_pair() if why(call(name, *(None,) * 6), errno, context) is None}
    assert silent <= conditional


def test_a_proc_that_cannot_be_read_breaks_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "nothing")
    for name, errno in every_pair():
        why(call(name, "/x", "/y", "proc", 0, None), errno, Context(USER, machine=machine))
