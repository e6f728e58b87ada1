"""Lab 07: the checks about network namespaces."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from kernel_lab.container import Container
from kernel_lab.course.exercises import NotYet, exercise, not_yet
from kernel_lab.kernel.errors import KernelError
from kernel_lab.kernel.flags import AF, CLONE, IFF, SIOC, SOCK
from kernel_lab.kernel.program import Handle, Row, call
from kernel_lab.kernel.structs import ifreq
from kernel_lab.namespaces.net import Net
from kernel_lab.namespaces.part import Part, Plan
from kernel_lab.namespaces.pid import PID
from kernel_lab.namespaces.user import User
from kernel_lab.networks.addresses import link_name
from kernel_lab.networks.bridge import Bridge

ROOT = os.geteuid() == 0
BRIDGE, WAY_OUT = f"klabx{os.getpid()}", f"klaby{os.getpid()}"
OUTER, OUTSIDE = "198.51.100.1", "198.51.100.2"  # a network for examples (RFC 5737), another one than the lab's
PATIENCE = 60.0
_PYTHON = (sys.executable, "-ISc")
_PROBE = """
import socket
with socket.socket() as line:
    print(line.connect_ex(("127.0.0.1", 9)))
"""
_SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 8017)) as server:
    while True:
        line, (address, port) = server.accept()
        with line: line.sendall(address.encode())
"""
_CLIENT = """
import socket, sys
print(socket.create_connection((sys.argv[1], 8017), timeout=30).recv(100).decode())
"""


def _user() -> tuple[Part, ...]:
    return () if ROOT else (User(),)


@exercise(
    "07.1",
    wants="a class made from Part, whose rows bring the loopback up",
    accepts=lambda answer: isinstance(answer, type) and issubclass(answer, Part),
    hints={
        "no namespace": "It would be the host's loopback. Which flag has `Bare` at the beginning of the lab?",
        "down": "Look at the rows of `Container(Net()).setup`: through what is the request sent, and what does netdevice(7) say of IFF_UP?",
        "refused": "Compare the row with that of `Container(Net()).setup`, one argument after the other: a socket, a request, a struct ifreq.",
    },
)
def loopback(answer: Callable[[], Part]) -> str | NotYet:
    part = answer()
    if CLONE.NEWNET not in part.flags:
        return not_yet("no namespace")
    try:
        said = Container(*_user(), part).run(*_PYTHON, _PROBE, check=True).stdout
    except KernelError as error:
        return not_yet("refused", f"the kernel refused {error.call}: {error.strerror}")
    if int(said) != errno.ECONNREFUSED:
        return not_yet("down", f"inside, a connection to 127.0.0.1 says: {os.strerror(int(said))}")
    return "inside, 127.0.0.1 is there, and refuses a connection, as nobody listens"


@exercise(
    "07.2",
    wants="a function of a container's eth0 and the list of the host's links, which returns a link's name",
    accepts=callable,
    hints={
        "nothing": "Print both arguments. Of the two numbers of `eth0`, which one is about the host?",
        "no link": "The answer is the name of one of the host's links: the `ifname` of which dict in the list?",
        "another's": "Every container counts its own links from 1, so that many have an eth0 of the same number. Which number is unique on the host?",
    },
)
def other_end(answer: Callable[[dict[str, Any], list[dict[str, Any]]], str]) -> str | NotYet:
    hosts, cards = _live() if ROOT else _RECORDED
    for name, eth0 in cards.items():
        said = answer(dict(eth0), [dict(link) for link in hosts])
        if said is None:
            return not_yet("nothing")
        if said not in [link["ifname"] for link in hosts]:
            return not_yet("no link", f"it returned a {type(said).__name__} that is no link's name")
        if said != name:
            return not_yet("another's", "for one of two containers it named a link that leads elsewhere")
    return "for each of two containers it found the end of the cable on the host"


def _live() -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The host's links; and two containers' eth0, by the name of the other end, which the kit has made of the address."""
    with Bridge(BRIDGE, nat=False) as bridge, ExitStack() as running:
        cards = {}
        for box in [running.enter_context(Container(Net(bridge))) for _ in range(2)]:
            box.start("sleep 600")
            inside = json.loads(box.exec("ip -j link", check=True).stdout)
            cards[link_name(bridge.address_of(box.pid))] = next(link for link in inside if link["ifname"] == "eth0")
        return json.loads(_ip("-j", "link")), cards


# For an ordinary user, who cannot plug anything into the host's network: what the kernel has said to root.
_RECORDED: tuple[list[dict[str, Any]], dict[str, dict[str, Any]]] = (
    [
        {"ifindex": 1, "ifname": "lo"},
        {"ifindex": 2, "ifname": "enp1s0"},
        {"ifindex": 16, "ifname": "klab0"},
        {"ifindex": 17, "link_index": 2, "ifname": "klab0ad50702", "master": "klab0", "link_netnsid": 0},
        {"ifindex": 18, "link_index": 2, "ifname": "klab0ad50703", "master": "klab0", "link_netnsid": 1},
    ],
    {
        "klab0ad50702": {"ifindex": 2, "link_index": 17, "ifname": "eth0", "link_netnsid": 0},
        "klab0ad50703": {"ifindex": 2, "link_index": 18, "ifname": "eth0", "link_netnsid": 0},
    },
)


@exercise(
    "07.3",
    wants="a function of source, destination, subnet, inner and outer, which returns an address",
    accepts=callable,
    hints={
        "way out": "Look at the column *there* of the second table of hops: what has become of the source on the last link?",
        "neighbour": "Look at the first table of hops: does a packet from container to container pass the rule at all?",
        "host": "Which addresses are the host's own? A packet to one of them has arrived, and leaves through no link.",
    },
)
def seen(answer: Callable[..., IPv4Address]) -> str | NotYet:
    subnet, inner, talks = _observed() if ROOT else _TALKS
    for state, source, destination, truth in talks:
        said = answer(IPv4Address(source), IPv4Address(destination), IPv4Network(subnet), IPv4Address(inner), IPv4Address(OUTER))
        if str(said) != truth:
            what = {inner: "to the host on the bridge", OUTER: "to the host's outer address", OUTSIDE: "to the outside"}
            return not_yet(state, f"for a packet {what.get(destination, 'to a container')} it is wrong")
    return "for every pair it says what a server has seen"


# As above; the server's view is the last word of each line.
_TALKS: tuple[str, str, list[tuple[str, str, str, str]]] = (
    "10.213.0.0/24",
    "10.213.0.1",
    [
        ("way out", "10.213.0.2", OUTSIDE, OUTER),
        ("neighbour", "10.213.0.2", "10.213.0.3", "10.213.0.2"),
        ("host", "10.213.0.2", "10.213.0.1", "10.213.0.2"),
        ("host", "10.213.0.2", OUTER, "10.213.0.2"),
        ("host", "10.213.0.1", "10.213.0.3", "10.213.0.1"),
        ("host", OUTER, OUTSIDE, OUTER),
    ],
)


@cache
def _observed() -> tuple[str, str, list[tuple[str, str, str, str]]]:
    """The same, from real connections: who asks whom, and what the server has seen."""
    with _world(), Bridge(BRIDGE, nat=True) as bridge, ExitStack() as running:
        a, b = (running.enter_context(_serving(Net(bridge))) for _ in range(2))
        # Never on all of the host's addresses: the machine's own network need not see it.
        host, _ = (running.enter_context(_serving(at=address)) for address in (bridge.address, OUTER))
        first, second, inner = bridge.address_of(a.pid), bridge.address_of(b.pid), bridge.address
        asked = [("way out", a, first, OUTSIDE), ("neighbour", a, first, second), ("host", a, first, inner), ("host", a, first, OUTER)]
        asked += [("host", host, inner, second), ("host", host, OUTER, OUTSIDE)]
        return str(bridge.subnet), inner, [(state, source, to, _ask(box, to)) for state, box, source, to in asked]


def _ask(box: Container, address: str) -> str:
    return box.exec(*_PYTHON, _CLIENT, address, check=True).stdout.strip()


@contextmanager
def _serving(*parts: Part, at: str = "") -> Iterator[Container]:
    with Container(PID(), *parts) as box:
        box.start(*_PYTHON, _SERVER, at)
        end = time.monotonic() + PATIENCE
        while ":1F51 00000000:0000 0A" not in Path(f"/proc/{box.pid}/net/tcp").read_text():  # port 8017, in state LISTEN
            if not box.running or time.monotonic() > end:
                raise TimeoutError(f"the server does not listen: {box.logs()}")
            time.sleep(0.01)
        yield box


@contextmanager
def _world() -> Iterator[None]:
    """A server beyond a link of the host's, in a network of its own."""
    with _serving(Net()) as outside:
        try:
            _ip("link", "add", WAY_OUT, "type", "veth", "peer", "name", "eth0", "netns", str(outside.pid))
            _ip("addr", "add", f"{OUTER}/24", "dev", WAY_OUT)
            _ip("link", "set", WAY_OUT, "up")
            outside.exec(f"ip addr add {OUTSIDE}/24 dev eth0", check=True)
            outside.exec("ip link set eth0 up", check=True)
            yield
        finally:
            subprocess.run(["ip", "link", "del", WAY_OUT], capture_output=True, check=False)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class _Right(Part):
    """What the learner is to write, and what goes wrong with it."""

    flags = CLONE.NEWNET
    link = "lo"
    up = IFF.UP

    def rows(self, plan: Plan) -> Iterator[Row]:
        line = Handle("line")
        yield call("socket", AF.INET, SOCK.DGRAM, 0, into=line)
        yield call("ioctl", line, SIOC.SIFFLAGS, ifreq(self.link, flags=self.up))


class _Hosts(_Right):
    flags = CLONE(0)


class _Idle(Part):
    flags = CLONE.NEWNET


class _Down(_Right):
    up = IFF(0)


class _NoSuchLink(_Right):
    link = "eth0"


class _NoSocket(_Idle):
    def rows(self, plan: Plan) -> Iterator[Row]:
        yield call("ioctl", 3, SIOC.SIFADDR, ifreq("lo", address="127.0.0.1"))


def _end(eth0: dict[str, Any], hosts: list[dict[str, Any]]) -> str:
    return next(str(link["ifname"]) for link in hosts if link["ifindex"] == eth0["link_index"])


def _wrong_way(eth0: dict[str, Any], hosts: list[dict[str, Any]]) -> str:
    return next(str(link["ifname"]) for link in hosts if link.get("link_index") == eth0["ifindex"])


def _same_number(eth0: dict[str, Any], hosts: list[dict[str, Any]]) -> str:
    return next(str(link["ifname"]) for link in hosts if link["ifindex"] == eth0["ifindex"])


def _leaves(source: IPv4Address, destination: IPv4Address, subnet: IPv4Network, inner: IPv4Address, outer: IPv4Address) -> IPv4Address:
    return outer if source in subnet and destination not in subnet and destination != outer else source


def _forgets_itself(source: IPv4Address, destination: IPv4Address, subnet: IPv4Network, inner: IPv4Address, outer: IPv4Address) -> IPv4Address:
    return outer if source in subnet and destination not in subnet else source


loopback.answers(
    right=[_Right, Net],
    wrong={"no namespace": [_Hosts], "down": [_Idle, _Down], "refused": [_NoSuchLink, _NoSocket]},
)
other_end.answers(
    right=[_end],
    wrong={
        "nothing": [lambda eth0, hosts: None],
        "no link": [lambda eth0, hosts: eth0["link_index"], lambda eth0, hosts: eth0["ifname"] + "@if2"],
        "another's": [_wrong_way, _same_number],
    },
)
seen.answers(
    right=[_leaves, lambda *facts: str(_leaves(*facts))],
    wrong={
        "way out": [lambda source, *_: source, lambda *facts: facts[3], lambda *facts: None],
        "neighbour": [lambda *facts: facts[4]],
        "host": [_forgets_itself],
    },
)
