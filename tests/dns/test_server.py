"""The resolver over real sockets, in front of a real upstream made of dnslib's server."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network

import anyio
import pytest
from anyio import to_thread
from dnslib import QTYPE, RCODE, RR, TXT, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSServer

from overlay_dns.forwarder import Upstream
from overlay_dns.server import OTHER_BURST, OTHER_RATE, OTHERS_BURST, Resolver
from overlay_dns.zone import Zones

ZONES = Zones.build(
    "local.test",
    {"b": [IPv4Address("10.77.0.3")], "many": [IPv4Address(f"10.77.1.{n}") for n in range(1, 120)]},
    serial=1,
    networks=[IPv4Network("10.77.0.0/16")],
)


class Upstreamer(BaseResolver):  # type: ignore[misc]
    """A.example has an address; big.example a TXT set that needs TCP."""

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        reply = request.reply()
        if request.q.qname == "a.example":
            reply.add_answer(RR("a.example", QTYPE.A, ttl=60, rdata=A("192.0.2.80")))
        elif request.q.qname == "big.example":
            for n in range(20):
                reply.add_answer(RR("big.example", QTYPE.TXT, ttl=60, rdata=TXT(f"{n:03}" * 60)))
            if handler.protocol == "udp":
                reply = reply.truncate()
        else:
            reply.header.rcode = RCODE.NXDOMAIN
        return reply


@contextmanager
def upstream() -> Iterator[Upstream]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    servers = [DNSServer(Upstreamer(), port=port, address="127.0.0.1", tcp=tcp) for tcp in (False, True)]
    for server in servers:
        server.start_thread()
    try:
        yield Upstream("127.0.0.1", port)
    finally:
        for server in servers:
            server.stop()
            server.server.server_close()
            assert isinstance(server.thread, threading.Thread)
            server.thread.join()


def with_resolver(upstreams: Sequence[Upstream], check: Callable[[int, Resolver], None]) -> None:
    async def main() -> None:
        resolver = Resolver(ZONES, lambda: upstreams)
        async with anyio.create_task_group() as tasks:
            port = await tasks.start(partial(resolver.serve, ["127.0.0.1"], port=0))
            await to_thread.run_sync(check, port, resolver)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def ask(port: int, name: str, qtype: str = "A", *, tcp: bool = False) -> DNSRecord:
    return DNSRecord.parse(DNSRecord.question(name, qtype).send("127.0.0.1", port, tcp=tcp, timeout=10))


def test_zone_and_forwarding_over_udp_and_tcp() -> None:
    def check(port: int, _resolver: Resolver) -> None:
        for tcp in (False, True):
            assert str(ask(port, "b.local.test", tcp=tcp).rr[0].rdata) == "10.77.0.3"
            assert str(ask(port, "a.example", tcp=tcp).rr[0].rdata) == "192.0.2.80"
            assert ask(port, "nobody.local.test", tcp=tcp).header.rcode == RCODE.NXDOMAIN

    with upstream() as server:
        with_resolver([server], check)


def test_large_answers_are_truncated_over_udp_and_whole_over_tcp() -> None:
    def check(port: int, _resolver: Resolver) -> None:
        for name, qtype, count in (("many.local.test", "A", 119), ("big.example", "TXT", 20)):
            short = ask(port, name, qtype)
            assert (short.header.tc, len(short.rr)) == (1, 0)
            assert len(ask(port, name, qtype, tcp=True).rr) == count

    with upstream() as server:
        with_resolver([server], check)


def test_no_upstream_is_servfail_and_counted() -> None:
    def check(port: int, resolver: Resolver) -> None:
        assert ask(port, "a.example").header.rcode == RCODE.SERVFAIL
        assert resolver.drops["no_upstream"] == 1

    with_resolver([], check)


def test_members_of_the_network_hear_of_the_zones_and_no_more() -> None:
    async def main() -> None:
        resolver = Resolver(ZONES, list)
        for name, rcode in (("b.local.test", RCODE.NOERROR), ("a.example", RCODE.REFUSED)):
            reply = await resolver.reply(bytes(DNSRecord.question(name).pack()), "10.77.0.9", stream=False)
            assert reply is not None and DNSRecord.parse(reply).header.rcode == rcode
        assert resolver.drops["foreign_client"] == 1

    anyio.run(main)


def test_members_of_the_network_have_a_rate_and_this_machine_has_none() -> None:
    async def main() -> None:
        now = 100.0
        resolver, query = Resolver(ZONES, list, clock=lambda: now), bytes(DNSRecord.question("b.local.test").pack())

        async def answered(source: str, asked: int) -> int:
            replies = [await resolver.reply(query, source, stream=False) for _ in range(asked)]
            return sum(reply is not None for reply in replies)

        burst, rate = int(OTHER_BURST), int(OTHER_RATE)
        assert await answered("10.77.0.9", burst + 7) == burst
        assert await answered("127.0.0.1", 1000) == 1000
        assert resolver.drops["client_rate"] == 7
        now += 1.0
        assert await answered("10.77.0.9", rate + 1) == rate  # who floods takes nothing from others
        now += 10.0
        everybody = [await answered(f"10.77.0.{number}", burst) for number in range(10, 20)]
        assert sum(everybody) == int(OTHERS_BURST) and everybody[0] == burst

    anyio.run(main)


def test_strangers_hear_nothing_and_containers_are_this_machine() -> None:
    async def main() -> None:
        resolver = Resolver(ZONES, list, inside=lambda: [IPv4Network("172.17.0.0/16")])
        query = bytes(DNSRecord.question("b.local.test").pack())
        for source in ("192.168.1.7", "203.0.113.9", "2001:db8::1", "fe80::1%eth0"):
            for stream in (False, True):
                assert await resolver.reply(query, source, stream=stream) is None
        assert resolver.drops == {"stranger": 8}
        for source in ("127.0.0.1", "172.17.0.2"):
            outside = await resolver.reply(bytes(DNSRecord.question("a.example").pack()), source, stream=False)
            assert outside is not None and DNSRecord.parse(outside).header.rcode == RCODE.SERVFAIL  # it was forwarded

    anyio.run(main)


def test_a_new_zone_counts_at_once() -> None:
    def check(port: int, resolver: Resolver) -> None:
        resolver.set_zones(Zones.build("local.test", {"new": [IPv4Address("10.77.0.7")]}, serial=2))
        assert str(ask(port, "new.local.test").rr[0].rdata) == "10.77.0.7"
        assert ask(port, "b.local.test").header.rcode == RCODE.NXDOMAIN

    with_resolver([], check)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 11, b"\xff" * 40, DNSRecord.question("a").reply().pack()])
def test_garbage_gets_no_service_and_harms_none(garbage: bytes) -> None:
    def check(port: int, _resolver: Resolver) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(garbage, ("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as tcp:
            tcp.sendall(len(garbage).to_bytes(2) + garbage)
        assert str(ask(port, "b.local.test").rr[0].rdata) == "10.77.0.3"

    with_resolver([], check)


def test_questions_in_a_row_on_one_connection() -> None:
    def check(port: int, _resolver: Resolver) -> None:
        questions = [DNSRecord.question("b.local.test"), DNSRecord.question("many.local.test")]
        with socket.create_connection(("127.0.0.1", port)) as tcp, tcp.makefile("rb") as file:
            packed = [question.pack() for question in questions]
            tcp.sendall(b"".join(len(data).to_bytes(2) + data for data in packed))
            for question in questions:
                reply = DNSRecord.parse(file.read(int.from_bytes(file.read(2))))
                assert reply.header.id == question.header.id

    with_resolver([], check)


def record(owner: bytes, size: int = 0) -> bytes:
    """A record of an additional section."""
    return owner + b"\0\x10\0\1\0\0\0\0" + size.to_bytes(2) + bytes(size)


def message(question: bytes, *more: bytes, questions: int = 1) -> bytes:
    return b"\0\7\1\0" + questions.to_bytes(2) + b"\0\0\0\0" + len(more).to_bytes(2) + question + b"".join(more)


QUESTION = b"\1b\5local\4test\0\0\1\0\1"
HOSTILE = {
    "a name that points at itself": message(b"\xc0\x0c\0\1\0\1"),
    "a pointer past the end": message(b"\xff\xff\0\1\0\1"),
    "a name with a pointer in it": message(b"\1b\xc0\x0c\0\1\0\1"),
    "a label past the end": message(b"\x3fb"),
    "64 KiB of one name": message(b"\1a" * 32_756 + b"\0\0\1\0\1"),
    "64 KiB of bytes": b"\0\7\1\0\0\1" + b"\xff" * 65_529,
    "thousands of questions": message(QUESTION * 3_000, questions=3_000),
    "thousands of records": message(QUESTION, *[record(b"\0")] * 5_900),
    "thousands of records that all point at one long name": message(
        b"\1a" * 126 + b"\0\0\1\0\1", *[record(b"\xc0\x0c")] * 5_000
    ),
    "records that are not there": b"\0\7\1\0\0\1\0\0\0\0\xff\xff" + QUESTION,
    "answers to a question": b"\0\7\1\0\0\1\xff\xff\0\0\0\0" + QUESTION,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_messages_are_refused_and_harm_none(what: str) -> None:
    def check(port: int, resolver: Resolver) -> None:
        data = HOSTILE[what]
        assert len(data) < 65_536
        with socket.create_connection(("127.0.0.1", port)) as tcp, tcp.makefile("rb") as file:
            tcp.sendall(len(data).to_bytes(2) + data)
            reply = file.read(int.from_bytes(file.read(2)))
        assert (reply[:2], reply[2] & 0x80, reply[3] & 15) == (data[:2], 0x80, RCODE.FORMERR)
        assert len(reply) <= 512
        assert resolver.drops["bad_query"] == 1
        assert str(ask(port, "b.local.test").rr[0].rdata) == "10.77.0.3"

    with_resolver([], check)


def test_responses_are_answered_by_nothing() -> None:
    def check(port: int, resolver: Resolver) -> None:
        replies = [bytes(DNSRecord.question(name).reply().pack()) for name in ("b.local.test", "a.example")]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for reply in replies:
                udp.sendto(reply, ("127.0.0.1", port))
            udp.sendto(DNSRecord.question("b.local.test").pack(), ("127.0.0.1", port))
            udp.settimeout(5)
            assert str(DNSRecord.parse(udp.recv(4096)).rr[0].rdata) == "10.77.0.3"  # nothing came before it
        assert resolver.drops["not_a_query"] == 2

    with_resolver([], check)


def test_a_flood_of_pipelined_questions_is_answered_whole() -> None:
    def check(port: int, _resolver: Resolver) -> None:
        query = bytes(DNSRecord.question("b.local.test").pack())
        count = 3_000
        with socket.create_connection(("127.0.0.1", port)) as tcp, tcp.makefile("rb") as file:
            writer = threading.Thread(target=tcp.sendall, args=((len(query).to_bytes(2) + query) * count,))
            writer.start()
            for _ in range(count):
                assert file.read(int.from_bytes(file.read(2)))[:2] == query[:2]
            writer.join()

    with_resolver([], check)


def test_a_flood_of_names_that_are_not_there_leaves_the_others_answered() -> None:
    def check(port: int, resolver: Resolver) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            for number in range(5_000):
                udp.sendto(DNSRecord.question(f"n{number}.example").pack(), ("127.0.0.1", port))
            assert str(ask(port, "b.local.test", tcp=True).rr[0].rdata) == "10.77.0.3"

    with_resolver([], check)
