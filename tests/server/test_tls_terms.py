"""Who may use a name that is exposed by TLS, and how much: the shared port before real leases, whoever ends the TLS."""

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
import pytest
from anyio.abc import AnyByteStream, SocketAttribute

from overlay.carrier.port import Services
from overlay.carrier.tcp import serve
from overlay.daemon.state import StateDir
from overlay.node.own_tls import NO_TLS_OPTIONS, OwnTls
from overlay.node.target_end import TargetEnd
from overlay.node.targets import Target
from overlay.node.tunnel_end import TunnelEnd
from overlay.server.access.bandwidth import BURST
from overlay.wire.control.messages import Message, Withdrawn
from overlay.wire.control.terms import Access, Limits, Terms
from tests.carrier.ends import SERVER, answer_pings
from tests.carrier.streams import Certificate
from tests.server.leases import HOST, Bench, on_bench
from tests.server.tls_port import trusting_nobody
from tests.server.web.shared_port import TlsTarget

NAME = "db.test"
End = Literal["target", "server", "node"]
ENDS: tuple[End, ...] = ("target", "server", "node")
_ENDS_OF_STREAMS = (anyio.EndOfStream, anyio.BrokenResourceError, OSError)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


async def shout(stream: AnyByteStream) -> None:
    try:
        while True:
            await stream.send((await stream.receive()).upper())
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        await anyio.aclose_forcefully(stream)  # who was cut off is not said goodbye to


class Exposed:
    """A lease of `NAME`, users' way to it, and what is set for it."""

    def __init__(self, it: Bench, end: End, inner: int, port: int) -> None:
        self.it = it
        self.id = ""
        self._end = end
        self._inner = inner
        self._port = port

    async def set(self, access: Access | None = None, **limits: object) -> None:
        terms = Terms(access=access or Access(), limits=Limits(**limits), tls_end=self._end)  # type: ignore[arg-type]
        wanted = {"protocol": "tls", "target": "tls://127.0.0.1:1", "port": self._inner, "host": NAME, "id": self.id}
        self.id = (await self.it.expose(2, **wanted, terms=terms)).id

    async def user(self, source: str = HOST) -> AnyByteStream:
        """Who was heard and answered. Raises one of `_ENDS_OF_STREAMS`."""
        context: ssl.SSLContext = trusting_nobody()
        stream = await anyio.connect_tcp(
            HOST, self._port, local_host=source, ssl_context=context, tls_hostname=NAME, tls_standard_compatible=False
        )
        try:
            await stream.send(b"hello")
            assert await stream.receive() == b"HELLO"
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        return stream

    async def refused(self, reason: str, source: str = HOST) -> None:
        drops = self.it.exposures.drops
        before = drops.copy()
        with pytest.raises(_ENDS_OF_STREAMS):
            await self.user(source)
        assert drops - before == {reason: 1}


@asynccontextmanager
async def target_of(end: End, folder: Path) -> AsyncIterator[int]:
    """What the server's tunnel leads to: the target itself, or the node's end with one behind."""
    async with AsyncExitStack() as stack:
        if end == "target":
            yield (await stack.enter_async_context(TlsTarget(NAME).serving(shout))).port
            return
        listener = await stack.enter_async_context(await anyio.create_tcp_listener(local_host=HOST))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(listener.serve, shout)
        inner: int = listener.extra(SocketAttribute.local_port)
        if end == "node":
            own = OwnTls(StateDir(folder).open())
            own.add("x1", NAME, NO_TLS_OPTIONS)
            node = TunnelEnd(TargetEnd(Target("tcp", HOST, inner)), HOST, 0, lambda host: True, Counter())
            node.tls = partial(own.end, "x1")
            tasks.start_soon(node.run)
            inner = node.port
        yield inner
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def exposed(it: Bench, end: End, certificate: Certificate, folder: Path) -> AsyncIterator[Exposed]:
    services = Services(tls=certificate.context, guests=it.exposures.guests)
    async with (
        target_of(end, folder) as inner,
        await anyio.create_tcp_listener(local_host=HOST) as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(partial(serve, listener, SERVER, answer_pings, drops=it.exposures.drops, services=services))
        yield Exposed(it, end, inner, listener.extra(SocketAttribute.local_port))
        tasks.cancel_scope.cancel()


@pytest.fixture(params=ENDS)
def on_exposed(
    request: pytest.FixtureRequest, tmp_path: Path, certificate: Certificate
) -> Callable[[Callable[[Exposed], Awaitable[None]]], list[Message]]:
    """Runs a test of an exposure whose TLS ends there. → what the node was told"""
    told: list[Message] = []

    async def tell(_node: int, message: Message) -> bool:
        told.append(message)
        return True

    def run(test: Callable[[Exposed], Awaitable[None]]) -> list[Message]:
        async def main(it: Bench) -> None:
            async with exposed(it, request.param, certificate, tmp_path / "node") as it_exposed:
                await test(it_exposed)

        on_bench(tmp_path, main, tell=tell)
        return told

    return run


OnExposed = Callable[[Callable[[Exposed], Awaitable[None]]], list[Message]]


def test_lists_of_networks(on_exposed: OnExposed) -> None:
    async def test(it: Exposed) -> None:
        await it.set(Access(allow=("127.0.0.0/8",), deny=("127.0.0.66",)))
        await it.refused("source_refused", "127.0.0.66")
        user = await it.user()
        other = await it.user("127.0.0.2")
        await it.set(Access(deny=("127.0.0.2", "::/0")))
        with pytest.raises(_ENDS_OF_STREAMS):  # he was connected
            await other.receive()
        await user.send(b"still")
        assert await user.receive() == b"STILL"
        await it.set(Access(allow=("192.0.2.0/24",)))
        with pytest.raises(_ENDS_OF_STREAMS):
            await user.receive()
        await it.refused("source_refused")
        for each in (user, other):
            await anyio.aclose_forcefully(each)

    on_exposed(test)


def test_how_many_at_once_and_how_often(on_exposed: OnExposed) -> None:
    async def test(it: Exposed) -> None:
        await it.set(connections=1)
        user = await it.user()
        await it.refused("too_many_users", "127.0.0.2")
        await it.set(connection_rate="1/d")
        other = await it.user("127.0.0.2")
        await it.refused("connection_rate", "127.0.0.2")
        third = await it.user("127.0.0.3")
        assert [status["connections"] for status in it.it.exposures.status()] == [3]
        for each in (user, other, third):
            await anyio.aclose_forcefully(each)

    on_exposed(test)


def test_a_quota_cuts_users_off(on_exposed: OnExposed) -> None:
    async def test(it: Exposed) -> None:
        await it.set(quota=50_000)
        user = await it.user()
        await it.it.exposures.save()
        assert 0 < it.it.exposures.status()[0]["bytes"] < 50_000
        await user.send(b"x" * 50_000)
        with pytest.raises(_ENDS_OF_STREAMS):
            while True:
                await it.it.exposures.save()
                await user.receive()
        await it.refused("quota_used_up")
        await it.set(quota=10**9)
        await it.it.exposures.save()  # the next look
        for each in (user, await it.user()):
            await anyio.aclose_forcefully(each)

    on_exposed(test)


def test_a_bandwidth_is_of_all_users_together(on_exposed: OnExposed) -> None:
    size, rate = 60_000, 200_000.0

    async def one(user: AnyByteStream) -> None:
        await user.send(b"x" * size)
        received = 0
        while received < size:
            received += len(await user.receive())
        await anyio.aclose_forcefully(user)

    async def test(it: Exposed) -> None:
        await it.set(bandwidth=rate)
        users = [await it.user() for _ in range(2)]
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for user in users:
                tasks.start_soon(one, user)
        last = 16384  # bytes, that nobody was made to wait after: a record's
        assert anyio.current_time() - began >= 2 * (size - last) / rate - BURST  # never faster

    on_exposed(test)


def test_when_its_time_is_over(on_exposed: OnExposed) -> None:
    async def test(it: Exposed) -> None:
        await it.set()
        user = await it.user()
        await it.it.exposures._end(next(iter(it.it.exposures._records.values())), "its time is over")
        with pytest.raises(_ENDS_OF_STREAMS):
            await user.receive()
        await anyio.aclose_forcefully(user)
        with pytest.raises(_ENDS_OF_STREAMS):
            await it.user()

    assert on_exposed(test) == [Withdrawn(id="x1", why="its time is over")]
