"""A bridge from its first user to its last, in one process or in several, however they end."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from waiting import soon

from kernel_lab import Container, KernelError, Net, UsageError
from kernel_lab.networks import cleanup, ledger
from kernel_lab.networks.addresses import link_name
from kernel_lab.networks.bridge import Bridge
from kernel_lab.networks.ledger import Ledger
from kernel_lab.networks.netlink import index_of
from kernel_lab.state import Creator, Leftover

pytestmark = pytest.mark.needs("root", "nft", "ip", "unshare")

NAME = f"klabt{os.getpid():x}"
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


@pytest.fixture(autouse=True)
def records(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of each test's own: the janitor of a process of the test before may still be cleaning up."""
    monkeypatch.setenv("KERNEL_LAB_RUN", str(run_directory / f"bridge-{next(_numbers)}"))


_numbers = itertools.count()


def _table(name: str = NAME) -> str:
    """The rules of a bridge, as nft prints them; empty where there are none."""
    return subprocess.run(["nft", "list", "table", "ip", f"klab-{name}"], capture_output=True, text=True).stdout


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def _gone(name: str = NAME) -> bool:
    return not index_of(name) and not _table(name) and not Ledger(name).begun()


def _mine(name: str = NAME) -> list[Leftover]:
    return [found for found in cleanup.leftovers() if name in found.name]


@contextmanager
def _alone() -> Iterator[int]:
    """A process that is in a network namespace of its own, and does nothing there."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        mine = os.readlink("/proc/self/ns/net")
        assert soon(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != mine)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _do(script: str, *, without_janitor: bool = False) -> subprocess.Popen[str]:
    """Another process that uses the kit: it runs `script`, prints `ready`, and waits for the end of its input."""
    lines = [
        "import os, signal, sys",
        "from kernel_lab import janitor",
        "from kernel_lab.networks import addresses, ledger, lifetime, messages, nat",
        "from kernel_lab.networks.bridge import Bridge",
        *(["janitor.watch_leftovers = lambda: None"] if without_janitor else []),
        f"NAME = {NAME!r}",
        script,
        "print('ready', flush=True)",
        "sys.stdin.read()",
    ]
    path = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@contextmanager
def _another(script: str, *, without_janitor: bool = False) -> Iterator[subprocess.Popen[str]]:
    with _do(script, without_janitor=without_janitor) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def _ends(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.close()
    assert process.wait() == 0


def test_it_comes_with_its_first_user_and_goes_with_its_last() -> None:
    bridge = Bridge(NAME)
    assert not index_of(NAME)
    with bridge:
        shown = _ip("-4", "addr", "show", NAME)
        assert f"inet {bridge.address}/24" in shown and "UP" in shown
        assert f'ip saddr {bridge.subnet} oifname != "{NAME}" masquerade' in _table()
        assert f"alias kernel-lab {Creator.this().stamp} " in _ip("link", "show", NAME)
        with Bridge(NAME), bridge:
            assert index_of(NAME)
        assert index_of(NAME)
    assert _gone()


def test_without_nat_there_are_no_rules_and_no_forwarding() -> None:
    # Another run on this machine may have its own reasons for forwarding.
    script = f"""
from kernel_lab.networks.bridge import Bridge
from kernel_lab.networks.nat import FORWARD
FORWARD.write_text("0")
with Bridge({NAME!r}, "10.77.0.0/24", nat=False):
    print(FORWARD.read_text().strip())
"""
    assert _in_a_network_of_its_own(script) == "0"


@pytest.mark.parametrize("before", ["0", "1"])
def test_forwarding_is_on_while_there_is_nat_and_then_as_it_was(before: str) -> None:
    script = f"""
import os
from kernel_lab.networks.bridge import Bridge
from kernel_lab.networks.nat import FORWARD
run = os.environ["KERNEL_LAB_RUN"]
FORWARD.write_text("{before}")
first = Bridge({NAME + "a"!r}, "10.77.1.0/24").open()
os.environ["KERNEL_LAB_RUN"] = run + "/elsewhere"
second = Bridge({NAME + "b"!r}, "10.77.2.0/24").open()
print(FORWARD.read_text().strip())
os.environ["KERNEL_LAB_RUN"] = run
first.close()
print(FORWARD.read_text().strip())
os.environ["KERNEL_LAB_RUN"] = run + "/elsewhere"
second.close()
print(FORWARD.read_text().strip())
"""
    assert _in_a_network_of_its_own(script).split() == ["1", "1", before]


def _in_a_network_of_its_own(script: str) -> str:
    """What a script prints that sees no link, table or setting but its own, and whose nobody else on this machine sees."""
    path = os.pathsep.join(path for path in sys.path if path)
    # What /sys shows of links belongs to the network namespace in which it was mounted.
    command = ["unshare", "--net", "--mount", "sh", "-c", 'mount -t sysfs sysfs /sys && exec "$@"', "sh", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_container_is_a_user() -> None:
    bridge = Bridge(NAME, nat=False)
    with _alone() as pid:
        with bridge.attached(pid) as place:
            assert place.gateway == bridge.address
            assert bridge.containers() == {place.address: pid}
            assert bridge.address_of(pid) == place.address
            assert f"master {NAME}" in _ip("link", "show", link_name(place.address))
        assert _gone()
        # The namespace still lives, and its link must not: the address is free.
        assert not index_of(link_name(place.address))


def test_the_inner_end_is_named_and_has_an_address_that_never_changes() -> None:
    with Bridge(NAME, nat=False) as bridge:
        asked = str(bridge.subnet.network_address + 9)
        for _ in range(2):
            with _alone() as pid, bridge.attached(pid, asked):
                inside = subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", "link"], capture_output=True, text=True).stdout
                assert "eth0@" in inside
                assert "link/ether 02:6b:0a" in inside


def test_an_address_is_given_once() -> None:
    with Bridge(NAME, nat=False) as bridge, _alone() as one, _alone() as other:
        taken = str(bridge.subnet.network_address + 9)
        with bridge.attached(one, taken):
            with pytest.raises(UsageError, match=f"{taken} is taken"), bridge.attached(other, taken):
                pass
            with bridge.attached(other) as place:
                assert place.address != taken
                assert set(bridge.containers()) == {taken, place.address}
        with _alone() as third, bridge.attached(third, taken):
            assert bridge.address_of(third) == taken


def test_a_container_that_has_gone_leaves_no_record() -> None:
    with Bridge(NAME, nat=False) as bridge, _alone() as pid:
        with pytest.raises(ZeroDivisionError), bridge.attached(pid):
            raise ZeroDivisionError
        assert bridge.containers() == {}
        with pytest.raises(KernelError, match="ended while its link was being made") as refused, bridge.attached(2**22 - 1):
            pass
        assert refused.value.errno == 3
        assert bridge.containers() == {}


def test_threads_get_addresses_of_their_own() -> None:
    places: list[str] = []
    with Bridge(NAME, nat=False) as bridge, ExitStack() as processes:
        pids = [processes.enter_context(_alone()) for _ in range(16)]
        together = threading.Barrier(8, timeout=60)

        def attach(mine: list[int]) -> None:
            with ExitStack() as attached:
                together.wait()
                places.extend([attached.enter_context(bridge.attached(pid)).address for pid in mine])
                together.wait()

        threads = [threading.Thread(target=attach, args=(pids[number::8],)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bridge.containers() == {}
    assert len(set(places)) == len(places) == 16
    assert _gone()


def test_it_works_inside_a_running_event_loop() -> None:
    async def notebook() -> str:
        with Bridge(NAME) as bridge, _alone() as pid, bridge.attached(pid):
            await asyncio.sleep(0)
            return _ip("link", "show", NAME)

    assert NAME in asyncio.run(notebook())
    assert _gone()


def test_the_last_process_takes_it_down_whichever_that_is() -> None:
    with _another("Bridge(NAME).open()") as other:
        with Bridge(NAME):
            pass
        assert index_of(NAME) and _table()
        with Bridge(NAME):
            _ends(other)
            assert index_of(NAME) and _table()
    assert _gone()


def test_the_end_of_a_process_closes_what_it_has_open() -> None:
    with _another("Bridge(NAME).open()", without_janitor=True) as other:
        assert index_of(NAME)
        _ends(other)
    assert _gone()


def test_a_fork_does_not_take_its_parents_bridge_down() -> None:
    script = """
Bridge(NAME, nat=False).open()
if not os.fork():
    sys.exit()
os.wait()
"""
    with _another(script) as other:
        assert index_of(NAME)
        _ends(other)
    assert _gone()


def test_a_killed_process_does_not_block_and_its_janitor_cleans_up() -> None:
    with _another("Bridge(NAME).open()") as other:
        assert index_of(NAME)
        other.kill()
        other.wait()
        assert soon(_gone)


def test_the_leftovers_of_a_killed_process_are_found_and_removed() -> None:
    with _another("Bridge(NAME).open()", without_janitor=True) as other:
        assert _mine() == []
        other.kill()
        other.wait()
    (found,) = _mine()
    assert (found.kind, found.name) == ("bridge", NAME)
    assert str(other.pid) in found.why and "has ended" in found.why
    assert index_of(NAME)
    found.remove()
    assert _gone() and _mine() == []
    found.remove()


@pytest.mark.parametrize("reuse", [False, True])
def test_a_dead_lease_is_found_and_its_address_can_be_had_again(reuse: bool) -> None:
    with Bridge(NAME, nat=False) as bridge, _alone() as pid, _alone() as successor:
        address = str(bridge.subnet.network_address + 9)
        script = f"held = Bridge(NAME).attached({pid}, {address!r})\nheld.__enter__()"
        with _another(script, without_janitor=True) as other:
            assert bridge.containers() == {address: pid}
            other.kill()
            other.wait()
        assert bridge.containers() == {}
        assert index_of(link_name(address))
        (found,) = _mine()
        assert (found.kind, found.name) == ("lease", f"{address} on {NAME}")
        if reuse:
            with bridge.attached(successor, address):
                assert bridge.address_of(successor) == address
                found.remove()
                assert bridge.address_of(successor) == address
        else:
            found.remove()
            assert not index_of(link_name(address))
        assert _mine() == []
        assert index_of(NAME)


def test_a_removal_spares_who_has_come_meanwhile() -> None:
    with _another("Bridge(NAME).open()", without_janitor=True) as other:
        other.kill()
        other.wait()
    (found,) = _mine()
    with Bridge(NAME):
        assert _mine() != []  # the dead one's entry, beside ours
        found.remove()
        assert index_of(NAME) and _table()
    assert _gone()


CRASHES = {
    "nothing yet": "messages.bridge",
    "a link": "messages.alias",
    "a link with an address": "nat.make",
    "all but the last word": "ledger.Ledger.complete",
    "all, on the way down": "nat.remove",
    "no rules any more": "addresses.links_in",
    "a record alone": "ledger.Ledger.erase",
}


@pytest.mark.slow
@pytest.mark.parametrize("repair", ["cleanup", "next user"])
@pytest.mark.parametrize("left", CRASHES)
def test_a_crash_at_any_step_is_repaired(left: str, repair: str) -> None:
    script = f"{CRASHES[left]} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nBridge(NAME).open().close()"
    with _do(script, without_janitor=True) as crashed:
        assert crashed.wait() == -signal.SIGKILL
    assert Ledger(NAME).begun()
    if repair == "cleanup":
        for found in _mine():
            found.remove()
    else:
        with Bridge(NAME) as bridge, _alone() as pid, bridge.attached(pid):
            assert bridge.address in _ip("-4", "addr", "show", NAME)
            assert "masquerade" in _table()
    assert _gone() and _mine() == []


def test_a_bridge_whose_records_are_gone_is_found_once_its_maker_is_dead() -> None:
    script = f"""
import os, shutil, signal
from kernel_lab import UsageError, janitor
from kernel_lab.networks import ledger, nat
from kernel_lab.networks.bridge import Bridge
from kernel_lab.networks.cleanup import leftovers
from kernel_lab.networks.netlink import index_of
janitor.watch_leftovers = lambda: None
ready, told = os.pipe()
maker = os.fork()
if not maker:
    Bridge({NAME!r}).open()
    os.write(told, b"!")
    signal.pause()
os.read(ready, 1)
shutil.rmtree(ledger.root())
print([found.name for found in leftovers()])
try:
    Bridge({NAME!r})
except UsageError as error:
    print(error)
os.kill(maker, signal.SIGKILL)
os.waitid(os.P_PID, maker, os.WEXITED)
(found,) = leftovers()
print(found.kind, found.name, found.why)
found.remove()
print(index_of({NAME!r}), nat.tables(), leftovers())
"""
    nothing, refused, found, gone = _in_a_network_of_its_own(script).splitlines()
    assert nothing == "[]"
    assert f"there is a link {NAME} that" in refused
    assert found.startswith(f"bridge {NAME} its creator, process ") and found.endswith("has ended, and its records are gone")
    assert gone == "0 [] []"


def test_a_link_that_is_not_the_kits_is_left_alone() -> None:
    _ip("link", "add", NAME, "type", "bridge")
    try:
        with pytest.raises(UsageError, match=f"there is a link {NAME} that"):
            Bridge(NAME)
        assert _mine() == []
    finally:
        _ip("link", "del", NAME)


def test_a_table_without_its_bridge_is_found() -> None:
    script = f"""
from ipaddress import IPv4Network
from kernel_lab.networks import nat
from kernel_lab.networks.cleanup import leftovers
nat.FORWARD.write_text("0")
nat.make({NAME!r}, IPv4Network("10.77.0.0/24"))
for found in leftovers():
    print(found.kind, found.name)
    found.remove()
print(nat.tables(), nat.FORWARD.read_text().strip(), leftovers())
"""
    assert _in_a_network_of_its_own(script).splitlines() == [f"nft table klab-{NAME}", "[] 0 []"]


def test_root_of_a_user_namespace_sees_no_tables_of_the_hosts() -> None:
    look = "from kernel_lab.networks import nat; print(nat.tables())"
    assert subprocess.run(["unshare", "--user", "--map-root-user", sys.executable, "-c", look], capture_output=True, text=True).stdout == "[]\n"


def test_forwarding_that_a_crash_has_left_on_is_found() -> None:
    script = """
import subprocess
from kernel_lab.networks import nat
from kernel_lab.networks.cleanup import leftovers
subprocess.run(["nft", "add", "table", "ip", nat.WAS_OFF], check=True)
nat.FORWARD.write_text("1")
(found,) = leftovers()
print(found.kind, found.name)
found.remove()
print(nat.tables(), nat.FORWARD.read_text().strip(), leftovers())
"""
    assert _in_a_network_of_its_own(script).splitlines() == ["setting net.ipv4.ip_forward", "[] 0 []"]


def test_two_bridges_have_subnets_of_their_own_and_a_subnet_in_use_is_refused() -> None:
    with Bridge(NAME + "a", nat=False) as one, Bridge(NAME + "b", nat=False) as other:
        assert not one.subnet.overlaps(other.subnet)
        with pytest.raises(UsageError, match=f"overlaps {one.subnet}, which the host reaches through {NAME}a"):
            Bridge(NAME + "c", str(one.subnet), nat=False)
    with _route("10.77.3.0/24"), pytest.raises(UsageError, match=r"overlaps 10\.77\.3\.0/24, which the host reaches through lo"):
        Bridge(NAME, "10.77.0.0/16", nat=False)


@contextmanager
def _route(network: str) -> Iterator[None]:
    _ip("route", "add", network, "dev", "lo")
    try:
        yield
    finally:
        _ip("route", "del", network, "dev", "lo")


def test_other_settings_need_a_bridge_that_nobody_uses() -> None:
    with Bridge(NAME, nat=False) as bridge:
        with pytest.raises(UsageError, match=f"{NAME} is in use as {bridge.subnet} without nat"):
            Bridge(NAME, nat=True)
        assert Net(NAME).network.subnet == bridge.subnet  # type: ignore[union-attr]
    with Bridge(NAME, nat=True):
        assert _table()
    assert _gone()


def test_a_bridge_in_use_that_was_removed_by_hand_is_not_silently_made_anew() -> None:
    with Bridge(NAME) as bridge:
        _ip("link", "del", NAME)
        with pytest.raises(UsageError, match="somebody has removed its link"):
            bridge.open()
    assert _gone()
    with Bridge(NAME):
        assert index_of(NAME)


def test_a_refused_message_names_it_and_the_kernels_own_words() -> None:
    from kernel_lab.networks import messages, netlink

    with Bridge(NAME, nat=False), _alone() as pid:
        with pytest.raises(KernelError, match=r"RTM_NEWLINK\(veth .*EEXIST") as refused:
            netlink.ask(*[messages.veth(link_name("10.77.9.9"), index_of(NAME), pid, "10.77.9.9")] * 2)
        assert refused.value.errno == 17
        netlink.ask(messages.remove(link_name("10.77.9.9")))


def test_a_name_is_checked_before_anything_is_made() -> None:
    with pytest.raises(UsageError, match="at most 15"):
        Container(Net("klab0123456789ab")).run("true")
    assert ledger.ledgers() == []
    assert "klab0123456789" not in _ip("link")
