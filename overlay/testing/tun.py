"""A TUN device in memory: a real file descriptor that an event loop can wait for, and no network interface behind it.

It stands where pytun's device does. What the test puts in is read by the program as if the kernel had routed it there;
what the program writes comes out. Packets keep their borders. It is a socket pair, so a program that writes faster than
the test reads sees the same `EAGAIN` as with a full device.
"""

import socket
from typing import NamedTuple

VIRTIO_SIZE = 10  # bytes of virtio_net_hdr
_BUFFER = 4 * 1024 * 1024  # bytes wished for; the kernel may give less
_LARGEST = VIRTIO_SIZE + 65_535 + 1  # bytes; one more than there can be, so that too long a write is seen as such


class TunPacket(NamedTuple):
    header: bytes  # virtio_net_hdr, little-endian; b"" on a device without offload
    packet: bytes


class FakeTun:
    """`offload`: packets carry a virtio_net_hdr of 10 bytes in front, as with `IFF_VNET_HDR`."""

    def __init__(self, name: str = "fake0", *, offload: bool = True) -> None:
        self.name = name
        self._header_size = VIRTIO_SIZE if offload else 0
        self._program, self._kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._program, self._kernel):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    def fileno(self) -> int:
        """The program's end."""
        return self._program.fileno()

    def close(self) -> None:
        """As the program does; may be repeated. The test's end closes too."""
        self._program.close()
        self._kernel.close()

    def put(self, packet: bytes, header: bytes = bytes(VIRTIO_SIZE)) -> None:
        """Have the kernel route a packet to the device. Raises `BlockingIOError` when the program does not read."""
        if self._header_size and len(header) != VIRTIO_SIZE:
            raise ValueError(f"a virtio_net_hdr has {VIRTIO_SIZE} bytes, not {len(header)}")
        self._kernel.send(header[: self._header_size] + packet)

    def written(self) -> list[TunPacket]:
        """Drain what the program wrote so far, oldest first."""
        packets: list[TunPacket] = []
        while True:
            try:
                data = self._kernel.recv(_LARGEST)
            except BlockingIOError:
                return packets
            if not data:
                return packets
            packets.append(TunPacket(data[: self._header_size], data[self._header_size :]))

    def __enter__(self) -> "FakeTun":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
