"""What can be said about networks without making one: names, subnets, addresses, records, and the messages for the kernel."""

import os
import subprocess
import sys
import threading
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lab.kernel.errors import KernelError, UsageError
from kernel_lab.networks import addresses, ledger, messages, nat, netlink, routes
from kernel_lab.networks.bridge import Bridge
from kernel_lab.networks.ledger import Entry, Ledger
from kernel_lab.networks.routes import Route
from kernel_lab.networks.usermode import Usermode
from kernel_lab.state import Creator

NET = IPv4Network("10.213.0.0/24")
DEAD = Creator(os.getpid(), 1)  # this process has started at another time
NAME = f"klabu.{os.getpid()}"  # nobody's on this machine


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERNEL_LAB_RUN", str(tmp_path / "run"))
    # What this machine reaches is not what these tests are about.
    monkeypatch.setattr(routes, "routes", list)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("klab0123456789ab", "16 bytes long; the kernel takes at most 15"),
        ("br0", "begins with klab"),
        ("klab/0", "letters, digits"),
        ("klab 0", "letters, digits"),
        ("klab0\n", "letters, digits"),
        ("klabü", "letters, digits"),
        ("", "begins with klab"),
        ("klab0ad50002", "the name of a container's link"),
        ("klab-p1t2", "the mark of a process"),
        (7, "begins with klab"),
    ],
)
def test_a_bad_bridge_name_is_refused_with_the_rule(name: str, rule: str, records: Path) -> None:
    with pytest.raises(UsageError, match=rule) as refused:
        Bridge(name, nat=False)
    assert repr(name) in str(refused.value)
    assert not records.exists()


@pytest.mark.parametrize("name", ["klabu", "klabu-web", "klabu_1.x", "klabu123456789a"])
def test_a_good_bridge_name_makes_nothing_yet(name: str, records: Path) -> None:
    assert Bridge(name, nat=False).name == name
    assert not records.exists()


@pytest.mark.parametrize(
    ("subnet", "rule"),
    [
        ("10.0.0.5/24", "host bits"),
        ("10.0.0.0/31", "need two addresses"),
        ("10.0.0.0/32", "need two addresses"),
        ("fd00::/64", "not an IPv4 network"),
        ("10.0.0.0/33", "not an IPv4 network"),
        ("here", "not an IPv4 network"),
        ("", "not an IPv4 network"),
    ],
)
def test_a_bad_subnet_is_refused_with_the_rule(subnet: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule) as refused:
        Bridge(NAME, subnet, nat=False)
    assert subnet in str(refused.value)


def test_a_subnet_that_the_host_reaches_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "routes", lambda: [Route("eth7", IPv4Network("10.9.0.0/16"))])
    with pytest.raises(UsageError, match=r"10\.9\.1\.0/24 overlaps 10\.9\.0\.0/16, which the host reaches through eth7"):
        Bridge(NAME, "10.9.1.0/24", nat=False)
    assert Bridge(NAME, "10.10.0.0/24", nat=False).address == "10.10.0.1"


def test_without_a_subnet_the_first_free_one_is_taken() -> None:
    taken = [Route("vpn0", IPv4Network("10.213.0.0/25")), Route("vpn0", IPv4Network("10.213.2.7/32"))]
    assert str(routes.first_free([])) == "10.213.0.0/24"
    assert str(routes.first_free(taken)) == "10.213.1.0/24"
    assert str(routes.first_free([Route("vpn0", IPv4Network("10.0.0.0/8"))])) == "172.29.0.0/24"
    with pytest.raises(UsageError, match="name a subnet"):
        routes.first_free([Route("vpn0", IPv4Network(pool)) for pool in routes.POOLS])


_TABLE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t00000080\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.mark.skipif(sys.byteorder == "big", reason="/proc prints addresses as the machine's numbers")
def test_default_routes_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(routes.Path, "read_text", lambda path: _TABLE)
    assert routes.routes() == [Route("eth0", IPv4Network("192.0.2.0/24"))]


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("10.214.0.2", "outside the bridge's subnet 10.213.0.0/24"),
        ("10.213.0.1", "the bridge's own"),
        ("10.213.0.0", "the first or the last"),
        ("10.213.0.255", "the first or the last"),
        ("10.213.0.256", "not an IPv4 address"),
        ("fd00::2", "not an IPv4 address"),
        ("10.213.0.2/24", "not an IPv4 address"),
        ("web", "not an IPv4 address"),
    ],
)
def test_a_bad_address_is_refused_with_the_rule(address: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule) as refused:
        addresses.check_inside(address, NET)
    assert address in str(refused.value)


def test_an_address_that_a_living_container_has_is_refused_and_a_dead_ones_is_not() -> None:
    record = Ledger(NAME)
    with ledger.locked():
        record.begin("10.213.0.0/24 with nat")
        record.add(Entry("10.213.0.7", Creator.this(), 1))
        record.add(Entry("10.213.0.8", DEAD, 1))
    with pytest.raises(UsageError, match=r"10\.213\.0\.7 is taken"):
        addresses.check_free("10.213.0.7", record)
    addresses.check_free("10.213.0.8", record)


def test_addresses_go_round_and_skip_the_living() -> None:
    small = IPv4Network("10.213.9.0/29")
    record = Ledger(NAME)
    addresses.begin(record)
    with ledger.locked():
        record.begin(f"{small} with nat")
        record.add(Entry("10.213.9.3", Creator.this(), 1))
        record.add(Entry("10.213.9.4", DEAD, 1))
        given = [addresses.choose(small, record) for _ in range(5)]
        assert given == [f"10.213.9.{last}" for last in (2, 4, 5, 6, 2)]
        addresses.begin(record)
        assert addresses.choose(small, record) == "10.213.9.2"
        for last in (2, 4, 5, 6):
            record.add(Entry(f"10.213.9.{last}", Creator.this(), 1))
        with pytest.raises(UsageError, match=r"every address of 10\.213\.9\.0/29 is taken"):
            addresses.choose(small, record)


def test_the_smallest_subnet_has_one_address() -> None:
    smallest = IPv4Network("10.213.9.0/30")
    record = Ledger(NAME)
    assert addresses.choose(smallest, record) == addresses.choose(smallest, record) == "10.213.9.2"


@given(st.ip_addresses(v=4).map(str))
def test_a_links_name_tells_its_address(address: str) -> None:
    name = addresses.link_name(address)
    assert len(name) == messages.NAME_SIZE
    assert addresses.address_in(name) == address


@pytest.mark.parametrize("name", ["klab0", "klab0ad5000", "klab0ad500022", "klab0AD50002", "vethad500022", "klabx0ad5002"])
def test_other_links_tell_no_address(name: str) -> None:
    assert addresses.address_in(name) is None


def test_a_record_is_in_use_while_a_user_lives() -> None:
    record = Ledger(NAME)
    with ledger.locked():
        assert not record.begun()
        record.begin("10.213.0.0/24 without nat")
        assert record.begun() and not record.whole() and not record.in_use()
        record.complete()
        assert record.whole()
        record.add(Entry("open.1", DEAD))
        assert not record.in_use()
        record.add(Entry("10.213.0.2", Creator.this(), 77))
        assert record.in_use()
    assert Bridge(NAME, nat=False).containers() == {"10.213.0.2": 77}
    assert Bridge(NAME, nat=False).address_of(77) == "10.213.0.2"
    with pytest.raises(UsageError, match="78"):
        Bridge(NAME, nat=False).address_of(78)
    with ledger.locked():
        record.erase()
    assert not record.begun() and ledger.ledgers() == []


def test_a_bridge_in_use_is_not_made_anew_with_other_settings() -> None:
    record = Ledger(NAME)
    with ledger.locked():
        record.begin("10.77.0.0/24 without nat")
        record.complete()
        record.add(Entry("open.1", Creator.this()))
    assert str(Bridge(NAME, nat=False).subnet) == "10.77.0.0/24"
    assert Bridge(NAME, "10.77.0.0/24").address == "10.77.0.1"
    for other in ({"subnet": "10.78.0.0/24"}, {"nat": True}):
        with pytest.raises(UsageError, match=rf"{NAME} is in use as 10\.77\.0\.0/24 without nat"):
            Bridge(NAME, **other)
    with ledger.locked():
        record.drop("open.1")
    assert str(Bridge(NAME, "10.78.0.0/24", nat=False).subnet) == "10.78.0.0/24"


_COUNTING = """
import sys
from kernel_lab.networks import ledger
for _ in range(50):
    with ledger.locked():
        with open(sys.argv[1]) as file:
            number = int(file.read())
        with open(sys.argv[1], "w") as file:
            file.write(str(number + 1))
"""


def test_the_lock_keeps_threads_and_processes_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "number"
    path.write_text("0")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    processes = [subprocess.Popen([sys.executable, "-c", _COUNTING, str(path)], env=env) for _ in range(2)]
    monkeypatch.setattr(sys, "argv", ["", str(path)])
    threads = [threading.Thread(target=exec, args=(_COUNTING, {})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert path.read_text() == "300"


def test_the_rules_stand_in_a_table_of_the_bridges_own() -> None:
    rules = nat.ruleset("klab0", NET)
    assert rules.startswith("table ip klab-klab0 {")
    assert 'ip saddr 10.213.0.0/24 oifname != "klab0" masquerade' in rules


def test_without_nft_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat.shutil, "which", lambda name, path=None: None)
    with pytest.raises(UsageError, match=r"apt install nftables, or Bridge\(…, nat=False\)"):
        Bridge(NAME)
    Bridge(NAME, nat=False)


def _link(data: bytes) -> dict[str, object]:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg(data)
    message.decode()
    return {"type": message["header"]["type"], "up": message["flags"] & 1, **dict(message["attrs"])}


def test_a_veth_pair_is_one_message_that_says_everything() -> None:
    for name, master, pid, address in (("klab0ad50002", 5, 4_000_000, "10.213.0.2"), ("klabffffffff", 2**31 - 1, 1, "255.255.255.255")):
        message = _link(messages.veth(name, master, pid, address).data)
        assert (message["type"], message["up"]) == (16, 1)
        assert (message["IFLA_IFNAME"], message["IFLA_MASTER"]) == (name, master)
        info = message["IFLA_LINKINFO"]
        assert info.get_attr("IFLA_INFO_KIND") == "veth"
        peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
        assert peer.get_attr("IFLA_IFNAME") == "eth0"
        assert peer.get_attr("IFLA_NET_NS_PID") == pid
        assert peer.get_attr("IFLA_ADDRESS") == messages.hardware(address).hex(":")


def test_the_other_messages_say_what_they_are_asked_to() -> None:
    bridge = _link(messages.bridge("klab0", "10.213.0.1").data)
    assert bridge["IFLA_LINKINFO"].get_attr("IFLA_INFO_KIND") == "bridge"
    assert (bridge["type"], bridge["up"], bridge["IFLA_IFNAME"], bridge["IFLA_ADDRESS"]) == (16, 1, "klab0", "02:6b:0a:d5:00:01")
    assert _link(messages.alias("klab0", "kernel-lab 1-2 /run").data)["IFLA_IFALIAS"] == "kernel-lab 1-2 /run"
    removed = _link(messages.remove("klab0").data)
    assert (removed["type"], removed["IFLA_IFNAME"]) == (17, "klab0")
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    address = ifaddrmsg(messages.address(7, IPv4Interface("10.213.0.1/24")).data)
    address.decode()
    assert (address["index"], address["prefixlen"], address.get_attr("IFA_LOCAL")) == (7, 24, "10.213.0.1")


def test_a_refused_message_is_an_error_that_names_it() -> None:
    # For root there is no such link; an ordinary user may not remove any.
    with pytest.raises(KernelError, match=r"RTM_DELLINK\(klab-nowhere\)") as refused:
        netlink.ask(messages.remove("klab-nowhere"))
    assert refused.value.errno in (1, 19)
    assert netlink.index_of("klab-nowhere") == 0
    assert netlink.index_of("lo") > 0


def test_usermode_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is pasta and slirp4netns"):
        Usermode("vpnkit")
    with pytest.raises(UsageError, match=r"needs User\(\)"):
        Usermode("pasta").check(own_users=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"Usermode\(\) needs pasta or slirp4netns: apt install passt"):
        Usermode().check(own_users=True)
    (tmp_path / "pasta").write_text("#!/bin/sh\n")
    (tmp_path / "pasta").chmod(0o755)
    monkeypatch.setattr("kernel_lab.networks.usermode.TUN", str(tmp_path / "tun"))
    with pytest.raises(UsageError, match="modprobe tun"):
        Usermode().check(own_users=True)
    (tmp_path / "tun").touch()
    Usermode().check(own_users=True)
