"""The part Net, with real sockets: between containers, to and from the host, out into the world, and not at all."""

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from talk import PYTHON, call, client, server, serving
from waiting import soon

from kernel_lab import PID, UTS, Container, Net, UsageError, User
from kernel_lab.kernel import procfs
from kernel_lab.networks.bridge import Bridge
from kernel_lab.networks.usermode import TUN, Usermode

NAME = f"klabn{os.getpid():x}"
# A small network of this process's own, out of the range for such tests (198.18.0.0/15, RFC 2544).
NEIGHBOUR, OUTSIDE = (str(IPv4Address("198.18.0.0") + os.getpid() % 2**15 * 4 + number) for number in (1, 2))
in_a_bridge = pytest.mark.needs("root", "nft")


def _box(*parts: object) -> Container:
    return Container(*([] if os.geteuid() == 0 else [User()]), PID(), *parts)  # type: ignore[arg-type]


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    with Bridge(NAME) as bridge:
        yield bridge


@contextmanager
def _standing(net: Net) -> Iterator[Container]:
    """A container in which the server runs."""
    with _box(net) as box:
        yield box.start(*server())


@pytest.mark.needs("userns")
def test_alone_it_has_a_loopback_and_no_way_out(executor: str) -> None:
    alone = """
import socket
with socket.create_server(("127.0.0.1", 0)) as here:
    socket.create_connection(here.getsockname()).close()
print(*(name for _, name in socket.if_nameindex()))
for way_out in ("192.0.2.1", "8.8.8.8"):
    try:
        socket.create_connection((way_out, 53), timeout=20)
    except OSError as error:
        print(error.errno)
"""
    result = _box(Net()).run(*PYTHON, alone)
    assert result.stderr == ""
    links, *errors = result.stdout.splitlines()
    assert "lo" in links.split() and "eth0" not in links.split()
    assert errors == [str(errno.ENETUNREACH)] * 2
    assert result.program.answer("ioctl") == 0


@pytest.mark.needs("userns")
def test_the_hosts_loopback_is_another() -> None:
    # Bound and not listening: nobody else on this host can answer there.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with _box(Net()) as box:
            box.start(*server(port))
            assert box.exec(*client("127.0.0.1", port)).stdout == "127.0.0.1\n"
            with socket.socket() as line, pytest.raises(ConnectionRefusedError):
                line.connect(("127.0.0.1", port))


@in_a_bridge
def test_a_container_reaches_the_host(bridge: Bridge, executor: str) -> None:
    asked = str(bridge.subnet.network_address + 9)
    with serving(bridge.address) as port:
        assert _box(Net(bridge, asked)).run(*client(bridge.address, port)).stdout == f"{asked}\n"


@in_a_bridge
def test_the_host_reaches_a_container(bridge: Bridge) -> None:
    with _standing(Net(bridge)) as box:
        assert call(bridge.address_of(box.pid)) == bridge.address


@in_a_bridge
def test_containers_reach_each_other(bridge: Bridge) -> None:
    asked = str(bridge.subnet.network_address + 9)
    with _standing(Net(NAME)) as box:
        address = bridge.address_of(box.pid)
        assert address != asked
        assert _box(Net(bridge, asked)).run(*client(address)).stdout == f"{asked}\n"


@in_a_bridge
def test_with_a_user_namespace_as_well(bridge: Bridge) -> None:
    with serving(bridge.address) as port:
        box = Container(UTS("box"), User([(0, 100_000, 1000)]), Net(bridge))
        result = box.run("sh", "-c", "cat /proc/net/dev | cut -d: -f1")
        assert {"lo", "eth0"} <= set(result.stdout.split())
        assert Container(User(), Net(bridge)).run(*client(bridge.address, port)).stdout.startswith("10.")


@contextmanager
def _world() -> Iterator[None]:
    """A server beyond a link of the host, in a network namespace that knows no way back to any bridge."""
    ours, theirs = f"{NAME}o", f"{NAME}i"
    begin = f'read go; ip addr add {OUTSIDE}/30 dev {theirs}; ip link set {theirs} up; exec "$@"'
    command = ["unshare", "--net", "sh", "-c", begin, "sh", *server()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as world:
        try:
            assert world.stdin and world.stdout
            mine = os.readlink("/proc/self/ns/net")
            assert soon(lambda: os.readlink(f"/proc/{world.pid}/ns/net") != mine)
            _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", str(world.pid))
            _ip("addr", "add", f"{NEIGHBOUR}/30", "dev", ours)
            _ip("link", "set", ours, "up")
            world.stdin.write("go\n")
            world.stdin.flush()
            assert world.stdout.readline() == "ready\n"
            assert call(OUTSIDE) == NEIGHBOUR
            yield
        finally:
            world.kill()
            subprocess.run(["ip", "link", "del", ours], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@in_a_bridge
@pytest.mark.needs("ip", "unshare")
def test_a_container_reaches_the_world_under_the_hosts_address(bridge: Bridge) -> None:
    with _world():
        assert _box(Net(bridge)).run(*client(OUTSIDE)).stdout == f"{NEIGHBOUR}\n"


@in_a_bridge
@pytest.mark.needs("ip", "unshare")
def test_without_nat_a_container_does_not_reach_the_world() -> None:
    with _world(), Bridge(NAME, nat=False) as bridge, serving(bridge.address) as port:
        box = _box(Net(bridge))
        assert box.run(*client(bridge.address, port)).stdout.startswith("10.")
        assert box.run(*client(OUTSIDE, patience=0.5)).stdout.startswith(("TimeoutError", "OSError"))


@in_a_bridge
def test_an_address_is_reachable_at_once_after_its_predecessors_end(bridge: Bridge) -> None:
    asked = str(bridge.subnet.network_address + 9)
    # Whatever remembers the predecessor, an ARP cache or the bridge's own table, would lead to nobody.
    for _ in range(4):
        with _standing(Net(bridge, asked)):
            assert call(asked) == bridge.address


@in_a_bridge
def test_each_run_gets_an_address_of_its_own(bridge: Bridge) -> None:
    box = _box(Net(bridge))
    with serving(bridge.address) as port:
        seen = [box.run(*client(bridge.address, port)).stdout.strip() for _ in range(3)]
    assert seen == [str(bridge.subnet.network_address + 2 + number) for number in range(3)]


@in_a_bridge
def test_many_at_once(bridge: Bridge) -> None:
    seen: list[str] = []
    with serving(bridge.address) as port:
        box = _box(Net(bridge))

        def run() -> None:
            seen.extend(box.run(*client(bridge.address, port)).stdout.strip() for _ in range(3))

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(seen)) == len(seen) == 18
    assert bridge.containers() == {}


@in_a_bridge
def test_an_address_that_is_taken_is_refused_and_nothing_of_the_second_is_left(bridge: Bridge) -> None:
    asked = str(bridge.subnet.network_address + 9)
    with _standing(Net(bridge, asked)) as first:
        with pytest.raises(UsageError, match=f"{asked} is taken"):
            _box(Net(bridge, asked)).run("true")
        assert bridge.containers() == {asked: first.pid}
        assert call(asked) == bridge.address


@in_a_bridge
def test_what_it_has_made_goes_with_a_container_that_fails(bridge: Bridge) -> None:
    assert _box(Net(bridge)).run("/nowhere").code == 127
    assert bridge.containers() == {}


@in_a_bridge
def test_a_bridge_that_only_containers_use_comes_and_goes_with_them() -> None:
    name = f"{NAME}c"
    with ExitStack() as running:
        boxes = [running.enter_context(_standing(Net(name))) for _ in range(2)]
        bridge = Bridge(name)
        first, second = (bridge.address_of(box.pid) for box in boxes)
        assert boxes[0].exec(*client(second)).stdout == f"{first}\n"
    assert not Path("/sys/class/net", name).exists()


def _lacks_tun() -> str | None:
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        return f"needs {TUN}: {error.strerror}"
    return None


@pytest.fixture
def world_and_tun() -> Iterator[None]:
    if why := _lacks_tun():
        pytest.skip(why)
    if os.geteuid():
        pytest.skip("needs root: this user cannot make a world to reach")
    with _world():
        yield


@pytest.mark.needs("userns", "ip", "unshare")
@pytest.mark.parametrize("program", [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("pasta", "slirp4netns")])
def test_usermode_reaches_the_world_and_ends_with_the_container(program: str, world_and_tun: None, executor: str) -> None:
    box = Container(User(), PID(), Net(Usermode(program)))
    result = box.run(*client(OUTSIDE))
    assert (result.stdout, result.stderr) == (f"{NEIGHBOUR}\n", "")
    assert not _keepers()


@pytest.mark.needs("userns")
@pytest.mark.parametrize("program", [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("pasta", "slirp4netns")])
def test_usermode_ends_with_a_killed_creator(program: str) -> None:
    if why := _lacks_tun():
        pytest.skip(why)
    script = f"""
import sys
from kernel_lab import PID, Container, Net, User
from kernel_lab.networks.usermode import Usermode
box = Container(User(), PID(), Net(Usermode({program!r}))).start("sleep", "infinity")
print("ready", flush=True)
sys.stdin.read()
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as creator:
        assert creator.stdout
        assert creator.stdout.readline() == b"ready\n"
        (keeper,) = _keepers()
        stack = {pid: procfs.process(pid).started for pid in (keeper, *procfs.children(keeper))}
        assert len(stack) >= 2
        creator.kill()
    assert soon(lambda: not any(procfs.alive(pid, started) for pid, started in stack.items()))


def _keepers() -> list[int]:
    """The processes of this session that each keep a user-mode stack."""
    found = []
    for pid in procfs.processes():
        with suppress(ProcessLookupError, PermissionError):
            if b"klab-usermode" in procfs.read(pid, "cmdline") and procfs.environ(pid).get("KERNEL_LAB_RUN") == os.environ["KERNEL_LAB_RUN"]:
                found.append(pid)
    return [pid for pid in found if procfs.process(pid).parent not in found]
