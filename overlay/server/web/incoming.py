"""A stream's bytes with what was read of it ahead."""

from typing import Final

import anyio

from overlay.carrier.http import read_head
from overlay.carrier.port import Stream
from overlay.server.web.http2 import Http2Stream
from overlay.wire.ingress.http1 import HEAD_END

MAX_AHEAD: Final = 64 * 1024
_READ_SIZE: Final = 64 * 1024


AnyStream = Stream | Http2Stream


class Incoming:
    """One task receives at a time. Cancelled at any point, nothing is lost."""

    def __init__(self, stream: AnyStream, begun: bytes = b"") -> None:
        self.stream = stream
        self._ahead = begun

    @property
    def ahead(self) -> bytes:
        return self._ahead

    @property
    def has_head(self) -> bool:
        """Whether a whole head is here: `head` does not wait then."""
        return HEAD_END in self._ahead

    def is_quiet(self) -> bool:
        """Whether nothing has come, and the other side has not gone."""
        return not self._ahead and (isinstance(self.stream, Http2Stream) or self.stream.is_quiet())

    def unread(self, data: bytes) -> None:
        """Put back what was received last."""
        self._ahead = data + self._ahead if self._ahead else data

    def take_ahead(self) -> bytes:
        data, self._ahead = self._ahead, b""
        return data

    async def receive(self, within: float | None = None) -> bytes:
        """As the stream's own."""
        return self.take_ahead() or await self.stream.receive(_READ_SIZE, within)

    async def wait(self, within: float | None = None) -> None:
        """Until something is there. Raises as `receive`."""
        if not self._ahead:
            self._ahead = await self.stream.receive(_READ_SIZE, within)

    async def head(self) -> bytes:
        """The next message's head. Raises as `overlay.carrier.http.read_head`; then, or cancelled, the stream is of no
        further use."""
        head, self._ahead = await read_head(self.stream, self.take_ahead())
        return head

    def probe(self, *, closely: bool) -> None:
        """As a stream's `watch`."""
        if not isinstance(self.stream, Http2Stream):
            self.stream.watch(closely=closely)

    async def watch(self) -> None:
        """Read ahead, and never return: raises `EndOfStream` or `BrokenResourceError` when the other side goes away."""
        while len(self._ahead) < MAX_AHEAD:
            self._ahead += await self.stream.receive(_READ_SIZE)
        await anyio.sleep_forever()
