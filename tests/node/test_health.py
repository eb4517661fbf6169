"""Health checks against real targets that are well, closed, silent, and wrong."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.stream import TcpStream, connect
from overlay.node import health as module
from overlay.node.health import Checks, HealthCheck
from overlay.wire.control.messages import Health

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"


class Target:
    def __init__(self) -> None:
        self.answer: bytes | None = b"HTTP/1.1 200 OK\r\n\r\n"
        self.port = 0
        self.heads: list[bytes] = []
        self.is_open = True

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            self.heads.append(await stream.receive())
            if self.answer is None:
                await anyio.sleep_forever()
            elif self.answer:
                await stream.send(self.answer)

    async def open(self) -> TcpStream:
        if not self.is_open:
            raise OSError("it takes no connections")
        return await connect((HOST, self.port))


@asynccontextmanager
async def target() -> AsyncIterator[Target]:
    it = Target()
    async with await anyio.create_tcp_listener(local_host=HOST) as listener, anyio.create_task_group() as tasks:
        it.port = listener.extra(SocketAttribute.local_port)
        tasks.start_soon(listener.serve, it.serve)
        with anyio.fail_after(10):
            yield it
        tasks.cancel_scope.cancel()


async def test_what_a_look_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    async with target() as it:
        check = HealthCheck("http:/up?x=1", "app.test:80", it.open, lambda problem: None)
        assert await check.look() == ""
        assert it.heads[0].startswith(b"GET /up?x=1 HTTP/1.1\r\nHost: app.test:80\r\n")
        it.answer = b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"
        assert await check.look() == ""
        it.answer = b"HTTP/1.1 503 Busy\r\n\r\n"
        assert await check.look() == "it answers 503"
        it.answer = b"hello\r\n\r\n"
        assert "not HTTP" in await check.look()
        it.answer = b""
        assert "without an answer" in await check.look()
        it.answer = None
        assert await check.look() == "no answer within 0.2 s"
        assert await HealthCheck("tcp", "", it.open, lambda problem: None).look() == ""
        it.is_open = False
        assert await check.look() == "it takes no connections"


async def test_changes_are_told_once_and_one_failure_alone_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    monkeypatch.setattr(module, "AGAIN", 0.0)
    found = ["", "bad", "", "bad", "worse", "bad", "", "", "bad", ""]
    told: list[str] = []

    class Scripted(HealthCheck):
        async def look(self) -> str:
            await anyio.lowlevel.checkpoint()
            if not found:
                await anyio.sleep_forever()
            return found.pop(0)

    async def nowhere() -> TcpStream:
        raise AssertionError

    async with anyio.create_task_group() as tasks:
        check = Scripted("tcp", "", nowhere, told.append)
        tasks.start_soon(check.run)
        while found:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert told == ["", "worse", ""] and check.problem == ""


async def test_all_checks_are_told_to_a_server_that_knows_nothing() -> None:
    told: list[Health] = []

    async def tell(message: Health) -> None:
        told.append(message)

    async with target() as it, anyio.create_task_group() as tasks:
        checks = Checks(tell)
        it.is_open = False
        checks.start(tasks, "x1", "tcp", "", it.open)
        while not told:  # noqa: ASYNC110 - a list tells nobody
            await anyio.sleep(0.005)
        await checks.tell_all()
        assert told == [Health(id="x1", problem="it takes no connections")] * 2
        assert checks.problem("x1") == "it takes no connections" and checks.problem("x2") is None
        checks.stop("x1")
        await checks.tell_all()
        assert len(told) == 2
