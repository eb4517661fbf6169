"""What one user, or target, may have of everybody's time."""

from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from overlay.server.access.gate import Gate
from overlay.server.web import exchange as exchange_module
from overlay.server.web.exchange import Exchange
from overlay.server.web.incoming import Incoming
from overlay.wire.ingress.body import LAST_CHUNK, chunk
from overlay.wire.ingress.http1 import parse_request

pytestmark = pytest.mark.anyio

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = chunk(b"x") * 100_000 + LAST_CHUNK + b"\r\n"


class Eager:
    """A stream that has something at any time, and takes everything at once."""

    def __init__(self, *said: bytes) -> None:
        self.said = list(said)
        self.heard = anyio.Event()

    async def receive(self, max_bytes: int = 65536, within: float | None = None) -> bytes:
        if not self.said:
            await self.heard.wait()
            return b"HTTP/1.1 204 No Content\r\n\r\n"
        data, rest = self.said[0][:max_bytes], self.said[0][max_bytes:]
        self.said[:1] = [rest] if rest else []
        return data

    def send_now(self, data: bytes) -> int:
        if data.endswith(b"0\r\n\r\n"):
            self.heard.set()
        return len(data)


async def turns_of_another(work: Callable[[], Awaitable[None]]) -> int:
    turns = 0

    async def another() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(another)
        await work()
        tasks.cancel_scope.cancel()
    return turns


@pytest.mark.parametrize("uploads", [True, False])
async def test_the_smallest_chunks_as_fast_as_they_are_taken(uploads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "TURN", 0.0)
    head = HEAD if uploads else HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"")
    user = Eager(CHUNKS) if uploads else Eager()
    target = Eager() if uploads else Eager(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNKS)
    exchange = Exchange(parse_request(head), Incoming(user), Gate())  # type: ignore[arg-type]

    async def work() -> None:
        await exchange.run(head, Incoming(target))  # type: ignore[arg-type]

    assert await turns_of_another(work) >= 8, "one for each 64 KiB"
    assert exchange.keep_target
