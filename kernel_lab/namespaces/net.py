"""Net: links, addresses, routes and rules of its own (network_namespaces(7)). A new one has a loopback that is down, and nothing else."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache

from kernel_lab.kernel.errors import UsageError
from kernel_lab.kernel.flags import AF, CLONE, IFF, SIOC, SOCK
from kernel_lab.kernel.program import Arg, Buffer, Handle, Row, call
from kernel_lab.kernel.structs import ifreq, rtentry
from kernel_lab.namespaces.part import Part, Plan, Waiting
from kernel_lab.namespaces.user import User
from kernel_lab.networks.addresses import Endpoint
from kernel_lab.networks.bridge import Bridge
from kernel_lab.networks.messages import INSIDE
from kernel_lab.networks.usermode import Usermode

SOCKET = Handle("socket")


@dataclass(frozen=True)
class Later(Buffer):
    """A structure that the creator fills in while the child waits, since only then an address is chosen."""

    shown: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.shown


ADDRESS = Later("address", 40, shown=f'{{"{INSIDE}", ADDRESS}}')
NETMASK = Later("netmask", 40, shown=f'{{"{INSIDE}", NETMASK}}')
ROUTE = Later("route", 120, shown="{0.0.0.0/0 via GATEWAY, RTF_UP|RTF_GATEWAY}")


class Net(Part):
    """A network namespace, with its loopback up. Without a network that is all: there is no way out, and none in.

    `network`: a Bridge or the name of one, then `eth0` is plugged into it, with `address` or one that the bridge chooses;
    or Usermode(), a way out that needs no root.
    """

    flags = CLONE.NEWNET
    order = 90  # the creator makes a link while the child makes its file system

    def __init__(self, network: Bridge | Usermode | str | None = None, address: str | None = None) -> None:
        self.network = Bridge(network) if isinstance(network, str) else network
        self.address = address
        self.waits = network is not None

    def check(self, plan: Plan) -> None:
        if isinstance(self.network, Bridge):
            self.network.check(self.address)
        elif self.address is not None:
            raise UsageError(f"Net(address={self.address!r}): an address belongs to a bridge: Net(Bridge(), {self.address!r})")
        elif isinstance(self.network, Usermode):
            self.network.check(own_users=plan.has(User))
        elif self.network is not None:
            raise UsageError(f"Net({self.network!r}): a network is a Bridge, the name of one, or Usermode()")

    def rows(self, plan: Plan) -> Iterable[Row]:
        yield call("socket", AF.INET, SOCK.DGRAM | SOCK.CLOEXEC, 0, into=SOCKET, why="links are set up through any socket (netdevice(7))")
        yield _set(SIOC.SIFFLAGS, ifreq("lo", flags=IFF.UP), "the loopback is up, and has 127.0.0.1 by that")
        if isinstance(self.network, Bridge):
            yield from self._plugged_in()
        yield call("close", SOCKET)

    def _plugged_in(self) -> Iterator[Row]:
        address = replace(ADDRESS, shown=str(ifreq(INSIDE, address=self.address))) if self.address else ADDRESS
        yield _set(SIOC.SIFADDR, address, "the creator has made eth0 meanwhile; its address,")
        yield _set(SIOC.SIFNETMASK, NETMASK, "how much of it is the network's,")
        yield _set(SIOC.SIFFLAGS, ifreq(INSIDE, flags=IFF.UP | IFF.MULTICAST), "up,")
        yield _set(SIOC.ADDRT, ROUTE, "and everybody else is behind the bridge")

    def place(self, child: Waiting) -> AbstractContextManager[object]:
        if isinstance(self.network, Bridge):
            return _plugged(self.network, child, self.address)
        return self.network.attached(child.pid) if self.network else nullcontext()

    def __repr__(self) -> str:
        words = [repr(word) for word in (self.network, self.address) if word is not None]
        return f"Net({', '.join(words)})"


def _set(request: SIOC, value: Arg, why: str) -> Row:
    return call("ioctl", SOCKET, request, value, why=why)


@contextmanager
def _plugged(bridge: Bridge, child: Waiting, address: str | None) -> Iterator[Endpoint]:
    with bridge.attached(child.pid, address) as place:
        child.fill(ADDRESS, ifreq(INSIDE, address=place.address).data)
        child.fill(NETMASK, _netmask(place.netmask))
        child.fill(ROUTE, _route(place.gateway))
        yield place


@cache
def _netmask(text: str) -> bytes:
    return ifreq(INSIDE, address=text).data


@cache
def _route(gateway: str) -> bytes:
    return rtentry("0.0.0.0/0", gateway).data
