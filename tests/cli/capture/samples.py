"""Captured packets for this folder's tests."""

from overlay_cli.capture.packets import CapturedPacket, Offload
from tests.wire.packet.packets import internet_checksum

TIME = 1_764_000_000_123_456_789
LOCAL = ("198.51.100.21", 50380)
REMOTE = ("198.51.100.22", 33771)
LOCAL6 = ("2001:db8::21", 50380)
REMOTE6 = ("2001:db8::22", 33771)


def inner(
    data: bytes, *, outbound: bool = True, size: int | None = None, offload: Offload | None = None
) -> CapturedPacket:
    return CapturedPacket(TIME, outbound, len(data) if size is None else size, data, offload or Offload(), None)


def ones_complement_ok(data: bytes) -> bool:
    """Does a checksum in `data` make its sum what it must be?"""
    return internet_checksum(data) == 0
