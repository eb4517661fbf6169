"""How the NAT before this machine shows it: asks the server's STUN service, and tells who wants to know.

A look at the start, after each change of the machine's links, when the relay sees us elsewhere than before, and now and
then. In between nothing is asked: the engine's own pings to the relay keep the mapping (every 25 s) and notice when it
is another. How long mappings last is looked for once in each network, in the background.
"""

import logging
import secrets
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import anyio

from overlay.carrier.stream import connect_socket
from overlay.errors import RemoteProtocolError
from overlay.node.inquiry import Inquiry, Send, by_family
from overlay.node.interface import Machine, network_key, read_machine
from overlay.node.shared_port import ANY, shared_port_socket
from overlay.path.nat import UNKNOWN_NAT, NatBehaviour, classify
from overlay.path.observation import LIFETIME_PAUSES, LifetimeSearch, Newest, Observer
from overlay.wire.endpoint import Endpoint
from overlay.wire.stun import (
    HEADER_SIZE,
    TRANSACTION_ID_SIZE,
    Message,
    Request,
    Response,
    decode,
    encode,
    message_size,
)

AGAIN: Final = 3600.0
"""s between looks where nothing else asks for one: some NATs change their ways under load. A look costs some 2 KB."""

AGAIN_UNANSWERED: Final = (5.0, 30.0, 120.0, 600.0)
"""s until the next, after one, two, … without any answer: UDP may be blocked here."""

APART: Final = 5.0
"""s between two looks at the least: links may flap, and a NAT may give each ping to the relay another mapping."""

SETTLED: Final = 20.0
"""s without news after which the lifetime of mappings is looked for."""

NETWORKS_KEPT: Final = 16
"""Networks whose lifetimes are remembered: a laptop's places of a week."""

TCP_TIMEOUT: Final = 3.0
"""s for connection and answer by TCP: two round trips, and one lost SYN (RFC 6298 §2: it is sent again after 1 s)."""

_log = logging.getLogger(__name__)


class Reflexive:
    """See the module's docstring. All methods are for the event loop."""

    def __init__(
        self,
        send: Send,
        port: Callable[[], int | None],
        on_change: Callable[[], None],
        on_mapping: Callable[[Endpoint], None] = lambda endpoint: None,
        *,
        read_host: Callable[[], Awaitable[Machine]] = read_machine,
        pauses: Sequence[float] = LIFETIME_PAUSES,
    ) -> None:
        """`send` sends from the engine's UDP port, which is `port()` while there is one. `on_change`: `nat` or
        `endpoints` is another. `on_mapping`: the answer to `want_mapping`. `pauses`: for the search for the
        lifetime; none: there is no search."""
        self.nat = UNKNOWN_NAT
        self.endpoints: tuple[Endpoint, ...] = ()
        """How the engine's port looks from outside, IPv4 first; the machine's own addresses among them."""
        self._send = send
        self._port = port
        self._on_change = on_change
        self._on_mapping = on_mapping
        self._read_host = read_host
        self._pauses = tuple(pauses)
        self._servers: tuple[Endpoint, ...] = ()
        self._tcp_servers: tuple[Endpoint, ...] = ()
        self._urgent = anyio.Event()  # begin anew at once
        self._mapping_wanted = anyio.Event()
        self._wanted = anyio.Event()  # look again, though not sooner than `APART`
        self._views: dict[bool, Endpoint] = {}  # of the relay: is it IPv6 → how it sees us
        self._inquiries: list[Inquiry] = []
        self._lifetimes: OrderedDict[str, float | None] = OrderedDict()  # by network; None: it could not be told
        self._unanswered = 0

    def set_servers(self, relays: Sequence[Endpoint], stun: Sequence[Endpoint], *, udp: bool = True) -> None:
        """Where STUN is answered: the relays' endpoints, UDP and TCP, and more of UDP. Not `udp`: nothing is asked by
        UDP."""
        ports = dict.fromkeys(port for _, port in stun)
        # The server may have told addresses that are right only at its home: try the ones that it is reached at, too.
        hosts = dict.fromkeys(host for host, _ in relays)
        servers = tuple(dict.fromkeys((*relays, *((host, port) for host in hosts for port in ports), *stun)))
        self._tcp_servers = tuple(relays)
        if udp and servers != self._servers:
            self._servers = servers
            self._urgent.set()

    def link_changed(self) -> None:
        """The machine's addresses or routes are others."""
        self._unanswered = 0
        self._urgent.set()

    def observed(self, endpoint: Endpoint) -> None:
        """The relay sees the engine's port there. Where that is news, it is time for a look."""
        family = ":" in endpoint[0]
        before, self._views[family] = self._views.get(family), endpoint
        if (before is not None and before != endpoint) or self._unanswered:
            self._wanted.set()

    def want_mapping(self) -> None:
        """Which mapping did the NAT make last?"""
        self._mapping_wanted.set()

    def received(self, datagram: bytes, source: Endpoint) -> None:
        """STUN came to the engine's port."""
        try:
            message = decode(datagram)
        except RemoteProtocolError as error:
            _log.debug("no STUN from %s: %s", source, error)
            return
        for inquiry in self._inquiries:
            if inquiry.received(message, source):
                return

    async def run(self) -> None:
        """Look whenever there is reason to, until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tell_mappings)
                await self._keep_looking()
        finally:
            self._take(UNKNOWN_NAT, ())

    async def observe_tcp(self, local_port: int) -> tuple[Endpoint, socket.socket]:
        """How the TCP port `local_port` of this machine looks from outside, and the connection that shows it: while it
        is open, so is the NAT's mapping. It is the caller's to close. Raises `OSError`, also if nobody answers."""
        error: OSError = ConnectionError("no server that answers STUN by TCP is known")
        for server in self._tcp_servers:
            try:
                return await observe_tcp(local_port, server)
            except OSError as failed:
                error = failed
        raise error

    # inside ----------------------------------------------------------------------------------------------------------

    async def _keep_looking(self) -> None:
        while True:
            self._urgent, self._wanted = anyio.Event(), anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_when, self._urgent, tasks.cancel_scope)
                await self._look()
                await anyio.sleep(APART)
                tasks.start_soon(_cancel_when, self._wanted, tasks.cancel_scope)
                await self._rest()
                tasks.cancel_scope.cancel()

    async def _tell_mappings(self) -> None:
        """By a new socket each time: the engine's own has its mapping to the server, old as it may be."""
        while True:
            await self._mapping_wanted.wait()
            self._mapping_wanted = anyio.Event()
            server = next((each for each in self._servers if ":" not in each[0]), None)
            if server is not None:
                newest = Newest(server, anyio.current_time())
                await Inquiry(newest).run()
                if newest.mapped is not None:
                    self._on_mapping(newest.mapped)

    async def _rest(self) -> None:
        """Until the next look is due; meanwhile the lifetime is looked for, if it is not known here."""
        pause = AGAIN
        if not self.endpoints and self._servers:
            pause = AGAIN_UNANSWERED[min(self._unanswered, len(AGAIN_UNANSWERED)) - 1]
        due = anyio.current_time() + pause
        if self.nat.translated and self._pauses and self.nat.lifetime is None:
            await anyio.sleep(SETTLED)
            await self._find_lifetime()
        await anyio.sleep_until(due)

    async def _look(self) -> None:
        port = self._port()
        if port is None or not self._servers:
            return
        machine = await self._read_host()
        own = [each.address for each in machine.addresses]
        observers = [Observer(servers, own, port, anyio.current_time()) for servers in by_family(self._servers)]

        def placed() -> None:
            """Where we are is told at once; what else the NAT does takes some seconds more, and is kept meanwhile."""
            if all(each.placed for each in observers) and _endpoints(observers) != self.endpoints:
                self._see(observers, machine)

        await self._inquire([Inquiry(observer, self._send, on_progress=placed) for observer in observers])
        self._see(observers, machine)
        self._unanswered = 0 if self.endpoints else self._unanswered + 1

    def _see(self, observers: Sequence[Observer], machine: Machine) -> None:
        seen = [observer.observations for observer in observers if observer.observations.mapped]
        nat = classify(seen[0]) if seen else UNKNOWN_NAT
        known = self._lifetimes.get(network_key(machine)) if nat.translated else None
        self._take(replace(nat, lifetime=known), _endpoints(observers))

    async def _find_lifetime(self) -> None:
        network = network_key(await self._read_host())
        server = next((each for each in self._servers if (":" in each[0]) == (":" in self.endpoints[0][0])), None)
        if server is None or network in self._lifetimes:
            return
        search = LifetimeSearch(server, anyio.current_time(), self._pauses)
        await self._inquire([Inquiry(search)])
        self._lifetimes[network] = search.lifetime
        if len(self._lifetimes) > NETWORKS_KEPT:
            self._lifetimes.popitem(last=False)
        self._take(replace(self.nat, lifetime=search.lifetime), self.endpoints)

    async def _inquire(self, inquiries: Sequence[Inquiry]) -> None:
        self._inquiries += inquiries
        try:
            async with anyio.create_task_group() as tasks:
                for inquiry in inquiries:
                    tasks.start_soon(inquiry.run)
        finally:
            for inquiry in inquiries:
                self._inquiries.remove(inquiry)

    def _take(self, nat: NatBehaviour, endpoints: tuple[Endpoint, ...]) -> None:
        if (nat, endpoints) != (self.nat, self.endpoints):
            self.nat, self.endpoints = nat, endpoints
            _log.info("the NAT: %s; seen from outside: %s", nat, endpoints)
            self._on_change()


def _endpoints(observers: Sequence[Observer]) -> tuple[Endpoint, ...]:
    return tuple(each.observations.mapped[0][1] for each in observers if each.observations.mapped)


async def _cancel_when(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def observe_tcp(local_port: int, server: Endpoint) -> tuple[Endpoint, socket.socket]:
    """As `Reflexive.observe_tcp`, by one server. Other sockets may use the same port at the same time."""
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    stream = shared_port_socket(family)
    try:
        stream.bind((ANY[family], local_port))
        with anyio.fail_after(TCP_TIMEOUT):
            await connect_socket(stream, server)
            return await _ask(stream), stream
    except BaseException:
        anyio.notify_closing(stream)
        stream.close()
        raise


async def _ask(stream: socket.socket) -> Endpoint:
    transaction_id = secrets.token_bytes(TRANSACTION_ID_SIZE)
    stream.send(encode(Request(transaction_id)))  # the first bytes of a connection always find room
    data = b""
    try:
        while len(data) < HEADER_SIZE or len(data) < message_size(data):
            await anyio.wait_readable(stream)
            more = stream.recv(1024)
            if not more:
                raise ConnectionError("the server does not answer STUN by TCP")
            data += more
        message: Message = decode(data)
    except RemoteProtocolError as error:
        raise ConnectionError(f"the server answers something else than STUN ({error})") from error
    if not isinstance(message, Response) or message.transaction_id != transaction_id:
        raise ConnectionError("the server does not answer what it was asked")
    return message.mapped
