"""Tells this machine's programs that a packet could not go: an ICMP error, written back to the TUN.

A program then fails with "no route to host" at once, where it would else wait for its own timeout. Which packets get an
error is `wire.packet.icmp`'s to say; here they are bounded in number, as RFC 4443 §2.4(f) asks. Knows no peer.
"""

from typing import Final

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.engine.tun import Tun
from overlay.errors import RemoteProtocolError
from overlay.path.budget import Budget
from overlay.wire.packet import icmp
from overlay.wire.packet.superpacket import split
from overlay.wire.packet.virtio import NO_OFFLOAD, VIRTIO_HEADER_SIZE
from overlay.wire.record.frames import LENGTH_SIZE

RATE: Final = 100.0
BURST: Final = 50.0
"""Errors per second, and at once: 20 µs each. A program needs one; who scans the network needs none."""

_EXTENT: Final = LENGTH_SIZE + VIRTIO_HEADER_SIZE


class Unreachable:
    def __init__(self, tun: Tun | None, counted: Drops) -> None:
        self._tun = tun
        self._drops = counted
        self._budget = Budget(RATE, BURST)

    def answer(self, frame: memoryview, now: float) -> None:
        """Send an error for a frame that came of the TUN and goes nowhere, if there may be one. Never raises.

        `frame`: its length, its offload fields, the packet. The frame itself is the caller's to count.
        """
        if self._tun is None:
            return
        if not self._budget.take(now):
            self._drops.count(drops.ICMP_RATE)
            return
        packet: memoryview | bytes = frame[_EXTENT:]
        if frame[LENGTH_SIZE:_EXTENT] != NO_OFFLOAD:
            # What is quoted must be a packet as it is on a wire: with its checksum, and no longer than one segment.
            try:
                packet = split(frame[LENGTH_SIZE:])[0]
            except RemoteProtocolError as error:
                self._drops.count(error.reason)
                return
        error_packet = icmp.unreachable(packet)
        if error_packet is None:
            return
        outcome = self._tun.write(NO_OFFLOAD + error_packet)
        if outcome:
            self._drops.count(outcome)
