"""The network's zones: which names there are, and the answer to any question about them. No sockets here.

A zone is a frozen value, built once per network map. It is authoritative for its origin: what is not in it does not
exist (RFC 2308: with an SOA, so that resolvers may remember that). The rest of the name space is not its business.
Lookup is that of RFC 1034 section 4.3.2, with wildcards as RFC 4592 has them. Terms are those of RFC 9499.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any, Final

from dnslib import AAAA, CLASS, CNAME, NS, PTR, QTYPE, RCODE, RR, SOA, SRV, TXT, A, DNSHeader, DNSLabel, DNSRecord

from overlay_dns.labels import (
    WILDCARD,
    Address,
    Labels,
    Network,
    labels_in,
    labels_of,
    name_of,
    reverse_labels,
    reverse_origins,
)

TTL: Final = 5
"""Seconds that a positive answer may be kept: a node that changes its address is found again at once."""
NEGATIVE_TTL: Final = 10
"""Seconds that "no such name" may be kept (RFC 2308 section 5: the SOA's minimum)."""
LONGEST_CHAIN: Final = 8
"""Aliases (CNAME) that are followed for one question; longer ones, and circles, end there."""

_A, _AAAA, _CNAME, _NS, _PTR, _SOA = (int(getattr(QTYPE, name)) for name in ("A", "AAAA", "CNAME", "NS", "PTR", "SOA"))

RRsets = Mapping[int, tuple["Record", ...]]
"""What is at a name, by type."""

_NOTHING: Final[RRsets] = MappingProxyType({})

_WITH_ADDRESSES: Final = frozenset({int(QTYPE.A), int(QTYPE.AAAA), 64, 65})
"""Types of records that say at which addresses a name is reached: A, AAAA, SVCB and HTTPS (RFC 9460)."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a zone. `name`: absolute, without the last dot, maybe with `*` as its first label.

    `value`: an address (A, AAAA), an absolute name (CNAME, PTR, NS), texts (TXT), or priority, weight, port and name
    (SRV, RFC 2782). dnslib is asked to make records of it only when somebody asks for them: a map has thousands.
    """

    name: str
    rtype: int
    value: "Address | str | tuple[bytes, ...] | tuple[int, int, int, str]"
    ttl: int = TTL

    def rdata(self) -> Any:
        value = self.value
        match self.rtype:
            case QTYPE.A:
                return A(str(value))
            case QTYPE.AAAA:
                return AAAA(str(value))
            case QTYPE.CNAME:
                return CNAME(value)
            case QTYPE.PTR:
                return PTR(value)
            case QTYPE.NS:
                return NS(value)
            case QTYPE.TXT if isinstance(value, tuple):
                return TXT(list(value))
            case QTYPE.SRV if isinstance(value, tuple):
                return SRV(*value)
        raise ValueError(f"no record of type {self.rtype} with {value!r}")


def address_record(name: str, address: Address, ttl: int = TTL) -> Record:
    return Record(name, _A if isinstance(address, IPv4Address) else _AAAA, address, ttl)


@dataclass(slots=True)
class Answer:
    """What a question gets. `onward`: the last alias leads to this name, which is not ours. `authoritative`: it is from
    a zone of ours."""

    rcode: int = RCODE.NOERROR
    records: list[RR] = field(default_factory=list)
    authority: list[RR] = field(default_factory=list)
    onward: DNSLabel | None = None
    authoritative: bool = True

    def reply(self, query: DNSRecord) -> DNSRecord:
        """The message that answers `query`."""
        header = DNSHeader(
            id=query.header.id, qr=1, aa=int(self.authoritative), ra=1, rd=query.header.rd, rcode=self.rcode
        )
        header.cd = query.header.cd  # RFC 4035 section 3.2.2
        reply = DNSRecord(header, q=query.questions[0])
        reply.add_answer(*self.records)
        reply.add_auth(*self.authority)
        return reply


class Zone:
    """All names at and below `origin`."""

    __slots__ = ("_names", "origin", "soa")

    def __init__(self, origin: Labels, records: Iterable[Record], *, serial: int, nameserver: str, mail: str) -> None:
        """`nameserver` and `mail` (of the SOA) are absolute names. Raises `ValueError` for a record outside."""
        self.origin = origin
        times = (serial & 0xFFFFFFFF, 3600, 600, 86400, NEGATIVE_TTL)
        self.soa = RR(name_of(origin), _SOA, CLASS.IN, NEGATIVE_TTL, SOA(nameserver, mail, times))
        names: dict[Labels, dict[int, tuple[Record, ...]]] = {origin: {_NS: (Record("", _NS, nameserver),)}}
        for record in records:
            labels = labels_of(record.name)
            if not self.holds(labels):
                raise ValueError(f"{record.name} is not in the zone {name_of(origin)}")
            types = names.setdefault(labels, {})
            if record not in (others := types.get(record.rtype, ())):
                types[record.rtype] = (*others, record)
        self._names: dict[Labels, RRsets] = dict(names)
        for labels in names:  # "c" of "db.c" exists, with nothing at it (RFC 8020)
            for at in range(1, len(labels) - len(origin)):
                self._names.setdefault(labels[at:], _NOTHING)

    def holds(self, labels: Labels) -> bool:
        return labels[max(0, len(labels) - len(self.origin)) :] == self.origin

    def find(self, labels: Labels) -> RRsets | None:
        """What is at a name of the zone, or at the wildcard that stands for it; None: the name does not exist."""
        found = self._names.get(labels)
        if found is not None:
            return found
        for at in range(1, len(labels) - len(self.origin) + 1):
            if labels[at:] in self._names:  # the closest encloser (RFC 4592 section 3.3.1)
                return self._names.get((WILDCARD, *labels[at:]))
        return None


class Zones:
    """Several zones, the networks whose members they name, and names of others that lead elsewhere from here.

    `elsewhere`: records of such names, A and AAAA. What such a name has beside addresses is its own zone's to say.
    """

    def __init__(
        self, zones: Sequence[Zone], networks: Sequence[Network] = (), elsewhere: Iterable[Record] = ()
    ) -> None:
        self.networks = tuple(networks)
        self._elsewhere: dict[Labels, dict[int, tuple[Record, ...]]] = {}
        for record in elsewhere:
            types = self._elsewhere.setdefault(labels_of(record.name), {})
            types[record.rtype] = (*types.get(record.rtype, ()), record)
        self._zones = sorted(zones, key=lambda zone: -len(zone.origin))

    @classmethod
    def build(
        cls,
        domain: str,
        hosts: Mapping[str, Iterable[Address]],
        serial: int,
        networks: Sequence[Network] = (),
        *,
        records: Iterable[Record] = (),
        elsewhere: Iterable[Record] = (),
        more_domains: Iterable[str] = (),
        nameserver: str = "server",
    ) -> "Zones":
        """The zones of `domain` and `more_domains`, and the reverse zones of `networks`.

        `hosts` maps names relative to each domain ("b", "db.b") to addresses, `nameserver` is one such name; the first
        name in `domain` that has an address is what the address is called. `records`: further ones in the domains, by
        absolute names. No domain may be within another.
        """
        domain = domain.strip(".")
        domains = [labels_of(each) for each in (domain, *more_domains)]
        forward: dict[Labels, list[Record]] = {origin: [] for origin in domains}
        for record in records:
            labels = labels_of(record.name)
            forward[next((each for each in domains if labels[-len(each) :] == each), domains[0])].append(record)
        reverse: dict[Address, str] = {}
        for name, addresses in hosts.items():
            for address in addresses:
                for domain_labels, there in forward.items():
                    there.append(address_record(f"{name}.{b'.'.join(domain_labels).decode()}", address))
                reverse.setdefault(address, f"{name}.{domain}")
        pointers: dict[Labels, list[Record]] = {
            origin: [] for network in networks for origin in reverse_origins(network)
        }
        sizes = sorted({len(origin) for origin in pointers}, reverse=True)
        for address, name in reverse.items():
            labels = reverse_labels(address)
            origin = next((labels[-size:] for size in sizes if labels[-size:] in pointers), None)
            if origin is not None:
                pointers[origin].append(Record(b".".join(labels).decode(), _PTR, name))
        zones = [
            Zone(origin, each, serial=serial, nameserver=f"{nameserver}.{domain}", mail=f"hostmaster.{domain}")
            for origin, each in (*forward.items(), *pointers.items())
        ]
        return cls(zones, networks, elsewhere)

    @property
    def origins(self) -> tuple[str, ...]:
        """The names of the zones, without the last dot."""
        return tuple(b".".join(zone.origin).decode() for zone in self._zones)

    def zone_of(self, labels: Labels) -> Zone | None:
        """The zone that is authoritative for a name, if it is ours."""
        return next((zone for zone in self._zones if zone.holds(labels)), None)

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """Names that are of none of the zones, and have addresses here."""
        return tuple(b".".join(labels).decode() for labels in self._elsewhere)

    def answer(self, qname: DNSLabel, qtype: int) -> Answer | None:
        """The answer to a question of class IN; None: its name is in none of these zones."""
        labels = labels_in(qname)
        zone = self.zone_of(labels)
        if zone is None:
            return self._from_elsewhere(Answer(authoritative=False), qname, labels, qtype)
        if qtype == QTYPE.ANY:
            return Answer(RCODE.REFUSED)  # RFC 8482 section 4 lets us; such questions serve attackers most
        answer, owner = Answer(), qname
        seen = {labels}
        while zone is not None:
            found = zone.find(labels)
            alias = found.get(_CNAME) if found is not None and qtype != _CNAME else None
            if alias is None:
                self._end(answer, owner, qtype, zone, found)
                return answer
            answer.records += _records(owner, alias)
            owner = answer.records[-1].rdata.label
            labels = labels_in(owner)
            if labels in seen or len(seen) >= LONGEST_CHAIN:
                return answer
            seen.add(labels)
            zone = self.zone_of(labels)
        if self._from_elsewhere(answer, owner, labels, qtype) is None:
            answer.onward = owner
        return answer

    def _from_elsewhere(self, answer: Answer, owner: DNSLabel, labels: Labels, qtype: int) -> Answer | None:
        """Where a name leads that is in none of the zones; None: where its own zone says. Of the types that say where
        it is reached all come from here: from outside, AAAA or HTTPS would lead past the answer to A."""
        found = self._elsewhere.get(labels)
        if found is None or qtype not in _WITH_ADDRESSES:
            return None
        if qtype in found:
            answer.records += _records(owner, found[qtype])
        return answer

    @staticmethod
    def _end(answer: Answer, owner: DNSLabel, qtype: int, zone: Zone, found: RRsets | None) -> None:
        """What the last name of a chain has of the type that was asked for."""
        if found is None:
            answer.rcode = RCODE.NXDOMAIN  # also where aliases lead to nothing (RFC 6604 section 3)
        elif qtype == _SOA and labels_in(owner) == zone.origin:
            answer.records.append(RR(owner, _SOA, CLASS.IN, zone.soa.ttl, zone.soa.rdata))
            return
        elif qtype in found:
            answer.records += _records(owner, found[qtype])
            return
        answer.authority.append(zone.soa)


def _records(owner: DNSLabel, records: tuple[Record, ...]) -> list[RR]:
    ttl = min(record.ttl for record in records)  # RFC 2181 section 5.2: all of a set have one
    return [RR(owner, record.rtype, CLASS.IN, ttl, record.rdata()) for record in records]
