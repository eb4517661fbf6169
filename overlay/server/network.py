"""The network as the server runs it: who is in it, who is there now, and every change to that.

The one place that holds registry, map, relay and exposures together. A node's control connection and the local API are
its two callers; it knows neither messages' order nor HTTP.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Protocol

import anyio
import msgspec

from overlay.carrier.carriers import CarrierName, Detached
from overlay.carrier.limits import network_of
from overlay.daemon.records import RecordStatus
from overlay.engine.api import SERVER_NUMBER, Command, RemoveClient, SetClient
from overlay.errors import Exit, UserError
from overlay.server import admission
from overlay.server.allocation import addresses
from overlay.server.candidates import MAX_LAN, MAX_OBSERVED, usable_endpoints
from overlay.server.exposure_names import exposure_records
from overlay.server.exposures import Exposures
from overlay.server.hub import Hub, Link
from overlay.server.invites import make_invite
from overlay.server.keys import ServerKeys
from overlay.server.links import RelayLinks
from overlay.server.names import check_name, derive_name
from overlay.server.reach import Reach
from overlay.server.records import Records
from overlay.server.registry import Registry
from overlay.server.schema import NetworkRecord, NodeRecord
from overlay.wire.control.hostnames import MAX_NAME, is_suffixed
from overlay.wire.control.invite import Invite
from overlay.wire.control.messages import Hello, MapNode, MapRecord, Refused, Welcome
from overlay.wire.control.netmap import map_key
from overlay.wire.control.records import is_shadowed

HEARTBEAT = 15.0  # s between a node's pings; the carrier closes a connection after three without one
UDP_HEARTBEAT = 5.0
"""The same by udp, where nothing else tells a node that this server was killed and started anew: the system closes TCP
connections of a dead process, and knows none by UDP."""
SAVE_INTERVAL = 5.0  # s; what a crash loses of endpoints and last-seen times, which nodes say anew
MAX_NAME_WARNINGS = 5
MAX_TOGETHER = 64  # nodes that are admitted in one transaction
_log = logging.getLogger(__name__)


class RelayRole(Protocol):
    """This machine's engine."""

    def post(self, *commands: Command) -> None: ...


@dataclass(frozen=True, slots=True)
class Clock:
    """What the network takes from outside."""

    wall: Callable[[], float]  # Unix time, s
    random_bytes: Callable[[int], bytes]


@dataclass(slots=True, eq=False)
class _Arrival:
    """A node at the door, and what came of it: its record, or why it is not let in."""

    key: bytes
    hello: Hello
    outcome: NodeRecord | UserError | None = None


class Network:
    """All methods are for the event loop. Those that change the registry follow one another."""

    def __init__(
        self,
        *,
        registry: Registry,
        record: NetworkRecord,
        nodes: list[NodeRecord],
        keys: ServerKeys,
        hub: Hub,
        relay: RelayRole,
        exposures: Exposures,
        records: Records,
        reach: Reach,
        clock: Clock,
        pin: bytes = b"",
    ) -> None:
        """`pin`: of the certificate that nodes meet outside the Noise channel, for invites; empty: none."""
        self.hub = hub
        self.exposures = exposures
        self.zone_records = records
        self.drops: Counter[str] = Counter()
        self.reach = reach
        self.record = record
        self._registry = registry
        self._keys = keys
        self._relay = relay
        self._clock = clock
        self._pin = pin
        self._ipv4, self._ipv6 = IPv4Network(record.ipv4), IPv6Network(record.ipv6)
        self._nodes = {node.number: node for node in nodes}
        self._numbers = {node.key: node.number for node in nodes}
        # Of those heard of since the start; this server's own is another one each time.
        self._epochs = {SERVER_NUMBER: int.from_bytes(clock.random_bytes(4), "big") | 1}
        self._wishes: dict[int, str] = {}  # what nodes would be called by their host's name
        self._unsaved: set[int] = set()
        self._lock = anyio.Lock()
        self._arrivals: deque[_Arrival] = deque()
        self.links = RelayLinks(relay.post)

    @property
    def networks(self) -> tuple[str, str]:
        return (self.record.ipv4, self.record.ipv6)

    @property
    def server(self) -> NodeRecord:
        """The server's own entry."""
        return self._nodes[SERVER_NUMBER]

    def start(self) -> None:
        """Tell the others that this server has started anew, and make every registered node a client of the relay, so
        that traffic goes on before the nodes are back."""
        self._publish(SERVER_NUMBER)
        self._relay.post(*(_client(node) for node in self._nodes.values() if node.number != SERVER_NUMBER))

    def tell_records(self) -> None:
        """What people have put into the zone, or what exposures have there, is different now."""
        made = self.zone_records.all()
        of_exposures = exposure_records(
            self.exposures.said(),
            domains=self.record.domains,
            nodes={node.number: (node.name, self.addresses(node)[0]) for node in self._nodes.values()},
            public=self.exposures.public,
            made=made,
        )
        self.hub.set_records((*made, *of_exposures))

    def count(self, drop: str) -> None:
        self.drops[drop] += 1

    # a node's connection

    async def admit(self, key: bytes, hello: Hello) -> int:
        """The node's number, registered if need be. Raises `UserError` as `admission.admit` does."""
        if key == self._keys.public_key:
            raise UserError("key-in-use", "The node shows the server's own key.", "Give it a state of its own.")
        record = self._back(key, hello) or await self._newcomer(key, hello)
        self._epochs[record.number] = hello.epoch
        self._wishes[record.number] = "" if hello.name_chosen else derive_name(hello.name[:MAX_NAME], frozenset())
        if hello.endpoints:
            self.set_endpoints(record.number, hello.endpoints, record.observed)
        self._publish(record.number)
        return record.number

    def _back(self, key: bytes, hello: Hello) -> NodeRecord | None:
        """A registered node's record, if nothing of what it says must be on the disk before it is let in: a thousand
        that come back after a restart wait for no transaction."""
        number = self._numbers.get(key)
        if number is None:
            return None
        record = admission.renewed(self._nodes[number], hello, self._clock.wall())
        if record is not None:
            self._nodes[number] = record
            self._unsaved.add(number)
        return record

    async def _newcomer(self, key: bytes, hello: Hello) -> NodeRecord:
        arrival = _Arrival(key, hello)
        self._arrivals.append(arrival)
        with anyio.CancelScope(shield=True):  # a node that is registered must be known here, gone or not
            async with self._lock:
                while arrival.outcome is None:
                    await self._admit_arrivals()
        outcome = arrival.outcome
        assert outcome is not None
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    async def _admit_arrivals(self) -> None:
        """Admit all that wait, in order and in one transaction: to have it on the disk takes longer than all else, and
        those who come meanwhile wait for the next one together."""
        arrivals: dict[bytes, _Arrival] = {}
        while self._arrivals and len(arrivals) < MAX_TOGETHER and self._arrivals[0].key not in arrivals:
            arrival = self._arrivals.popleft()
            arrivals[arrival.key] = arrival
        outcomes: list[NodeRecord | UserError]
        try:
            async with self._registry.transaction() as transaction:
                outcomes = await admission.admit(
                    transaction,
                    [(key, arrival.hello) for key, arrival in arrivals.items()],
                    self._nodes.values(),
                    wall=self._clock.wall(),
                    random_bytes=self._clock.random_bytes,
                )
        except UserError as error:  # the disk's, and so everybody's
            outcomes = [error] * len(arrivals)
        for arrival, outcome in zip(arrivals.values(), outcomes, strict=True):
            arrival.outcome = outcome if isinstance(outcome, UserError) else self._admitted(outcome)

    def _admitted(self, record: NodeRecord) -> NodeRecord:
        known = self._nodes.get(record.number)
        if known is None:
            _log.info("node %d registered as '%s'", record.number, record.name)
            self._relay.post(_client(record))
        else:  # endpoints that were not written yet are newer than the registry's
            record = msgspec.structs.replace(record, lan=known.lan, observed=known.observed)
        self._nodes[record.number] = record
        if known is not None and known.name != record.name:
            self.tell_records()
        self._numbers[record.key] = record.number
        return record

    def welcome(self, number: int, carrier: CarrierName) -> Welcome:
        node = self._nodes[number]
        return Welcome(
            number=number,
            name=node.name,
            addresses=self.addresses(node),
            networks=self.networks,
            domain=self.record.domains[0],
            more_domains=self.record.domains[1:],
            ticket=int.from_bytes(node.ticket, "big"),
            relays=self.reach.relays,
            stun=self.reach.stun,
            relay_number=SERVER_NUMBER,
            map_key=map_key(self._keys.map_seed),
            heartbeat=UDP_HEARTBEAT if carrier == "udp" else HEARTBEAT,
            exposures=self.exposures.of_node(number),
        )

    async def connect(self, link: Link, mark: bytes) -> None:
        """The node is there, with a map that was last changed by the update of this mark."""
        await self.hub.connect(link, mark)
        self._publish(link.number)
        self.exposures.node_changed(link.number, online=True)
        _log.info("node '%s' is online", self._nodes[link.number].name)

    def node_with_key(self, key: bytes) -> int:
        """The number of the registered node that has proven this key. Raises `UserError` ("not-registered")."""
        number = self._numbers.get(key, SERVER_NUMBER)
        if number != SERVER_NUMBER:
            return number
        raise UserError(
            "not-registered",
            "The server does not know this node (any more).",
            "Ask for an invite and join with 'overlay up INVITE'.",
            Exit.REFUSED,
        )

    def attach(self, key: bytes, detached: Detached, carrier: CarrierName) -> None:
        """A data link of the node with this key: its packets are relayed over it. Raises `UserError` as above."""
        number = self.node_with_key(key)
        self.links.add(number, detached, carrier)
        _log.info("packets of node '%s' may come by %s", self._nodes[number].name, carrier)

    def disconnect(self, link: Link) -> None:
        """Its connection is gone."""
        if self.hub.disconnect(link):
            node = self._nodes[link.number]
            self._nodes[link.number] = msgspec.structs.replace(node, last_seen=self._clock.wall())
            self._unsaved.add(link.number)
            self._publish(link.number)
            self.exposures.node_changed(link.number, online=False)
            _log.info("node '%s' is offline", node.name)

    def set_endpoints(self, number: int, lan: tuple[str, ...], observed: tuple[str, ...]) -> None:
        """Where a node says it may be reached. What cannot be is left out and counted."""
        node = self._nodes.get(number)
        if node is None:
            return  # removed this moment
        ranges = (self._ipv4, self._ipv6)
        usable_lan, bad_lan = usable_endpoints(lan, ranges, MAX_LAN)
        usable_observed, bad_observed = usable_endpoints(observed, ranges, MAX_OBSERVED)
        if (bad_lan or bad_observed) and number != SERVER_NUMBER:  # this machine may say what it likes
            self.drops["endpoint"] += bad_lan + bad_observed
        changed = msgspec.structs.replace(node, lan=usable_lan, observed=usable_observed)
        if changed != node:
            self._nodes[number] = changed
            self._unsaved.add(number)
            self._publish(number)

    # an administrator's wishes

    async def invite(self, *, uses: int, expires_in: float, tags: tuple[str, ...]) -> dict[str, Any]:
        """A new invite: {"invite", "expires" (Unix s), "uses"}. Raises `UserError` ("invite-invalid")."""
        async with self._lock, self._registry.transaction() as transaction:
            secret, expires = await make_invite(
                transaction,
                uses=uses,
                expires_in=expires_in,
                tags=tags,
                wall=self._clock.wall(),
                random_bytes=self._clock.random_bytes,
            )
        invite = Invite(
            addresses=self.reach.addresses,
            server_key=self._keys.public_key,
            secret=secret,
            domain=self.record.domains[0],
            pin=self._pin,
        )
        return {"invite": invite.encode(), "expires": expires, "uses": uses}

    async def remove_node(self, name: str) -> None:
        """Let a node go: its address, name, exposures and records are free, its connection ends. Raises `UserError`."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                node = self._named(name)
                if node.number == SERVER_NUMBER:
                    raise UserError("node-is-server", "The server itself cannot be removed from its network.")
                async with self._registry.transaction() as transaction:
                    await transaction.remove_node(node.number)
                del self._nodes[node.number], self._numbers[node.key]
                self._epochs.pop(node.number, None)
                self._wishes.pop(node.number, None)
                self._unsaved.discard(node.number)
                self._relay.post(RemoveClient(node.number))
                self.links.remove_node(node.number)
                self.hub.remove(node.number, _REMOVED)
                await self.exposures.forget_node(node.number)
                await self.zone_records.forget_node(node.number)
                _log.info("node '%s' was removed", name)

    async def rename_node(self, old: str, new: str) -> str:
        """Returns the new name as it is written. Raises `UserError`: "node-unknown", "name-invalid", "name-taken"."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                node = self._named(old)
                async with self._registry.transaction() as transaction:
                    name = check_name(new, await transaction.names() - {node.name})
                    await transaction.set_nodes([msgspec.structs.replace(node, name=name)])
                # Endpoints may have changed meanwhile: they are taken from what is known now.
                self._nodes[node.number] = msgspec.structs.replace(self._nodes[node.number], name=name)
                self._publish(node.number)
                self.tell_records()
        return name

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes as the local API shows them."""
        return [
            {
                "number": node.number,
                "name": node.name,
                "addresses": list(self.addresses(node)),
                "online": self.is_online(node.number),
                "tags": list(node.tags),
                "last_seen": self._clock.wall() if self.is_online(node.number) else node.last_seen,
                "key": msgspec.to_builtins(node.key),
            }
            for node in self._nodes.values()
        ]

    def records(self) -> tuple[RecordStatus, ...]:
        """As in `Recording`, like the two below: this machine's are those of the server's own node."""
        return tuple(map(self._show_record, self.zone_records.all()))

    async def add_record(self, name: str, rtype: str, value: str) -> RecordStatus:
        return self._show_record(await self.zone_records.add(SERVER_NUMBER, name, rtype, value))

    async def remove_record(self, name: str, rtype: str) -> None:
        await self.zone_records.remove(SERVER_NUMBER, name, rtype)

    def name_warnings(self) -> list[str]:
        """Sentences: names that somebody wanted and another has."""
        names = self.names()
        found = [
            f"Node {node.number} wished to be '{wish}', as another node is, and is called '{node.name}': see "
            "'overlay node rename'."
            for number, wish in self._wishes.items()
            if wish and (node := self._nodes.get(number)) is not None and is_suffixed(node.name, wish, names)
        ]
        found += [
            f"The record {record.name} {record.rtype} of node '{self.name_of(record.node)}' is not served, since a "
            "node has taken the name."
            for record in self.zone_records.all()
            if is_shadowed(record, self.record.domains, names)
        ]
        more = len(found) - MAX_NAME_WARNINGS
        return [*found[:MAX_NAME_WARNINGS], *([f"{more} more names collide."] if more > 0 else [])]

    # what others ask

    def is_online(self, number: int) -> bool:
        return number == SERVER_NUMBER or self.hub.is_connected(number)

    def name_of(self, number: int) -> str:
        node = self._nodes.get(number)
        return node.name if node is not None else f"number {number}"

    def name_and_tags(self, number: int) -> tuple[str, tuple[str, ...]]:
        """What policies go by."""
        node = self._nodes.get(number)
        return (node.name, node.tags) if node is not None else ("", ())

    def names(self) -> dict[str, int]:
        """Of all nodes, and their numbers."""
        return {node.name: node.number for node in self._nodes.values()}

    def address_of(self, number: int) -> str | None:
        """A node's IPv4 overlay address while it is online."""
        node = self._nodes.get(number)
        return self.addresses(node)[0] if node is not None and self.is_online(number) else None

    def is_near(self, number: int, source: str) -> bool:
        """Whether an address is of this network, or of where a node that is online comes from. Loopback is neither: a
        proxy in front of the server makes all come from there."""
        address = ip_address(source)
        if address.is_loopback:
            return False
        if address in self._ipv4 or address in self._ipv6:
            return True
        of_node = self.hub.host_of(number)
        return of_node is not None and network_of(of_node) == network_of(source)

    def addresses(self, node: NodeRecord) -> tuple[str, str]:
        return addresses(self._ipv4, self._ipv6, node.host)

    # keeping

    async def run(self) -> None:
        """Write what changes often to the registry, now and then."""
        while True:
            await anyio.sleep(SAVE_INTERVAL)
            await self.save()

    async def save(self) -> None:
        """Write endpoints and last-seen times. A disk that refuses is logged, and tried again."""
        async with self._lock:
            numbers, self._unsaved = self._unsaved, set()
            if not numbers:
                return
            try:
                async with self._registry.transaction() as transaction:
                    await transaction.set_nodes(self._nodes[number] for number in numbers)
            except UserError as error:
                self._unsaved |= numbers
                _log.error("cannot keep what nodes told: %s", error.message)

    def _named(self, name: str) -> NodeRecord:
        for node in self._nodes.values():
            if node.name == name.lower():
                return node
        raise UserError("node-unknown", f"There is no node '{name[:100]}'.", "See 'overlay node ls'.", Exit.FAILED)

    def _show_record(self, record: MapRecord) -> RecordStatus:
        return RecordStatus(
            name=record.name,
            type=record.rtype,
            value=record.value,
            node=self.name_of(record.node),
            shadowed=is_shadowed(record, self.record.domains, self.names()),
        )

    def _publish(self, number: int) -> None:
        node = map_node(self._nodes[number], self.networks, online=self.is_online(number))
        self.hub.change(msgspec.structs.replace(node, epoch=self._epochs.get(number, 0)))


def map_node(node: NodeRecord, networks: tuple[str, str], *, online: bool) -> MapNode:
    """What every node must know of one node."""
    ipv4, ipv6 = networks
    return MapNode(
        number=node.number,
        name=node.name,
        key=node.key,
        addresses=addresses(IPv4Network(ipv4), IPv6Network(ipv6), node.host),
        ciphers=node.ciphers,
        lan=node.lan,
        observed=node.observed,
        online=online,
        tags=node.tags,
    )


def _client(node: NodeRecord) -> SetClient:
    return SetClient(number=node.number, public_key=node.key, ticket=int.from_bytes(node.ticket, "big"))


_REMOVED = Refused(
    code="removed",
    message="This node was removed from the network.",
    hint="Ask for an invite and join with 'overlay up INVITE'.",
)
