"""The network's names on this machine: the resolver on the overlay address, and the system pointed at it.

Nothing here may end the network: what fails is kept as a `warning`, one sentence for the status.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from itertools import product

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus
from dnslib import QTYPE, RCODE, DNSError, DNSLabel, DNSRecord

from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.node.guard import Guard
from overlay.node.interface import Address
from overlay.node.status import NameAnswer, NamesStatus
from overlay.wire.control.messages import MapRecord, NetworkMap
from overlay.wire.control.records import RECORD_TYPES, domain_of, is_shadowed, service
from overlay.wire.endpoint import format_endpoint
from overlay_dns.labels import Network, labels_in, reverse_origins
from overlay_dns.osconfig.system import ROOT, SystemDns
from overlay_dns.server import PORT, Resolver
from overlay_dns.upstream import LINK_LOCAL, Upstream
from overlay_dns.zone import Record, Zones, address_record

START_TIMEOUT = 3.0
"""Seconds that bringing names up may hold up the network; sockets and one small file take milliseconds."""
WATCH_INTERVAL = 2.0
"""Seconds between looks whether somebody else has changed the system's configuration: one small file is read."""

_log = logging.getLogger(__name__)


def restore_system(state: StateDir) -> bool:
    """Undo what an earlier run changed on the system and could not put back (it was killed). Idempotent. → whether
    there was something"""
    try:
        if SystemDns(state).restore():
            _log.warning("put back the system's resolver configuration that an earlier run left")
            return True
    except OSError as error:
        _log.warning("the system's resolver configuration could not be put back: %s", error)
    return False


def build_zones(network_map: NetworkMap, pinned: frozenset[str] = frozenset()) -> Zones:
    """The zones of a map: in each domain all nodes by name and whatever is below, and what people put in beside.

    Names outside of the domain that have addresses of their node in the map are those of exposures. `pinned`: names
    that stay as the world has them, whatever the map says: the server's own.
    """
    domains = network_map.domains
    hosts = {node.name: [ip_address(text) for text in node.addresses] for node in network_map.nodes}
    numbers = {node.name: node.number for node in network_map.nodes}
    records = [
        _zone_record(record)
        for record in network_map.records
        if record.rtype in RECORD_TYPES
        and domain_of(record.name, domains) is not None
        and not is_shadowed(record, domains, numbers)
    ]
    addresses = {(node.number, text) for node in network_map.nodes for text in node.addresses}
    elsewhere = [
        _zone_record(record)
        for record in network_map.records
        if domain_of(record.name, domains) is None
        and record.name not in pinned
        and record.rtype in ("A", "AAAA")
        and (record.node, record.value) in addresses
    ]
    own = {(record.name, record.rtype) for record in records}
    for name, domain in product(hosts, domains):
        wildcard = f"*.{name}.{domain}"
        if not own.isdisjoint((wildcard, rtype) for rtype in ("A", "AAAA", "CNAME")):
            continue  # the node's own wish for the names below it
        records += [address_record(wildcard, address) for address in hosts[name]]
    networks = [ip_network(text) for text in network_map.networks]
    return Zones.build(
        network_map.domain,
        hosts,
        network_map.version,
        networks,
        records=records,
        elsewhere=elsewhere,
        more_domains=network_map.more_domains,
    )


def _zone_record(record: MapRecord) -> Record:
    match record.rtype:
        case "A" | "AAAA":
            return address_record(record.name, ip_address(record.value))
        case "TXT":
            return Record(record.name, QTYPE.TXT, (record.value.encode(),))
        case "SRV":
            return Record(record.name, QTYPE.SRV, service(record.value))
    return Record(record.name, QTYPE.CNAME, record.value)


def choose_upstreams(servers: Sequence[str], chosen: Sequence[Upstream]) -> tuple[Upstream, ...]:
    """Whom to ask: what a person chose, and the system's own `servers` for all that this leaves to them.

    Who chose name servers for all names does not want the system's to hear of them, but for names of the link.
    """
    all_chosen = any(not upstream.domains for upstream in chosen)
    domains = tuple(sorted(LINK_LOCAL)) if all_chosen else ()
    return (*chosen, *(Upstream(server, domains=domains) for server in servers))


class Names:
    """See the module's docstring."""

    def __init__(
        self,
        state: StateDir,
        chosen: Sequence[Upstream] = (),
        *,
        pinned: Iterable[str] = (),
        inside: Callable[[], Sequence[Network]] = tuple,
        system: SystemDns | None = None,
        port: int = PORT,
    ) -> None:
        """`chosen`: name servers that a person chose. `pinned`: as in `build_zones`. `inside`: as in `Resolver`.

        `system`: what is pointed at the resolver, instead of this one. `port`: of the resolver; 0 picks one.
        """
        self.warning = ""
        self.port: int | None = None  # while the resolver serves
        self._wanted_port = port
        self._pinned = frozenset(pinned)
        self._inside = inside
        self._zones_changed = anyio.Event()
        self._guard = Guard()
        self._system = system or SystemDns(state, guard=lambda: self._guard.start(state))
        self._own = self._domain = ""
        self._zones: Zones | None = None
        self._zones_made_of: object = None
        self._resolver: Resolver | None = None
        self._chosen = tuple(chosen)
        self._upstreams: tuple[Upstream, ...] = ()

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """Whom the resolver asks for other names, while it is the system's for these; else empty."""
        return self._upstreams if self._resolver is not None and self._system.takes_over else ()

    def status(self) -> NamesStatus:
        """What is served, and what of the system was found, what was done and why."""
        system = self._system.status()
        return NamesStatus(
            endpoint=format_endpoint((self._own, self.port)) if self.port is not None else None,
            zones=self._zones.origins if self._zones is not None else (),
            upstreams=tuple(map(str, self._upstreams)),
            chosen=tuple(map(str, self._chosen)),
            way=system.way,
            reason=system.reason,
            done=system.done,
            reapplied=system.reapplied,
            warning=self.warning,
            drops=dict(self._resolver.drops) if self._resolver is not None else {},
        )

    async def query(self, name: str, rtype: str) -> NameAnswer:
        """Ask the resolver as a program on this machine would. A name of one label is meant in the network's domain.

        Raises `UserError`: "name-invalid", "names-down".
        """
        resolver, zones = self._resolver, self._zones
        if resolver is None or zones is None or self.port is None:
            raise UserError("names-down", "The resolver does not serve on this machine.", "See 'overlay dns status'.")
        if "." not in name:
            name = f"{name}.{self._domain}"
        if rtype.upper() not in QTYPE.reverse:
            hint = "Write one as in: overlay dns query b.local.test AAAA"
            raise UserError("name-invalid", f"'{rtype[:20]}' is no type of record.", hint, Exit.USAGE)
        try:
            query = DNSRecord.question(name, rtype.upper())
            data = bytes(query.pack())
        except (DNSError, ValueError, AttributeError) as error:
            raise UserError(
                "name-invalid",
                f"'{name[:100]}' cannot be asked for: {error}.",
                "Write a name, as in: overlay dns query b.local.test AAAA",
                Exit.USAGE,
            ) from error
        zone = zones.zone_of(labels_in(query.q.qname))
        ours = zones.answer(query.q.qname, query.q.qtype) is not None
        kept = not ours and resolver.forwarder.remembered(data) is not None
        started = anyio.current_time()
        reply = await resolver.reply(data, self._own, stream=True)
        took = anyio.current_time() - started
        assert reply is not None  # it is a query
        answer = DNSRecord.parse(reply)
        return NameAnswer(
            name=name.removesuffix("."),
            type=rtype.upper(),
            rcode=str(RCODE.get(answer.header.rcode, answer.header.rcode)),
            answers=tuple(" ".join(record.toZone().split()) for record in answer.rr),
            source="zone" if zone is not None else "exposure" if ours else "cache" if kept else "forwarded",
            zone=b".".join(zone.origin).decode() if zone is not None else None,
            upstreams=() if ours else tuple(resolver.forwarder.explain(name).upstreams),
            took_ms=round(took * 1000, 3),
        )

    def addresses(self, name: str) -> tuple[str, ...] | None:
        """Of a name in one of the network's domains: IPv4 first, none if there is no such name. None: it is in none of
        these, or an alias leads out of them."""
        zones = self._zones
        try:
            owner = DNSLabel(name)
        except (DNSError, ValueError):
            return None
        if zones is None or zones.zone_of(labels_in(owner)) is None:
            return None
        found: list[str] = []
        for rtype in (QTYPE.A, QTYPE.AAAA):
            answer = zones.answer(owner, rtype)
            if answer is None or answer.onward is not None:
                return None
            found += [str(record.rdata) for record in answer.records if record.rtype == rtype]
        return tuple(found)

    def set_map(self, network_map: NetworkMap) -> None:
        """Answer from this map from now on. In a network of thousands something changes all the time, and hardly ever a
        name: the zones stay, with their serial, unless what they are made of has changed."""
        made_of = (
            network_map.domains,
            network_map.networks,
            network_map.records,
            [(node.number, node.name, node.addresses) for node in network_map.nodes],
        )
        if made_of == self._zones_made_of:
            return
        self._zones_made_of = made_of
        self._zones = build_zones(network_map, self._pinned)
        self._zones_changed.set()
        if self._resolver is not None:
            self._resolver.set_zones(self._zones)

    async def run(
        self,
        addresses: Sequence[Address],
        domains: Sequence[str],
        interface: str = "",
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on the first of this machine's overlay addresses until cancelled, then put the system back.

        `interface`: the network's, which systems that split by link are told of.

        Signals `started` when names work, or when it is clear that they do not (`warning` says why).
        """
        own = str(addresses[0])
        self._own, self._domain = own, domains[0]
        started = False
        self._resolver = Resolver(
            self._zones or Zones.build(domains[0], {}, 0, more_domains=domains[1:]),
            lambda: self._upstreams,
            inside=self._inside,
        )
        try:
            async with anyio.create_task_group() as tasks:
                with anyio.fail_after(START_TIMEOUT):
                    self.port = await tasks.start(self._serve, own)
                apply = partial(self._system.apply, interface, [own], " ".join(domains), self._routes())
                self._take_upstreams(await anyio.to_thread.run_sync(apply), own)
                self.warning = self._system.status().warning
                task_status.started()
                started = True
                await self._watch_system(own)
        except* (OSError, UserError, TimeoutError) as group:
            self.warning = f"Names of the network do not work on this machine: {_reason(group)}."
            _log.warning("%s", self.warning)
        finally:
            self._resolver, self.port, self._upstreams = None, None, ()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._restore)
        if not started:
            task_status.started()
        await anyio.sleep_forever()

    def _take_upstreams(self, servers: Sequence[str], own: str) -> None:
        upstreams = choose_upstreams([server for server in servers if server != own], self._chosen)
        if upstreams != self._upstreams and self._resolver is not None:
            self._resolver.forwarder.clear()
        self._upstreams = upstreams

    def _routes(self) -> list[str]:
        """Names beside the domains that the system is to ask us for, all below them included."""
        routes = [name for upstream in self._chosen for name in upstream.domains or (ROOT,)]
        if self._zones is None:
            return routes
        origins = (origin for network in self._zones.networks for origin in reverse_origins(network))
        return [*(b".".join(origin).decode() for origin in origins), *self._zones.elsewhere, *routes]

    async def _watch_system(self, own: str) -> None:
        """Others may change the system's configuration while we run (DHCP on another network, say); and names that
        exposures have come and go."""
        while True:
            self._zones_changed = anyio.Event()
            with anyio.move_on_after(WATCH_INTERVAL):
                await self._zones_changed.wait()
            try:
                await anyio.to_thread.run_sync(self._system.route, self._routes())
                if await anyio.to_thread.run_sync(self._system.check):
                    self._take_upstreams(self._system.upstreams, own)
                self.warning = self._system.status().warning
            except (OSError, UserError) as error:
                self.warning = f"The system's resolver configuration could not be put right: {error}."

    async def _serve(self, address: str, *, task_status: TaskStatus[int]) -> None:
        assert self._resolver is not None
        await self._resolver.serve([address], port=self._wanted_port, task_status=task_status)

    def _restore(self) -> None:
        try:
            self._system.restore()
        except (OSError, UserError) as error:
            _log.warning("the system's resolver configuration could not be put back: %s", error)
        else:
            self._guard.end()


def _reason(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError) and not error.args:
        return "the resolver did not start in time"
    return (error.strerror if isinstance(error, OSError) else None) or str(error).rstrip(".")
