"""STUN on the TCP port (RFC 8489 §6.2.2): requests are answered, and the connection stays, so that the NAT's mapping
does, while the node needs the port that it came from. Nothing is proven there, so all of it is bounded.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

import anyio

from overlay.carrier.limits import network_of
from overlay.carrier.stream import TcpStream
from overlay.errors import RemoteProtocolError
from overlay.wire.endpoint import Endpoint
from overlay.wire.stun import HEADER_SIZE, message_size

Answer = Callable[[bytes, Endpoint], bytes | None]
"""A request as it came, and from where → what to answer; None: the connection is not worth going on with."""

REQUEST: Final = b"\x00\x01"
"""How a Binding request begins."""

MAX_STREAMS: Final = 256
MAX_PER_NETWORK: Final = 16
"""Connections at once, in all and of one address (of IPv6, /64): a socket each, and no buffer."""

STAY: Final = 60.0
"""s that one may last: a punch through two NATs is over by then, or in vain."""


class StunRoom:
    """Those who ask by TCP."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._streams: Counter[str] = Counter()

    async def serve(self, stream: TcpStream, endpoint: Endpoint, settle: Callable[[], None]) -> None:
        """Answer what comes until the other end closes, or its time is over. `settle` is called once it has its place.

        Raises `RemoteProtocolError`: "stun_full", and what is wrong with a message; and what a stream raises.
        """
        network = network_of(endpoint[0])
        if self._streams[network] >= MAX_PER_NETWORK or self._streams.total() >= MAX_STREAMS:
            raise RemoteProtocolError("stun_full")
        self._streams[network] += 1
        settle()
        try:
            with anyio.move_on_after(STAY):
                while (answer := self._answer(await _message(stream), endpoint)) is not None:
                    await stream.send(answer)
        finally:
            self._streams[network] -= 1
            if not self._streams[network]:
                del self._streams[network]


async def _message(stream: TcpStream) -> bytes:
    data = await _exactly(stream, HEADER_SIZE)
    return data + await _exactly(stream, message_size(data) - HEADER_SIZE)


async def _exactly(stream: TcpStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive(size - len(data))
    return data
