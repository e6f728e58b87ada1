"""What a container sees of file systems, and that the host sees nothing of it."""

import os
from pathlib import Path

import pytest
from here import IS_ROOT, busybox, users

from kernel_lab import IPC, PID, Bind, Container, Mount, Net, User
from kernel_lab.kernel import mountinfo

pytestmark = pytest.mark.usefixtures("executor")


def full(**settings: object) -> Container:
    return Container(*users(), PID(), IPC(), Net(), Mount(busybox(), **settings))  # type: ignore[arg-type]


def inside(container: Container, command: str) -> str:
    return container.run("sh", "-c", command, check=True).stdout


def test_the_hosts_mounts_are_byte_for_byte_the_same() -> None:
    before = Path("/proc/self/mountinfo").read_bytes()
    inside(full(tmpfs=["/mnt"], readonly=True), "mount -t tmpfs none /tmp; ls /")
    assert Path("/proc/self/mountinfo").read_bytes() == before


def test_the_root_is_the_directory_and_nothing_else() -> None:
    assert set(inside(full(), "ls /").split()) >= {"bin", "proc", "sys", "dev", "etc"}
    points = {line.split()[4] for line in inside(full(), "cat /proc/self/mountinfo").splitlines()}
    assert {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"} <= points
    assert all(point.startswith(("/proc", "/sys", "/dev")) or point == "/" for point in points)


def test_nothing_is_shared_with_the_host() -> None:
    fields = [line.partition(" - ")[0] for line in inside(full(), "cat /proc/self/mountinfo").splitlines()]
    assert fields and not any("shared:" in field or "master:" in field for field in fields)
    assert not any("shared:" in line for line in inside(Container(*users(), Mount()), "cat /proc/self/mountinfo").splitlines())


def test_the_way_out_by_dots_is_closed() -> None:
    assert inside(full(), "cd /; cd ../../../..; pwd; ls bin/busybox").split() == ["/", "bin/busybox"]


def test_proc_is_the_new_pid_namespaces() -> None:
    assert inside(full(), "cd /proc; echo [0-9]*").split()[0] == "1"
    assert inside(Container(*users(), PID(), Mount()), "readlink /proc/self").strip() not in ("", str(os.getpid()))


@pytest.mark.parametrize("path", ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/class"])
def test_windows_on_the_kernel_cannot_be_written(path: str) -> None:
    result = full().run("sh", "-c", f"touch {path}/x 2>/dev/null || echo x > {path}")
    assert result.code != 0


@pytest.mark.skipif(not os.path.exists("/proc/timer_list"), reason="needs /proc/timer_list: this kernel has none")
def test_masked_files_are_empty() -> None:
    assert inside(full(), "cat /proc/timer_list") == ""
    assert inside(full(), "ls /sys/firmware") == ""


def test_devices_work_and_are_the_usual_ones() -> None:
    assert set(inside(full(), "ls /dev").split()) >= {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr"}
    assert inside(full(), "echo lost > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c").split() == ["4", "4"]
    assert full().run("sh", "-c", "echo x > /dev/full").code != 0
    assert inside(full(), "ls -d /dev/pts/ptmx; stat -c %a /dev/shm /dev/null").split() == ["/dev/pts/ptmx", "1777", "666"]


def test_shared_memory_is_the_containers_own() -> None:
    assert "klab-probe" not in os.listdir("/dev/shm")
    inside(full(), "touch /dev/shm/klab-probe")
    assert "klab-probe" not in os.listdir("/dev/shm")


def test_a_read_only_root_has_writable_places() -> None:
    assert full(readonly=True).run("touch /x").code != 0
    assert inside(full(readonly=True, tmpfs=["/tmp"]), "touch /tmp/x /dev/shm/x && echo made").strip() == "made"


def test_binds_carry_both_ways_unless_read_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from outside\n")
    root = tmp_path / "root"
    for name in ("proc", "sys", "dev", "bin", "there"):
        (root / name).mkdir(parents=True)
    shared = Mount(busybox(), binds=[f"{tmp_path}:/mnt"])
    assert inside(Container(*users(), PID(), shared), "cat /mnt/file; echo inside > /mnt/new") == "from outside\n"
    assert (tmp_path / "new").read_text() == "inside\n"
    locked = Mount(busybox(), binds=[Bind(str(tmp_path), "/mnt", readonly=True)])
    assert Container(*users(), PID(), locked).run("sh", "-c", "cat /mnt/file; echo x > /mnt/new2").code != 0
    assert not (tmp_path / "new2").exists()


def test_a_file_can_be_bound(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("127.0.0.1 here\n")
    bound = Mount(busybox(), binds=[f"{tmp_path / 'names'}:/etc/hosts:ro"])
    assert inside(Container(*users(), PID(), bound), "cat /etc/hosts") == "127.0.0.1 here\n"


def test_a_hostile_symlink_in_the_root_leads_nowhere(tmp_path: Path) -> None:
    """A root whose /dev is a link to the host's directory: what is mounted there must stay inside."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    for name in ("proc", "sys", "bin"):
        (root / name).mkdir(parents=True)
    (root / "dev").symlink_to(outside)
    before = Path("/proc/self/mountinfo").read_bytes()
    with pytest.raises(Exception):  # noqa: B017 -- inside, the link leads to a place that is not there
        Container(*users(), PID(), Mount(root)).run("/bin/true", check=True)
    assert not list(outside.iterdir()) and Path("/proc/self/mountinfo").read_bytes() == before


def test_each_file_system_can_be_left_out() -> None:
    box = Container(*users(), PID(), Mount(busybox(), sys=False, dev=False, proc=False))
    assert inside(box, "ls /sys; ls /proc") == "" and "null" not in inside(box, "ls /dev").split()


def test_without_a_pid_or_network_namespace_the_hosts_are_shown() -> None:
    box = Container(*users(), Mount(busybox()))
    assert inside(box, "readlink /proc/1/ns/pid || readlink /proc/self/ns/pid").strip() == os.readlink("/proc/self/ns/pid")
    assert box.run("sh", "-c", "touch /sys/x").code != 0


@pytest.mark.needs("root")
def test_a_users_own_ids_in_a_root_of_the_hosts() -> None:
    box = Container(User([(0, 100_000, 65_536)]), PID(), IPC(), Net(), Mount(busybox()))
    assert inside(box, "id -u; stat -c %u /bin/busybox").split() == ["0", "65534"]


def test_mount_points_are_parsed_as_the_kernel_shows_them(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    with Container(*users(), Mount(binds=[f"{tmp_path}:{place}"])).start("sleep 1000") as box:
        assert any(mount.point == str(place) for mount in mountinfo.mounts(box.pid))
    assert (os.geteuid() == 0) == IS_ROOT
