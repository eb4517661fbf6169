"""One machine's part in the network: engine, interface and (on nodes) names, under one roof.

Used by the node daemon and by the server daemon, since the server is a node of its network. Knows network maps and what
to make of them for the engine; does not know where maps come from, nor any control message. It never sees a packet.

    async with anyio.create_task_group() as tasks:
        member = Member(settings, state)
        member.apply_map(network_map)             # before or after the start, and again for every new map
        await tasks.start(member.run, identity)   # returns once the interface is up
        …
        tasks.cancel_scope.cancel()               # takes everything down again
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from overlay.daemon.capture import CaptureWish
from overlay.daemon.localapi import Produce
from overlay.daemon.peers import PingResult, WhyReport
from overlay.daemon.state import StateDir, corrupt
from overlay.engine.api import (
    Command,
    CueReceived,
    EngineConfig,
    EngineFailed,
    EngineSnapshot,
    Event,
    Foreign,
    Inspect,
    InspectPeer,
    LinkChanged,
    LinkLost,
    Network,
    Observed,
    PeerConfig,
    PeerDetails,
    PeerOffers,
    RelayChanged,
    RemovePeer,
    SetPeer,
    SetReach,
    SetRelay,
    WantMapping,
    WantTcp,
)
from overlay.errors import Exit, UserError
from overlay.node.capture import Captures
from overlay.node.inside import networks_inside
from overlay.node.interface import (
    Address,
    Interface,
    Machine,
    check_ranges,
    local_candidates,
    read_machine,
    watch_machine,
)
from overlay.node.peer_configs import PeerConfigs, find_node
from overlay.node.pings import asked, hand_over, milliseconds, path_status, ping
from overlay.node.status import PeerStatus
from overlay.node.whereabouts import Whereabouts
from overlay.node.why import why_report
from overlay.path.nat import UNKNOWN_NAT, NatBehaviour
from overlay.wire.control.hostnames import check_host_name
from overlay.wire.control.messages import NetworkMap
from overlay.wire.control.records import domain_of
from overlay.wire.disco import Offer
from overlay.wire.endpoint import Endpoint, format_endpoint, parse_endpoint

if TYPE_CHECKING:
    from overlay.node.names import Names
    from overlay_dns.upstream import Upstream

Outside = Literal["mapped", "relay", "stun"]
"""Who says how the engine's port is reached from outside: a router that was asked to, the relay, a STUN server."""
_OUTSIDE: tuple[Outside, ...] = ("mapped", "relay", "stun")
OBSERVED_LIMIT = 4
"""Endpoints outside that peers are told of: what a router mapped, and what the NAT shows, by both families."""
FLOOR_FILE = "timestamp"
FLOOR_INTERVAL = 15.0
"""Seconds between writes of the TAI64N floor. What is written lies two intervals ahead: a crash loses nothing."""
SNAPSHOT_TIMEOUT = 5.0
"""Seconds that the engine may take to answer; its loop turns in milliseconds unless the machine hangs."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """What is fixed for a member's life."""

    private_key: bytes = field(repr=False)  # X25519, 32 bytes, clamped
    interface: str | None = "overlay%d"  # None: no TUN, no names
    port: int = 0  # UDP; 0: the kernel picks
    relay_clients: bool = False  # the server's part: forward between nodes
    relay_rate: float = 0.0  # bytes per second that it forwards for each node; 0: no bound
    copy_dscp: bool = False  # outer headers show the DSCP of the packets inside
    udp: bool = True  # the home relay may be reached by UDP
    endpoints: tuple[Endpoint, ...] = ()  # where a person says that the UDP port is reached from outside
    names: bool = True  # run the resolver and point the system at it
    pinned_names: tuple[str, ...] = ()  # the server's own, which no map leads elsewhere
    upstreams: "tuple[Upstream, ...]" = ()  # that a person chose for other names


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this machine is in the network."""

    number: int
    name: str
    addresses: tuple[Address, ...]  # IPv4 first
    networks: tuple[Network, ...]
    domains: tuple[str, ...]

    @classmethod
    def parse(
        cls, *, number: int, name: str, addresses: Iterable[str], networks: Iterable[str], domains: Iterable[str]
    ) -> "Identity":
        """From the texts of control messages. Raises `ValueError`."""
        names = tuple(domains)
        for each in names:
            check_host_name(each)
        return cls(number, name, tuple(map(ip_address, addresses)), tuple(map(ip_network, networks)), names)


@dataclass(frozen=True, slots=True)
class Relay:
    """The home relay: where it listens, which node it is, and our ticket there."""

    endpoints: tuple[Endpoint, ...]
    number: int
    ticket: int = field(repr=False)


class RunningEngine(Protocol):
    """What a member needs of `overlay.engine`."""

    @property
    def interface(self) -> str | None: ...
    @property
    def port(self) -> int: ...
    def start(self) -> None: ...
    def post(self, *commands: Command) -> None: ...
    def stop(self) -> None: ...


StartEngine = Callable[[EngineConfig, Callable[[Event], None]], RunningEngine]


def _unknown_peer(message: str) -> UserError:
    return UserError("peer-unknown", message, "'overlay status' lists the peers.", Exit.FAILED)


def _not_up() -> UserError:
    return UserError(
        "not-up", "The network is not up on this machine yet.", "Try again when 'overlay status' says 'connected'."
    )


class Member:
    """See the module's docstring. All methods are for the event loop's thread."""

    def __init__(
        self,
        settings: MemberSettings,
        state: StateDir,
        *,
        on_endpoints: Callable[[], None] = lambda: None,
        on_link_changed: Callable[[], None] = lambda: None,
        on_relay: Callable[[RelayChanged | LinkLost], None] = lambda event: None,
        on_foreign: Callable[[bytes, Endpoint], None] = lambda datagram, source: None,
        on_observed: Callable[[Endpoint], None] = lambda endpoint: None,
        on_tcp: Callable[[CueReceived | WantTcp], None] = lambda event: None,
        on_mapping: Callable[[], None] = lambda: None,
        start_engine: StartEngine | None = None,
    ) -> None:
        """`on_endpoints`: `lan` or `observed` is another. `on_link_changed`: the host's addresses or routes are.
        `on_relay`: how the home relay is reached, or a data link is lost. `on_foreign`: a datagram of QUIC or STUN came
        to the engine's port, from that endpoint. `on_observed`: the relay sees the engine's port there. `on_tcp`: a
        connection by TCP to a peer is wanted, here or there. `on_mapping`: the NAT's last mapping is to be posted."""
        self.settings = settings
        self.identity: Identity | None = None  # while it runs
        self.lan: tuple[str, ...] = ()  # own endpoints, for the map
        self.observed: tuple[str, ...] = ()
        self._state = state
        self._on_endpoints = on_endpoints
        self._on_link_changed = on_link_changed
        self._on_relay = on_relay
        self._on_foreign = on_foreign
        self._on_observed = on_observed
        self._on_tcp = on_tcp
        self._on_mapping = on_mapping
        self._start_engine = start_engine or _default_engine
        self._engine: RunningEngine | None = None
        self._captures = Captures(self.post)
        self._map: NetworkMap | None = None
        self._relay: Relay | None = None
        self._configs = PeerConfigs()
        self._posted: dict[int, PeerConfig] = {}
        self._posted_relay: SetRelay | None = None
        self._nat = UNKNOWN_NAT
        self._outside: dict[Outside, tuple[Endpoint, ...]] = {}
        self._posted_reach: SetReach | None = None
        self._whereabouts = Whereabouts(state)
        self._names: Names | None = None
        self._inside: tuple[Network, ...] = ()
        self._interface_warnings: tuple[str, ...] = ()
        self._failure: BaseException | None = None
        self._failed = anyio.Event()
        self._floor = 0

    @property
    def interface(self) -> str | None:
        """The interface's name while there is one."""
        return self._engine.interface if self._engine is not None else None

    @property
    def port(self) -> int | None:
        """The engine's UDP port while it runs."""
        return self._engine.port if self._engine is not None else None

    @property
    def names(self) -> "Names":
        """The network's names on this machine. Raises `UserError` ("names-down") while there are none."""
        if self._names is None:
            raise UserError(
                "names-down", "This machine has no resolver for the network's names now.", "See 'overlay status'."
            )
        return self._names

    def look_up(self, name: str) -> tuple[str, ...] | None:
        """As `Names.addresses`; where the resolver is switched off, of peers alone."""
        if self._names is not None:
            return self._names.addresses(name)
        if self._map is None or domain_of(name.lower().rstrip("."), self._map.domains) is None:
            return None
        node = find_node(self._map, name)
        return node.addresses if node is not None else ()

    @property
    def upstreams(self) -> "tuple[Upstream, ...]":
        """Whom the network's resolver asks for other names, while it is the system's for these; else empty."""
        return self._names.upstreams if self._names is not None else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what does not work, though the network does."""
        names = (self._names.warning,) if self._names is not None and self._names.warning else ()
        return self._interface_warnings + names

    async def run(self, identity: Identity, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Be part of the network as `identity` until cancelled; then take everything down. May be run again after.

        Signals `started` once the interface is up and names work (or failed, see `warnings`). Raises `UserError`:
        "range-overlaps", "engine-failed", what the engine's start and the interface's set-up raise.
        """
        if self.settings.interface is not None:
            check_ranges(identity.networks, await read_machine())
        self._floor = _read_floor(self._state)
        self._failure, self._failed = None, anyio.Event()
        engine = self._start_engine(self._engine_config(identity), hand_over(self._receive_event))
        await anyio.to_thread.run_sync(engine.start)
        self._engine, self.identity = engine, identity
        try:
            if engine.interface is not None:
                self._interface_warnings = await Interface(engine.interface).configure(
                    identity.addresses, identity.networks
                )
            await self._run_tasks(identity, engine, task_status)
        finally:
            with anyio.CancelScope(shield=True):
                await self._take_down(engine)
        if self._failure is not None:
            raise UserError(
                "engine-failed",
                f"The engine ended by an error: {self._failure!r}.",
                "Start it again; if it happens again, report it together with the log.",
            ) from self._failure

    def apply_map(self, network_map: NetworkMap) -> None:
        """Make peers, relay and names what the map says."""
        self._map = network_map
        self._post_map()

    def set_relay(self, relay: Relay | None) -> None:
        """Relay through `relay` from now on (as soon as a map tells its key).

        Said again after each new connection to the server, and passed on: a relay that started anew does not know where
        its clients are, and the engine asks it at once.
        """
        self._relay = relay
        self._posted_relay = None
        self._post_map()

    def set_nat(self, nat: NatBehaviour) -> None:
        """What is known of the NAT before this machine."""
        self._nat = nat
        self._post_reach()

    def set_outside(self, source: Outside, endpoints: tuple[Endpoint, ...]) -> None:
        """At which endpoints the engine's port is to be reached from outside, as `source` has it."""
        if endpoints == self._outside.get(source, ()):
            return
        self._outside[source] = endpoints
        found = [each for key in _OUTSIDE for each in self._outside.get(key, ())]
        observed = tuple(dict.fromkeys(map(format_endpoint, found)))[:OBSERVED_LIMIT]
        if observed != self.observed:
            self.observed = observed
            self._on_endpoints()
        self._post_reach()

    def public_key(self, number: int) -> bytes | None:
        """Of a node of the map."""
        return self._posted[number].public_key if number in self._posted else None

    async def local_endpoints(self, port: int) -> tuple[Endpoint, ...]:
        """Where a port of this machine is reached by peers that have a way to its own addresses."""
        machine = (await read_machine()).without(self.interface)
        return local_candidates(machine, port, self.identity.networks if self.identity is not None else ())

    def post(self, *commands: Command) -> None:
        """Commands for the engine, such as the relay role's. Nothing happens while there is none."""
        if self._engine is not None:
            self._engine.post(*commands)

    async def snapshot(self) -> EngineSnapshot | None:
        """What the engine says of itself; None while there is none, or if it does not answer."""
        engine = self._engine
        if engine is None:
            return None
        found: EngineSnapshot | None = await asked(lambda reply: engine.post(Inspect(reply)), SNAPSHOT_TIMEOUT)
        return found

    def peers(self, snapshot: EngineSnapshot | None) -> tuple[PeerStatus, ...]:
        """The other nodes of the network, with what the engine knows of them."""
        if self._map is None:
            return ()
        known = {peer.number: peer for peer in snapshot.peers} if snapshot is not None else {}
        own = self.identity.number if self.identity is not None else None
        found = []
        for node in self._map.nodes:
            if node.number == own:
                continue
            peer = known.get(node.number)
            path = peer.path if peer is not None else None
            found.append(
                PeerStatus(
                    name=node.name,
                    addresses=node.addresses,
                    online=node.online,
                    path=path_status(path),
                    rtt_ms=milliseconds(peer.rtt if peer is not None else None),
                    last_handshake_s=peer.last_handshake if peer is not None else None,
                    rx_bytes=peer.rx_bytes if peer is not None else 0,
                    tx_bytes=peer.tx_bytes if peer is not None else 0,
                )
            )
        return tuple(found)

    # what is asked about one peer -------------------------------------------------------------------------------------

    async def ping(self, number: int, patience: float) -> PingResult:
        """As `overlay.daemon.peers.Peers` has it. Raises `UserError` ("not-up")."""
        if self._engine is None:
            raise _not_up()
        return await ping(self._engine.post, number, patience)

    async def why(self, number: int) -> WhyReport:
        """As `overlay.daemon.peers.Peers` has it. Raises `UserError`: "not-up", "peer-unknown"."""
        engine = self._engine
        if engine is None:
            raise _not_up()
        details: PeerDetails | None = await asked(
            lambda reply: engine.post(InspectPeer(number, reply)), SNAPSHOT_TIMEOUT
        )
        node = find_node(self._map, str(number))
        if details is None or node is None:
            raise _unknown_peer(f"Node {number} is no peer any more.")
        return why_report(node, details)

    # what is captured ------------------------------------------------------------------------------------------------

    def find_peer(self, text: str) -> dict[str, Any]:
        """As `overlay.daemon.capture.Capturing` has it. Raises `UserError` ("peer-unknown")."""
        node = find_node(self._map, text)
        if node is None:
            raise _unknown_peer(f"There is no peer '{text[:100]}'.")
        if self.identity is not None and node.number == self.identity.number:
            raise _unknown_peer(f"'{text}' is this machine itself, not a peer of it.")
        return {"number": node.number, "name": node.name, "addresses": node.addresses}

    def capture(self, wish: CaptureWish) -> Produce:
        """As `overlay.daemon.capture.Capturing` has it. Raises `UserError`: "not-up", those of `Captures.new`."""
        if self._engine is None:
            raise _not_up()
        nodes = self._map.nodes if self._map is not None else ()
        return self._captures.new(wish, self._engine.interface, self._engine.port, nodes).run

    def stop_capture(self, id: str) -> None:
        """As `overlay.daemon.capture.Capturing` has it."""
        self._captures.stop(id)

    # inside ----------------------------------------------------------------------------------------------------------

    def _engine_config(self, identity: Identity) -> EngineConfig:
        return EngineConfig(
            private_key=self.settings.private_key,
            number=identity.number,
            interface=self.settings.interface,
            port=self.settings.port,
            relay_clients=self.settings.relay_clients,
            relay_rate=self.settings.relay_rate,
            copy_dscp=self.settings.copy_dscp,
            timestamp_floor=self._floor,
        )

    async def _run_tasks(self, identity: Identity, engine: RunningEngine, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as tasks:
            machine = await tasks.start(self._watch, engine.interface)
            self._posted, self._posted_relay, self._posted_reach = {}, None, None
            self._take_candidates(machine, identity, engine.port)
            self._post_reach()
            if self.settings.names and engine.interface is not None:
                from overlay.node.names import Names  # a server's daemon does without

                self._names = Names(
                    self._state,
                    self.settings.upstreams,
                    pinned=self.settings.pinned_names,
                    inside=lambda: self._inside,
                )
                self._post_map()
                await tasks.start(self._names.run, identity.addresses, identity.domains, engine.interface)
            else:
                self._post_map()
            tasks.start_soon(self._keep_floor)
            task_status.started()
            await self._failed.wait()
            tasks.cancel_scope.cancel()

    async def _watch(
        self, interface: str | None, *, task_status: TaskStatus[Machine] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        await watch_machine(self._machine_changed, ignore=interface, task_status=task_status)

    def _machine_changed(self, machine: Machine) -> None:
        if self._engine is None or self.identity is None:
            return
        _log.info("this machine's addresses or routes changed")
        self._engine.post(LinkChanged())
        self._take_candidates(machine, self.identity, self._engine.port)
        self._on_link_changed()

    def _take_candidates(self, machine: Machine, identity: Identity, port: int) -> None:
        self._inside = networks_inside(machine)
        lan = tuple(format_endpoint(each) for each in local_candidates(machine, port, identity.networks))
        if lan != self.lan:
            self.lan = lan
            self._on_endpoints()
            self._post_reach()

    def _receive_event(self, event: Event) -> None:
        if isinstance(event, Observed):
            self._take_observed(event.endpoint)
        elif isinstance(event, RelayChanged | LinkLost):
            self._on_relay(event)
        elif isinstance(event, PeerOffers):
            self._whereabouts.said(event.number, event.offers)
        elif isinstance(event, Foreign):
            for datagram in event.datagrams:
                self._on_foreign(datagram, event.source)
        elif isinstance(event, CueReceived | WantTcp):
            self._on_tcp(event)
        elif isinstance(event, WantMapping):
            self._on_mapping()
        elif isinstance(event, EngineFailed):
            _log.error("the engine ended by an error", exc_info=event.error)
            self._failure = event.error
            self._failed.set()
        else:
            _log.debug("%s", event)

    def _take_observed(self, endpoint: Endpoint) -> None:
        if self._engine is None:
            return
        # One for each address family: the relay is asked over both.
        version = ip_address(endpoint[0]).version
        others = [each for each in self._outside.get("relay", ()) if ip_address(each[0]).version != version]
        self.set_outside("relay", tuple(sorted([*others, endpoint], key=format_endpoint)))
        self._on_observed(endpoint)

    def _post_reach(self) -> None:
        if self._engine is None:
            return
        offers: dict[Endpoint, Offer] = {}
        for endpoint in self.settings.endpoints:
            offers.setdefault(endpoint, Offer(endpoint, "manual"))
        for text in self.lan:
            offers.setdefault(parse_endpoint(text), Offer(parse_endpoint(text), "interface"))
        for source in _OUTSIDE:
            for endpoint in self._outside.get(source, ()):
                offers.setdefault(endpoint, Offer(endpoint, "mapped" if source == "mapped" else "observed"))
        reach = SetReach(self._nat, tuple(offers.values()))
        if reach != self._posted_reach:
            self._posted_reach = reach
            self._engine.post(reach)

    def _post_map(self) -> None:
        if self._engine is None or self._map is None or self.identity is None:
            return
        found = self._configs.of(self._map, self.identity.number)
        self._whereabouts.keep_only(found)
        wanted = {number: self._whereabouts.complete(peer) for number, peer in found.items()}
        commands: list[Command] = [RemovePeer(number) for number in self._posted.keys() - wanted.keys()]
        commands += [SetPeer(peer) for number, peer in wanted.items() if self._posted.get(number) != peer]
        self._posted = wanted
        relay = self._relay_command()
        if relay is not None and relay != self._posted_relay:
            self._posted_relay = relay
            commands.append(relay)
        if commands:
            self._engine.post(*commands)
        if self._names is not None:
            self._names.set_map(self._map)

    def _relay_command(self) -> SetRelay | None:
        if self._relay is None or self._map is None:
            return None
        node = next((node for node in self._map.nodes if node.number == self._relay.number), None)
        if node is None:
            return None
        endpoints = self._relay.endpoints if self.settings.udp else ()
        return SetRelay(endpoints, self._relay.number, node.key, self._relay.ticket)

    async def _keep_floor(self) -> None:
        while True:
            await self._save_floor()
            await self._whereabouts.save()
            await anyio.sleep(FLOOR_INTERVAL)

    async def _save_floor(self) -> None:
        snapshot = await self.snapshot()
        if snapshot is None or snapshot.timestamp <= self._floor:
            return
        ahead = snapshot.timestamp + int(2 * FLOOR_INTERVAL * 1e9)
        try:
            await anyio.to_thread.run_sync(self._state.write, FLOOR_FILE, str(ahead).encode())
        except UserError as error:
            # Only a clock that jumps back across a restart makes this matter: the network goes on.
            _log.warning("%s", error)
        else:
            self._floor = ahead

    async def _take_down(self, engine: RunningEngine) -> None:
        if self._failure is None:
            await self._save_floor()
        await self._whereabouts.save()
        await self._captures.close()
        await anyio.to_thread.run_sync(engine.stop)
        self._engine, self.identity, self._names = None, None, None
        self._interface_warnings = ()
        self.lan, self.observed = (), ()
        self._outside.clear()


def _default_engine(config: EngineConfig, on_event: Callable[[Event], None]) -> RunningEngine:
    from overlay.engine.engine import Engine

    return Engine(config, on_event)


def _read_floor(state: StateDir) -> int:
    data = state.read(FLOOR_FILE)
    if data is None:
        return 0
    if not data.isdigit() or len(data) > 20:
        raise corrupt(state.path / FLOOR_FILE, "it is not a number of nanoseconds")
    return int(data)
