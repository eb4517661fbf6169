"""The zone's answers, by RFC: what exists, what does not, and what is not ours."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from dnslib import EDNS0, QTYPE, RCODE, DNSLabel, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from overlay_dns.message import is_reply_to, question_end, udp_limit
from overlay_dns.query import parse_query, short_reply
from overlay_dns.zone import NEGATIVE_TTL, Record, Zones

B4, B6 = IPv4Address("10.77.0.3"), IPv6Address("fd00:1:2::3")
ZONES = Zones.build(
    "local.test",
    {"server": [IPv4Address("10.77.0.1")], "b": [B4, B6], "db.c": [IPv4Address("10.77.0.4")]},
    serial=7,
    networks=[IPv4Network("10.77.0.0/16"), IPv6Network("fd00:1:2::/48")],
)


def ask(name: str, qtype: str = "A") -> DNSRecord:
    reply = reply_to(DNSRecord.question(name, qtype))
    assert reply is not None
    return DNSRecord.parse(reply.pack())  # as the client sees it


def reply_to(query: DNSRecord, zones: Zones = ZONES) -> DNSRecord | None:
    answer = zones.answer(query.q.qname, query.q.qtype)
    return None if answer is None else answer.reply(query)


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
    ["example.com", "test", "xlocal.test", "local.test.example.com", "1.0.0.127.in-addr.arpa", "10.in-addr.arpa"],
)
def test_the_rest_of_the_name_space_is_not_ours(name: str) -> None:
    assert reply_to(DNSRecord.question(name, "A")) is None


@given(st.lists(st.text("abcdefghij0123456789", min_size=1, max_size=8), min_size=1, max_size=40), st.data())
def test_names_of_any_shape_get_an_answer_or_none(labels: list[str], data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(["", ".local.test", ".in-addr.arpa", ".ip6.arpa"]))
    qtype = data.draw(st.sampled_from(["A", "AAAA", "PTR", "SOA", "TXT", "ANY"]))
    name = ".".join(labels) + suffix
    if len(name) > 250:
        return
    answer = reply_to(DNSRecord.question(name, qtype))
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
        reply_to(parsed)
    question_end(data)
    is_reply_to(data, DNSRecord.question("a").pack())


@given(st.binary(max_size=40), st.integers(0, 60))
def test_fuzz_damaged_queries_never_raise(noise: bytes, offset: int) -> None:
    query = bytes(DNSRecord.question("some.name.local.test", "AAAA").pack())
    damaged = query[:offset] + noise + query[offset + len(noise) :]
    parsed = parse_query(damaged)
    if isinstance(parsed, DNSRecord):
        reply_to(parsed)


# aliases, wildcards, services ----------------------------------------------------------------------------------------

RECORDS = Zones.build(
    "local.test",
    {"server": [IPv4Address("10.77.0.1")], "b": [B4, B6]},
    serial=1,
    networks=[IPv4Network("10.77.0.0/22"), IPv4Network("10.78.1.128/25")],
    records=[
        Record("*.b.local.test", QTYPE.CNAME, "b.local.test"),
        Record("exact.b.local.test", QTYPE.TXT, (b"one", b"two words")),
        Record("deep.hole.b.local.test", QTYPE.A, IPv4Address("10.77.0.9")),
        Record("www.local.test", QTYPE.CNAME, "web.local.test"),
        Record("web.local.test", QTYPE.CNAME, "b.local.test"),
        Record("out.local.test", QTYPE.CNAME, "www.example.com"),
        Record("nowhere.local.test", QTYPE.CNAME, "missing.local.test"),
        Record("round.local.test", QTYPE.CNAME, "about.local.test"),
        Record("about.local.test", QTYPE.CNAME, "round.local.test"),
        Record("_ssh._tcp.b.local.test", QTYPE.SRV, (0, 5, 22, "b.local.test")),
        *(Record(f"chain{n}.local.test", QTYPE.CNAME, f"chain{n + 1}.local.test") for n in range(30)),
    ],
)


def records(name: str, qtype: str) -> tuple[int, list[tuple[str, str, str]]]:
    reply = reply_to(DNSRecord.question(name, qtype), RECORDS)
    assert reply is not None
    seen = DNSRecord.parse(reply.pack())
    return seen.header.rcode, [(str(rr.rname), QTYPE.get(rr.rtype), str(rr.rdata)) for rr in seen.rr]


def test_an_alias_comes_with_what_it_leads_to() -> None:
    assert records("www.local.test", "A") == (
        RCODE.NOERROR,
        [
            ("www.local.test.", "CNAME", "web.local.test."),
            ("web.local.test.", "CNAME", "b.local.test."),
            ("b.local.test.", "A", "10.77.0.3"),
        ],
    )
    assert records("www.local.test", "CNAME") == (RCODE.NOERROR, [("www.local.test.", "CNAME", "web.local.test.")])


def test_an_alias_to_a_name_without_that_type_is_no_data_and_to_none_at_all_is_nxdomain() -> None:
    assert records("web.local.test", "TXT") == (RCODE.NOERROR, [("web.local.test.", "CNAME", "b.local.test.")])
    rcode, found = records("nowhere.local.test", "A")
    assert (rcode, found) == (RCODE.NXDOMAIN, [("nowhere.local.test.", "CNAME", "missing.local.test.")])


def test_an_alias_that_leads_out_says_where() -> None:
    answer = RECORDS.answer(DNSLabel("OUT.local.test"), QTYPE.A)
    assert answer is not None and str(answer.onward) == "www.example.com."


def test_circles_and_long_chains_end() -> None:
    for name in ("round.local.test", "chain0.local.test"):
        rcode, found = records(name, "A")
        assert rcode == RCODE.NOERROR and 2 <= len(found) <= 8


@pytest.mark.parametrize(
    ("name", "qtype", "rcode", "found"),
    [
        ("any.b.local.test", "A", RCODE.NOERROR, ["b.local.test.", "10.77.0.3"]),
        ("far.away.b.local.test", "AAAA", RCODE.NOERROR, ["b.local.test.", "fd00:1:2::3"]),
        ("exact.b.local.test", "A", RCODE.NOERROR, []),  # exists: the wildcard does not stand for it
        ("below.exact.b.local.test", "A", RCODE.NXDOMAIN, []),  # its closest encloser has no wildcard
        ("hole.b.local.test", "A", RCODE.NOERROR, []),  # an empty non-terminal exists, too
        ("other.hole.b.local.test", "A", RCODE.NXDOMAIN, []),
        ("*.b.local.test", "CNAME", RCODE.NOERROR, ["b.local.test."]),
        ("b.local.test", "A", RCODE.NOERROR, ["10.77.0.3"]),
        ("*.local.test", "A", RCODE.NXDOMAIN, []),
    ],
)
def test_wildcards(name: str, qtype: str, rcode: int, found: list[str]) -> None:
    assert (rcode, found) == (records(name, qtype)[0], [data for _, _, data in records(name, qtype)[1]])


def test_services_and_texts() -> None:
    assert records("_ssh._tcp.b.local.test", "SRV")[1] == [("_ssh._tcp.b.local.test.", "SRV", "0 5 22 b.local.test.")]
    assert records("exact.b.local.test", "TXT")[1] == [("exact.b.local.test.", "TXT", '"one","two words"')]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("3.0.77.10.in-addr.arpa", True),
        ("3.77.10.in-addr.arpa", True),  # the apex of one of the four zones that a /22 is
        ("4.77.10.in-addr.arpa", False),
        ("200.1.78.10.in-addr.arpa", True),
        ("1.1.78.10.in-addr.arpa", False),  # of the same /24, and somebody else's
    ],
)
def test_reverse_zones_hold_the_networks_and_nothing_else(name: str, ours: bool) -> None:
    assert (reply_to(DNSRecord.question(name, "PTR"), RECORDS) is not None) == ours


def test_a_record_outside_its_zone_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="example.com"):
        Zones.build("local.test", {}, 1, records=[Record("www.example.com", QTYPE.A, B4)])


def test_names_of_others_that_lead_elsewhere_from_here() -> None:
    zones = Zones.build(
        "local.test",
        {"b": [B4]},
        serial=7,
        records=[Record("www.local.test", QTYPE.CNAME, "app.example.org")],
        elsewhere=[Record("app.example.org", QTYPE.A, B4)],
    )
    reply = reply_to(DNSRecord.question("App.example.org"), zones)
    assert reply is not None and [str(each.rdata) for each in reply.rr] == ["10.77.0.3"]
    assert (str(reply.rr[0].rname), reply.header.aa) == ("App.example.org.", 0)
    for qtype in ("AAAA", "HTTPS"):  # from outside they would lead past the A record
        reply = reply_to(DNSRecord.question("app.example.org", qtype), zones)
        assert reply is not None and (reply.rr, reply.auth, reply.header.rcode) == ([], [], RCODE.NOERROR)
    for name, qtype in (("app.example.org", "MX"), ("x.app.example.org", "A"), ("example.org", "A")):
        assert zones.answer(DNSLabel(name), getattr(QTYPE, qtype)) is None
    reply = reply_to(DNSRecord.question("www.local.test"), zones)  # an alias of ours leads there, too
    assert reply is not None and [str(each.rdata) for each in reply.rr] == ["app.example.org.", "10.77.0.3"]
