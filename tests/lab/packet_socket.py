"""What really crosses an interface: a packet socket that sends and receives frames as a TUN device trades them.

A frame is a virtio-net header (10 bytes, as Linux writes it on this machine) and an IP packet, so that superpackets and
checksums still to be made are seen as they are, and can be made by hand. The kernel checks what is sent here as it does
what a program writes to a TUN device. Knows nothing of the program under test.
"""

import socket
from types import TracebackType
from typing import Final, Self

from tests.lab.netns import Namespace

SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
PACKET_IGNORE_OUTGOING: Final = 23
SO_RCVBUFFORCE: Final = 33
ETH_P_ALL: Final = 0x0003
ETH_P_IP: Final = 0x0800
ETH_P_IPV6: Final = 0x86DD

VNET_SIZE: Final = 10
_LARGEST: Final = VNET_SIZE + 65_535
_BUFFER: Final = 64 << 20  # bytes; what is not read at once must not be lost


class PacketSocket:
    """Frames on `interface` of `namespace`: those that come in from it, or, with `outgoing`, all."""

    def __init__(self, namespace: Namespace, interface: str, *, outgoing: bool = False) -> None:
        self._interface = interface
        with namespace.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 0 if outgoing else 1)
        self._socket.bind((interface, ETH_P_ALL))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frame: bytes) -> None:
        """Give a frame to the interface. Raises `OSError` for one that the kernel does not take."""
        protocol = ETH_P_IP if frame[VNET_SIZE] >> 4 == 4 else ETH_P_IPV6
        self._socket.sendto(frame, (self._interface, protocol))

    def frames(self) -> list[bytes]:
        """All that crossed since the last call, oldest first."""
        found: list[bytes] = []
        while True:
            try:
                found.append(self._socket.recv(_LARGEST))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
