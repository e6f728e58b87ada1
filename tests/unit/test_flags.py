"""Names and values of the flags; the values against the headers, by way of a C compiler, where there is one."""

import inspect
import pickle
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kernel_lab.kernel import flags
from kernel_lab.kernel.flags import AT, AT_FD, CLONE, IPC, MNT, MS, OPEN_TREE, S_IF, SIG, SOCK, WAIT, Constants, Flags, O, shown

# Two programs, since sys/mount.h and linux/mount.h do not go together.
HEADERS = (
    """linux/sched.h linux/mount.h linux/openat2.h linux/prctl.h linux/capability.h linux/close_range.h linux/sockios.h linux/route.h
    fcntl.h poll.h signal.h time.h sys/ipc.h sys/resource.h sys/shm.h sys/socket.h sys/stat.h sys/wait.h""",
    "sys/mount.h",
)
# No macros, so that the preprocessor cannot tell whether they are there.
IN_AN_ENUM = ("FSCONFIG_", "P_")
# The kernel keeps asm/signal.h to itself; the others came after Linux 5.14.
NOT_IN_EVERY_HEADER = {"SA_RESTORER", "MOVE_MOUNT_BENEATH", "MOVE_MOUNT_SET_GROUP", "FSCONFIG_CMD_CREATE_EXCL"}


def classes():
    found = [kind for _, kind in inspect.getmembers(flags, inspect.isclass) if issubclass(kind, Flags | Constants)]
    return [kind for kind in found if kind not in (Flags, Constants)]


def every_member():
    return {kind.header_name(name): int(value) for kind in classes() for name, value in kind.__members__.items()}


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        (MS.REC | MS.PRIVATE, "MS_REC|MS_PRIVATE"),
        (CLONE.NEWUTS, "CLONE_NEWUTS"),
        (CLONE.NEWUTS | CLONE.CLEAR_SIGHAND, "CLONE_NEWUTS|CLONE_CLEAR_SIGHAND"),
        (MS(0), "0"),
        (MS.BIND | 1 << 30, "MS_BIND|0x40000000"),
        (MS(1 << 30), "0x40000000"),
        (O(0), "O_RDONLY"),
        (O.WRONLY | O.CREAT, "O_WRONLY|O_CREAT"),
        (O.TMPFILE, "O_TMPFILE"),
        (O.SYNC, "O_SYNC"),
        (SOCK.RAW | SOCK.CLOEXEC, "SOCK_RAW|SOCK_CLOEXEC"),
        (S_IF.CHR | 0o666, "S_IFCHR|0666"),
        (S_IF.BLK | 0o60, "S_IFBLK|0060"),
        (S_IF.SOCK, "S_IFSOCK"),
        (IPC.CREAT | 0o600, "IPC_CREAT|0600"),
        (MNT.DETACH | MNT.UMOUNT_NOFOLLOW, "MNT_DETACH|UMOUNT_NOFOLLOW"),
        (WAIT.EXITED | WAIT.ALL, "WEXITED|__WALL"),
        (AT_FD.FDCWD, "AT_FDCWD"),
        (OPEN_TREE.CLONE | AT.RECURSIVE, "OPEN_TREE_CLONE|AT_RECURSIVE"),
        (SIG.TERM, "SIGTERM"),
        (signal.SIGTERM, "SIGTERM"),
        (7, "7"),
        (-100, "-100"),
    ],
)
def test_a_flag_prints_as_its_header_writes_it(flag, text):
    assert shown(flag) == text
    if isinstance(flag, Flags | Constants):
        assert (str(flag), repr(flag)) == (text, text)


def test_a_flag_is_still_a_number():
    assert MS.REC | MS.PRIVATE == 0x44000
    assert f"{MS.REC:#x}" == "0x4000"
    assert isinstance(MS.REC | 1, MS)
    assert pickle.loads(pickle.dumps(CLONE.NEWPID | CLONE.NEWNS)) == CLONE.NEWPID | CLONE.NEWNS


def test_each_name_stands_once():
    names = [kind.header_name(name) for kind in classes() for name in kind.__members__ if not name.startswith("AT_")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def printed_by_c(compiler, folder, headers, with_enums):
    names = sorted(set(every_member()) - NOT_IN_EVERY_HEADER)
    lines = []
    for name in names:
        line = f'printf("{name} %lld\\n", (long long)({name}));'
        if not name.startswith(IN_AN_ENUM):
            lines.append(f"#ifdef {name}\n{line}\n#endif")
        elif with_enums:
            lines.append(line)
    includes = "\n".join(f"#include <{name}>" for name in headers.split())
    source = folder / "flags.c"
    source.write_text(f"#define _GNU_SOURCE\n#include <stdio.h>\n{includes}\nint main(void) {{\n" + "\n".join(lines) + "\nreturn 0; }\n")
    subprocess.run([compiler, "-w", "-o", folder / "flags", source], check=True)
    printed = subprocess.run([folder / "flags"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in printed.splitlines())}


def unsigned(value):
    """A 32-bit macro with its top bit set is negative in C."""
    return value % 2**32 if value < 0 else value


def test_values_are_the_headers_values(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not Path("/usr/include/linux/openat2.h").exists():
        pytest.skip("no C compiler, or none of the kernel's headers, to compare with")
    found = {}
    for number, headers in enumerate(HEADERS):
        found |= printed_by_c(compiler, tmp_path, headers, with_enums=number == 0)
    ours = every_member()
    assert {name: value for name, value in found.items() if unsigned(value) != unsigned(ours[name])} == {}
    assert set(ours) - set(found) == NOT_IN_EVERY_HEADER
