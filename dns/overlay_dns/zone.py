"""The network's zone: which names there are, and the answer to any question about them. No sockets here.

A zone is a frozen value, built once per network map. It is authoritative for its domain and for the reverse names of
the network's ranges: what is not in it does not exist (RFC 2308: with an SOA, so that resolvers may remember that).
The rest of the name space is not its business: `answer` returns None, and the question is forwarded.

Terms are those of RFC 9499.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from dnslib import AAAA, CLASS, NS, PTR, QTYPE, RCODE, RR, SOA, A, DNSHeader, DNSLabel, DNSRecord

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

TTL = 5
"""Seconds that a positive answer may be kept: a node that changes its address is found again at once."""
NEGATIVE_TTL = 10
"""Seconds that "no such name" may be kept (RFC 2308 section 5: the SOA's minimum)."""

_V4_SUFFIX = (b"in-addr", b"arpa")
_V6_SUFFIX = (b"ip6", b"arpa")

Labels = tuple[bytes, ...]


def _labels(name: str | DNSLabel) -> Labels:
    """Labels in lower case, for comparison (RFC 4343: ASCII case is ignored)."""
    label = name if isinstance(name, DNSLabel) else DNSLabel(name)
    return tuple(part.lower() for part in label.label)


@dataclass(frozen=True, slots=True)
class Zone:
    """`domain` with its hosts, and the reverse names of `networks`."""

    domain: str
    serial: int
    networks: tuple[Network, ...]
    hosts: Mapping[Labels, tuple[Address, ...]]
    reverse: Mapping[Address, str]
    nameserver: str

    @classmethod
    def build(
        cls,
        domain: str,
        hosts: Mapping[str, Iterable[Address]],
        serial: int,
        networks: Iterable[Network] = (),
        nameserver: str = "server",
    ) -> "Zone":
        """`hosts` maps names relative to `domain` ("b", "db.b") to addresses; `nameserver` is one such name."""
        domain = domain.strip(".")
        forward: dict[Labels, tuple[Address, ...]] = {}
        reverse: dict[Address, str] = {}
        for name, addresses in hosts.items():
            full = f"{name}.{domain}"
            forward[_labels(full)] = tuple(addresses)
            for address in forward[_labels(full)]:
                reverse.setdefault(address, full)
        return cls(domain, serial, tuple(networks), forward, reverse, f"{nameserver}.{domain}")

    def answer(self, query: DNSRecord) -> DNSRecord | None:
        """The reply to a query with one question of class IN, or None if the name is outside the zone."""
        question = query.questions[0]
        labels = _labels(question.qname)
        apex = _labels(self.domain)
        if labels[-len(apex) :] == apex:
            return self._forward(query, labels, apex)
        if labels[-2:] in (_V4_SUFFIX, _V6_SUFFIX):
            return self._reverse(query, labels)
        return None

    def _forward(self, query: DNSRecord, labels: Labels, apex: Labels) -> DNSRecord:
        reply, question = self._reply(query), query.questions[0]
        name, qtype = question.qname, question.qtype
        if qtype == QTYPE.ANY:
            reply.header.rcode = RCODE.REFUSED  # RFC 8482 section 4 lets us; such questions serve attackers most
            return reply
        if labels == apex:
            if qtype == QTYPE.SOA:
                reply.add_answer(self._soa(name))
            elif qtype == QTYPE.NS:
                reply.add_answer(RR(name, QTYPE.NS, CLASS.IN, TTL, NS(self.nameserver)))
        elif labels in self.hosts:
            for address in self.hosts[labels]:
                if qtype == QTYPE.A and isinstance(address, IPv4Address):
                    reply.add_answer(RR(name, QTYPE.A, CLASS.IN, TTL, A(str(address))))
                elif qtype == QTYPE.AAAA and isinstance(address, IPv6Address):
                    reply.add_answer(RR(name, QTYPE.AAAA, CLASS.IN, TTL, AAAA(str(address))))
        elif not any(len(host) > len(labels) and host[-len(labels) :] == labels for host in self.hosts):
            # Only a name with nothing below it does not exist; "b" in "db.b" is an empty non-terminal (RFC 8020).
            reply.header.rcode = RCODE.NXDOMAIN
        if not reply.rr:
            reply.add_auth(self._soa(DNSLabel(self.domain)))
        return reply

    def _reverse(self, query: DNSRecord, labels: Labels) -> DNSRecord | None:
        address = _reverse_address(labels)
        if address is None or not any(address in network for network in self.networks):
            return None
        reply, question = self._reply(query), query.questions[0]
        target = self.reverse.get(address)
        if target is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif question.qtype == QTYPE.PTR:
            reply.add_answer(RR(question.qname, QTYPE.PTR, CLASS.IN, TTL, PTR(target)))
        if not reply.rr:
            reply.add_auth(self._soa(_reverse_apex(address, self.networks)))
        return reply

    @staticmethod
    def _reply(query: DNSRecord) -> DNSRecord:
        header = DNSHeader(id=query.header.id, qr=1, aa=1, ra=1, rd=query.header.rd)
        return DNSRecord(header, q=query.questions[0])

    def _soa(self, owner: DNSLabel) -> RR:
        times = (self.serial & 0xFFFFFFFF, 3600, 600, 86400, NEGATIVE_TTL)
        return RR(owner, QTYPE.SOA, CLASS.IN, NEGATIVE_TTL, SOA(self.nameserver, f"hostmaster.{self.domain}", times))


def _reverse_address(labels: Labels) -> Address | None:
    """The address that a whole reverse name stands for (RFC 1035 section 3.5, RFC 3596 section 2.5)."""
    digits = [label.decode("ascii", "replace") for label in reversed(labels[:-2])]
    try:
        if labels[-2:] == _V4_SUFFIX and len(digits) == 4:
            return ip_address(".".join(digits))
        if labels[-2:] == _V6_SUFFIX and len(digits) == 32 and all(len(digit) == 1 for digit in digits):
            return IPv6Address(int("".join(digits), 16))
    except ValueError:
        return None
    return None


def _reverse_apex(address: Address, networks: Iterable[Network]) -> DNSLabel:
    """The name of the reverse zone that `address` is in: that of its network, cut at a whole label."""
    network = next(network for network in networks if address in network)
    bits = 8 if isinstance(address, IPv4Address) else 4
    labels = address.reverse_pointer.split(".")
    keep = network.prefixlen // bits
    return DNSLabel(".".join(labels[len(labels) - 2 - keep :]))
