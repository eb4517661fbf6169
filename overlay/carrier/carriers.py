"""The carriers' names, and what each of them gives: a byte stream to the server that can be handed to the engine."""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from overlay.wire.endpoint import Endpoint
from overlay.wire.stream.codec import Codec

CarrierName = Literal["udp", "tcp", "tls", "ws", "wss"]
CARRIERS: Final[tuple[CarrierName, ...]] = ("udp", "tls", "wss", "tcp", "ws")
"""All of them, in the order in which `auto` tries them."""


@dataclass(frozen=True, slots=True)
class Detached:
    """A connection taken out of its stream, in the middle: the socket (non-blocking), what stands between its bytes and
    ours, and what came behind what was read last."""

    socket: socket.socket
    codec: Codec
    received: bytes


class CarrierStream(Protocol):
    """A byte stream over a carrier. Errors are those of an anyio byte stream."""

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """At least one byte. Raises `EndOfStream`, `BrokenResourceError`, `ClosedResourceError`."""
        ...

    async def send_some(self, data: bytes | memoryview) -> int:
        """Hand over what is taken now, waiting until something is. → bytes taken; cancelled: none."""
        ...

    def send_now(self, data: bytes | memoryview) -> int:
        """Hand over what is taken without waiting. → bytes taken; 0: none, and whoever goes on by `send_some` begins
        with the same bytes. Raises `BrokenResourceError`, `ClosedResourceError`."""
        ...

    async def send(self, item: bytes) -> None: ...
    async def send_eof(self) -> None: ...
    def close(self) -> None: ...

    def detach(self) -> Detached | None:
        """Give the connection away; the stream is closed then without closing it. None: this carrier has no stream
        socket to give (udp)."""
        ...


@dataclass(frozen=True, slots=True)
class DialOptions:
    """What a node needs to know beside the endpoint."""

    host: str = ""  # as written in the invite: for SNI, the Host header, and the certificate; "": the endpoint's own
    path: str = "/"  # of the WebSocket upgrade: a prefix of a reverse proxy, say
    proxy: str | None = None  # http://[user:password@]host:port for CONNECT
    pin: bytes = b""  # SHA-256 of the server certificate's public key (RFC 7469's SPKI); empty: not pinned
    authorities: bool = False  # verify the certificate by the system's CAs and the host's name
    ca_file: str | None = None  # by these CAs instead of the system's


Opener = Callable[[Endpoint, DialOptions], Awaitable[CarrierStream]]
"""Connect and set the carrier up. Raises `OSError` (unreachable; the text is the reason) or `RemoteProtocolError` (what
answers there speaks something else). Cancelled at any point, it leaves no socket."""
