"""Exposures: which node holds which public port, or name on the shared port. A lease is kept in the registry until the
node gives it back or is removed, so it survives restarts of either end; a port that cannot be opened at start is tried
again.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import anyio
import msgspec
from anyio.abc import TaskGroup

from overlay.carrier.port import Guest
from overlay.carrier.stream import TcpStream
from overlay.errors import Exit, UserError
from overlay.server.access.bandwidth import Bandwidth
from overlay.server.access.credentials import Desk
from overlay.server.access.gate import Gate
from overlay.server.access.usage import Usage
from overlay.server.callers import Callers, DynamicTunnel
from overlay.server.claims import Claims, Surroundings, check_tls_end
from overlay.server.exposure_names import NOTHING_SAID, Said, check_said
from overlay.server.groups import Groups
from overlay.server.ingress import PublicPort, ServeUser
from overlay.server.private import Private, check_private
from overlay.server.registry import Registry
from overlay.server.schema import ExposureRecord, exposure_id
from overlay.server.telling import TellingTunnel
from overlay.server.tunnels import SingleTunnel, Tunnel, Visitor
from overlay.server.web.door import WebDoor, make_room
from overlay.server.web.guests import WebGuests
from overlay.server.web.hosts import url_of
from overlay.server.web.sites import Site, Sites
from overlay.server.web.tls_door import TlsDoor
from overlay.wire.control.messages import (
    Expose,
    Exposure,
    ExposureProtocol,
    RequestEntry,
    TunnelCarrier,
    TunnelKind,
    Withdrawn,
)
from overlay.wire.control.terms import check_terms
from overlay.wire.endpoint import Endpoint

MAX_PER_NODE = 64
_FORBIDDEN = "the server's policy does not allow it any more"
RETRY_INTERVAL = 10.0  # s between tries to open a port that another program holds
_LONGEST_TARGET = 256  # characters
_log = logging.getLogger(__name__)


class Exposures:
    """All exposures of the network. Requests are served one after another."""

    def __init__(self, registry: Registry, around: Surroundings, tasks: TaskGroup) -> None:
        self.drops: Counter[str] = Counter()
        """Users turned away, and datagrams, by reason."""
        self._registry = registry
        self._around = around
        self._tasks = tasks
        self._records: dict[int, ExposureRecord] = {}
        self._claims = Claims(around, self._records, self.drops)
        self.groups = Groups(around, self._claims, self._records, self.drops)
        self.private = Private(around, self._records)
        self._said: dict[int, Said] = {}  # not kept: nodes say it anew at each welcome, and it is looked at anew
        self._ports: dict[int, PublicPort] = {}
        self._sites: dict[int, Site] = {}  # of what is exposed by http or tls
        self._gates: dict[int, Gate] = {}
        self._singles: dict[int, SingleTunnel] = {}
        self._desk = Desk()
        self._usage = Usage(registry, around.wall, lambda node: around.rights(node).quota)
        self._shares: dict[int, tuple[Bandwidth, Bandwidth]] = {}  # of nodes that have a bandwidth
        self._news = anyio.Event()  # a lease may end sooner than all others
        self._by_name = Sites(around.public_hosts)
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
            self._records.update({record.id: record for record in await transaction.exposures()})
        await self._usage.start()
        await self._end_expired()
        await self.policy_changed()
        self._open_missing()

    async def run(self) -> None:
        """Go on trying to open what could not be opened, end what is over, and look after what is used."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._usage.run)
            tasks.start_soon(self.groups.run)
            tasks.start_soon(self._expire)
            while True:
                await anyio.sleep(RETRY_INTERVAL)
                await self.policy_changed()  # nodes change their names
                self._open_missing()
                self._callers.rest()

    async def policy_changed(self) -> None:
        """End what nodes may not have any more: of too many, the last."""
        held: Counter[int] = Counter()
        for record in tuple(self._records.values()):
            rights = self._around.rights(record.node)
            try:
                self._claims.check(record, self._said.get(record.id, NOTHING_SAID).known_as)
            except UserError:
                await self._end(record, _FORBIDDEN)
                continue
            held[record.node] += 1
            if rights.exposures is not None and held[record.node] > rights.exposures:
                await self._end(record, _FORBIDDEN)
            elif gate := self._gates.get(record.id):
                gate.share(self._share(self.groups.opener(record).node))

    async def save(self) -> None:
        """Keep what was counted."""
        self._usage.look()
        await self._usage.save()

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
        "exposure-unknown", "no-tunnel", what the registry raises, and what `check_said` and `check_terms` do.
        """
        target = request.target
        lowest = 1 if request.tunnel == "single" else 0  # what a node without an overlay address has
        if not lowest <= request.port < 65536 or not 0 < len(target) <= _LONGEST_TARGET or not target.isprintable():
            raise UserError("expose-invalid", "The node asked for an exposure that cannot be.", exit_code=Exit.USAGE)
        if not self._around.tunnel and request.tunnel == "single" and not request.terms.private.name:
            raise UserError(
                "no-tunnel",
                "This server runs without a network interface and cannot carry users to nodes.",
                "Use --tunnel tls, or start the server without --no-tun.",
            )
        check_terms(request.terms, request.protocol)
        check_private(request)
        if 0 < request.terms.expires <= self._around.wall():
            raise UserError(
                "exposure-expired", "The time of the exposure is over.", "Give it a longer one with --expires."
            )
        check_tls_end(request)
        around = self._around
        said = await check_said(request, around.leads_here, around.public_hosts, around.domains, direct=around.direct)
        # Shielded: a node that goes away in the middle must not leave a lease without its port.
        with anyio.CancelScope(shield=True):
            async with self._lock:
                names = said.known_as  # as they are written; a renewal's that are right no more are out already
                record = await (self._renew(node, request, names) if request.id else self._grant(node, request, names))
                if record.path or record.private:
                    said = NOTHING_SAID  # all of it is about a port
                if self._said.get(record.id, NOTHING_SAID) != said:
                    self._said[record.id] = said
                    self._around.on_names()
        self._news.set()
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
            site.watch(name, None if tell is None else partial(tell, name))

    def node_changed(self, node: int, *, online: bool) -> None:
        """It has come, or its connection is gone: whether it still answers users shows soon then."""
        for number, single in self._singles.items():
            if self._records[number].node == node:
                single.watch(closely=not online)

    async def forget_node(self, node: int) -> None:
        """The node was removed, and its leases with it: close its ports."""
        async with self._lock:
            for record in [record for record in self._records.values() if record.node == node]:
                self._forget(record.id)
            self._callers.forget_node(node)
            self.guests.forget_node(node)
            await self.private.forget_node(node)
            self._usage.forget_node(node)

    def host_of(self, name: str) -> str | None:
        """As `overlay.server.certificates.Leases` has it, with the next one."""
        return self._by_name.ended_here(name)

    def hosts(self) -> Iterable[str]:
        return self._by_name.all_ended_here()

    def is_end(self, node: int, port: int) -> bool:
        """Whether this is where a node waits for the users of an exposure, at its overlay address."""
        return any((record.node, record.port) == (node, port) for record in self._records.values())

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
                "bytes": self._usage.of_exposure(record.id),
                "terms": msgspec.to_builtins(record.terms),
                "problem": self._problems.get(record.id),
                "group": record.terms.group.name or None,
                "members": list(map(msgspec.to_builtins, self.groups.members(record.id))),
            }
            for record in self._records.values()
        ]

    def public(self, record: ExposureRecord) -> str:
        """As `Claims.public`."""
        return self._claims.public(record)

    async def _expire(self) -> None:
        while True:
            ends = min((record.terms.expires for record in self._records.values() if record.terms.expires), default=0.0)
            self._news = anyio.Event()
            # What is over already could not be ended just now.
            left = ends - self._around.wall()
            with anyio.move_on_after((left if left > 0 else RETRY_INTERVAL) if ends else None):
                await self._news.wait()
            await self._end_expired()

    async def _end_expired(self) -> None:
        now = self._around.wall()
        for record in tuple(self._records.values()):
            if 0 < record.terms.expires <= now:
                await self._end(record, "its time is over")

    async def _end(self, record: ExposureRecord, why: str) -> None:
        """Take a lease away, and let its node know."""
        async with self._lock:
            if self._records.get(record.id) != record:
                return  # changed or given back meanwhile
            try:
                async with self._registry.transaction() as transaction:
                    await transaction.remove_exposure(record.id)
            except UserError as error:
                _log.error("exposure %s cannot be ended, as %s: %s", record.name, why, error.message)
                return  # tried again
            self._forget(record.id)
        holder = self._around.name_of(record.node)
        _log.info("exposure %s of '%s' at %s has ended: %s", record.name, holder, self.public(record), why)
        await self._around.tell(record.node, Withdrawn(id=record.name, why=why))

    async def _renew(self, node: int, request: Expose, names: Iterable[str]) -> ExposureRecord:
        record = self._owned(node, request.id)
        self._check(record, names)
        renewed = msgspec.structs.replace(record, target=request.target, port=request.port, terms=request.terms)
        if renewed != record:
            self._claims.check_renewed(record, renewed)
            async with self._registry.transaction() as transaction:
                await transaction.set_exposure(renewed)
            self._records[record.id] = renewed
            self._apply(renewed)
            await self.private.renewed(record, renewed)
        return renewed

    def _check(self, wanted: ExposureRecord, names: Iterable[str]) -> None:
        try:
            self._claims.check(wanted, names)
        except UserError:
            self.drops["policy_forbids"] += 1
            raise

    async def _grant(self, node: int, request: Expose, names: Iterable[str]) -> ExposureRecord:
        if error := self._claims.too_many(node, MAX_PER_NODE):
            self.drops["policy_forbids"] += 1
            raise error
        wanted = self._claims.wanted(node, request)
        self._check(wanted, names)
        public: PublicPort | None = None
        if wanted.private:
            record = wanted
            self.private.check_name(record)
        elif wanted.path or self._mate(wanted) is not None:
            record = wanted
            self._claims.check_place(record)
        else:
            claims = self._claims
            record, public = claims.open_any(wanted) if not wanted.public_port else (wanted, claims.open(wanted))
        try:
            async with self._registry.transaction() as transaction:
                lease = await transaction.add_exposure(record)
        except BaseException:
            if public is not None:
                public.close()
            raise
        self._serve(lease, public)
        return lease

    def _open_missing(self) -> None:
        for record in list(self._records.values()):
            if record.id in self._ports or record.id in self._sites or record.private:
                continue
            if not self._around.tunnel and record.tunnel == "single":
                continue
            try:
                shared = record.path or self._mate(record) is not None
                self._serve(record, None if shared else self._claims.open(record))
            except UserError as error:
                if self._problems.get(record.id) != error.message:
                    _log.warning("exposure %s stays closed for now: %s", record.name, error.message)
                self._problems[record.id] = error.message

    def _serve(self, lease: ExposureRecord, public: PublicPort | None) -> None:
        """`public`: the lease's own port; None: it is found by its name, or by what others of its group have opened."""
        self._records[lease.id] = lease
        self._problems.pop(lease.id, None)
        if lease.private:
            return  # peers go to its node
        mate = self._mate(lease)
        tunnel = self._tunnel(lease)
        if lease.terms.group.name:
            tunnel = self.groups.join(lease, tunnel)
        if mate is not None:
            if mate.id in self._ports:
                self._ports[lease.id] = self._ports[mate.id]
            if mate.id in self._sites:
                self._sites[lease.id] = self._sites[mate.id]
            self._gates[lease.id] = self._gates[mate.id]
            self._apply(lease)
            return
        gate = self._gates[lease.id] = Gate(lease.terms, lease.name, lease.path or "/", self._desk)
        gate.share(self._share(lease.node))
        serve_user: ServeUser | None = None
        if lease.protocol in ("http", "tls"):
            site = self._sites[lease.id] = Site(
                lease.name, tunnel, gate=gate, is_near=lambda source: self._around.is_near(lease.node, source)
            )
            if lease.protocol == "tls":
                self._by_name.add_tls(lease.host, site)
            else:
                serve_user = self._server_of(site)
                if public is None:
                    self._by_name.add(lease.host, lease.path, site)
        if public is not None:
            public.gate = gate
            self._ports[lease.id] = public
            self._tasks.start_soon(public.run, tunnel, serve_user)
        self._usage.watch(lease.id, lease.node, gate, partial(self._cut_off, lease.id))

        self._apply(lease)

    def _apply(self, lease: ExposureRecord) -> None:
        """Its terms, or those of its group, hold for users who come from now on."""
        opener = self.groups.opener(lease)
        self.groups.apply(opener)
        gate, site, public = self._gates.get(opener.id), self._sites.get(opener.id), self._ports.get(opener.id)
        if gate is None:
            return
        gate.terms = opener.terms
        for door in (site, public):
            if door is not None:
                door.cut_off_those_shut_out()

    def _mate(self, lease: ExposureRecord) -> ExposureRecord | None:
        """One of its group that is served already."""
        mates = self._claims.mates(lease)
        return next((each for each in mates if each.id in self._ports or each.id in self._sites), None)

    def _share(self, node: int) -> tuple[Bandwidth, Bandwidth] | None:
        rate = self._around.rights(node).bandwidth
        if not rate:
            self._shares.pop(node, None)
        elif node not in self._shares or self._shares[node][0].rate != rate:
            self._shares[node] = (Bandwidth(rate), Bandwidth(rate))
        return self._shares.get(node)

    def _cut_off(self, number: int) -> None:
        site, public = self._sites.get(number), self._ports.get(number)
        if site is not None:
            site.close()
        if public is not None:
            public.cut_off()

    def _tunnel(self, lease: ExposureRecord) -> Tunnel:
        return TellingTunnel(self._way(lease), lambda: self._records.get(lease.id, lease).terms.told, self.drops)

    def _way(self, lease: ExposureRecord) -> Tunnel:
        if lease.tunnel == "single":
            single = self._singles[lease.id] = SingleTunnel(lambda: self._target(lease.id), self.drops)
            return single
        carrier = cast(TunnelCarrier, lease.tunnel)
        return DynamicTunnel(
            self._callers, lease.node, lease.id, carrier, lambda: self._around.address_of(lease.node) is not None
        )

    def _server_of(self, site: Site) -> ServeUser:
        async def serve_user(stream: TcpStream, visitor: Visitor) -> None:
            await self._web.serve(Guest(stream, b"", secure=False), visitor, lambda request: site)

        return serve_user

    def _connections(self, number: int) -> int:
        if (of_member := self.groups.connections(number)) is not None:
            return of_member
        site, public = self._sites.get(number), self._ports.get(number)
        return public.connections if public is not None else site.connections if site is not None else 0

    def _target(self, number: int) -> Endpoint | None:
        record = self._records.get(number)
        address = self._around.address_of(record.node) if record is not None else None
        return (address, record.port) if record is not None and address is not None else None

    def _forget(self, number: int) -> None:
        lease = self._records.pop(number, None)
        self._problems.pop(number, None)
        self.groups.leave(number)
        self.private.forget(number)
        self._gates.pop(number, None)
        self._singles.pop(number, None)
        if self._said.pop(number, NOTHING_SAID) != NOTHING_SAID:
            self._around.on_names()
        site, public = self._sites.pop(number, None), self._ports.pop(number, None)
        if lease is not None and (mate := self._mate(lease)) is not None:
            if site is not None:
                site.watch(lease.name, None)
            self._apply(mate)
            self._usage.forget(number)
            opener = self.groups.opener(mate)  # what goes through from now on is counted as the new opener's
            if lease.id < opener.id and (gate := self._gates.get(opener.id)):
                self._usage.watch(opener.id, opener.node, gate, partial(self._cut_off, opener.id))
            return
        if site is not None:
            self._by_name.remove(site)
            site.close()
        if public is not None:
            public.close()
        self._usage.forget(number)

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
            terms=record.terms,
        )

    def _url(self, record: ExposureRecord) -> str | None:
        if record.protocol != "http" or record.private:
            return None
        if not record.path:
            return f"http://{self._claims.public(record)}/"
        return url_of(record.host, self._around.web_ports, record.path)
