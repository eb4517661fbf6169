"""Requests and answers through the web's door, byte by byte where bytes matter."""

import anyio
import pytest

from overlay.carrier.reached import REACHED
from overlay.server.groups import Group, Member
from overlay.server.tunnels import SingleTunnel
from overlay.server.web import door, exchange, sites
from tests.wire.ingress.test_body import BAD_CHUNKS
from tests.wire.ingress.test_http1 import SMUGGLING

from .door import Served, Target, on_door

GET = b"GET / HTTP/1.1\r\nHost: site.test\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n"
POST = b"POST /up HTTP/1.1\r\nHost: site.test\r\n"


def ok(body: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", *fields, b"Content-Length: %d" % len(body), b"", body))


async def hello(target: Target) -> None:
    """Answers each request with its head's first line."""
    while True:
        head = await target.head()
        await target.say(ok(head.partition(b"\r\n")[0]))


async def no_target(target: Target) -> None:
    raise AssertionError("nothing may reach the target")


def test_requests_follow_one_another_on_one_connection() -> None:
    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET.replace(b"/ ", b"/1 ") + GET.replace(b"/ ", b"/2 "))
        for number in (b"1", b"2"):
            assert (await user.head()).startswith(b"HTTP/1.1 200 OK\r\n")
            line = b"GET /%b HTTP/1.1" % number
            assert await user.exactly(len(line)) == line
        answer = await user.ask(CLOSE)
        assert b"Connection: close" in answer and answer.endswith(b"GET / HTTP/1.1")
        assert served.connections == 1
        assert [(entry.number, entry.path, entry.status) for entry in served.site.log] == [
            (1, "/1", 200),
            (2, "/2", 200),
            (3, "/", 200),
        ]
        assert not served.drops

    on_door(hello, test)


def test_the_target_learns_who_asks_and_nothing_that_was_made_up() -> None:
    heads: list[bytes] = []

    async def target(target: Target) -> None:
        heads.append(await target.head())
        await target.say(ok(b""))

    async def test(served: Served) -> None:
        await (await served.user()).ask(CLOSE[:-2] + b"X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\r\n")
        assert b"6.6.6.6" not in heads[0] and b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in heads[0]
        assert b"Connection" not in heads[0]

    on_door(target, test)


@pytest.mark.parametrize("head", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_smuggled_heads_are_answered_400_and_not_forwarded(head: bytes) -> None:
    async def test(served: Served) -> None:
        answer = await (await served.user()).ask(head.replace(b"Host: x\r", b"Host: site.test\r"))
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n") and answer.count(b"HTTP/1.1") == 1
        assert served.connections == 0

    on_door(no_target, test)


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_smuggled_chunks_never_make_a_whole_request(chunks: bytes) -> None:
    seen = bytearray()

    async def target(target: Target) -> None:
        while True:
            seen.extend(await target.stream.receive())

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        answer = await user.rest()
        assert answer[9:12] in (b"400", b"431") and answer.count(b"HTTP/1.1") == 1
        assert b"0\r\n\r\n" not in seen and seen.count(b"HTTP/1.1") <= 1

    on_door(target, test)


def test_heads_that_are_too_large_or_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "HEAD_TIMEOUT", 0.05)

    async def test(served: Served) -> None:
        large = await (await served.user()).ask(GET[:-2] + b"X: " + b"y" * 20_000 + b"\r\n\r\n")
        assert large.startswith(b"HTTP/1.1 431 ")
        slow = await (await served.user()).ask(b"GET / HTTP/1.1\r\n")
        assert slow.startswith(b"HTTP/1.1 408 ")
        assert served.drops == {"http_head_too_large": 1, "slow_head": 1}

    on_door(no_target, test)


def test_unknown_hosts_are_told_nothing() -> None:
    async def test(served: Served) -> None:
        for host in (b"other.test", b"x.site.test", b"127.0.0.1"):
            answer = await (await served.user()).ask(GET.replace(b"site.test", host))
            assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n") and b"overlay" not in answer.lower()
        assert (await (await served.user()).ask(b"CONNECT / HTTP/1.1\r\nHost: site.test\r\n\r\n"))[9:12] == b"405"

    on_door(no_target, test)


def test_bodies_by_length_and_by_chunks_with_trailers() -> None:
    async def target(target: Target) -> None:
        head = await target.head()
        assert b"Content-Length: 5\r\n" in head
        assert await target.exactly(5) == b"hello"
        await target.say(ok(b"one"))
        head = await target.head()
        assert b"Transfer-Encoding: chunked\r\n" in head
        body = await target.until(b"\r\n\r\n")
        assert body == b"5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n"
        await target.say(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
            b"3;x=y\r\ntwo\r\n0\r\nX-Sum: 8\r\n\r\n"
        )

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(POST + b"Content-Length: 5\r\n\r\nhello")
        await user.head()
        assert await user.exactly(3) == b"one"
        await user.say(POST + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
        for piece in (b"5\r\nhel", b"lo\r\n0\r\nX-Sum", b": 7\r\nContent-Length: 9\r\n\r\n"):
            await user.say(piece)
        assert b"Transfer-Encoding: chunked\r\n" in await user.head()
        assert await user.until(b"\r\n\r\n") == b"3\r\ntwo\r\n0\r\nX-Sum: 8\r\n\r\n"
        assert served.connections == 1

    on_door(target, test)


def test_100_continue_and_early_hints_come_through() -> None:
    async def target(target: Target) -> None:
        assert b"Expect: 100-continue\r\n" in await target.head()
        await target.say(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        assert await target.exactly(5) == b"hello"
        await target.say(ok(b"done"))

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await user.head() == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        assert await user.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await user.say(b"hello")
        assert (await user.head()).startswith(b"HTTP/1.1 200 OK")

    on_door(target, test)


def test_a_refusal_before_the_body_is_there() -> None:
    async def target(target: Target) -> None:
        await target.head()
        await target.say(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(POST + b"Content-Length: 1000000\r\n\r\nbegun")
        assert (await user.head()).startswith(b"HTTP/1.1 413 ")
        assert await user.rest() == b""

    on_door(target, test)


def test_answers_without_a_body() -> None:
    async def target(target: Target) -> None:
        for status in (b"200 OK\r\nContent-Length: 1000", b"304 Not Modified\r\nContent-Length: 7", b"204 No Content"):
            await target.head()
            await target.say(b"HTTP/1.1 " + status + b"\r\n\r\n")

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET.replace(b"GET", b"HEAD"))
        assert b"Content-Length: 1000\r\n" in await user.head()
        await user.say(GET)
        assert (await user.head()).startswith(b"HTTP/1.1 304 ")
        await user.say(GET)
        assert (await user.head()).startswith(b"HTTP/1.1 204 ")
        assert user.data == b"" and served.connections == 1

    on_door(target, test)


def test_an_answer_until_close_is_whole_or_cut_and_a_user_can_tell() -> None:
    async def target(target: Target) -> None:
        head = await target.head()
        await target.say(b"HTTP/1.0 200 OK\r\n\r\nhello")
        if b"/cut" in head:
            await target.until(b"never")

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET)
        assert b"Transfer-Encoding: chunked\r\n" in await user.head()
        assert await user.until(b"0\r\n\r\n") == b"5\r\nhello\r\n0\r\n\r\n"
        old = await (await served.user()).ask(GET.replace(b"1.1", b"1.0"))
        assert old.startswith(b"HTTP/1.1 200 OK\r\n") and old.endswith(b"\r\n\r\nhello") and b"chunked" not in old

    on_door(target, test)


def test_an_answer_that_is_cut_is_cut_for_the_user() -> None:
    async def target(target: Target) -> None:
        await target.head()
        await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET)
        await user.until(b"hello")
        with pytest.raises(anyio.BrokenResourceError):
            await user.stream.receive()
        assert served.drops == {"answer_cut": 1}

    on_door(target, test)


def test_events_come_when_they_happen() -> None:
    async def target(target: Target) -> None:
        await target.head()
        await target.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            await target.say(b"8\r\ndata: %d\n\r\n" % number)
            await seen.receive()
        await target.until(b"the user has gone")

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET)
        await user.head()
        for number in range(3):
            assert b"data: %d\n" % number in await user.until(b"\n\r\n")
            await sent.send(None)
        await user.stream.aclose()
        await served.logged(1)  # and the target's connection is closed: its handler ends

    sent, seen = anyio.create_memory_object_stream[None](1)
    with sent, seen:
        on_door(target, test)


def test_websockets_are_upgraded_and_both_sides_may_speak_first() -> None:
    async def target(target: Target) -> None:
        head = await target.head()
        assert b"Upgrade: websocket\r\nConnection: Upgrade\r\n" in head and b"Sec-WebSocket-Key: x" in head
        await target.say(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst words"
        )
        assert await target.exactly(5) == b"early"
        await target.say(b"to you")
        with pytest.raises(anyio.EndOfStream):
            await target.stream.receive()
        await target.say(b", and bye")

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(
            GET[:-2] + b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\nearly"
        )
        assert b"Upgrade: websocket\r\n" in await user.head()
        assert await user.until(b"to you") == b"first wordsto you"
        await user.stream.send_eof()
        assert await user.rest() == b", and bye"
        await served.logged(1)
        assert served.site.log[0].status == 101

    on_door(target, test)


def test_an_upgrade_that_nobody_asked_for() -> None:
    async def target(target: Target) -> None:
        assert b"pgrade" not in await target.head()
        await target.say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")

    async def test(served: Served) -> None:
        h2c = GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        assert (await (await served.user()).ask(h2c)).startswith(b"HTTP/1.1 502 ")

    on_door(target, test)


def test_targets_that_refuse_close_talk_nonsense_or_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ANSWER_TIMEOUT", 0.1)

    async def target(target: Target) -> None:
        head = await target.head()
        if b"/nonsense" in head:
            await target.say(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        elif b"/slow" in head:
            await target.until(b"never")

    async def test(served: Served) -> None:
        for path, status in ((b"/close", b"502"), (b"/nonsense", b"502"), (b"/slow", b"504")):
            answer = await (await served.user()).ask(GET.replace(b"/ ", path + b" "))
            assert answer[9:12] == status and b"Connection: close" in answer
        served.target = (served.target[0], 1)
        assert (await (await served.user()).ask(GET))[9:12] == b"502"
        assert served.drops == {"target_closed": 1, "bad_answer": 1, "target_slow": 1, "target_refused": 1}
        assert [entry.status for entry in served.site.log] == [502, 502, 504, 502]

    on_door(target, test)


def test_a_kept_connection_that_the_target_has_closed_is_made_anew() -> None:
    async def target(target: Target) -> None:
        await target.head()
        await target.say(ok(b"once"))

    async def test(served: Served) -> None:
        user = await served.user()
        for number in range(3):
            await user.say(GET)
            await user.head()
            assert await user.exactly(4) == b"once"
            assert served.connections == number + 1

    on_door(target, test)


def test_who_does_not_send_the_body_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_TIMEOUT", 0.05)

    async def target(target: Target) -> None:
        await target.until(b"never")

    async def test(served: Served) -> None:
        answer = await (await served.user()).ask(POST + b"Content-Length: 5\r\n\r\nhel")
        assert answer[9:12] == b"408"

    on_door(target, test)


def test_a_user_who_leaves_takes_the_target_along() -> None:
    ended = anyio.Event()

    async def target(target: Target) -> None:
        await target.head()
        try:
            await target.until(b"never")
        finally:
            ended.set()

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET)
        await user.stream.aclose()
        await ended.wait()
        await served.logged(1)
        assert served.site.log[0].status == 499

    on_door(target, test)


def test_an_exposure_that_is_given_back_cuts_its_users_off() -> None:
    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET)
        await user.head()
        assert served.site.connections == 1
        served.site.close()
        await user.rest()
        assert served.site.connections == 0

    on_door(hello, test)


def test_so_many_users_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "MAX_SERVED", 1)

    async def test(served: Served) -> None:
        first = await served.user()
        await first.say(GET)
        await first.head()
        assert (await (await served.user()).ask(GET))[9:12] == b"503"
        assert served.drops == {"too_many_users": 1}

    on_door(hello, test)


def test_a_group_member_that_dies_before_it_answers_costs_no_request_that_may_be_repeated() -> None:
    asked: list[bytes] = []

    async def target(target: Target) -> None:
        """The first connection of each request is cut."""
        await target.say(REACHED)
        asked.append((await target.head()).partition(b" ")[0])
        if len(asked) % 2:
            return
        await target.say(ok(b"second"))
        await target.head()
        asked.append(b"kept")

    async def test(served: Served) -> None:
        group = served.site.tunnel = Group(served.drops)
        for number in (1, 2):
            group.add(Member(number, SingleTunnel(lambda: served.target, served.drops)))
        user = await served.user()
        await user.say(GET)
        assert (await user.head()).startswith(b"HTTP/1.1 200 ") and await user.exactly(6) == b"second"
        assert asked == [b"GET", b"GET"] and served.drops == {"member_gone": 1}
        next(iter(group.members)).problem = "it is not well"
        list(group.members)[1].problem = "neither is it"
        await user.say(GET)
        assert (await user.head()).startswith(b"HTTP/1.1 200 "), "on a new connection: the kept one's is not well"
        assert asked == [b"GET"] * 4
        answer = await (await served.user()).ask(POST + b"Content-Length: 0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502 ") and asked[4:] == [b"POST"]

    on_door(target, test)


def test_a_request_that_waits_goes_elsewhere_when_its_member_is_out_and_one_that_writes_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "WATCH_AFTER", 0.01)
    monkeypatch.setattr(exchange, "LEFT_INTERVAL", 0.01)
    asked: list[bytes] = []
    waits = anyio.Event()
    hangs = anyio.Event()

    async def target(target: Target) -> None:
        """What comes first is never answered, as by a node that was stopped."""
        await target.say(REACHED)
        asked.append((await target.head()).partition(b" ")[0])
        if len(asked) % 2:
            waits.set()
            await hangs.wait()
        await target.say(ok(b"second"))

    async def test(served: Served) -> None:
        nonlocal waits
        group = served.site.tunnel = Group(served.drops)
        out: set[int] = set()
        for number in (1, 2):
            group.add(
                Member(
                    number,
                    SingleTunnel(lambda: served.target, served.drops),
                    is_silent=lambda number=number: number in out,  # type: ignore[misc]
                )
            )
        user = await served.user()
        await user.say(GET)
        await waits.wait()
        out.add(1)
        assert (await user.head()).startswith(b"HTTP/1.1 200 ") and await user.exactly(6) == b"second"
        assert asked == [b"GET", b"GET"] and served.drops == {"member_gone": 1}
        waits = anyio.Event()
        user = await served.user()
        await user.say(POST + b"Content-Length: 0\r\n\r\n")
        await waits.wait()
        out.add(2)
        out.discard(1)
        with anyio.move_on_after(0.2):
            await user.head()
            raise AssertionError("it was answered by somebody else")
        assert asked == [b"GET", b"GET", b"POST"]
        hangs.set()
        assert (await user.head()).startswith(b"HTTP/1.1 200 ")

    on_door(target, test)


def test_what_writes_is_not_sent_on_a_connection_that_has_ended() -> None:
    closed = anyio.Event()

    async def target(target: Target) -> None:
        await target.head()
        await target.say(ok(b"once"))
        await target.stream.aclose()
        closed.set()

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET)
        await user.head()
        assert await user.exactly(4) == b"once"
        await closed.wait()
        await user.say(POST + b"Content-Length: 2\r\n\r\nhi")
        assert (await user.head()).startswith(b"HTTP/1.1 200 ")
        assert served.connections == 2

    on_door(target, test)
