"""Bytes of ours ⇄ bytes of a socket, for one connection whose set-up is done: what TLS and WebSocket make of a stream.

The carriers' streams and the engine's links use the same codecs, so that a connection can be handed from the one to the
other in the middle.
"""

from typing import Protocol

Octets = bytes | bytearray | memoryview


class Codec(Protocol):
    """One end. Calls never block and know no socket; after each, `answers` may hold something."""

    def encode(self, data: Octets) -> Octets:
        """What to write to the socket for `data`; valid until the next call."""

    def decode(self, data: Octets) -> bytes:
        """What the peer sent, out of what was read from the socket, cut anywhere; may be empty.

        Raises `RemoteProtocolError` once the peer breaks the protocol. What follows an orderly end is ignored.
        """

    def answers(self) -> bytes:
        """Drains: bytes to write that the protocol itself asks for (a pong, say). Bounded."""

    def end(self) -> bytes:
        """Bytes that end our direction in order; nothing is encoded after. Empty: the socket's own end says it."""

    @property
    def ended(self) -> bool:
        """The peer has ended its direction in order (close_notify, a close frame)."""


class Plain:
    """Nothing around it: the carrier `tcp`."""

    ended = False

    def encode(self, data: Octets) -> Octets:
        return data

    def decode(self, data: Octets) -> bytes:
        return bytes(data)

    def answers(self) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""


class Stacked:
    """`inner` within `outer`: WebSocket within TLS is the carrier `wss`."""

    def __init__(self, outer: Codec, inner: Codec) -> None:
        self._outer = outer
        self.inner = inner

    def encode(self, data: Octets) -> Octets:
        return self._outer.encode(self.inner.encode(data))

    def decode(self, data: Octets) -> bytes:
        return self.inner.decode(self._outer.decode(data))

    def answers(self) -> bytes:
        inner = self.inner.answers()
        return self._outer.answers() + bytes(self._outer.encode(inner) if inner else b"")

    def end(self) -> bytes:
        inner = self.inner.end()
        return bytes(self._outer.encode(inner) if inner else b"") + self._outer.end()

    @property
    def ended(self) -> bool:
        return self._outer.ended or self.inner.ended
