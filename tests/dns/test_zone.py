"""The zone's answers, by RFC: what exists, what does not, and what is not ours."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from dnslib import EDNS0, QTYPE, RCODE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from overlay_dns.message import is_reply_to, parse_query, question_end, short_reply, udp_limit
from overlay_dns.zone import NEGATIVE_TTL, Zone

B4, B6 = IPv4Address("10.77.0.3"), IPv6Address("fd00:1:2::3")
ZONE = Zone.build(
    "local.test",
    {"server": [IPv4Address("10.77.0.1")], "b": [B4, B6], "db.c": [IPv4Address("10.77.0.4")]},
    serial=7,
    networks=[IPv4Network("10.77.0.0/16"), IPv6Network("fd00:1:2::/48")],
)


def ask(name: str, qtype: str = "A") -> DNSRecord:
    answer = ZONE.answer(DNSRecord.question(name, qtype))
    assert answer is not None
    return DNSRecord.parse(answer.pack())  # as the client sees it


@pytest.mark.parametrize(
    ("name", "qtype", "data"),
    [
        ("b.local.test", "A", ["10.77.0.3"]),
        ("b.local.test", "AAAA", ["fd00:1:2::3"]),
        ("db.c.local.test", "A", ["10.77.0.4"]),
        ("3.0.77.10.in-addr.arpa", "PTR", ["b.local.test."]),
        (B6.reverse_pointer, "PTR", ["b.local.test."]),
        ("local.test", "NS", ["server.local.test."]),
    ],
)
def test_what_exists(name: str, qtype: str, data: list[str]) -> None:
    reply = ask(name, qtype)
    assert [str(record.rdata) for record in reply.rr] == data
    assert (reply.header.rcode, reply.header.aa, reply.header.ra) == (RCODE.NOERROR, 1, 1)


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "owner"),
    [
        ("nobody.local.test", "A", RCODE.NXDOMAIN, "local.test."),
        ("a.b.local.test", "A", RCODE.NXDOMAIN, "local.test."),
        ("b.local.test", "TXT", RCODE.NOERROR, "local.test."),
        ("db.c.local.test", "AAAA", RCODE.NOERROR, "local.test."),
        ("c.local.test", "A", RCODE.NOERROR, "local.test."),  # an empty non-terminal exists
        ("local.test", "A", RCODE.NOERROR, "local.test."),
        ("9.9.77.10.in-addr.arpa", "PTR", RCODE.NXDOMAIN, "77.10.in-addr.arpa."),
        ("3.0.77.10.in-addr.arpa", "A", RCODE.NOERROR, "77.10.in-addr.arpa."),
        (IPv6Address("fd00:1:2::9").reverse_pointer, "PTR", RCODE.NXDOMAIN, "2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa."),
    ],
)
def test_what_does_not_exist_comes_with_an_soa(name: str, qtype: str, rcode: int, owner: str) -> None:
    reply = ask(name, qtype)
    assert (reply.header.rcode, reply.rr) == (rcode, [])
    (soa,) = reply.auth
    assert (soa.rtype, str(soa.rname), soa.ttl) == (QTYPE.SOA, owner, NEGATIVE_TTL)
    assert soa.rdata.times[0] == 7  # the serial is the map's version


def test_any_is_refused() -> None:
    assert ask("b.local.test", "ANY").header.rcode == RCODE.REFUSED


def test_case_is_ignored_and_kept() -> None:
    reply = ask("B.LoCaL.tEsT")
    assert str(reply.q.qname) == "B.LoCaL.tEsT."
    assert str(reply.rr[0].rname) == "B.LoCaL.tEsT."


@pytest.mark.parametrize(
    "name",
    ["example.com", "test", "xlocal.test", "local.test.example.com", "1.0.0.127.in-addr.arpa", "77.10.in-addr.arpa"],
)
def test_the_rest_of_the_name_space_is_not_ours(name: str) -> None:
    assert ZONE.answer(DNSRecord.question(name, "A")) is None


@given(st.lists(st.text("abcdefghij0123456789", min_size=1, max_size=8), min_size=1, max_size=40), st.data())
def test_names_of_any_shape_get_an_answer_or_none(labels: list[str], data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["", ".local.test", ".in-addr.arpa", ".ip6.arpa"]))
    qtype = data.draw(st.sampled_from(["A", "AAAA", "PTR", "SOA", "TXT", "ANY"]))
    name = ".".join(labels) + suffix
    if len(name) > 250:
        return
    answer = ZONE.answer(DNSRecord.question(name, qtype))
    if suffix == ".local.test":
        assert answer is not None
    if answer is not None:
        assert DNSRecord.parse(answer.pack()).q.qname == name


def test_udp_limit_is_the_clients_within_bounds() -> None:
    assert udp_limit(DNSRecord.question("a")) == 512
    for offered, limit in ((0, 512), (100, 512), (900, 900), (4096, 1232)):
        query = DNSRecord.question("a")
        query.add_ar(EDNS0(udp_len=offered))
        assert udp_limit(DNSRecord.parse(query.pack())) == limit


@given(st.binary(max_size=300))
def test_fuzz_hostile_bytes_are_refused_or_dropped(data: bytes) -> None:
    parsed = parse_query(data)
    if isinstance(parsed, int):
        assert short_reply(data, parsed)[:2] == data[:2]
    elif parsed is not None:
        ZONE.answer(parsed)
    question_end(data)
    is_reply_to(data, DNSRecord.question("a").pack())


@given(st.binary(max_size=40), st.integers(0, 60))
def test_fuzz_damaged_queries_never_raise(noise: bytes, offset: int) -> None:
    query = DNSRecord.question("some.name.local.test", "AAAA").pack()
    damaged = query[:offset] + noise + query[offset + len(noise) :]
    parsed = parse_query(damaged)
    if isinstance(parsed, DNSRecord):
        ZONE.answer(parsed)
