"""What is kept of upstreams' answers, for how long, and how it is given. Virtual time."""

from dnslib import CNAME, EDNS0, QTYPE, RCODE, RR, SOA, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from overlay_dns.cache import LONGEST, LONGEST_NEGATIVE, MOST, RETRY, STALE, STALE_TTL, Cache
from overlay_dns.records import ALIAS_LIMIT, is_to_the_point, name_at, outgoing, parse


def key_of(query: bytes) -> bytes:
    key = outgoing(query)
    assert key is not None
    return key


def question(name: str = "a.example", qtype: str = "A") -> bytes:
    return bytes(DNSRecord.question(name, qtype).pack())


def answer(query: bytes, *ttls: int, rcode: int = 0, soa: tuple[int, int] | None = None, tc: int = 0) -> bytes:
    reply = DNSRecord.parse(query).reply()
    reply.header.rcode, reply.header.tc = rcode, tc
    for number, ttl in enumerate(ttls):
        reply.add_answer(RR(reply.q.qname, QTYPE.A, ttl=ttl, rdata=A(f"192.0.2.{number}")))
    if soa is not None:
        reply.add_auth(
            RR("example", QTYPE.SOA, ttl=soa[0], rdata=SOA("ns.example", "root.example", (1, 2, 3, 4, soa[1])))
        )
    return bytes(reply.pack())


def test_an_answer_is_kept_for_its_shortest_ttl_which_counts_down() -> None:
    cache, query = Cache(), question("A.Example")
    key = key_of(query)
    assert cache.keep(key, answer(key, 300, 60), 100.0)
    kept = cache.fresh(key, 159.9)
    assert kept is not None and not kept.negative
    reply = DNSRecord.parse(kept.render(query, 140.5))
    assert [record.ttl for record in reply.rr] == [260, 20]
    assert (reply.header.id, str(reply.q.qname)) == (DNSRecord.parse(query).header.id, "A.Example.")
    assert cache.fresh(key, 160.0) is None


def test_negative_answers_are_kept_as_their_soa_says() -> None:
    key = key_of(question())
    for rcode in (RCODE.NOERROR, RCODE.NXDOMAIN):
        for soa, seconds in (((900, 30), 30), ((20, 900), 20), ((99_999, 99_999), LONGEST_NEGATIVE)):
            kept = Cache().keep(key, answer(key, rcode=rcode, soa=soa), 0.0)
            assert kept is not None and kept.negative and kept.expires == seconds
        assert Cache().keep(key, answer(key, rcode=rcode), 0.0) is None


def test_what_may_not_be_kept() -> None:
    key = key_of(question())
    good = answer(key, 60)
    for reply in (
        answer(key, 60, rcode=RCODE.SERVFAIL),
        answer(key, rcode=RCODE.REFUSED, soa=(60, 60)),
        answer(key, 60, tc=1),
        answer(key, 0),
        answer(key, 0x8000_0001),
        good + b"\0",
        good[:-1],
        answer(key_of(question("a.example", "AAAA")), 60),  # addresses of another kind, and no SOA
    ):
        assert Cache().keep(key, reply, 0.0) is None
    kept = Cache().keep(key, answer(key, 999_999), 0.0)
    assert kept is not None and kept.expires == LONGEST


def test_a_stale_answer_waits_for_its_time() -> None:
    cache, query = Cache(), question()
    key = key_of(query)
    cache.keep(key, answer(key, 60), 0.0)
    stale = cache.stale(key, 3_000.0)
    assert stale is not None
    assert DNSRecord.parse(stale.render(query, 3_000.0)).rr[0].ttl == STALE_TTL
    assert not cache.waits(key, 3_000.0)
    cache.failed(key, 3_000.0)
    assert cache.waits(key, 3_000.0 + RETRY - 1) and not cache.waits(key, 3_000.0 + RETRY)
    assert cache.stale(key, 60.0 + STALE) is None and len(cache) == 0


def test_it_is_bounded() -> None:
    cache = Cache()
    for number in range(MOST + 10):
        key = key_of(question(f"n{number}.example"))
        cache.keep(key, answer(key, 60), 0.0)
    assert len(cache) == MOST
    assert cache.fresh(key_of(question("n0.example")), 1.0) is None
    assert cache.fresh(key_of(question(f"n{MOST}.example")), 1.0) is not None


def test_clients_that_want_the_same_share_a_key() -> None:
    def with_edns(flags: str, size: int) -> bytes:
        query = DNSRecord.question("A.example")
        query.add_ar(EDNS0(flags=flags, udp_len=size))
        return bytes(query.pack())

    assert key_of(question("a.example")) == key_of(question("A.EXAMPLE"))
    assert key_of(with_edns("", 512)) == key_of(with_edns("", 4096)) != key_of(with_edns("do", 512))
    assert DNSRecord.parse(key_of(with_edns("do", 4096))).ar[0].edns_len == 1232


def test_aliases_are_followed_in_whatever_order_so_far() -> None:
    for count, fits in ((3, True), (ALIAS_LIMIT + 1, False)):
        reply = DNSRecord.parse(question("n0.example")).reply()
        chain = [RR(f"n{n}.example", QTYPE.CNAME, rdata=CNAME(f"N{n + 1}.example")) for n in range(count)]
        reply.add_answer(RR(f"n{count}.example", QTYPE.A, rdata=A("192.0.2.1")), *reversed(chain))
        data = bytes(reply.pack())
        message = parse(data)
        assert message is not None and is_to_the_point(message, data) == fits
    assert name_at(b"\1a\xc0\0", 0) is None and name_at(b"\xc0\0", 0) is None and name_at(b"\xc0\2\0", 0) is None
    assert name_at(b"\1B\0\1a\xc0\0", 3) == b"\1a\1b\0"


@given(st.binary(max_size=120))
def test_fuzz_messages(tail: bytes) -> None:
    query = question()
    for data in (tail, answer(query, 60)[:20] + tail, query[:2] + b"\x81\x80\0\1\0\2\0\1\0\1" + query[12:] + tail):
        message = parse(data)
        if message is not None:
            is_to_the_point(message, data)
        for offset in range(len(data)):
            name = name_at(data, offset)
            assert name is None or len(name) <= 255
        outgoing(data)
        kept = Cache().keep(key_of(query), data, 0.0)
        assert kept is None or len(kept.render(query, 1.0)) == len(data)
