"""The forwarder before name servers on real sockets that answer late, wrong, truncated or never."""

import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trustme
from anyio.streams.tls import TLSListener
from dnslib import CNAME, QTYPE, RCODE, RR, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from overlay_dns.cache import RETRY, STALE_TTL
from overlay_dns.forwarder import Forwarder, ForwardError
from overlay_dns.upstream import LINK_LOCAL, Transport, Upstream, parse_upstream

from . import test_server

Answer = Callable[[DNSRecord], list[bytes]]


def query_for(name: str = "a.example") -> bytes:
    return bytes(DNSRecord.question(name).pack())


def address(text: str, ttl: int = 60) -> Answer:
    def answer(query: DNSRecord) -> list[bytes]:
        reply = query.reply()
        reply.add_answer(RR(query.q.qname, QTYPE.A, ttl=ttl, rdata=A(text)))
        return [bytes(reply.pack())]

    return answer


def failing(rcode: int) -> Answer:
    def answer(query: DNSRecord) -> list[bytes]:
        reply = query.reply()
        reply.header.rcode = rcode
        return [bytes(reply.pack())]

    return answer


class NameServer:
    """One that says what it is told to, and counts its questions."""

    def __init__(self, answer: Answer, port: int) -> None:
        self.answer, self.asked, self.upstream = answer, 0, Upstream("127.0.0.1", port)
        self.clients: list[tuple[str, int]] = []


@asynccontextmanager
async def name_server(answer: Answer) -> AsyncIterator[NameServer]:
    async with await anyio.create_udp_socket(family=socket.AF_INET, local_host="127.0.0.1") as udp:
        server = NameServer(answer, udp.extra(anyio.abc.SocketAttribute.local_port))

        async def serve() -> None:
            async for data, client in udp:
                server.asked += 1
                server.clients.append(client)
                for reply in server.answer(DNSRecord.parse(data)):
                    await udp.sendto(reply, *client)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            yield server
            tasks.cancel_scope.cancel()


def silent(_query: DNSRecord) -> list[bytes]:
    return []


def found(reply: bytes) -> list[str]:
    return [str(record.rdata) for record in DNSRecord.parse(reply).rr]


def run(main: Callable[[], Awaitable[Any]]) -> None:
    anyio.run(main)


def test_the_next_one_is_asked_and_who_was_silent_comes_last() -> None:
    async def main() -> None:
        async with name_server(silent) as dead, name_server(address("192.0.2.2")) as good:
            forwarder = Forwarder(lambda: [dead.upstream, good.upstream])
            assert found(await forwarder.ask(query_for())) == ["192.0.2.2"]
            assert found(await forwarder.ask(query_for("b.example"))) == ["192.0.2.2"]
            assert (dead.asked, good.asked) == (1, 2)
            way = forwarder.explain("a.example")
            assert way.upstreams == [str(good.upstream), str(dead.upstream)] and way.late == [str(dead.upstream)]
            assert [(each.qtype, each.negative) for each in way.remembered] == [("A", False)]

    run(main)


def test_a_server_that_fails_does_not_decide() -> None:
    async def main() -> None:
        for rcode in (RCODE.SERVFAIL, RCODE.REFUSED):
            async with name_server(failing(rcode)) as bad, name_server(address("192.0.2.2")) as good:
                forwarder = Forwarder(lambda bad=bad, good=good: [bad.upstream, good.upstream])  # type: ignore[misc]
                assert found(await forwarder.ask(query_for())) == ["192.0.2.2"]
                alone = Forwarder(lambda bad=bad: [bad.upstream])  # type: ignore[misc]
                for _ in range(2):
                    assert DNSRecord.parse(await alone.ask(query_for("A.example"))).header.rcode == rcode
                assert bad.asked == 3  # an error is not kept

    run(main)


def test_wrong_answers_count_for_nothing() -> None:
    def spoofing(query: DNSRecord) -> list[bytes]:
        good = address("192.0.2.2")(query)[0]
        other = DNSRecord.question("b.example")
        other.header.id = query.header.id
        wrong_id = bytes([good[0] ^ 1]) + good[1:]
        return [b"", b"\0" * 11, wrong_id, address("192.0.2.66")(other)[0], query.pack(), good]

    async def main() -> None:
        async with name_server(spoofing) as server:
            forwarder = Forwarder(lambda: [server.upstream])
            for _ in range(2):
                assert found(await forwarder.ask(query_for())) == ["192.0.2.2"]
            assert server.asked == 1

    run(main)


def test_an_answer_from_elsewhere_counts_for_nothing() -> None:
    async def main() -> None:
        async with name_server(silent) as server:
            forwarder = Forwarder(lambda: [server.upstream])
            attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

            def forge(query: DNSRecord) -> list[bytes]:
                forged = address("192.0.2.66")(query)[0]
                attacker.sendto(forged, server.clients[-1])  # all is right but where it comes from
                return address("192.0.2.2")(query)

            server.answer = forge
            with attacker:
                for _ in range(2):
                    assert found(await forwarder.ask(query_for())) == ["192.0.2.2"]
            assert server.asked == 1

    run(main)


def test_who_answers_late_is_asked_last_and_its_answer_reaches_nobody() -> None:
    async def main() -> None:
        async with name_server(silent) as late, name_server(address("192.0.2.2")) as good:
            forwarder = Forwarder(lambda: [late.upstream, good.upstream])
            kept: list[bytes] = []

            def hold(query: DNSRecord) -> list[bytes]:
                kept.extend(address("192.0.2.66")(query))
                return []

            late.answer = hold
            assert found(await forwarder.ask(query_for())) == ["192.0.2.2"]
            late.answer = address("192.0.2.3")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(kept[0], late.clients[0])  # nobody listens there any more
            assert found(await forwarder.ask(query_for())) == ["192.0.2.2"]
            assert found(await forwarder.ask(query_for("b.example"))) == ["192.0.2.2"]
            assert (late.asked, good.asked) == (1, 2)

    run(main)


def with_records(*records: RR, section: str = "rr", answer: str = "192.0.2.2") -> Answer:
    """An address that is right, and beside it what was not asked for."""

    def reply_to(query: DNSRecord) -> list[bytes]:
        reply = DNSRecord.parse(address(answer)(query)[0])
        getattr(reply, section).extend(records)
        return [bytes(reply.pack())]

    return reply_to


BANK = RR("bank.example", QTYPE.A, ttl=3600, rdata=A("192.0.2.66"))


def test_what_stands_beside_an_answer_is_no_answer() -> None:
    async def main() -> None:
        for section in ("ar", "auth"):
            async with name_server(with_records(BANK, section=section)) as server:
                forwarder = Forwarder(lambda server=server: [server.upstream])  # type: ignore[misc]
                assert found(await forwarder.ask(query_for())) == ["192.0.2.2"]
                server.answer = address("192.0.2.7")
                assert found(await forwarder.ask(query_for("bank.example"))) == ["192.0.2.7"]
                assert server.asked == 2

    run(main)


def test_an_answer_with_somebody_elses_records_is_none() -> None:
    alias = RR("a.example", QTYPE.CNAME, ttl=60, rdata=CNAME("b.example"))
    onward = RR("b.example", QTYPE.A, ttl=60, rdata=A("192.0.2.3"))

    async def main() -> None:
        async with name_server(with_records(BANK)) as bad, name_server(address("192.0.2.9")) as good:
            forwarder = Forwarder(lambda: [bad.upstream, good.upstream])
            assert found(await forwarder.ask(query_for())) == ["192.0.2.9"]
            assert forwarder.explain("a.example").late == [str(bad.upstream)]
            alone = Forwarder(lambda: [bad.upstream])
            for asked in (2, 3):
                with pytest.raises(ForwardError, match="upstream_silent"):
                    await alone.ask(query_for())
                assert bad.asked == asked
            bad.answer = lambda query: [bytes(with_rr(query, onward, alias).pack())]  # in whatever order
            assert found(await alone.ask(query_for())) == ["192.0.2.3", "b.example."]
            bad.answer = lambda query: [address("192.0.2.2")(query)[0][:-2]]  # cut short, and does not say so
            with pytest.raises(ForwardError, match="upstream_silent"):
                await alone.ask(query_for("c.example"))

    run(main)


def with_rr(query: DNSRecord, *records: RR) -> DNSRecord:
    reply = query.reply()
    reply.add_answer(*records)
    return reply


def test_half_an_answer_is_passed_on_as_none_and_not_kept() -> None:
    def truncated(query: DNSRecord) -> list[bytes]:
        reply = DNSRecord.parse(address("192.0.2.2")(query)[0])
        reply.header.tc = 1
        return [bytes(reply.pack())]  # and nobody listens by TCP

    async def main() -> None:
        async with name_server(truncated) as server, name_server(address("192.0.2.2")) as other:
            both = Forwarder(lambda: [server.upstream, other.upstream])
            assert found(await both.ask(query_for())) == ["192.0.2.2"]
            server.asked = 0
            forwarder = Forwarder(lambda: [server.upstream])
            for asked in (1, 2):
                reply = DNSRecord.parse(await forwarder.ask(query_for()))
                assert (reply.header.tc, reply.rr, str(reply.q.qname)) == (1, [], "a.example.")
                assert server.asked == asked

    run(main)


def test_the_same_question_is_under_way_once() -> None:
    async def main() -> None:
        async with name_server(address("192.0.2.2", ttl=0)) as server:
            forwarder, replies = Forwarder(lambda: [server.upstream]), list[bytes]()

            async def ask(name: str) -> None:
                replies.append(await forwarder.ask(query_for(name)))

            async with anyio.create_task_group() as tasks:
                for name in ("a.example", "A.example", "a.EXAMPLE"):
                    tasks.start_soon(ask, name)
            assert [found(reply) for reply in replies] == [["192.0.2.2"]] * 3
            assert {str(DNSRecord.parse(reply).q.qname) for reply in replies} == {
                "a.example.",
                "A.example.",
                "a.EXAMPLE.",
            }
            assert server.asked == 1

    run(main)


def test_stale_answers_serve_while_upstreams_are_away() -> None:
    async def main() -> None:
        now = 1_000.0
        async with name_server(address("192.0.2.2")) as server:
            forwarder = Forwarder(lambda: [server.upstream], clock=lambda: now)
            await forwarder.ask(query_for())
            now += 61
            server.answer = failing(RCODE.SERVFAIL)
            for asked in (2, 2):  # the second is not asked: it failed a moment ago
                reply = DNSRecord.parse(await forwarder.ask(query_for()))
                assert (str(reply.rr[0].rdata), reply.rr[0].ttl, server.asked) == ("192.0.2.2", STALE_TTL, asked)
            now += RETRY
            server.answer = address("192.0.2.3")
            assert found(await forwarder.ask(query_for())) == ["192.0.2.3"]

    run(main)


def test_split_dns_by_the_longest_suffix() -> None:
    async def main() -> None:
        answers = [address(f"192.0.2.{number}") for number in range(3)]
        async with name_server(answers[0]) as home, name_server(answers[1]) as corp, name_server(answers[2]) as lab:
            upstreams = [
                home.upstream,
                corp.upstream._replace(domains=("corp.example", "10.in-addr.arpa")),
                lab.upstream._replace(domains=("Lab.corp.example.",), link="lo"),
            ]
            forwarder = Forwarder(lambda: upstreams)
            for name, number in (
                ("a.example", 0),
                ("xcorp.example", 0),
                ("corp.example", 1),
                ("a.corp.example", 1),
                ("1.0.0.10.in-addr.arpa", 1),
                ("x.LAB.corp.example", 2),
            ):
                assert found(await forwarder.ask(query_for(name))) == [f"192.0.2.{number}"], name
            assert forwarder.explain("x.lab.corp.example").domain == "lab.corp.example"

    run(main)


def test_names_of_the_link_are_not_told_to_who_was_chosen_for_all() -> None:
    async def main() -> None:
        async with name_server(address("192.0.2.1")) as chosen, name_server(address("192.0.2.2")) as system:
            far = chosen.upstream._replace(near=False)
            near = system.upstream._replace(domains=tuple(LINK_LOCAL))
            forwarder, alone = Forwarder(lambda: [far, near]), Forwarder(lambda: [far])
            for name in ("printer.local", "Printer.LOCAL", "local", "1.0.254.169.in-addr.arpa"):
                assert found(await forwarder.ask(query_for(name))) == ["192.0.2.2"], name
                with pytest.raises(ForwardError, match="no_upstream"):
                    await alone.ask(query_for(name))
            for name in ("local.test", "notlocal", "local.example"):
                assert found(await forwarder.ask(query_for(name))) == ["192.0.2.1"], name
            corp = far._replace(domains=("corp.local",))  # a network that has .local in DNS, and says so
            assert found(await Forwarder(lambda: [corp]).ask(query_for("a.corp.local"))) == ["192.0.2.1"]
            assert found(await Forwarder(lambda: [system.upstream]).ask(query_for())) == ["192.0.2.2"]

    run(main)


def test_a_link_is_what_a_name_server_is_asked_through() -> None:
    big = bytes(DNSRecord.question("big.example", "TXT").pack())

    async def main() -> None:
        with test_server.upstream() as server:
            reply = await Forwarder(lambda: [server._replace(link="lo")]).ask(big)
            assert len(DNSRecord.parse(reply).rr) == 20, "by TCP, too"
            with pytest.raises(ForwardError, match="upstream_silent"):
                await Forwarder(lambda: [server._replace(link="nowhere0")]).ask(big)

    run(main)


def test_it_never_asks_itself() -> None:
    async def main() -> None:
        own = Upstream("127.0.0.1", 5300)
        forwarder = Forwarder(lambda: [own], is_own=lambda host, port: (host, port) == own[:2])
        with pytest.raises(ForwardError, match="no_upstream"):
            await forwarder.ask(query_for())

    run(main)


def test_a_name_server_that_asks_us_back_ends_no_better_than_a_silent_one() -> None:
    async def main() -> None:
        async with (
            anyio.create_task_group() as tasks,
            name_server(silent) as loop,
            name_server(address("192.0.2.2")) as good,
        ):
            forwarder = Forwarder(lambda: [loop.upstream, good.upstream])

            def ask_back(query: DNSRecord) -> list[bytes]:
                tasks.start_soon(forwarder.ask, bytes(query.pack()))
                return []

            loop.answer = ask_back
            assert found(await forwarder.ask(query_for())) == ["192.0.2.2"]
            assert loop.asked == 1

    run(main)


def test_dns_over_tls_keeps_its_connection_and_checks_the_name() -> None:
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("dns.example").configure_cert(serving)
    connections = 0

    def trusting() -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    async def answer(stream: anyio.abc.ByteStream) -> None:
        nonlocal connections
        connections += 1
        async with stream:
            try:
                while True:
                    data = await stream.receive()
                    reply = address("192.0.2.9")(DNSRecord.parse(data[2:]))[0]
                    await stream.send(len(reply).to_bytes(2) + reply)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async def main() -> None:
        plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = plain.extra(anyio.abc.SocketAttribute.local_port)
        async with (
            TLSListener(plain, serving, standard_compatible=False) as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, answer)
            named = parse_upstream(f"tls://127.0.0.1:{port}#dns.example")
            forwarder = Forwarder(lambda: [named], transport=Transport(trusting))
            for name in ("a.example", "b.example"):
                assert found(await forwarder.ask(query_for(name))) == ["192.0.2.9"]
            assert connections == 1
            other = Forwarder(lambda: [named._replace(tls="evil.example")], transport=Transport(trusting))
            with pytest.raises(ForwardError, match="upstream_silent"):
                await other.ask(query_for())
            await forwarder.aclose()
            tasks.cancel_scope.cancel()

    run(main)


def test_upstreams_are_written_as_people_do() -> None:
    for text, upstream in (
        ("192.0.2.1", Upstream("192.0.2.1")),
        ("2001:db8::1", Upstream("2001:db8::1")),
        ("192.0.2.1:5353", Upstream("192.0.2.1", 5353)),
        ("[2001:db8::1]:5353", Upstream("2001:db8::1", 5353)),
        ("tls://192.0.2.1#dns.example", Upstream("192.0.2.1", 853, tls="dns.example")),
        ("tls://[2001:db8::1]:443#dns.example", Upstream("2001:db8::1", 443, tls="dns.example")),
        ("tls://192.0.2.1", Upstream("192.0.2.1", 853, tls="192.0.2.1")),
        ("Corp.Example.=192.0.2.1", Upstream("192.0.2.1", 53, ("corp.example",))),
        ("corp.example,10.in-addr.arpa=192.0.2.1", Upstream("192.0.2.1", 53, ("corp.example", "10.in-addr.arpa"))),
        ("_x.example=tls://192.0.2.1:443", Upstream("192.0.2.1", 443, ("_x.example",), tls="192.0.2.1")),
        ("fe80::1%eth0", Upstream("fe80::1", link="eth0")),
        ("[fe80::1%eth0]:5353", Upstream("fe80::1", 5353, link="eth0")),
        ("192.0.2.1%eth0:5353", Upstream("192.0.2.1", 5353, link="eth0")),
    ):
        assert parse_upstream(text) == upstream
        assert parse_upstream(str(upstream)) == upstream
    for text, says in (
        ("", "no IP address"),
        ("dns.example", "no IP address"),
        ("tls://", "no IP address"),
        ("corp.example=", "no IP address"),
        ("=192.0.2.1", "'' is no domain"),
        ("corp..example=192.0.2.1", "'corp..example' is no domain"),
        ("a.example,=192.0.2.1", "'' is no domain"),
        ("192.0.2.1:0", "no valid port"),
        ("192.0.2.1:x", "no valid port"),
        ("192.0.2.1:65536", "no valid port"),
        ("192.0.2.1:\u0665\u0663", "no valid port"),
        ("[::1", "in its brackets"),
        ("[::1]x", "in its brackets"),
        ("192.0.2.1%", "no network interface"),
        ("192.0.2.1%sixteen-letters-", "no network interface"),
        ("192.0.2.1#dns.example", "only tls://"),
        ("tls://192.0.2.1#dns example", "'dns example' is no domain"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            parse_upstream(text)


@given(st.text(alphabet="abl.019=,:/[]#%tsf-_", max_size=60))
def test_fuzz_upstreams(text: str) -> None:
    try:
        upstream = parse_upstream(text)
    except ValueError:
        return
    assert parse_upstream(str(upstream)) == upstream
