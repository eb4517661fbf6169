"""The node's daemon: control client, member, exposures and local API, and what one learns carried to the others.

It comes up from what it remembers when the server is away, goes on when the server goes, and ends when a person says
so, when the server refuses the node for good, or when the engine fails.
"""

import functools
import itertools
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import anyio
import msgspec
from anyio.abc import TaskGroup
from starlette.applications import Starlette

from overlay import __version__
from overlay.carrier.carriers import DialOptions
from overlay.carrier.watch import new_event_loop
from overlay.daemon import logs
from overlay.daemon.launch import report_ready, sd_notify
from overlay.daemon.localapi import Produce, serve_local_api
from overlay.daemon.process import run_loop
from overlay.daemon.records import RecordStatus
from overlay.daemon.state import LOG_NAME, StateDir
from overlay.engine.api import SERVER_NUMBER, Cipher, LinkLost, RelayChanged, SendDatagrams, SetMapping
from overlay.errors import RemoteProtocolError, UserError
from overlay.node.api import make_api
from overlay.node.calls import Calls
from overlay.node.ciphers import measure
from overlay.node.connections import Connections
from overlay.node.control import ControlClient
from overlay.node.exposure_files import ExposureFiles
from overlay.node.exposures import Exposures
from overlay.node.interface import check_tun
from overlay.node.joining import default_name, identity_of, plan_start, relay_of, stun_servers_of
from overlay.node.links import DataLinks
from overlay.node.member import Identity, Member, MemberSettings, Relay, StartEngine
from overlay.node.memory import Joined, Memory, load_or_make_key
from overlay.node.names import restore_system
from overlay.node.nat_report import nat_status
from overlay.node.portmap import PortMapper
from overlay.node.punching import Own, TcpPunching
from overlay.node.records import Records
from overlay.node.reflexive import Reflexive
from overlay.node.settings import NodeSettings, check_ways, parse_endpoints, parse_upstreams
from overlay.node.status import ExposeWish, ExposureStatus, NameAnswer, NamesStatus, NodeStatus, ServerStatus, State
from overlay.node.ways import Target, Ways
from overlay.wire.control.address import parse_server_address
from overlay.wire.control.hostnames import is_suffixed
from overlay.wire.control.messages import (
    Connect,
    Connected,
    Exposure,
    GroupMember,
    Hello,
    MapNode,
    NetworkMap,
    RequestEntry,
    Supply,
    Welcome,
)
from overlay.wire.endpoint import Endpoint

OFFLINE_AFTER = 3.0
"""Seconds that a node which remembers its network waits for the server before it says that it works without."""

_log = logging.getLogger(__name__)


def run(settings: NodeSettings, *, background: bool = False) -> None:
    """Be a node until told to stop. In the `background`, the log goes to the state folder.

    Raises `UserError`; `KeyboardInterrupt` when it was ended by SIGINT, after everything is put back.
    """
    state = StateDir(Path(settings.state)).open()
    with state.lock():
        logs.configure(settings.verbosity, state.path / LOG_NAME if background else None)
        restore_system(state)
        daemon = NodeDaemon(settings, state)
        run_loop(daemon.run, new_event_loop)
    if daemon.interrupted:
        raise KeyboardInterrupt


class NodeDaemon:
    """See the module's docstring. Also the `Listener` of the control client and the `Node` of the local API."""

    def __init__(self, settings: NodeSettings, state: StateDir, *, start_engine: StartEngine | None = None) -> None:
        """Raises `UserError` for a wrong invite, a damaged state folder, a machine without TUN."""
        self.interrupted = False
        self._settings = settings
        self._state = state
        self._memory = Memory(state)
        check_ways(settings.carriers, settings.proxy)
        self._start = plan_start(self._memory.joined, settings.invite, settings.name)
        if start_engine is None and settings.tun:
            check_tun()
        target = _target(settings, self._start.joined, load_or_make_key(state))
        self._ciphers: tuple[Cipher, ...] = measure()
        self._epoch = secrets.randbits(32) | 1
        self._member = Member(
            MemberSettings(
                private_key=target.private_key,
                interface=(settings.interface or "overlay%d") if settings.tun else None,
                port=settings.port,
                copy_dscp=settings.dscp == "copy",
                udp="udp" in target.carriers,
                endpoints=parse_endpoints(settings.endpoints),
                names=settings.names,
                pinned_names=tuple(parse_server_address(each).host for each in self._start.joined.addresses),
                upstreams=parse_upstreams(settings.upstreams),
            ),
            state,
            on_endpoints=self._endpoints_changed,
            on_link_changed=self._link_changed,
            on_relay=self._relay_event,
            on_foreign=lambda datagram, source: self._reflexive.received(datagram, source),
            on_observed=lambda endpoint: self._reflexive.observed(endpoint),
            on_tcp=lambda event: self._punching.received(event),
            on_mapping=lambda: self._reflexive.want_mapping(),
            start_engine=start_engine,
        )
        self._reflexive = Reflexive(
            lambda datagram, to: self._member.post(SendDatagrams((datagram,), to)),
            lambda: self._member.port,
            self._reach_changed,
            lambda endpoint: self._member.post(SetMapping(endpoint)),
        )
        self._udp = "udp" in target.carriers and settings.tun  # for packets
        self._port_mapper = PortMapper(
            lambda: self._member.port,
            lambda: self._member.set_outside("mapped", self._port_mapper.endpoints),
        )
        self._maps_port = settings.port_mapping and self._udp
        self._ways = Ways(target, state, lambda: self._member.upstreams)
        self._control = ControlClient(self._ways.dial, self._hello, self, self._memory.network_map, better=self._ways)
        link_numbers = itertools.count(1)
        self._links = DataLinks(
            self._ways.dial_stream,
            lambda: self._ways.stream_carriers,
            self._member.post,
            udp=self._udp,
            udp_in_vain=lambda: target.carriers[0] == "udp" and self._ways.carrier not in (None, "udp"),
            numbers=link_numbers,
        )
        self._punching = TcpPunching(
            target.private_key,
            self._member.post,
            self._reflexive.observe_tcp,
            self._member.local_endpoints,
            self._member.public_key,
            lambda: self._reflexive.nat,
            link_numbers,
        )
        self._by_udp = False  # relayed packets go by UDP
        self._exposures = Exposures(
            state,
            self._control.request,
            self._is_server,
            self._is_member,
            self._control.say,
            lambda: self._control.state == "connected",
            look_up=self._member.look_up,
            private_key=target.private_key,
        )
        self._exposure_files = ExposureFiles(state, self._exposures)
        self._connections = Connections(state, self.connect)
        self._calls = Calls(
            self._ways.dial_plain, self._exposures.serve, self._exposures.drops, self._exposures.serve_now
        )
        self._records = Records(self._control.request, lambda: self._memory.network_map)
        self._identity: Identity | None = None
        self._identity_changed = anyio.Event()
        self._server_exposures: tuple[Literal["welcome", "news"], tuple[Exposure, ...]] | None = None
        self._server_exposures_changed = anyio.Event()
        self._in_network = anyio.Event()  # welcomed, and a map at hand
        self._up = anyio.Event()
        self._stopping = anyio.Event()
        self._stopped = False

    async def run(self) -> None:
        """Until `shut_down` or a signal. Raises `UserError`, perhaps inside an exception group."""
        welcome = self._memory.welcome
        if welcome is not None and self._memory.network_map is not None:
            self._remember(welcome, self._memory.network_map)
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_local_api, self._api(), self._state.path)
            tasks.start_soon(self._take_signals, tasks.cancel_scope)
            tasks.start_soon(self._memory.keep_map)
            tasks.start_soon(functools.partial(self._control.run, patient=self._identity is not None))
            tasks.start_soon(self._be_member)
            tasks.start_soon(self._keep_exposures)
            tasks.start_soon(self._exposures.inspector.run)
            tasks.start_soon(self._say_ready)
            await self._stopping.wait()
            self._stopped = True
            sd_notify("STOPPING=1")
            _log.info("stopping")
            await self._control.leave()
            tasks.cancel_scope.cancel()

    # what the control client says ------------------------------------------------------------------------------------

    def welcomed(self, welcome: Welcome) -> None:
        identity = identity_of(welcome)
        relay, stun = relay_of(welcome, self._control.endpoint), stun_servers_of(welcome)
        try:
            self._memory.save_welcome(welcome)
            self._memory.save_joined(self._start.joined)
        except UserError as error:
            if self._memory.joined is None:
                raise
            # A disk that is full must not end a network that works; at the next welcome it is tried again.
            _log.warning("%s %s", error, error.hint)
        self._take_identity(identity)
        self._member.set_relay(relay)
        self._set_stun_servers(relay, stun)
        self._links.server_is_back()
        self._server_exposures = ("welcome", welcome.exposures)
        self._server_exposures_changed.set()
        if self._memory.network_map is not None:
            self._in_network.set()

    def mapped(self, network_map: NetworkMap) -> None:
        self._memory.set_map(network_map)
        self._member.apply_map(network_map)
        self._in_network.set()

    def exposures_changed(self, exposures: tuple[Exposure, ...]) -> None:
        if self._server_exposures is None or self._server_exposures[0] == "news":
            self._server_exposures = ("news", exposures)
        else:
            self._server_exposures = ("welcome", exposures)  # the welcome's have not been looked at yet
        self._server_exposures_changed.set()

    def withdrawn(self, name: str, why: str) -> None:
        self._exposures.withdrawn(name, why)

    def requested(self, name: str, entries: tuple[RequestEntry, ...]) -> None:
        self._exposures.requested(name, entries)

    def supply(self, wish: Supply) -> None:
        self._calls.supply(wish)

    def group_changed(self, name: str, members: tuple[GroupMember, ...]) -> None:
        self._exposures.set_members(name, members)

    def let_in(self, name: str, address: str, seconds: float) -> None:
        self._exposures.let_in(name, address, seconds)

    def disconnected(self) -> None:
        _log.info("working from the last map until the server is back")

    # what the local API asks -----------------------------------------------------------------------------------------

    async def status(self) -> NodeStatus:
        snapshot = await self._member.snapshot()
        welcome, network_map = self._memory.welcome, self._memory.network_map
        own = None
        if network_map is not None and welcome is not None:
            own = next((node for node in network_map.nodes if node.number == welcome.number), None)
        # The relay's answer to a ping is timed by the engine; the control channel's may have waited for other work.
        rtt = snapshot.relay_rtt if snapshot is not None and snapshot.relay_rtt else self._control.rtt
        drops = (
            dict(self._exposures.drops)
            | dict(self._punching.drops)
            | (dict(snapshot.drops) if snapshot is not None else {})
        )
        return NodeStatus(
            state=self._state_word(),
            name=own.name if own is not None else welcome.name if welcome is not None else "",
            addresses=welcome.addresses if welcome is not None else (),
            domain=welcome.domain if welcome is not None else self._start.joined.domain,
            domains=(welcome.domain, *welcome.more_domains) if welcome is not None else (self._start.joined.domain,),
            interface=self._member.interface,
            server=ServerStatus(
                address=self._control.address or self._start.joined.addresses[0],
                carrier=self._ways.carrier or "",
                rtt_ms=None if rtt is None else round(rtt * 1000, 3),
                carrier_why=self._ways.why,
                data_carrier=self._data_carrier(),
            ),
            peers=self._member.peers(snapshot),
            exposures=self._exposures.status(),
            port=self._member.port,
            nat=nat_status(self._reflexive.nat, self._reflexive.endpoints) if self._udp else None,
            port_mapping=self._port_mapper.status if self._maps_port else None,
            warnings=(*self._member.warnings, *self._name_warnings(own)),
            drops=drops,
            features=dict(snapshot.features) if snapshot is not None else {},
            version=__version__,
        )

    def shut_down(self) -> None:
        self._stopping.set()

    def exposures(self) -> tuple[ExposureStatus, ...]:
        return self._exposures.status()

    async def expose(self, wish: ExposeWish, owner: int) -> ExposureStatus:
        return await self._exposures.add(wish, owner)

    def watch_requests(self, name: str) -> Produce:
        return self._exposures.watch(name)

    async def unexpose(self, name: str) -> None:
        await self._exposures.remove(name)

    async def connect(self, name: str, token: str) -> Connected:
        by_server = not self._settings.tun
        answer = await self._control.request(lambda seq: Connect(seq=seq, name=name, token=token, by_server=by_server))
        if not isinstance(answer, Connected) or (by_server and answer.by_server is None):
            raise UserError("bad-answer", "The server answered something that does not fit the request.")
        if answer.by_server is None:
            return answer
        known = (*self._start.joined.addresses, self._control.address)
        servers = tuple(dict.fromkeys(each for each in known if each))
        return msgspec.structs.replace(answer, by_server=msgspec.structs.replace(answer.by_server, servers=servers))

    def records(self) -> tuple[RecordStatus, ...]:
        return self._records.status()

    async def add_record(self, name: str, rtype: str, value: str) -> RecordStatus:
        return await self._records.add(name, rtype, value)

    async def remove_record(self, name: str, rtype: str) -> None:
        await self._records.remove(name, rtype)

    def names_status(self) -> NamesStatus:
        return self._member.names.status()

    async def query_name(self, name: str, rtype: str) -> NameAnswer:
        return await self._member.names.query(name, rtype)

    # inside ----------------------------------------------------------------------------------------------------------

    def _api(self) -> Starlette:
        return make_api(
            self,
            self._member,
            self._member,
            self._exposure_files,
            self._connections,
            self._exposures.inspector,
        )

    def _hello(self, map_version: int, map_mark: bytes) -> Hello:
        chosen = self._start.joined.name
        return Hello(
            name=chosen or default_name(socket.gethostname()),
            name_chosen=bool(chosen),
            # Only until the node is registered: the secret has done its work then.
            invite=b"" if self._in_network.is_set() else self._start.secret,
            ciphers=self._ciphers,
            endpoints=self._member.lan,
            map_version=map_version,
            map_mark=map_mark,
            epoch=self._epoch,
            software=f"overlay {__version__}",
        )

    def _name_warnings(self, own: MapNode | None) -> Iterator[str]:
        """What a person wanted and somebody else has."""
        network_map, wish = self._memory.network_map, default_name(socket.gethostname())
        if network_map is None or own is None:
            return
        if not self._start.joined.name and is_suffixed(own.name, wish, {node.name for node in network_map.nodes}):
            yield (
                f"Another node is called '{wish}', so this one is '{own.name}': choose a name with "
                "'overlay down' and 'overlay up --name NAME'."
            )
        for record in self._records.status():
            if record.shadowed and record.node == own.name:
                yield (
                    f"The record {record.name} {record.type} of this node is not served, since a node has taken the "
                    f"name: remove it with 'overlay dns rm {record.name}', or have that node renamed."
                )

    def _is_server(self, address: str) -> bool:
        network_map = self._memory.network_map
        nodes = network_map.nodes if network_map is not None else ()
        return any(node.number == SERVER_NUMBER and address in node.addresses for node in nodes)

    def _is_member(self, address: str) -> bool:
        networks = self._identity.networks if self._identity is not None else ()
        return any(ip_address(address) in network for network in networks)

    def _remember(self, welcome: Welcome, network_map: NetworkMap) -> None:
        try:
            self._take_identity(identity_of(welcome))
            relay = relay_of(welcome, None)
            self._member.set_relay(relay)
            self._set_stun_servers(relay, stun_servers_of(welcome))
            self._member.apply_map(network_map)
        except (RemoteProtocolError, ValueError) as error:
            # The server says it all anew; until then there is nothing to work from.
            _log.warning("what this node remembers cannot be used: %s", error)

    def _take_identity(self, identity: Identity) -> None:
        if identity != self._identity:
            self._identity = identity
            self._up = anyio.Event()
            self._identity_changed.set()

    def _endpoints_changed(self) -> None:
        # Not the LAN's: peers are told themselves, sealed, and the server need not know how a home is numbered.
        self._control.set_endpoints((), self._member.observed)

    def _set_stun_servers(self, relay: Relay, stun: Sequence[Endpoint]) -> None:
        # Where nobody wants UDP to the server, only TCP's ports are looked at from outside.
        self._reflexive.set_servers(relay.endpoints, stun, udp=self._udp)

    def _reach_changed(self) -> None:
        self._member.set_nat(self._reflexive.nat)
        self._member.set_outside("stun", self._reflexive.endpoints)
        self._port_mapper.seen(self._reflexive.endpoints)

    def _link_changed(self) -> None:
        self._reflexive.link_changed()
        self._port_mapper.link_changed()
        self._control.link_changed()
        self._links.link_changed()

    def _relay_event(self, event: RelayChanged | LinkLost) -> None:
        if isinstance(event, LinkLost):
            self._links.link_lost(event)
            self._punching.received(event)
        else:
            if self._by_udp and self._ways.carrier == "udp" and (event.suspect or event.endpoint is None):
                self._control.doubt()  # a cut or a server's crash shows here first: the heartbeat takes a minute
            self._links.relay_changed(event)
            self._by_udp = event.endpoint is not None and not self._links.in_use

    def _data_carrier(self) -> str | None:
        return self._links.carrier if self._links.in_use else "udp" if self._by_udp else None

    async def _be_member(self) -> None:
        """Be in the network under the identity that the server gave, and again under each new one."""
        while True:
            await self._identity_changed.wait()
            self._identity_changed = anyio.Event()
            identity = self._identity
            assert identity is not None
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._member.run, identity)
                await tasks.start(self._exposures.run, str(identity.addresses[0]) if self._settings.tun else "")
                tasks.start_soon(self._calls.run)
                tasks.start_soon(self._exposure_files.run)
                tasks.start_soon(self._connections.run)
                if self._settings.tun:
                    self._look_for_paths(tasks, identity)
                self._up.set()
                self._server_exposures_changed.set()
                await self._identity_changed.wait()
                _log.info("this node's place in the network changed")
                tasks.cancel_scope.cancel()

    def _look_for_paths(self, tasks: TaskGroup, identity: Identity) -> None:
        tasks.start_soon(self._links.run)
        tasks.start_soon(self._reflexive.run)
        tasks.start_soon(self._punching.run, Own(identity.number, identity.networks))
        if self._maps_port:
            tasks.start_soon(self._port_mapper.run)

    async def _keep_exposures(self) -> None:
        while True:
            await self._server_exposures_changed.wait()
            await self._up.wait()
            self._server_exposures_changed = anyio.Event()
            if self._server_exposures is None:
                continue
            kind, exposures = self._server_exposures
            try:
                if kind == "welcome":
                    await self._exposures.reconcile(exposures)
                else:
                    await self._exposures.retain(exposures)
            except UserError as error:
                _log.warning("%s %s", error, error.hint)
            if self._server_exposures == (kind, exposures):
                self._server_exposures = None

    async def _say_ready(self) -> None:
        with anyio.move_on_after(OFFLINE_AFTER if self._identity is not None else None):
            await self._in_network.wait()
        await self._up.wait()
        state = self._state_word()
        _log.info("ready, %s", state)
        report_ready({"state": state})

    def _state_word(self) -> State:
        if self._stopped:
            return "stopped"
        if not self._up.is_set():
            return "starting"
        return "connected" if self._control.state == "connected" else "offline"

    async def _take_signals(self, scope: anyio.CancelScope) -> None:
        on_terminal = os.isatty(sys.stderr.fileno())
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP and not on_terminal:
                    _log.info("nothing to read again")
                    continue
                if self._stopping.is_set():
                    scope.cancel()  # the second time: without saying good-bye
                self.interrupted = number == signal.SIGINT
                self._stopping.set()


def _target(settings: NodeSettings, joined: Joined, private_key: bytes) -> Target:
    """Raises `UserError` as `check_ways` does."""
    carriers, proxy = check_ways(settings.carriers, settings.proxy)
    return Target(
        addresses=joined.addresses,
        server_key=joined.server_key,
        private_key=private_key,
        carriers=carriers,
        options=DialOptions(proxy=proxy, pin=joined.pin, ca_file=settings.ca_file or None),
        no_proxy=settings.no_proxy,
    )
