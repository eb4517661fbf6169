"""The machine's links, addresses and routes, by netlink: what the overlay's interface gets, and what else there is.

The decisions (does a range overlap a route, which addresses may peers try) are pure functions of a `Machine`, the
picture of the host at one moment, so that they can be tested with any host's tables. Knows nothing of peers, keys or
maps. Linux only: another system is another file with the same names.
"""

import errno
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus
from pyroute2 import AsyncIPRoute, NetlinkError

from overlay.engine.api import Network
from overlay.errors import Exit, UserError
from overlay.wire.endpoint import Endpoint
from overlay.wire.record.buffers import SUPERPACKET_SIZE

Address = IPv4Address | IPv6Address

MTU = 1380
"""Inner MTU, bytes: a full packet in a record of its own fits one datagram on any 1492-byte path, relayed or not."""
CANDIDATE_LIMIT = 16
"""Own addresses told to peers: each costs every peer probes, and hosts with more usable ones are rare."""
QUIET = 0.3
"""Seconds without a netlink event before the host's tables are read again: events come in bursts of a dozen."""
LONGEST_BURST = 1.0
"""Seconds after which the tables are read even if events still come: peers must know a new address within a second."""
WIDEST_LOCAL_ROUTE = 8
"""Shortest prefix that counts as a route of its own. A default route, also one cut into two /1, overlaps everything."""

_CONTAINER_BRIDGE = re.compile(
    r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}|virbr.*|(lxc|lxd|incus|nerdctl)(br)?\d+|lxc\w+|cni.*|podman\d+"
    r"|flannel.*|cali[0-9a-f]{11}|cilium_\w+|kube-(bridge|ipvs0|dummy-if)|weave|vmnet\d+|vboxnet\d+|vnet\d+"
)
"""Bridges to this host's own containers and guests. Nobody outside can reach their private addresses; a public one
counts: who gave it to a bridge wants it reached. A bridge by any other name (br-lan, br0)
is taken for one that has the world on it."""
_VIRTUAL_LINK = re.compile(r"veth\w{6,}|overlay\d+")
"""Container ends, and other overlays (one carried inside the other would nest and then loop)."""

_TUN_DEVICE = "/dev/net/tun"
_CAP_NET_ADMIN = 1 << 12  # capabilities(7)
_MAIN_TABLE, _LOCAL_TABLE = 254, 255  # RT_TABLE_MAIN, RT_TABLE_LOCAL: rtnetlink(7)
_UNICAST = 1  # RTN_UNICAST
_LOOPBACK_FLAG = 0x8  # IFF_LOOPBACK
_UP_FLAG = 0x1  # IFF_UP
_UNUSABLE = 0x20 | 0x08 | 0x40  # IFA_F_DEPRECATED, IFA_F_DADFAILED, IFA_F_TENTATIVE
_NO_DUPLICATE_DETECTION = 0x02  # IFA_F_NODAD
_ADDR_GEN_MODE_NONE = "1"  # IN6_ADDR_GEN_MODE_NONE

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """One unicast route of the host."""

    destination: str  # a network, "10.0.0.0/8"
    interface: str
    table: int = _MAIN_TABLE
    gateway: str = ""  # of a default route: another one is another network


@dataclass(frozen=True, slots=True, order=True)
class Assigned:
    """One address of one of the host's links that is up."""

    address: str
    interface: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The host's usable addresses and its unicast routes at one moment."""

    addresses: tuple[Assigned, ...] = ()
    routes: tuple[Route, ...] = ()

    def without(self, interface: str | None) -> "Machine":
        """The same without what belongs to one interface (the overlay's own)."""
        return Machine(
            tuple(each for each in self.addresses if each.interface != interface),
            tuple(each for each in self.routes if each.interface != interface),
        )


def check_tun() -> None:
    """Raise `UserError` ("tun-missing", "no-permission") if this process cannot make a network interface.

    The engine says so too, but only once the node is registered and the invite used up.
    """
    try:
        os.close(os.open(_TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        raise _interface_error("of the network", errno.EPERM, "") from error
    except OSError as error:
        raise UserError(
            "tun-missing",
            f"This machine has no TUN device ({_TUN_DEVICE}: {error.strerror}).",
            "Load it with 'modprobe tun', or give the container access to it.",
        ) from error
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if not effective & _CAP_NET_ADMIN:
        raise _interface_error("of the network", errno.EPERM, "")


def overlapping(network: Network, machine: Machine) -> Route | None:
    """The first route of the host that shares addresses with `network`, or None."""
    for route in machine.routes:
        destination = ip_network(route.destination)
        if destination.version == network.version and destination.prefixlen >= WIDEST_LOCAL_ROUTE:
            if destination.overlaps(network):
                return route
    return None


def check_ranges(networks: Iterable[Network], machine: Machine) -> None:
    """Raise `UserError` ("range-overlaps") if one of the network's ranges is already routed elsewhere on this host."""
    for network in networks:
        route = overlapping(network, machine)
        if route is not None:
            raise UserError(
                "range-overlaps",
                f"The network's range {network} overlaps the route to {route.destination} through {route.interface}"
                " on this machine.",
                f"Remove that route if it is not needed ('ip route del {route.destination} dev {route.interface}'), or"
                " make the network with another range: 'overlay server --range CIDR'.",
            )


def local_candidates(machine: Machine, port: int, networks: Iterable[Network] = ()) -> tuple[Endpoint, ...]:
    """Endpoints at which a peer might reach this host's own addresses, IPv4 and IPv6, at the engine's UDP port."""
    ranges = tuple(networks)
    found = []
    for assigned in machine.addresses:
        address = ip_address(assigned.address)
        if _VIRTUAL_LINK.fullmatch(assigned.interface):
            continue
        if _CONTAINER_BRIDGE.fullmatch(assigned.interface) and not address.is_global:
            continue
        if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
            continue
        if any(address in network for network in ranges):
            continue
        found.append((str(address), port))
    return tuple(found[:CANDIDATE_LIMIT])


def network_key(machine: Machine) -> str:
    """Which network this host is in: its default gateway and its own address there; "" if it has neither."""
    for version, everything in ((4, "0.0.0.0/0"), (6, "::/0")):
        for route in machine.routes:
            if route.destination == everything and route.table == _MAIN_TABLE:
                own = (each.address for each in machine.addresses if each.interface == route.interface)
                address = next((each for each in own if ip_address(each).version == version), "")
                return f"{route.gateway or route.interface} {address}".strip()
    return ""


async def read_machine() -> Machine:
    """The host's tables now."""
    async with AsyncIPRoute() as netlink:
        return await _read(netlink)


async def watch_machine(
    on_change: Callable[[Machine], None],
    *,
    ignore: str | None = None,
    task_status: TaskStatus[Machine] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Call `on_change` with the host's tables whenever they differ from before; the interface `ignore` does not count.

    Signals the first picture. Runs until cancelled; if the kernel drops events (its buffer was full), reads all anew.
    """
    known: Machine | None = None
    while True:
        try:
            async with AsyncIPRoute() as events:
                await events.bind()
                machine = (await read_machine()).without(ignore)
                if known is None:
                    task_status.started(machine)
                elif machine != known:
                    on_change(machine)
                known = machine
                while True:
                    await _burst(events)
                    machine = (await read_machine()).without(ignore)
                    if machine != known:
                        known = machine
                        on_change(machine)
        except (OSError, NetlinkError) as error:
            _log.warning("link events were lost (%s); reading the tables anew", error)
            await anyio.sleep(LONGEST_BURST)


class Interface:
    """The overlay's network interface: gives the TUN device `name`, which the engine made, its addresses and routes."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def configure(self, addresses: Iterable[Address], networks: Iterable[Network]) -> tuple[str, ...]:
        """Make the interface carry exactly these addresses and be the way to these networks, and set it up.

        Returns warnings (IPv6 switched off on this machine). Raises `UserError` ("no-permission", "interface-failed").
        The interface goes with the engine's TUN descriptor, and takes all of this with it: nothing is to be undone.
        """
        wanted = tuple(addresses)
        try:
            async with AsyncIPRoute() as netlink:
                return await self._configure(netlink, wanted, tuple(networks))
        except NetlinkError as error:
            raise _interface_error(self.name, error.code, str(error.args[-1])) from error
        except OSError as error:
            raise _interface_error(self.name, error.errno or 0, error.strerror or str(error)) from error

    async def _configure(
        self, netlink: AsyncIPRoute, wanted: tuple[Address, ...], networks: tuple[Network, ...]
    ) -> tuple[str, ...]:
        found = await netlink.link_lookup(ifname=self.name)
        if not found:
            raise _interface_error(self.name, errno.ENODEV, "there is no such interface")
        index = found[0]
        _switch_off_link_local(self.name)
        await _limit_superpackets(netlink, index)
        await netlink.link("set", index=index, mtu=MTU, state="up")
        present = {
            (ip_address(message.get("address")), message.get("prefixlen"))
            async for message in await netlink.get_addr(index=index)
        }
        warnings: list[str] = []
        without: set[int] = set()
        for address in wanted:
            if (address, address.max_prefixlen) in present:
                continue
            try:
                # An IPv6 address that waits for duplicate detection may not be a route's source yet, and nobody on this
                # interface could have it too.
                options = {"flags": _NO_DUPLICATE_DETECTION} if address.version == 6 else {}
                await netlink.addr("add", index=index, address=str(address), prefixlen=address.max_prefixlen, **options)
            except NetlinkError as error:
                if address.version != 6 or error.code not in (errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    raise
                warnings.append(f"IPv6 is switched off on this machine: {self.name} does not carry {address}.")
                without.add(6)
        for address, length in present:
            if address not in wanted and not address.is_link_local:
                await netlink.addr("del", index=index, address=str(address), prefixlen=length)
        for network in networks:
            source = next((address for address in wanted if address.version == network.version), None)
            if source is None or network.version in without:
                continue
            family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
            await netlink.route("replace", dst=str(network), oif=index, prefsrc=str(source), family=family)
        return tuple(warnings)


def _switch_off_link_local(name: str) -> None:
    """Without this the kernel sends router solicitations into the network. Where /proc is read-only it does."""
    with suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode").write_text(_ADDR_GEN_MODE_NONE)


async def _limit_superpackets(netlink: AsyncIPRoute, index: int) -> None:
    """Have the kernel make superpackets that the engine sends with one call. It does without, only slower."""
    try:
        # Both families: for sizes up to 64 KiB the kernel sets gso_ipv4_max_size along.
        await netlink.link("set", index=index, gso_max_size=SUPERPACKET_SIZE)
    except NetlinkError as error:
        _log.info("the kernel does not limit superpackets (%s); sending the largest in two parts", error.args[-1])


async def _read(netlink: AsyncIPRoute) -> Machine:
    names: dict[int, str] = {}
    quiet: set[int] = set()  # loopback, or down
    async for link in await netlink.get_links():
        names[link["index"]] = link.get("ifname")
        if link["flags"] & _LOOPBACK_FLAG or not link["flags"] & _UP_FLAG:
            quiet.add(link["index"])
    addresses: list[Assigned] = []
    async for message in await netlink.get_addr():
        flags = message.get("flags") or 0
        text = message.get("local") or message.get("address")  # "address" is the far end on point-to-point links
        if message["index"] in names and message["index"] not in quiet and not flags & _UNUSABLE and text:
            addresses.append(Assigned(text, names[message["index"]]))
    routes: list[Route] = []
    async for message in await netlink.get_routes():
        route = _route(message, names)
        if route is not None:
            routes.append(route)
    return Machine(tuple(sorted(addresses)), tuple(sorted(set(routes))))


def _route(message: Any, names: dict[int, str]) -> Route | None:
    table = message.get("table") or _MAIN_TABLE
    index = message.get("oif")
    if message.get("type") != _UNICAST or table == _LOCAL_TABLE or index is None:
        return None
    everything = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"
    destination = ip_network(f"{message.get('dst') or everything}/{message['dst_len']}", strict=False)
    if destination.is_link_local or destination.is_multicast:
        return None  # each IPv6 link has these
    # Of others the gateway does not matter: a change of it is none of the machine's place in the world.
    gateway = message.get("gateway") if destination.prefixlen == 0 else None
    return Route(str(destination), names.get(index, f"interface {index}"), table, gateway or "")


async def _burst(events: AsyncIPRoute) -> None:
    """Return once at least one event came, and then none for `QUIET` seconds (or `LONGEST_BURST` since the first)."""
    await _one_event(events)
    with anyio.move_on_after(LONGEST_BURST):
        while True:
            with anyio.move_on_after(QUIET) as quiet:
                await _one_event(events)
            if quiet.cancelled_caught:
                return


async def _one_event(events: AsyncIPRoute) -> None:
    async for _ in events.get():
        pass  # what changed is read from the tables: events may be lost, tables are whole


def _interface_error(name: str, code: int, detail: str) -> UserError:
    if code in (errno.EPERM, errno.EACCES):
        return UserError(
            "no-permission",
            f"This user may not set up the network interface {name}.",
            "Run the command with sudo, or give the program the capability CAP_NET_ADMIN.",
            Exit.REFUSED,
        )
    return UserError(
        "interface-failed",
        f"The network interface {name} could not be set up: {detail}.",
        "See 'ip address show' for what is there; run the command with --foreground -v to watch it.",
    )
