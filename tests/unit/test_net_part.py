"""The part Net as data: its rows, and what it refuses. No network is made."""

import os
from pathlib import Path

import pytest

from kernel_lab import UTS, Container, Net, UsageError, User
from kernel_lab.kernel.flags import CLONE, IFF, SIOC
from kernel_lab.kernel.structs import ifreq
from kernel_lab.networks import routes
from kernel_lab.networks.bridge import Bridge
from kernel_lab.networks.netlink import index_of

NAME = f"klabp.{os.getpid()}"  # nobody's on this machine
SUBNET = "10.77.0.0/24"


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERNEL_LAB_RUN", str(tmp_path / "run"))
    # What this machine reaches is not what these tests are about.
    monkeypatch.setattr(routes, "routes", list)
    return tmp_path / "run"


def _bridge(name: str = NAME) -> Bridge:
    return Bridge(name, SUBNET, nat=False)


def _ioctls(box: Container) -> list[tuple[object, str]]:
    return [(row.args[1], str(row.args[2])) for row in box.setup if row.call == "ioctl"]


def test_alone_it_brings_the_loopback_up() -> None:
    rows = list(Container(Net()).setup)
    assert [row.call for row in rows] == ["socket", "ioctl", "close"]
    assert rows[1].args[1:] == (SIOC.SIFFLAGS, ifreq("lo", flags=IFF.UP))
    # The socket's number is known only once the first row has run.
    assert rows[0].into == rows[1].args[0] == rows[2].args[0]


def test_it_is_a_network_namespace_and_nobody_has_to_wait() -> None:
    assert Net().flags == CLONE.NEWNET
    assert not Net().waits
    assert Net(_bridge()).waits


def test_in_a_bridge_it_also_sets_up_eth0() -> None:
    assert _ioctls(Container(Net(_bridge()))) == [
        (SIOC.SIFFLAGS, '{"lo", IFF_UP}'),
        (SIOC.SIFADDR, '{"eth0", ADDRESS}'),
        (SIOC.SIFNETMASK, '{"eth0", NETMASK}'),
        (SIOC.SIFFLAGS, '{"eth0", IFF_UP|IFF_MULTICAST}'),
        (SIOC.ADDRT, "{0.0.0.0/0 via GATEWAY, RTF_UP|RTF_GATEWAY}"),
    ]


def test_an_address_that_was_asked_for_stands_in_the_table() -> None:
    box = Container(Net(_bridge(), "10.77.0.9"))
    assert (SIOC.SIFADDR, '{"eth0", 10.77.0.9}') in _ioctls(box)
    assert "10.77.0.9" in str(box.program)


def test_the_table_is_printed_and_nothing_is_made(records: Path) -> None:
    assert "SIOCADDRT" in str(Container(Net(_bridge()), UTS("box")).program)
    assert not index_of(NAME)
    assert not records.exists()


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("eth0",), "begins with klab"),
        (("klab0123456789ab",), "at most 15"),
        ((7,), "a network is a Bridge"),
        ((None, "10.213.0.2"), "an address belongs to a bridge"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_made(arguments: tuple[object, ...], rule: str, records: Path) -> None:
    with pytest.raises(UsageError, match=rule):
        Container(Net(*arguments), User())
    assert not records.exists()


@pytest.mark.parametrize(
    ("address", "rule"),
    [("10.78.0.2", "outside the bridge's subnet 10.77.0.0/24"), ("10.77.0.1", "the bridge's own"), ("ten", "not an IPv4 address")],
)
def test_an_address_must_be_one_of_the_bridges(address: str, rule: str, records: Path) -> None:
    with pytest.raises(UsageError, match=rule):
        Container(Net(_bridge(), address), User())
    assert not records.exists()


def test_it_shows_how_it_was_made() -> None:
    assert repr(Net()) == "Net()"
    assert repr(Net(_bridge(), "10.77.0.2")) == f"Net(Bridge('{NAME}', subnet='{SUBNET}', nat=False), '10.77.0.2')"
