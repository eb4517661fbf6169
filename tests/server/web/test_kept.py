"""Connections to targets that are kept for the next request, and those that must not be."""

import anyio
import pytest

from overlay.carrier.stream import TcpStream, connect
from overlay.server.tunnels import SingleTunnel, Visitor
from overlay.server.web import exchange

from .door import Served, Target, on_door
from .test_door import GET, POST, ok


def test_a_kept_connection_that_the_target_has_closed_meanwhile_costs_no_request() -> None:
    """Not even one that must not be repeated: it goes on a new connection."""
    answered, ended = anyio.Event(), anyio.Event()

    async def target(target: Target) -> None:
        head = await target.head()
        await target.say(ok(head.partition(b" ")[0]))
        if head.startswith(b"GET"):
            await answered.wait()
            await target.say(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")  # as some servers do
            await target.stream.aclose()
            ended.set()

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET)
        await user.head()
        assert await user.exactly(3) == b"GET"
        answered.set()
        await ended.wait()
        await user.say(POST + b"Content-Length: 0\r\n\r\n")
        assert (await user.head()).startswith(b"HTTP/1.1 200 ") and await user.exactly(4) == b"POST"
        assert served.connections == 2 and served.drops == {}

    on_door(target, test)


@pytest.mark.parametrize("bare", [b"200 OK\r\nContent-Length: 5", b"304 Not Modified", b"204 No Content"])
def test_a_body_where_none_may_be_is_nobodys_answer(bare: bytes) -> None:
    async def target(target: Target) -> None:
        if (await target.head()).startswith(b"HEAD"):
            await target.say(b"HTTP/1.1 " + bare + b"\r\n\r\n" + ok(b"forged"))
            await target.until(b"never")
        await target.say(ok(b"true"))

    async def test(served: Served) -> None:
        user = await served.user()
        await user.say(GET.replace(b"GET", b"HEAD"))
        await user.head()
        await user.say(GET)
        await user.head()
        assert await user.exactly(4) == b"true" and served.connections == 2

    on_door(target, test)


class Slow(TcpStream):
    """Takes the head, and of the body as much as it says."""

    takes = 3

    def send_now(self, data: bytes | memoryview, *, more: bool = False) -> int:
        head = bytes(data).partition(b"\r\n\r\n")[0]
        return super().send_now(data[: len(head) + 4 + self.takes])

    async def send(self, item: bytes) -> None:
        await anyio.sleep_forever()


class SlowTunnel(SingleTunnel):
    async def open(self, visitor: Visitor) -> TcpStream:
        target = self._where()
        assert target is not None
        return Slow((await connect(target)).detach().socket)


def test_a_body_that_has_not_gone_whole_leaves_no_connection_behind() -> None:
    """What follows on it would be taken for the rest of the body."""

    async def target(target: Target) -> None:
        head = await target.head()
        if head.startswith(b"GET"):
            await target.say(ok(b"fine"))
            return
        await target.exactly(3)
        await target.say(ok(b"too large"))
        await target.until(b"never")

    async def test(served: Served) -> None:
        served.site.tunnel = SlowTunnel(lambda: served.target, served.drops)
        user = await served.user()
        await user.say(POST + b"Content-Length: 10\r\n\r\n0123456789" + GET)
        await user.head()
        assert await user.exactly(9) == b"too large"
        assert await user.rest() == b"", "whoever has not been heard out cannot go on"
        answer = await (await served.user()).ask(GET[:-2] + b"Connection: close\r\n\r\n")
        assert answer.endswith(b"fine") and served.connections == 2

    on_door(target, test)


def test_a_target_that_takes_no_body_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "WRITE_TIMEOUT", 0.1)
    monkeypatch.setattr(exchange, "ANSWER_TIMEOUT", 0.1)

    async def target(target: Target) -> None:
        await target.head()
        await anyio.sleep_forever()

    async def test(served: Served) -> None:
        served.site.tunnel = SlowTunnel(lambda: served.target, served.drops)
        user = await served.user()
        await user.say(POST + b"Content-Length: 10\r\n\r\n0123456789")
        assert (await user.head()).startswith(b"HTTP/1.1 504 ")
        await served.logged(1)
        assert served.drops == {"target_slow": 1}

    on_door(target, test)


def test_a_target_that_floods_with_interim_answers_leaves_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_INTERIM", 100)

    async def target(target: Target) -> None:
        if b"/quick" in await target.head():
            await target.say(ok(b"quick"))
            return
        for _ in range(exchange.MAX_INTERIM + 1):
            await target.say(b"HTTP/1.1 102 Processing\r\n\r\n")
        await target.until(b"never")

    async def test(served: Served) -> None:
        for version in (b"1.1", b"1.0"):
            flooded = await served.user()
            await flooded.say(GET.replace(b"1.1", version))
            answer = await (await served.user()).ask(GET.replace(b"/ ", b"/quick ")[:-2] + b"Connection: close\r\n\r\n")
            assert answer.endswith(b"quick")
            *interim, last = (await flooded.rest()).split(b"HTTP/1.1 ")[1:]
            assert last.startswith(b"502 ") and len(interim) == (exchange.MAX_INTERIM if version == b"1.1" else 0)

    on_door(target, test)
