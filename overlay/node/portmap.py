"""The port mapping of this machine: the router before it asked to pass on what comes to a port outside.

Knows the machine's IPv4 default gateway and who says what from where; what is said is `wire/portmap`'s business, and
where the result goes is the caller's. NAT-PMP and PCP are tried first, at the same time, then UPnP. What a router
grants is offered to peers only where it can be right: the router's address outside is a public one, and the one that
the relay and STUN see.
"""

import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Final, Literal

import anyio

from overlay.errors import RemoteProtocolError
from overlay.node import upnp
from overlay.node.interface import Machine, read_machine
from overlay.node.status import PortMappingStatus
from overlay.wire.endpoint import Endpoint, format_endpoint
from overlay.wire.portmap import ANNOUNCEMENT_PORT, SERVER_PORT, TRANSPORT
from overlay.wire.portmap.client import Client
from overlay.wire.portmap.pcp import MAX_MESSAGE_SIZE, NONCE_SIZE

Protocol = Literal["nat-pmp", "pcp", "upnp"]

AGAIN: Final = 600.0
"""s before a router that grants nothing is asked once more: somebody may have switched it on."""
REMOVAL_PATIENCE: Final = 0.25
"""s for the answer to a removal, before it is sent again."""
REMOVAL_TRIES: Final = 3
LONGEST_REMOVAL: Final = 1.5
"""s that a router which is left may hold up the end of the program."""
LONGEST_TRIAL: Final = 5.0
"""s for `try_out`, as for the other checks of a network."""
WAY_OUT: Final = "192.0.2.1"
"""Any address that only a default route leads to (RFC 5737); nothing is sent to it."""

# Private (RFC 1918), shared by a carrier's customers (RFC 6598), this host, the link, multicast and reserved.
_INSIDE: Final = (
    "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 127.0.0.0/8 0.0.0.0/8 169.254.0.0/16 224.0.0.0/3"
)
_NOT_PUBLIC: Final = tuple(map(IPv4Network, _INSIDE.split()))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mapping:
    """What is known of the mapping of one port. Without `external` there is none, and `why` says why."""

    gateway: str | None = None
    protocol: Protocol | None = None
    external: Endpoint | None = None
    why: str = "The router has not been asked yet."


def is_public(address: str) -> bool:
    """Whether somebody outside could send there, as far as the address tells."""
    return not any(IPv4Address(address) in network for network in _NOT_PUBLIC)


def way_out(machine: Machine, own: str) -> str | None:
    """The IPv4 gateway of the default route from the link that has the address `own`."""
    interfaces = {each.interface for each in machine.addresses if each.address == own}
    for route in machine.routes:
        if route.destination == "0.0.0.0/0" and route.interface in interfaces and route.gateway:
            return route.gateway if ip_address(route.gateway).version == 4 else None
    return None


class PortMapper:
    """Keeps one port mapped. All methods are for the event loop."""

    def __init__(
        self,
        port: Callable[[], int | None],
        on_change: Callable[[], None],
        *,
        read_host: Callable[[], Awaitable[Machine]] = read_machine,
    ) -> None:
        """`port()` of this machine is what is mapped. `on_change`: `endpoints` is another."""
        self.endpoints: tuple[Endpoint, ...] = ()
        """Where the port is to be reached from outside, as far as it is believed: one, or none."""
        self._port, self._on_change, self._read_host = port, on_change, read_host
        self._mapping = Mapping()
        self._seen: frozenset[str] = frozenset()
        self._nonces: dict[str, bytes] = {}
        self._remove: Callable[[], Awaitable[None]] | None = None
        self._changed = anyio.Event()
        self.settled = anyio.Event()
        """The router has given a mapping, or has shown that it does not."""

    @property
    def status(self) -> PortMappingStatus:
        """For people."""
        mapping = self._mapping
        return PortMappingStatus(
            protocol=mapping.protocol,
            gateway=mapping.gateway,
            external=format_endpoint(mapping.external) if mapping.external is not None else None,
            why=self._why_not_offered() if mapping.external is not None else mapping.why,
        )

    def link_changed(self) -> None:
        """The machine's addresses or routes are others."""
        self._changed.set()

    def seen(self, endpoints: Iterable[Endpoint]) -> None:
        """Where others see this machine from outside: a mapping that leads elsewhere is of no use."""
        self._seen = frozenset(host for host, _ in endpoints if ":" not in host and is_public(host))
        self._offer()

    async def run(self) -> None:
        """Keep the port mapped until cancelled; then have it removed, within `LONGEST_REMOVAL`."""
        try:
            while True:
                self._changed = anyio.Event()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_cancel_when, self._changed, tasks.cancel_scope)
                    pause = await self._keep()
                    self.settled.set()
                    await anyio.sleep(pause)
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(LONGEST_REMOVAL):
                await self._take_away()
            self._take(Mapping())

    async def _keep(self) -> float:
        """Find the router, and keep the port mapped by it as long as it does. Returns when to ask again, in s."""
        port, own = self._port(), _own_address()
        gateway = way_out(await self._read_host(), own) if own is not None else None
        if port is None or own is None or gateway is None:
            await self._left(None)
            self._take(Mapping(why="There is no router with IPv4 before this machine."))
            return AGAIN
        await self._left(gateway)
        try:
            pause = await self._by_udp(IPv4Address(own), gateway, port)
        except OSError as error:
            _log.info("port mapping: the router %s is not reached: %s", gateway, error)
            pause = 0.0
        return await self._by_upnp(own, gateway, port) or pause or AGAIN

    async def _left(self, gateway: str | None) -> None:
        """The router of before is another than `gateway`: nothing that it granted leads here now."""
        if self._mapping.gateway not in (None, gateway):
            self._remove = None
            self._take(Mapping(gateway=gateway))

    # NAT-PMP and PCP -------------------------------------------------------------------------------------------------

    async def _by_udp(self, own: IPv4Address, gateway: str, port: int) -> float:
        """Returns once the router gives nothing, and for how long it is to be left alone (s; 0: it does not say)."""
        # The same router knows a mapping again by its nonce, also after this machine's link was away.
        nonce = self._nonces.setdefault(gateway, secrets.token_bytes(NONCE_SIZE))
        self._nonces = {gateway: nonce}
        client = Client(own, TRANSPORT, port, nonce, anyio.current_time())
        with _connected(str(own), gateway) as asking, _announcements() as announced:
            news = [anyio.Event()]

            async def listen(where: socket.socket) -> None:
                while True:
                    data = await _receive(where, gateway)
                    with suppress(RemoteProtocolError):
                        client.receive_datagram(data, anyio.current_time())
                    news[0].set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen, asking)
                tasks.start_soon(listen, announced)
                while client.state not in ("none", "refused"):
                    for datagram in client.datagrams_to_send():
                        with suppress(OSError):  # as if it were lost; it is sent again
                            asking.send(datagram)
                    self._take_client(client, gateway)
                    with anyio.move_on_after(client.next_timeout() - anyio.current_time()):
                        await news[0].wait()
                    news[0] = anyio.Event()
                    client.handle_timeout(anyio.current_time())
                tasks.cancel_scope.cancel()
        self._remove = None
        word = "says no" if client.state == "refused" else "answers neither NAT-PMP nor PCP"
        self._take(Mapping(gateway, None, None, f"The router {gateway} {word}."))
        return client.retry_after

    def _take_client(self, client: Client, gateway: str) -> None:
        if client.mapped is not None:

            async def remove() -> None:
                client.remove()
                with _connected(str(_own_address()), gateway) as asking:
                    (request,) = client.datagrams_to_send()
                    for _ in range(REMOVAL_TRIES):
                        asking.send(request)
                        with anyio.move_on_after(REMOVAL_PATIENCE):
                            await _receive(asking, gateway)
                            return

            self._remove = remove
            self._take(Mapping(gateway, client.protocol, client.mapped, ""))
        elif client.state == "mapping" and self._mapping.external is None:
            self._take(Mapping(gateway, None, None, f"The router {gateway} is being asked."))

    # UPnP ------------------------------------------------------------------------------------------------------------

    async def _by_upnp(self, own: str, gateway: str, port: int) -> float:
        """As `_by_udp`."""
        try:
            device = await upnp.find(own, gateway)
            lease = await device.map(port)
            while True:
                self._remove = lease.remove
                self._take(Mapping(gateway, "upnp", lease.external, ""))
                await anyio.sleep(min(lease.renewal, upnp.LOOK))
                lease = await lease.keep()
        except upnp.Failed as failed:
            self._remove = None
            lost = self._mapping.protocol == "upnp"
            self._take(Mapping(gateway, None, None, str(failed) if lost else f"{self._mapping.why} {failed}"))
            return upnp.LOOK if lost else 0.0

    # what comes of it ------------------------------------------------------------------------------------------------

    async def _take_away(self) -> None:
        if self._remove is not None:
            with suppress(OSError, upnp.Failed):
                await self._remove()
            self._remove = None

    def _why_not_offered(self) -> str:
        assert self._mapping.external is not None
        address = self._mapping.external[0]
        if not is_public(address):
            return f"The router is itself behind another: its own address outside is {address}."
        if self._seen and address not in self._seen:
            return f"The router maps on {address}, but from outside this machine is seen at {', '.join(self._seen)}."
        return ""

    def _take(self, mapping: Mapping) -> None:
        if mapping != self._mapping:
            self._mapping = mapping
            if mapping.external is not None:
                self.settled.set()
            _log.info("port mapping: %s", self.status)
            self._offer()

    def _offer(self) -> None:
        external = self._mapping.external
        endpoints = (external,) if external is not None and not self._why_not_offered() else ()
        if endpoints != self.endpoints:
            self.endpoints = endpoints
            self._on_change()


async def try_out(seen: Iterable[Endpoint], machine: Machine) -> PortMappingStatus:
    """What the router says to a mapping, which is removed at once. `seen`: as `PortMapper.seen`."""

    async def read_host() -> Machine:
        return machine

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = int(taken.getsockname()[1])
        mapper = PortMapper(lambda: port, lambda: None, read_host=read_host)
        mapper.seen(seen)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mapper.run)
            with anyio.move_on_after(LONGEST_TRIAL):
                await mapper.settled.wait()
            found = mapper.status
            tasks.cancel_scope.cancel()
    return found


async def _cancel_when(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _own_address() -> str | None:
    """Where this machine's IPv4 packets to the world come from; None: there is no way out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((WAY_OUT, SERVER_PORT))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _connected(own: str, gateway: str) -> socket.socket:
    """Connected: the kernel lets in what comes from the gateway's port alone. Raises `OSError`."""
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        found.bind((own, 0))
        found.connect((gateway, SERVER_PORT))
    except OSError:
        found.close()
        raise
    return found


def _announcements() -> socket.socket:
    """Hears the router say to all that it started anew (RFC 6886 §3.2.1, RFC 6887 §14.1)."""
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("224.0.0.1", ANNOUNCEMENT_PORT))
    except OSError as error:
        _log.info("port mapping: the router's announcements are not heard (%s)", error)
    return found


async def _receive(where: socket.socket, gateway: str) -> bytes:
    """The next datagram from the gateway."""
    while True:
        await anyio.wait_readable(where)
        with suppress(OSError):  # ICMP says that nobody is there: the client's own patience is short
            data, source = where.recvfrom(MAX_MESSAGE_SIZE + 1)
            if source[0] == gateway:
                return data
