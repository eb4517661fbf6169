"""Answers by HTTP/2 that take their time, and users who take theirs."""

import anyio
import pytest
from hyperframe.frame import DataFrame

from overlay.server.web import door, exchange
from overlay.server.web import http2 as module
from tests.carrier.streams import Certificate
from tests.server.web.door import Target
from tests.server.web.http2_web import meeting

pytestmark = pytest.mark.anyio


async def test_events_come_when_they_happen_and_long_polls_are_waited_for(certificate: Certificate) -> None:
    sent, seen = anyio.create_memory_object_stream[None](1)

    async def target(target: Target) -> None:
        if b"/poll" in await target.head():
            await seen.receive()
            await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnews")
            return
        await target.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")  # until it closes
        for number in range(3):
            await target.say(b"data: %d\n\n" % number)
            await seen.receive()
        await target.until(b"the user has gone")

    with sent, seen:
        async with meeting(certificate, target) as (it, user):
            events = await user.ask("/events")
            for number in range(3):
                while not user.answers[events].body.endswith(b"data: %d\n\n" % number):
                    await user.turn()
                await sent.send(None)
            polled = await user.ask("/poll")
            await user.ping()
            assert not user.answers[polled].heads
            await sent.send(None)
            assert (await user.answer(polled)).body == b"news"
            user.h2.reset_stream(events)
            await user.flush()
            await it.until(lambda: it.site.count == 2 and it.site.connections == 0)


async def test_who_opens_no_window_is_given_up(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "WRITE_TIMEOUT", 0.1)
    monkeypatch.setattr(module, "WRITE_TIMEOUT", 0.1)
    monkeypatch.setattr(door, "IDLE_TIMEOUT", 0.1)

    async def target(target: Target) -> None:
        size = 1_000_000 if b"/large" in await target.head() else 66_000  # more than the window, and much more
        await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await target.say(bytes(size))

    async with meeting(certificate, target) as (it, user):
        user.taking = False
        for path in ("/large", "/small"):
            answer = await user.answer(await user.ask(path))
            assert (answer.status, answer.ended) == (b"200", False) and answer.reset is not None
        await it.until(lambda: it.site.connections == 0)


async def test_who_does_not_send_the_body_gets_408(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_TIMEOUT", 0.05)

    async def target(target: Target) -> None:
        await target.until(b"never")

    async with meeting(certificate, target) as (it, user):
        number = await user.ask("/", (b"content-length", b"9"), method="POST", end=False)
        assert (await user.answer(number)).status == b"408"
        assert it.port.drops == {"slow_body": 1}


async def test_bodies_that_were_on_their_way_when_they_were_refused_cost_nothing_else(certificate: Certificate) -> None:
    """A window of them may be, for each: a page's uploads that a target refuses do not end the page's connection."""

    async def target(target: Target) -> None:
        head = await target.head()
        await target.say(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % (413 if head.startswith(b"POST") else 200))

    async with meeting(certificate, target) as (it, user):
        await user.ping()
        for _ in range(5):
            number = await user.ask(method="POST", end=False)
            assert (await user.answer(number)).status == b"413"
            while user.answers[number].reset is None:
                await user.turn()
            await user.stream.send(DataFrame(number, data=bytes(16_384)).serialize() * 16)
            assert (await user.answer(await user.ask())).status == b"200"
        assert it.port.drops == {}
