"""Root filesystems: what is in them works, they are made once, and whoever makes one can be killed."""

import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from here import users
from needs import SEARCH
from waiting import soon

from kernel_lab import PID, Container, Mount, bootstrap, cleanup, rootfs, state
from kernel_lab.kernel.errors import UsageError

# What makes an ordinary user root in a namespace where chroot is allowed.
ROOT = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]
RANGE = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--map-auto"]

CHROOT = shutil.which("chroot", path=SEARCH) or "chroot"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KERNEL_LAB_DATA", str(tmp_path / "data"))
    yield tmp_path / "data"
    state.discard(tmp_path / "data")


def inside(root: Path, script: str) -> str:
    done = subprocess.run([*ROOT, CHROOT, root, "/bin/sh", "-c", script], capture_output=True, text=True, env={"PATH": "/bin"})
    assert done.stderr == ""
    return done.stdout


busybox = pytest.mark.needs("userns", "busybox", "chroot")


@busybox
def test_a_root_of_busybox_is_a_small_system() -> None:
    root = rootfs.busybox()
    assert inside(root, "whoami; cat /etc/os-release | head -1; ls -d /proc /sys /dev/pts /dev/shm /dev/mqueue /tmp") == (
        "root\nID=busybox\n/dev/mqueue\n/dev/pts\n/dev/shm\n/proc\n/sys\n/tmp\n"
    )
    assert inside(root, "echo abc | sed s/b/x/ | grep -c axc; /usr/bin/env echo here; /sbin/ip 2>&1 | head -1 | cut -c1-7") == "1\nhere\nBusyBox\n"
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(applets) == sorted(os.listdir(root / "bin"))


@busybox
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_everybody_may_walk_through_and_nobody_else_may_write(umask: int) -> None:
    before = os.umask(umask)
    try:
        root = rootfs.busybox()
    finally:
        os.umask(before)
    for path in (root.parent, root, *root.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            expected = 0o1777 if path.relative_to(root.parent).parts[1:] in (("tmp",), ("var", "tmp"), ("dev", "shm")) else 0o755
            assert stat.S_IMODE(mode) == (expected if stat.S_ISDIR(mode) or path.name == "busybox" else 0o644), path


@busybox
def test_what_a_container_has_removed_is_there_again() -> None:
    root = rootfs.busybox()
    box = Container(*users(), PID(), Mount(root))
    assert box.run("rm -r /bin/ls /bin/busybox /sbin /var/log /etc/passwd").code == 0
    assert box.run("true").code == 127
    assert rootfs.busybox() == root
    assert box.run("ls -d /sbin/init /var/log").code == 0 and "root:" in box.run("cat /etc/passwd").stdout


@busybox
def test_it_is_made_once() -> None:
    root = rootfs.busybox()
    inode = root.stat().st_ino
    (root / "root/note").write_text("mine")
    assert rootfs.busybox() == root
    assert (root.stat().st_ino, (root / "root/note").read_text()) == (inode, "mine")


@busybox
def test_once_it_is_made_no_program_is_run_for_it() -> None:
    root = rootfs.busybox()
    shutil.rmtree(root / "bin")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert rootfs.busybox() == root
    assert resource.getrusage(resource.RUSAGE_CHILDREN) == before
    assert inside(root, "ls / | grep -c root") == "1\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A busybox of the test's own, the first that is found."""
    found = shutil.which("busybox")
    assert found
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "programs"), prepend=":")
    return Path(shutil.copy(found, tmp_path / "programs"))


@busybox
def test_another_busybox_has_another_root(own: Path) -> None:
    first, status = rootfs.busybox(), own.stat()
    with own.open("r+b") as program:  # in place, of the same size, and as if nothing had been
        program.seek(-1, os.SEEK_END)
        program.write(b"?")
    os.utime(own, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = rootfs.busybox()
    assert second != first
    assert (second / "bin/busybox").read_bytes() == own.read_bytes()
    assert rootfs.busybox() == second


@busybox
def test_a_note_that_a_power_cut_has_halved_is_written_anew(data: Path) -> None:
    root = rootfs.busybox()
    (note,) = (path for path in (data / "rootfs").iterdir() if path.is_file() and path.stat().st_size)
    whole = note.read_text()
    for left in ("", whole[: len(whole) // 2]):
        note.write_text(left)
        assert rootfs.busybox() == root
        assert note.read_text() == whole


@busybox
def test_of_many_that_want_it_at_once_one_makes_it(data: Path) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(rootfs.busybox().stat().st_ino)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len([path for path in (data / "rootfs").iterdir() if path.is_dir()]) == 1


MAKER = """
import time
from kernel_lab import rootfs
def half(root):
    (root / "bin").mkdir()
    print("half", flush=True)
    time.sleep(1000)
rootfs.once("half", half)
"""


def test_a_half_made_root_is_nobodys_and_a_leftover_once_its_maker_is_killed(data: Path) -> None:
    path = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as maker:
        assert maker.stdout
        assert maker.stdout.readline() == b"half\n"
        assert not any(leftover.name.startswith(str(data)) for leftover in cleanup.leftovers())
        maker.kill()
    assert not (data / "rootfs/half").exists()
    left = [leftover for leftover in cleanup.leftovers() if leftover.name.startswith(str(data))]
    assert len(left) == 1
    # The lock went with its holder.
    assert rootfs.once("half", lambda root: (root / "whole").mkdir()) == data / "rootfs/half"
    cleanup.remove(left)
    assert sorted(os.listdir(data / "rootfs")) == ["half", "lock"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_one_that_cannot_be_made_leaves_nothing(error: type[BaseException], data: Path) -> None:
    def fails(root: Path) -> None:
        (root / "directory").mkdir()
        raise error

    with pytest.raises(error):
        rootfs.once("x", fails)
    assert os.listdir(data / "rootfs") == ["lock"]


@pytest.mark.needs("userns", "busybox")
def test_a_busybox_that_needs_libraries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "busybox").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"busybox: needs .*ld.*; install Debian's package busybox-static"):
        rootfs.busybox()


@pytest.mark.parametrize(("make", "package"), [(rootfs.busybox, "busybox-static"), (rootfs.debian, "mmdebstrap")])
def test_what_is_not_installed_is_named(make: Callable[[], Path], package: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=f"install Debian's package {package}"):
        make()


def test_words_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rootfs.resolve("host") == Path("/")
    assert rootfs.resolve(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path.parent)
    assert rootfs.resolve(tmp_path.name) == tmp_path


@busybox
def test_busybox_on_the_command_line() -> None:
    assert rootfs.resolve("busybox") == rootfs.busybox()


@pytest.mark.parametrize("root", ["", "absent", "/etc/passwd", "/no/such"])
def test_a_root_that_is_no_directory_is_refused(root: str) -> None:
    with pytest.raises(UsageError, match=f"{root!r}: a root is busybox, debian, host, or a directory"):
        rootfs.resolve(root)


@pytest.mark.parametrize("suite", ["../x", "-x", "Bookworm", "a b"])
@pytest.mark.needs("mmdebstrap")
def test_what_is_no_suite_is_refused(suite: str) -> None:
    with pytest.raises(UsageError, match="a suite is a name"):
        rootfs.debian(suite)


APT_CONFIG = """#!/bin/sh
cat <<END
Acquire::http::Proxy "http://proxy:3142/";
Acquire::http::Proxy::mirror "DIRECT";
Acquire::http::Proxy-Auto-Detect "/usr/local/bin/find-proxy";
Acquire::Check-Valid-Until "false";
APT::Architecture "amd64";
END
"""
APT_GET = """#!/bin/sh
cat <<END
https://mirror/debian/ {own} main Debian
https://mirror/debian/ {own}-updates main Debian
https://mirror/security/ {own}-security contrib Debian
https://other/ {own} stable Docker
https://mirror/debian/ {own}-backports main Debian
END
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An apt with a proxy and more sources than the distribution's own; its answer is the suite that this machine runs."""
    own = bootstrap.own_suite()
    for name, text in (("apt-config", APT_CONFIG), ("apt-get", APT_GET.format(own=own)), ("mmdebstrap", "")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    return own


def words(lines: tuple[str, ...]) -> list[list[str]]:
    return [[word for word in line.split() if not word.startswith("[")] for line in lines]


def test_the_machines_own_sources_and_proxy_are_used(apt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = bootstrap.recipe(apt)
    assert words(recipe.sources) == [
        ["deb", "https://mirror/debian/", apt, "main"],
        ["deb", "https://mirror/debian/", f"{apt}-updates", "main"],
        ["deb", "https://mirror/security/", f"{apt}-security", "contrib"],
    ]
    proxies = ('Acquire::http::Proxy "http://proxy:3142/";', 'Acquire::http::Proxy::mirror "DIRECT";')
    assert recipe.settings == (*proxies, 'Acquire::Check-Valid-Until "false";', 'Acquire::Retries "5";')
    assert recipe.needs_certificates
    monkeypatch.setenv("https_proxy", "http://other:80")
    assert bootstrap.recipe(apt).settings[0] == 'Acquire::https::Proxy "http://other:80";'


def test_another_suite_comes_from_the_same_mirror(apt: str) -> None:
    assert words(bootstrap.recipe("othersuite").sources) == [["deb", "https://mirror/debian/", "othersuite", "main"]]


def test_an_mmdebstrap_that_fails_says_why_and_leaves_nothing(apt: str, tmp_path: Path, data: Path) -> None:
    (tmp_path / "mmdebstrap").write_text("#!/bin/sh\necho E: no such mirror >&2\nexit 25\n")
    with pytest.raises(RuntimeError, match="E: no such mirror"):
        rootfs.debian()
    assert os.listdir(data / "rootfs") == ["lock"]


def test_an_mmdebstrap_ends_with_its_creator(apt: str, tmp_path: Path, data: Path) -> None:
    (tmp_path / "mmdebstrap").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 1000\n")
    path = os.pathsep.join(path for path in sys.path if path)
    code = "from kernel_lab import rootfs; rootfs.debian()"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}) as maker:
        assert soon((tmp_path / "pid").exists)
        creator = state.Creator.of(int((tmp_path / "pid").read_text()))
        maker.kill()
    assert soon(lambda: not creator.alive())


@pytest.mark.slow
@pytest.mark.needs("userns", "mmdebstrap", "newuidmap", "chroot")
def test_a_debian_has_apt_dpkg_and_a_shell(data: Path) -> None:
    root = rootfs.debian()
    told = subprocess.run(
        [*RANGE, CHROOT, root, "/bin/sh", "-c", "dpkg --get-selections | grep -c .; apt-get --version | head -c 3; echo; id -un; stat -c %u /"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    count, *rest = told.stdout.split()
    assert int(count) > 50
    assert rest == ["apt", "root", "0"]
    assert (root / "etc/apt/sources.list").read_text().split()[0] == "deb"
    assert not (root / "etc/hostname").exists()
    assert rootfs.debian() == root
    assert sorted(os.listdir(data / "rootfs")) == sorted([root.name, "lock"])
