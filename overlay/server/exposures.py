"""Exposures: which node holds which public port, or name on the shared port. A lease is kept in the registry until the
node gives it back or is removed, so it survives restarts of either end; a port that cannot be opened at start is tried
again.
"""

import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import anyio
import msgspec
from anyio.abc import TaskGroup

from overlay.carrier.port import Guest
from overlay.carrier.stream import TcpStream
from overlay.errors import Exit, UserError
from overlay.server.callers import Callers, DynamicTunnel, Tell
from overlay.server.exposure_names import NOTHING_SAID, Said, check_said
from overlay.server.ingress import PublicPort, ServeUser, bind_public
from overlay.server.registry import Registry
from overlay.server.schema import ExposureRecord, exposure_id
from overlay.server.tunnels import SingleTunnel, Tunnel
from overlay.server.web.door import WebDoor, make_room
from overlay.server.web.guests import WebGuests
from overlay.server.web.hosts import parse_host, tls_port, url_of
from overlay.server.web.sites import Site, Sites
from overlay.server.web.tls_door import TlsDoor
from overlay.wire.control.messages import (
    Expose,
    Exposure,
    ExposureProtocol,
    Message,
    RequestEntry,
    TunnelCarrier,
    TunnelKind,
)
from overlay.wire.endpoint import Endpoint, format_endpoint, parse_endpoint

PICKED_PORTS = range(20000, 30000)  # below the kernel's own (net.ipv4.ip_local_port_range), above the known services
MAX_PER_NODE = 64
RETRY_INTERVAL = 10.0  # s between tries to open a port that another program holds
_PICK_TRIES = 64
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
_PICKED_LETTERS = 6  # of a host that nobody asked for: 30 bits, so that it is not guessed at once
_LONGEST_TARGET = 256  # characters
_WILDCARDS = frozenset({"0.0.0.0", "::"})
_log = logging.getLogger(__name__)


async def _nobody(_node: int, _message: Message) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What exposures must know of the rest of the server."""

    public_hosts: tuple[str, ...]  # as users know the server, best first
    own_ports: frozenset[tuple[str, int]]  # (protocol, port) of the server itself
    address_of: Callable[[int], str | None]  # a node's overlay address; None while it is offline
    name_of: Callable[[int], str]
    wall: Callable[[], float]  # Unix time, s
    randbelow: Callable[[int], int]
    tunnel: bool = True  # whether the server has a TUN of its own to carry users
    tell: Tell = _nobody  # to a node
    pin: Callable[[], bytes] = bytes  # of the server's certificate now
    random_bytes: Callable[[int], bytes] = os.urandom
    web_ports: tuple[int, ...] = ()  # the shared ones, for URLs
    web_domain: str = ""  # below which hosts are picked; "": none are
    domains: tuple[str, ...] = ()  # the network's
    direct: bool = True  # whether peers may be led past the server
    on_names: Callable[[], None] = lambda: None  # what is said of some exposure has changed
    leads_here: Callable[[str], Awaitable[bool]] | None = None
    """Whether a name of the public DNS leads to this server. None: no exposure has names."""


class Exposures:
    """All exposures of the network. Requests are served one after another."""

    def __init__(self, registry: Registry, around: Surroundings, tasks: TaskGroup) -> None:
        self.drops: Counter[str] = Counter()
        """Users turned away, and datagrams, by reason."""
        self._registry = registry
        self._around = around
        self._tasks = tasks
        self._records: dict[int, ExposureRecord] = {}
        self._said: dict[int, Said] = {}  # not kept: nodes say it anew at each welcome, and it is looked at anew
        self._ports: dict[int, PublicPort] = {}
        self._sites: dict[int, Site] = {}  # of what is exposed by http or tls
        self._by_name = Sites()
        room = make_room()
        self._web = WebDoor(self.drops, around.wall, room)
        self._callers = Callers(around.tell, around.pin, around.random_bytes, self.drops)
        self.guests = WebGuests(self._by_name, self._web, TlsDoor(self.drops, room), self._callers)
        """Who serves users on the shared port."""
        self._problems: dict[int, str] = {}  # why a port of a kept lease is not open
        self._lock = anyio.Lock()

    async def start(self) -> None:
        """Open the ports of the leases that the registry holds."""
        async with self._registry.transaction() as transaction:
            self._records = {record.id: record for record in await transaction.exposures()}
        self._open_missing()

    async def run(self) -> None:
        """Go on trying to open what could not be opened."""
        while True:
            await anyio.sleep(RETRY_INTERVAL)
            self._open_missing()

    def close(self) -> None:
        """Close all ports; the leases stay. The task group may have been cancelled before a port was served."""
        for public in self._ports.values():
            public.close()
        self._ports.clear()
        self._callers.close()

    async def expose(self, node: int, request: Expose) -> Exposure:
        """Grant or renew an exposure.

        Raises `UserError`: "expose-invalid", "public-invalid", "public-not-here", "host-invalid", "port-taken",
        "host-taken" (the message names the holder), "port-permission", "no-free-port", "too-many-exposures",
        "exposure-unknown", "no-tunnel", what the registry raises, and what `check_said` does.
        """
        target = request.target
        if not 0 < request.port < 65536 or not 0 < len(target) <= _LONGEST_TARGET or not target.isprintable():
            raise UserError("expose-invalid", "The node asked for an exposure that cannot be.", exit_code=Exit.USAGE)
        if request.tunnel != "single" and request.protocol == "udp":
            raise UserError(
                "no-tunnel", "Datagrams are carried by the single tunnel alone.", "Leave out --tunnel.", Exit.USAGE
            )
        if not self._around.tunnel and request.tunnel == "single":
            raise UserError(
                "no-tunnel",
                "This server runs without a network interface and cannot carry users to nodes.",
                "Use --tunnel tls, or start the server without --no-tun.",
            )
        around = self._around
        said = await check_said(request, around.leads_here, around.public_hosts, around.domains, direct=around.direct)
        # Shielded: a node that goes away in the middle must not leave a lease without its port.
        with anyio.CancelScope(shield=True):
            async with self._lock:
                record = await (self._renew(node, request) if request.id else self._grant(node, request))
                if record.path:
                    said = NOTHING_SAID  # all of it is about a port
                if self._said.get(record.id, NOTHING_SAID) != said:
                    self._said[record.id] = said
                    self._around.on_names()
        return self._show(record)

    async def unexpose(self, node: int, name: str) -> None:
        """Give an exposure back. Raises `UserError` ("exposure-unknown")."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                record = self._owned(node, name)
                async with self._registry.transaction() as transaction:
                    await transaction.remove_exposure(record.id)
                self._forget(record.id)

    def watch(self, node: int, name: str, tell: Callable[[str, RequestEntry], None] | None) -> None:
        """Have `tell` hear of the requests of an exposure by http; None: nobody. Raises `UserError`
        ("exposure-unknown")."""
        site = self._sites.get(self._owned(node, name).id)
        if site is not None:
            site.on_request = None if tell is None else partial(tell, name)

    async def forget_node(self, node: int) -> None:
        """The node was removed, and its leases with it: close its ports."""
        async with self._lock:
            for record in [record for record in self._records.values() if record.node == node]:
                self._forget(record.id)
            self._callers.forget_node(node)

    def said(self) -> list[tuple[ExposureRecord, Said]]:
        """Each exposure, with what its node has said of it."""
        return [(record, self._said.get(record.id, NOTHING_SAID)) for record in self._records.values()]

    def of_node(self, node: int) -> tuple[Exposure, ...]:
        return tuple(self._show(record) for record in self._records.values() if record.node == node)

    def status(self) -> list[dict[str, Any]]:
        """All exposures as the local API shows them."""
        return [
            {
                "id": record.name,
                "node": self._around.name_of(record.node),
                "public": self.public(record),
                "url": self._url(record),
                "target": record.target,
                "tunnel": record.tunnel,
                "connections": self._connections(record.id),
                "problem": self._problems.get(record.id),
            }
            for record in self._records.values()
        ]

    async def _renew(self, node: int, request: Expose) -> ExposureRecord:
        record = self._owned(node, request.id)
        renewed = msgspec.structs.replace(record, target=request.target, port=request.port)
        if renewed != record:
            async with self._registry.transaction() as transaction:
                await transaction.set_exposure(renewed)
            self._records[record.id] = renewed
        return renewed

    async def _grant(self, node: int, request: Expose) -> ExposureRecord:
        if len([record for record in self._records.values() if record.node == node]) >= MAX_PER_NODE:
            raise UserError(
                "too-many-exposures",
                f"A node may hold {MAX_PER_NODE} exposures at once.",
                "Give some back with 'overlay expose rm ID'.",
                Exit.REFUSED,
            )
        wanted = self._wanted(node, request)
        public: PublicPort | None = None
        if wanted.path:
            record = wanted
            self._check_host(record)
        else:
            record, public = self._open_any(wanted) if not wanted.public_port else (wanted, self._open(wanted))
        try:
            async with self._registry.transaction() as transaction:
                lease = await transaction.add_exposure(record)
        except BaseException:
            if public is not None:
                public.close()
            raise
        self._serve(lease, public)
        return lease

    def _wanted(self, node: int, request: Expose) -> ExposureRecord:
        tls = request.protocol == "tls"
        by_name = (
            request.protocol in ("http", "tls")
            and not request.public
            and (request.host or (self._around.web_domain and not request.known_as))
        )
        if by_name:
            host, path = parse_host(request.host) if request.host else (self._pick_host(node), "/")
            port = 0
            if tls and path != "/":
                raise UserError(
                    "host-invalid",
                    "Who comes by TLS shows a name and no path.",
                    f"Expose it with --host {host}.",
                    Exit.USAGE,
                )
        elif tls:
            raise UserError(
                "host-invalid",
                "Users who come by TLS are told apart by the name that they ask for, and there is none.",
                "Name it with --host db.example.com, or expose tcp://… at a port of its own.",
                Exit.USAGE,
            )
        else:
            (host, port), path = parse_public(request.public, self._around.public_hosts), ""
        return ExposureRecord(
            id=0,
            node=node,
            protocol=request.protocol,
            host=host,
            public_port=port,
            path=path,
            target=request.target,
            port=request.port,
            tunnel=request.tunnel,
            created=self._around.wall(),
        )

    def _pick_host(self, node: int) -> str:
        held = {record.host for record in self._records.values()}
        name = self._around.name_of(node)
        while True:
            letters = "".join(_LETTERS[self._around.randbelow(len(_LETTERS))] for _ in range(_PICKED_LETTERS))
            host = f"{name}-{letters}.{self._around.web_domain}"
            if host not in held:
                return host

    def _check_host(self, wanted: ExposureRecord) -> None:
        if wanted.host in self._around.public_hosts:
            raise UserError("host-taken", f"{wanted.host} is the server's own name.", "Choose another host.")
        for record in self._records.values():
            tls = [each.protocol == "tls" for each in (record, wanted)]
            if not record.path or record.host != wanted.host or not (any(tls) or record.path == wanted.path):
                continue
            holder = f"node '{self._around.name_of(record.node)}' (exposure {record.name})"
            if all(tls) or not any(tls):
                sentence = f"{wanted.host + wanted.path.rstrip('/')} is held by {holder}."
            elif tls[0]:
                sentence = f"All that comes for {wanted.host} by TLS, https too, goes to {holder}."
            else:
                sentence = f"{wanted.host} is exposed by http, and with it its https: it is held by {holder}."
            raise UserError(
                "host-taken",
                sentence,
                f"Choose another host{'' if any(tls) else ' or path'}, or have that exposure given back: "
                "'overlay expose rm' on that node.",
            )

    def _open_any(self, wanted: ExposureRecord) -> tuple[ExposureRecord, PublicPort]:
        held = {record.public_port for record in self._records.values() if record.transport == wanted.transport}
        free = [port for port in PICKED_PORTS if port not in held]
        for _ in range(min(_PICK_TRIES, len(free))):
            port = free.pop(self._around.randbelow(len(free)))
            record = msgspec.structs.replace(wanted, public_port=port)
            try:
                return record, self._open(record)
            except UserError as error:
                if error.code != "port-taken":
                    raise
        raise UserError(
            "no-free-port",
            f"The server found no free public port from {PICKED_PORTS.start} to {PICKED_PORTS.stop - 1}.",
            "Name one with --public, or give exposures back.",
        )

    def _open(self, wanted: ExposureRecord) -> PublicPort:
        protocol = wanted.transport
        where = f"{protocol} port {wanted.public_port}"
        for record in self._records.values():
            if record.id != wanted.id and _collide(record, wanted):
                holder = self._around.name_of(record.node)
                raise UserError(
                    "port-taken",
                    f"The public {where} is held by node '{holder}' (exposure {record.name}).",
                    "Choose another port, or have that exposure given back: 'overlay expose rm' on that node.",
                )
        if (protocol, wanted.public_port) in self._around.own_ports:
            raise UserError(
                "port-taken", f"The public {where} is the server's own, which nodes connect to.", "Choose another port."
            )
        return PublicPort(protocol, bind_public(protocol, wanted.host, wanted.public_port), self.drops)

    def _open_missing(self) -> None:
        for record in list(self._records.values()):
            if record.id in self._ports or record.id in self._sites:
                continue
            if not self._around.tunnel and record.tunnel == "single":
                continue
            try:
                self._serve(record, None if record.path else self._open(record))
            except UserError as error:
                if self._problems.get(record.id) != error.message:
                    _log.warning("exposure %s stays closed for now: %s", record.name, error.message)
                self._problems[record.id] = error.message

    def _serve(self, lease: ExposureRecord, public: PublicPort | None) -> None:
        """`public`: the lease's own port; None: it is found by its name."""
        self._records[lease.id] = lease
        self._problems.pop(lease.id, None)
        tunnel = self._tunnel(lease)
        serve_user: ServeUser | None = None
        if lease.protocol in ("http", "tls"):
            site = self._sites[lease.id] = Site(lease.name, tunnel)
            if lease.protocol == "tls":
                self._by_name.add_tls(lease.host, site)
            else:
                serve_user = self._server_of(site)
                if public is None:
                    self._by_name.add(lease.host, lease.path, site)
        if public is not None:
            self._ports[lease.id] = public
            self._tasks.start_soon(public.run, tunnel, serve_user)

    def _tunnel(self, lease: ExposureRecord) -> Tunnel:
        if lease.tunnel == "single":
            return SingleTunnel(lambda: self._target(lease.id))
        carrier = cast(TunnelCarrier, lease.tunnel)
        return DynamicTunnel(
            self._callers, lease.node, lease.id, carrier, lambda: self._around.address_of(lease.node) is not None
        )

    def _server_of(self, site: Site) -> ServeUser:
        async def serve_user(stream: TcpStream, source: Endpoint) -> None:
            await self._web.serve(Guest(stream, b"", secure=False), source, lambda request: site)

        return serve_user

    def _connections(self, number: int) -> int:
        site, public = self._sites.get(number), self._ports.get(number)
        return public.connections if public is not None else site.connections if site is not None else 0

    def _target(self, number: int) -> Endpoint | None:
        record = self._records.get(number)
        address = self._around.address_of(record.node) if record is not None else None
        return (address, record.port) if record is not None and address is not None else None

    def _forget(self, number: int) -> None:
        self._records.pop(number, None)
        self._problems.pop(number, None)
        if self._said.pop(number, NOTHING_SAID) != NOTHING_SAID:
            self._around.on_names()
        site, public = self._sites.pop(number, None), self._ports.pop(number, None)
        if site is not None:
            self._by_name.remove(site)
            site.close()
        if public is not None:
            public.close()

    def _owned(self, node: int, name: str) -> ExposureRecord:
        number = exposure_id(name)
        record = self._records.get(number) if number is not None else None
        if record is None or record.node != node:  # another node's: not told apart, ids are nobody's business
            raise UserError(
                "exposure-unknown",
                "This node has no exposure of that id on the server.",
                "See 'overlay expose ls'.",
            )
        return record

    def _show(self, record: ExposureRecord) -> Exposure:
        said = self._said.get(record.id, NOTHING_SAID)
        return Exposure(
            id=record.name,
            protocol=cast(ExposureProtocol, record.protocol),
            public=self.public(record),
            target=record.target,
            port=record.port,
            tunnel=cast(TunnelKind, record.tunnel),
            url=self._url(record) or "",
            known_as=said.known_as,
            service=said.service,
            direct=said.direct,
        )

    def _url(self, record: ExposureRecord) -> str | None:
        if record.protocol != "http":
            return None
        if not record.path:
            return f"http://{self.public(record)}/"
        return url_of(record.host, self._around.web_ports, record.path)

    def public(self, record: ExposureRecord) -> str:
        """Where users reach it: "203.0.113.1:9000", or "docs.example.com/prefix", or "db.example.com:443" by TLS."""
        if record.protocol == "tls":
            return format_endpoint((record.host, tls_port(self._around.web_ports)))
        if record.path:
            return record.host + record.path.rstrip("/")
        host = record.host or (self._around.public_hosts[0] if self._around.public_hosts else "0.0.0.0")
        return format_endpoint((host, record.public_port))


def parse_public(text: str, public_hosts: Iterable[str]) -> tuple[str, int]:
    """What a node wrote as the public side → address to bind ("" for all) and port (0 to have one picked).

    One of the server's public addresses stands for all: behind a NAT the host does not have it itself. Raises
    `UserError` ("public-invalid").
    """
    if not text:
        return "", 0
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536:
        return "", int(text)
    host, _, port = text.rpartition(":")
    if host in public_hosts:
        return parse_public(port or "-", ())
    try:
        address, number = parse_endpoint(text[:100])
    except ValueError as error:
        raise UserError("public-invalid", f"{error}.", "Write a port, as in 9000.", Exit.USAGE) from error
    return ("" if address in _WILDCARDS or address in public_hosts else address), number


def _collide(one: ExposureRecord, other: ExposureRecord) -> bool:
    return (
        one.transport == other.transport
        and not one.path
        and not other.path
        and one.public_port == other.public_port
        and (one.host == other.host or not one.host or not other.host)
    )
