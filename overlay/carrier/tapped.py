"""A stream with somebody beside it who is shown what passes. What passes is neither held up nor changed by that; but it
passes through Python, and never by the kernel alone."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import anyio
from anyio.abc import ByteStream

from overlay.carrier.streams import OverTcp


class Beside(Protocol):
    def sent(self, data: bytes | memoryview) -> None: ...
    def received(self, data: bytes) -> None: ...
    def ended(self) -> None:
        """The other side has said all."""

    def closed(self) -> None: ...


class TappedStream(ByteStream):
    """Errors as of the stream itself."""

    def __init__(self, stream: OverTcp, beside: Beside) -> None:
        self._stream = stream
        self._beside: Beside | None = beside

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            if self._beside is not None:
                self._beside.ended()
            raise
        if self._beside is not None:
            self._beside.received(data)
        return data

    async def send(self, item: bytes | memoryview) -> None:
        if self._beside is not None:
            self._beside.sent(item)  # before: the answer may come while the last of it goes
        await self._stream.send(bytes(item))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    def cut(self) -> None:
        self._stream.cut()

    async def aclose(self) -> None:
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        beside, self._beside = self._beside, None
        if beside is not None:
            beside.closed()
        self._stream.close()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes
