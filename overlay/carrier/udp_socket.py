"""A connected UDP socket that takes and gives datagrams in batches, where the kernel can cut and join them.

By a call for each datagram, the calls cost as much as QUIC's packets do.
"""

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from overlay.wire.endpoint import Endpoint

RECEIVE_BUFFER: Final = 1024 * 1024  # bytes, with what the kernel adds to each; it may grant less
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103  # Linux 4.18
_UDP_GRO: Final = 104  # Linux 5.0
_MOST_SEGMENTS: Final = 64
_MOST_BYTES: Final = 65000  # of one call
_TURN: Final = 64  # datagrams before other tasks get a turn
_SEGMENT: Final = struct.Struct("=H")
_JOINED: Final = struct.Struct("=i")
_ANCILLARY: Final = socket.CMSG_SPACE(_JOINED.size)
_CANNOT: Final = frozenset((errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT))
_buffer: Final = bytearray(65535)  # all sockets': never held across an await


class UdpSocket:
    """Owns its socket. No method blocks."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises `OSError`."""
        self._socket = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self._cuts = True  # the kernel cuts what is sent at once; taken for true until it is not
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self._socket.connect(endpoint)
        except BaseException:
            self._socket.close()
            raise
        try:
            self._socket.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        except OSError:
            return  # they come one by one

    def fileno(self) -> int:
        """-1 once it is closed."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> Iterator[bytes]:
        """What waits, a turn's share of it, but for empty ones; read as it is asked for. Raises `OSError`: what the way
        has answered, among others."""
        left = _TURN
        while left > 0 and self._socket.fileno() >= 0:
            try:
                size, ancillary, _, _ = self._socket.recvmsg_into((_buffer,), _ANCILLARY)
            except BlockingIOError:
                return
            segment = size
            for level, kind, value in ancillary:
                if (level, kind) == (_SOL_UDP, _UDP_GRO):
                    (segment,) = _JOINED.unpack(value)
            run = bytes(memoryview(_buffer)[:size])
            left -= -(-size // segment) if segment else 1
            for at in range(0, size, segment or 1):
                yield run[at : at + segment]

    def send(self, datagrams: Sequence[bytes]) -> None:
        """In order; raises `OSError` for the first that cannot go, and the others have not gone either."""
        at = 0
        while at < len(datagrams):
            run = self._run(datagrams, at) if self._cuts else 1
            if run == 1:
                self._socket.send(datagrams[at])
            else:
                segment = _SEGMENT.pack(len(datagrams[at]))
                try:
                    self._socket.sendmsg(datagrams[at : at + run], [(_SOL_UDP, _UDP_SEGMENT, segment)])
                except OSError as error:
                    if error.errno not in _CANNOT:
                        raise
                    self._cuts = False
                    continue
            at += run

    def _run(self, datagrams: Sequence[bytes], at: int) -> int:
        """How many go at once: equal ones, of which the last may be shorter."""
        size = len(datagrams[at])
        most = min(_MOST_SEGMENTS, _MOST_BYTES // max(1, size), len(datagrams) - at)
        for number in range(1, most):
            if len(datagrams[at + number]) != size:
                return number + (len(datagrams[at + number]) < size)
        return max(1, most)
