"""A byte stream over TCP with a codec between: TLS, WebSocket, or the one within the other."""

import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
from anyio.abc import ByteStream

from overlay.carrier.carriers import Detached
from overlay.carrier.stream import TcpStream
from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.stream.codec import Codec, Stacked

_CHUNK: Final = 64 * 1024  # bytes encoded at a time: what may wait here for the kernel to take it
_READ_SIZE: Final = 64 * 1024


class CodecStream(ByteStream):
    """A `CarrierStream`. One task receives, one sends.

    A peer that breaks the codec's protocol is a `BrokenResourceError` whose cause is the `RemoteProtocolError`.
    """

    def __init__(self, tcp: TcpStream, codec: Codec, received: bytes = b"") -> None:
        self._tcp = tcp
        self._codec = codec
        self._received = received  # decoded, not yet asked for
        self._outgoing = memoryview(b"")  # encoded, not yet taken by the kernel
        self._encoded = 0  # bytes of a cancelled `send_some` that are in `_outgoing`, or gone already
        self._ending = False

    async def receive(self, max_bytes: int = _READ_SIZE, within: float | None = None) -> bytes:
        """Raises `TimeoutError` when for `within` s nothing has come at all, be it a part of a record."""
        while not self._received:
            if self._codec.ended:
                raise anyio.EndOfStream
            data = await self._tcp.receive(_READ_SIZE, within)
            try:
                self._received = self._codec.decode(data)
            except RemoteProtocolError as error:
                raise anyio.BrokenResourceError(str(error)) from error
            finally:
                self._answer()
        data, self._received = self._received[:max_bytes], self._received[max_bytes:]
        return data

    def receive_now(self, max_bytes: int = _READ_SIZE) -> bytes | None:
        """What is there; None: nothing at this moment. Raises as `receive`."""
        if not self._received and not self._decode_now():
            return None
        data, self._received = self._received[:max_bytes], self._received[max_bytes:]
        return data

    def _decode_now(self) -> bool:
        if self._codec.ended:
            raise anyio.EndOfStream
        raw = self._tcp.receive_now(_READ_SIZE)
        if raw is None:
            return False
        try:
            self._received = self._codec.decode(raw)
        except RemoteProtocolError as error:
            raise anyio.BrokenResourceError(str(error)) from error
        finally:
            self._answer()
        if not self._received and self._codec.ended:
            raise anyio.EndOfStream
        return bool(self._received)

    @property
    def holds_more(self) -> bool:
        """There is something to receive, or the end, of which the socket does not tell."""
        return bool(self._received) or self._codec.ended

    async def send_some(self, data: bytes | memoryview) -> int:
        """→ bytes taken. Cancelled: none, and the next call has to begin with the same bytes, since a part of what they
        were encoded to may have gone."""
        await self._flush()
        if not self._encoded:
            if self._ending:
                raise anyio.ClosedResourceError
            # Waiting first: what is encoded cannot be taken back.
            await self._tcp.writable()
            piece = data[:_CHUNK]
            self._push(self._codec.encode(piece))
            self._encoded = len(piece)
        await self._flush()
        taken, self._encoded = self._encoded, 0
        return taken

    def send_now(self, data: bytes | memoryview) -> int:
        """→ bytes taken; 0: none, as after a cancelled `send_some`: whoever goes on, by that or by this once the kernel
        takes something, begins with the same bytes."""
        self._write()
        if self._outgoing or self._ending:
            return 0
        if not self._encoded:
            piece = data[:_CHUNK]
            self._push(self._codec.encode(piece))
            self._encoded = len(piece)
            self._write()
            if self._outgoing:
                return 0
        taken, self._encoded = self._encoded, 0
        return taken

    async def send(self, item: bytes) -> None:
        view = memoryview(item)
        while view:
            view = view[await self.send_some(view) :]

    async def send_eof(self) -> None:
        """Our direction ends in the way of the outermost protocol. The other one stays open."""
        await self._flush()
        if not self._ending:
            self._ending = True
            self._push(self._codec.end())
        await self._flush()

    def end_now(self) -> bool:
        """As `send_eof`. → whether that has gone; if not, call it again once the kernel takes something."""
        self._write()
        if not self._outgoing and not self._ending:
            self._ending = True
            self._push(self._codec.end())
            self._write()
        return self._ending and not self._outgoing

    async def aclose(self) -> None:
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        self._tcp.close()

    def cut(self) -> None:
        """As `TcpStream.cut`."""
        self._tcp.cut()

    def is_quiet(self) -> bool:
        """As `TcpStream.is_quiet`."""
        return not self._received and self._tcp.is_quiet()

    def when_closed(self, call: Callable[[], None]) -> None:
        """As `TcpStream.when_closed`."""
        self._tcp.when_closed(call)

    def unwatched(self) -> socket.socket:
        """As `TcpStream.unwatched`; reading and writing stays this stream's."""
        return self._tcp.unwatched()

    def watch(self, *, closely: bool) -> None:
        """As `TcpStream.watch`."""
        self._tcp.watch(closely=closely)

    def detach(self) -> Detached:
        """Raises `LocalProtocolError` while something waits to be written (`send_some(b"")` waits for that)."""
        if self._outgoing:
            raise LocalProtocolError("a connection cannot be given away in the middle of a record")
        connected = self._tcp.detach()
        received, self._received = self._received, b""
        return Detached(connected.socket, self._codec, received)

    def around(
        self, inner: Codec, make: "Callable[[TcpStream, Codec, bytes], CodecStream] | None" = None
    ) -> "CodecStream":
        """The same connection with one more protocol inside; what came for it already is decoded first. `make`: of
        which kind the new stream is.

        Raises `RemoteProtocolError`. This stream is not to be used any more.
        """
        if self._outgoing:
            raise LocalProtocolError("something waits to be written")
        return (make or CodecStream)(self._tcp, Stacked(self._codec, inner), inner.decode(self._received))

    @property
    def innermost(self) -> Codec:
        return self._codec.inner if isinstance(self._codec, Stacked) else self._codec

    def unread(self, data: bytes) -> None:
        """Put back what was received last."""
        self._received = data + self._received

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._tcp.extra_attributes

    # inside ----------------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """What the protocol itself wants to say goes when it can; it never waits for the peer to read."""
        if not self._outgoing and not self._ending and (answers := self._codec.answers()):
            self._push(answers)
        try:
            self._write()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # whoever sends is told

    def _push(self, data: bytes | bytearray | memoryview) -> None:
        # A copy, where there is something in front: another task may just have left an answer there.
        self._outgoing = memoryview(bytes(self._outgoing) + data if self._outgoing else bytes(data))

    def _write(self) -> None:
        while self._outgoing and (taken := self._tcp.send_now(self._outgoing)):
            self._outgoing = self._outgoing[taken:]

    async def _flush(self) -> None:
        while True:
            self._write()
            if not self._outgoing:
                return
            await self._tcp.writable()


OverTcp = TcpStream | CodecStream
"""A stream of bytes over one TCP connection, plain or with a codec."""
