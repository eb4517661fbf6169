"""The server's daemon: joins registry, network, control connections, exposures, local API and the server's own part in
the network, and takes them down in order. It holds no policy of its own.
"""

import logging
import resource
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from anyio import CancelScope
from anyio.abc import Listener, SocketStream, TaskGroup, TaskStatus

from overlay import __version__
from overlay.carrier.limits import DEFAULT_LIMITS, Door
from overlay.carrier.port import Services
from overlay.carrier.quic_door import QuicDoor
from overlay.carrier.tcp import ControlConnection, serve
from overlay.carrier.watch import new_event_loop
from overlay.daemon import logs
from overlay.daemon.launch import report_ready, sd_notify
from overlay.daemon.localapi import serve_local_api
from overlay.daemon.process import run_loop
from overlay.daemon.state import LOG_NAME, StateDir
from overlay.engine.api import SERVER_NUMBER, ExpectForeign, LinkLost, RelayChanged, SendDatagrams
from overlay.node.ciphers import measure
from overlay.node.interface import Machine, check_tun, read_machine
from overlay.node.member import Identity, Member, MemberSettings, StartEngine
from overlay.server.api import make_api
from overlay.server.callers import TOKEN_LIFE
from overlay.server.certificates import Certificates, check_settings
from overlay.server.claims import Surroundings
from overlay.server.control import converse
from overlay.server.exposures import Exposures
from overlay.server.founding import found
from overlay.server.hub import Hub
from overlay.server.invites import DEFAULT_EXPIRY, DEFAULT_USES
from overlay.server.keys import load_or_make_keys
from overlay.server.network import Clock, Network, map_node
from overlay.server.policy import Rights
from overlay.server.policy_file import PolicyFile
from overlay.server.proxying import Nodes, ProxyDoor
from overlay.server.reach import Reach, find_reach, leads_here, listening_port, open_listeners, parse_listen
from overlay.server.records import Records
from overlay.server.registry import FILE_NAME, Registry
from overlay.server.schema import NetworkRecord, NodeRecord
from overlay.server.settings import ServerSettings
from overlay.server.stun import StunService, open_second_port
from overlay.server.tokens import Tokens
from overlay.server.web.hosts import parse_web_domain
from overlay.wire.control.codec import encode
from overlay.wire.control.messages import MapDelta, MapRecord, Message, NetworkMap, SignedMap, Supply
from overlay.wire.control.netmap import sign
from overlay.wire.demux import kind_of
from overlay.wire.endpoint import Endpoint, format_endpoint, parse_endpoint

LOOKUPS = 4
"""Names that are looked up at once because nodes named them; each holds a thread."""
GOODBYE = 1.0
"""Seconds that telling the nodes may hold up the end."""

_log = logging.getLogger(__name__)


def run(settings: ServerSettings, *, background: bool = False) -> None:
    """Be a server until told to stop. In the `background`, the log goes to the state folder.

    Raises `UserError`; `KeyboardInterrupt` when it was ended by SIGINT, after everything is taken down.
    """
    state = StateDir(Path(settings.state)).open()
    with state.lock():
        logs.configure(settings.verbosity, state.path / LOG_NAME if background else None)
        _raise_descriptor_limit()
        # Not into a service manager's log: an invite is a secret.
        show_invite = background or sys.stdout.isatty()
        daemon = ServerDaemon(
            settings, state, on_ready=report_ready if background else _show_ready, first_invite=show_invite
        )
        run_loop(daemon.run, new_event_loop)
    if daemon.interrupted:
        raise KeyboardInterrupt


class ServerDaemon:
    """See the module's docstring. Also the `Daemon` of the local API."""

    def __init__(
        self,
        settings: ServerSettings,
        state: StateDir,
        *,
        on_ready: Callable[[dict[str, Any]], None],
        first_invite: bool = True,
        start_engine: StartEngine | None = None,
        read_host: Callable[[], Awaitable[Machine]] = read_machine,
    ) -> None:
        """`on_ready` gets {"state", …}, with "invite" as the local API has it if `first_invite` and nobody is in the
        network yet. Raises `UserError` for wrong settings, damaged keys, a machine without TUN.
        """
        self.interrupted = False
        self._settings = settings
        self._state = state
        self._on_ready = on_ready
        self._first_invite = first_invite
        self._start_engine = start_engine
        self._read_host = read_host
        self._listen = parse_listen(settings.listen)
        check_settings(settings)
        self._web_domain = parse_web_domain(settings.web_domain) if settings.web_domain else ""
        if settings.tun and start_engine is None:
            check_tun()
        self._policy = PolicyFile(state.path, settings.policy)
        self._keys = load_or_make_keys(state, secrets.token_bytes)
        self._drops: Counter[str] = Counter()  # of control connections
        self._strangers = Door(DEFAULT_LIMITS)
        self._listening: tuple[Endpoint, ...] = ()
        self._reach = Reach(addresses=(), relays=())
        self._stopping = anyio.Event()
        self._serving: CancelScope | None = None
        self._served = anyio.Event()
        self._door: QuicDoor | None = None
        self._network: Network | None = None
        self._member: Member | None = None
        self._stun: StunService | None = None
        self._lookups = anyio.Semaphore(LOOKUPS)
        self._certificates: Certificates | None = None

    async def run(self) -> None:
        """Until `shut_down` or a signal. Raises `UserError`, perhaps inside an exception group."""
        async with AsyncExitStack() as stack:
            registry = await Registry.open(self._state.path / FILE_NAME)
            stack.push_async_callback(registry.close)
            record, nodes = await found(
                registry,
                self._settings,
                self._keys,
                ciphers=measure(),
                machine=self._read_host,
                wall=time.time(),
            )
            listeners = await open_listeners(self._listen)
            for listener in listeners:
                stack.push_async_callback(listener.aclose)
            second_port = open_second_port(self._listen, self._settings.stun_port)
            for each in second_port:
                stack.callback(each.close)
            try:
                async with anyio.create_task_group() as tasks:
                    await self._start(tasks, registry, record, nodes, listeners, second_port)
                    await self._stopping.wait()
                    sd_notify("STOPPING=1")
                    _log.info("stopping")
                    await self._say_goodbye()
                    tasks.cancel_scope.cancel()
            finally:
                if self._network is not None:
                    self._network.exposures.close()
                    with anyio.CancelScope(shield=True):
                        await self._network.exposures.save()
                        await self._network.save()

    def shut_down(self) -> None:
        self._stopping.set()

    async def status(self) -> dict[str, Any]:
        """The document of the local API."""
        # The API is served after these are made.
        assert self._network is not None and self._member is not None and self._certificates is not None
        snapshot = await self._member.snapshot()
        network = self._network
        own, nodes = network.server, network.nodes()
        drops = self._drops + network.drops + network.exposures.drops
        if snapshot is not None:
            drops += Counter(dict(snapshot.drops))
        return {
            "state": "running",
            "public": list(self._reach.addresses),
            "listen": [format_endpoint(endpoint) for endpoint in self._listening],
            "domain": network.record.domains[0],
            "domains": list(network.record.domains),
            "networks": list(network.networks),
            "name": own.name,
            "addresses": list(network.addresses(own)),
            "interface": self._member.interface,
            "port": self._member.port,
            "stun_port": self._stun.places.second_port if self._stun is not None else None,
            "nodes": len(nodes),
            "online": sum(1 for node in nodes if node["online"]),
            "exposures": network.exposures.status(),
            "relayed_bytes": snapshot.relayed_bytes if snapshot is not None else 0,
            "relay_waiting_bytes": snapshot.relay_waiting if snapshot is not None else 0,
            "relay_rate_bit_s": self._settings.relay_rate * 8 or None,
            "drops": dict(drops),
            "features": dict(snapshot.features) if snapshot is not None else {},
            "certificate": self._certificates.status(),
            "warnings": [
                *self._reach.warnings,
                *self._member.warnings,
                *self._certificates.warnings,
                *network.name_warnings(),
            ],
            "version": __version__,
        }

    # inside ----------------------------------------------------------------------------------------------------------

    async def _start(
        self,
        tasks: TaskGroup,
        registry: Registry,
        record: NetworkRecord,
        nodes: list[NodeRecord],
        listeners: Sequence[Listener[SocketStream]],
        second_port: Sequence[socket.socket],
    ) -> None:
        tasks.start_soon(self._take_signals, tasks.cancel_scope)
        port = listening_port(listeners)
        self._listening = tuple((host, own or port) for host, own in self._listen) or (("0.0.0.0", port), ("::", port))
        identity = _identity(record, nodes[0])
        machine = await self._read_host()
        self._reach = await find_reach(self._settings.public, self._listen, port, machine, identity.networks)
        stun = self._stun = self._make_stun(port, second_port, machine)
        for warning in self._reach.warnings:
            _log.warning("%s", warning)
        certificates = self._certificates = Certificates(
            self._state, self._settings, self._reach.hosts, leads_here=self._leads_here
        )
        member = self._member = self._make_member(port)
        exposures = Exposures(registry, self._surroundings(port, record.domains), tasks)
        certificates.leases = exposures
        records = self._make_records(registry, record.domains)
        await records.start()
        network = self._network = Network(
            registry=registry,
            record=record,
            nodes=nodes,
            keys=self._keys,
            hub=self._make_hub(registry, record, nodes, records.all(), member),
            relay=member,
            exposures=exposures,
            records=records,
            reach=self._reach,
            clock=Clock(wall=time.time, random_bytes=secrets.token_bytes),
            pin=certificates.pin,
        )
        await tasks.start(member.run, identity)
        network.start()
        self._tell_own_endpoints()
        await tasks.start(network.hub.run)
        tokens = self._make_tokens(registry, network, certificates)
        await tokens.start()
        await exposures.start()
        tasks.start_soon(exposures.run)
        tasks.start_soon(self._policy.run, exposures.policy_changed)
        tasks.start_soon(network.run)
        tasks.start_soon(certificates.run)
        tasks.start_soon(stun.run)
        await tasks.start(serve_local_api, make_api(self, network, member, member, tokens), self._state.path)
        await tasks.start(self._serve, listeners, member, certificates)
        await self._say_ready(network, first=len(nodes) == 1)

    async def _serve(
        self,
        listeners: Sequence[Listener[SocketStream]],
        member: Member,
        certificates: Certificates,
        *,
        task_status: TaskStatus[None],
    ) -> None:
        """Take nodes in by all carriers, until `_say_goodbye`."""

        def send(datagrams: Sequence[bytes], endpoint: Endpoint) -> None:
            member.post(SendDatagrams(tuple(datagrams), endpoint))

        def expect(endpoint: Endpoint, expected: bool) -> None:
            member.post(ExpectForeign(endpoint, expected))

        self._door = QuicDoor(send, certificates.chain_and_key, self._keys.node_key, expect)
        try:
            with anyio.CancelScope() as self._serving:
                task_status.started()
                await serve(
                    listeners,
                    self._keys.node_key,
                    self._converse,
                    drops=self._drops,
                    quic=self._door,
                    services=Services(
                        tls=certificates.context,
                        http_answer=certificates.http_answer,
                        guests=self._network.exposures.guests if self._network is not None else None,
                    ),
                    stun=self._stun.answer if self._stun is not None else None,
                    door=self._strangers,
                )
        finally:
            self._served.set()

    async def _say_goodbye(self) -> None:
        """Let the nodes know: over QUIC that takes the engine, which is to send it before it ends."""
        if self._serving is not None:
            self._serving.cancel()
        with anyio.move_on_after(GOODBYE):
            await self._served.wait()
            if self._member is not None:
                await self._member.snapshot()  # commands are done in turn

    def _receive_foreign(self, datagram: bytes, source: Endpoint) -> None:
        if kind_of(datagram) == "stun":
            if self._stun is not None:
                self._stun.received(datagram, source)
        elif self._door is not None:
            self._door.received(datagram, source)

    def _make_stun(self, port: int, second_port: Sequence[socket.socket], machine: Machine) -> StunService:
        known = [parse_endpoint(each)[0] for each in self._reach.relays]
        own = {each.address for each in machine.addresses}
        service = StunService(
            lambda datagram, endpoint: self._post(SendDatagrams((datagram,), endpoint)),
            second_port,
            port,
            [host for host in known if host in own],
            self._drops,
        )
        if service.places.second_port is not None:
            self._reach = replace(
                self._reach, stun=tuple(format_endpoint((host, service.places.second_port)) for host in known)
            )
        return service

    def _post(self, command: SendDatagrams) -> None:
        if self._member is not None:
            self._member.post(command)

    def _make_tokens(self, registry: Registry, network: Network, certificates: Certificates) -> Tokens:
        """And the door for those who show them."""
        tokens = Tokens(
            registry,
            wall=time.time,
            random_bytes=secrets.token_bytes,
            names=network.names,
            place=lambda: (self._reach.addresses, certificates.pin),
        )
        exposures = network.exposures
        nodes = Nodes(network.names, network.record.domains, network.address_of, exposures.is_end)
        exposures.guests.proxy = ProxyDoor(tokens, nodes, time.time, exposures.drops)
        return tokens

    def _make_member(self, port: int) -> Member:
        settings = MemberSettings(
            private_key=self._keys.node_key,
            interface=(self._settings.interface or "overlay%d") if self._settings.tun else None,
            port=port,
            relay_clients=True,
            relay_rate=self._settings.relay_rate,
            copy_dscp=self._settings.dscp == "copy",
            names=False,
        )
        return Member(
            settings,
            self._state,
            on_endpoints=self._tell_own_endpoints,
            on_relay=self._relay_event,
            on_foreign=self._receive_foreign,
            start_engine=self._start_engine,
        )

    def _make_records(self, registry: Registry, domains: tuple[str, ...]) -> Records:
        return Records(
            registry,
            domains,
            lambda: self._network.names() if self._network is not None else {},
            self._tell_records,
            time.time,
        )

    def _tell_records(self) -> None:
        if self._network is not None:
            self._network.tell_records()

    def _make_hub(
        self,
        registry: Registry,
        record: NetworkRecord,
        nodes: list[NodeRecord],
        records: Iterable[MapRecord],
        member: Member,
    ) -> Hub:
        networks = (record.ipv4, record.ipv6)

        async def reserve(version: int) -> None:
            async with registry.transaction() as transaction:
                await transaction.set_network(map_version=version)

        return Hub(
            network=record.identity,
            domains=record.domains,
            networks=networks,
            version=record.map_version,
            nodes=[map_node(node, networks, online=node.number == SERVER_NUMBER) for node in nodes],
            records=records,
            sign=self._sign,
            reserve=reserve,
            on_map=member.apply_map,
        )

    def _surroundings(self, port: int, domains: tuple[str, ...]) -> Surroundings:
        return Surroundings(
            public_hosts=self._reach.hosts,
            own_ports=self._own_ports(port),
            address_of=lambda number: self._network.address_of(number) if self._network is not None else None,
            name_of=lambda number: self._network.name_of(number) if self._network is not None else "",
            key_of=lambda number: self._network.key_of(number) if self._network is not None else b"",
            wall=time.time,
            randbelow=secrets.randbelow,
            tunnel=self._settings.tun,
            tell=self._tell,
            pin=lambda: self._certificates.current.pin if self._certificates is not None else b"",
            random_bytes=secrets.token_bytes,
            web_ports=tuple(sorted({own for kind, own in self._own_ports(port) if kind == "tcp"})),
            web_domain=self._web_domain,
            domains=domains,
            rights=self._rights,
            tags_of=lambda number: self._network.name_and_tags(number)[1] if self._network is not None else (),
            direct=self._settings.direct_names,
            on_names=self._tell_records,
            leads_here=self._leads_here,
            is_near=lambda number, source: self._network is not None and self._network.is_near(number, source),
        )

    def _rights(self, number: int) -> Rights:
        policy = self._policy.current
        return policy.rights(*self._network.name_and_tags(number)) if self._network is not None else policy.default

    async def _leads_here(self, host: str) -> bool:
        async with self._lookups:
            return await leads_here(host, self._reach)

    def _own_ports(self, port: int) -> frozenset[tuple[str, int]]:
        stun = self._stun.places.second_port if self._stun is not None else None
        return frozenset(
            {("tcp", port), ("udp", port), *(("tcp", own) for _, own in self._listen if own)}
            | ({("udp", stun)} if stun is not None else set())
        )

    async def _tell(self, number: int, message: Message) -> bool:
        if self._network is None:
            return False
        if isinstance(message, Supply) and (host := self._network.hub.host_of(number)) is not None:
            self._strangers.expect(host, len(message.tokens), anyio.current_time() + TOKEN_LIFE)
        return await self._network.hub.tell(number, encode(message))

    def _sign(self, body: NetworkMap | MapDelta) -> SignedMap:
        return sign(body, self._keys.map_seed)

    def _tell_own_endpoints(self) -> None:
        if self._network is not None and self._member is not None:
            self._network.set_endpoints(SERVER_NUMBER, self._member.lan, self._reach.relays)

    def _relay_event(self, event: RelayChanged | LinkLost) -> None:
        if isinstance(event, LinkLost) and self._network is not None:
            self._network.links.lost(event.number)

    async def _converse(self, connection: ControlConnection) -> None:
        assert self._network is not None  # connections are served after it is made
        await converse(self._network, connection)

    async def _say_ready(self, network: Network, *, first: bool) -> None:
        ready: dict[str, Any] = {"state": "running"}
        if first and self._first_invite:
            ready.update(await network.invite(uses=DEFAULT_USES, expires_in=DEFAULT_EXPIRY, tags=()))
        _log.info("ready: %s", ", ".join(self._reach.addresses))
        self._on_ready(ready)

    async def _take_signals(self, scope: CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    self._policy.reload()
                    if self._certificates is not None:
                        self._certificates.reload()
                    continue
                if self._stopping.is_set():
                    scope.cancel()
                self.interrupted = number == signal.SIGINT
                self._stopping.set()


def _identity(record: NetworkRecord, server: NodeRecord) -> Identity:
    networks = (record.ipv4, record.ipv6)
    return Identity.parse(
        number=server.number,
        name=server.name,
        addresses=map_node(server, networks, online=True).addresses,
        networks=networks,
        domains=record.domains,
    )


def _show_ready(ready: dict[str, Any]) -> None:
    """In the foreground: the first invite to the terminal, and word to the service manager."""
    if "invite" in ready:
        sys.stdout.write(
            f"The first machine joins with this, once and within a day:\nsudo overlay up {ready['invite']}\n"
        )
        sys.stdout.flush()
    report_ready(ready)


def _raise_descriptor_limit() -> None:
    """Each node and each user costs descriptors; the default soft limit of 1024 is for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
