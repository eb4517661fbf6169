"""Between engines on a path with loss, where records are small: what went in comes out, and few calls carry it."""

import os

import pytest

from overlay.engine.msghdr import RecordMessage
from overlay.wire.packet.checksum import pseudo_header
from overlay.wire.packet.superpacket import split
from overlay.wire.packet.virtio import GSO_UDP_L4, NEEDS_CSUM, VIRTIO_HEADER
from tests.engine.rig import udp4
from tests.engine.test_loop import Driven, Make, introduce, make, path_mtu_of, turn_until

__all__ = ["make"]
SEGMENT = 1328  # bytes


def superpacket(one: Driven, other: Driven, size: int) -> bytes:
    """Of UDP, as a kernel hands it over: in the checksum's place is the sum over the pseudo-header."""
    packet = bytearray(udp4(one.machine.address, other.machine.address, os.urandom(size)))
    packet[26:28] = pseudo_header(packet[12:20], 17, len(packet) - 20).to_bytes(2, "big")
    return VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, SEGMENT, 20, 6) + packet


def room_of(one: Driven, other: Driven, room: int) -> None:
    """What a sizer has found out about the path to the other."""
    one.loop._peers.by_number[other.machine.number].sizer.room = room


def pass_on(one: Driven, other: Driven, frames: list[bytes]) -> list[bytes]:
    """The frames that the other's kernel gets for those of ours, until all their packets are there."""
    wanted = [packet for frame in frames for packet in split(memoryview(frame))]
    for frame in frames:
        one.kernel.send(frame)
    found: list[bytes] = []

    def arrived() -> bool:
        try:
            while True:
                found.append(other.kernel.recv(1 << 17))
        except BlockingIOError:
            return sum(len(split(memoryview(frame))) for frame in found) >= len(wanted)

    turn_until(arrived, one, other)
    assert [packet for frame in found for packet in split(memoryview(frame))] == wanted
    return found


@pytest.mark.parametrize("room", [1400, 2840, 4268, 8000])
def test_a_superpacket_in_small_records_goes_out_and_comes_in_as_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    one, other = make(2), make(3)
    introduce(one, other)
    calls: list[int] = []
    send = RecordMessage.send

    def counted(message: RecordMessage, *arguments: int) -> int:
        calls.append(arguments[2])
        return send(message, *arguments)  # type: ignore[arg-type]

    room_of(one, other, room)
    for size in (40_000, 40_001, 17 * SEGMENT, 1400):
        calls.clear()
        with monkeypatch.context() as patched:
            patched.setattr(RecordMessage, "send", counted)
            frame = superpacket(one, other, size)
            found = pass_on(one, other, [frame])
        assert len([call for call in calls if call > 100]) == 1
        assert found == [frame]
    assert "internal_error" not in other.snapshot().drops


@pytest.mark.parametrize("limit", [1300, 1200, 600])
@pytest.mark.parametrize("room", [1400, 2840, 4268])
def test_a_path_that_refuses_the_size_gets_smaller_datagrams_and_loses_nothing(
    make: Make, limit: int, room: int
) -> None:
    current = [1 << 16]
    one, other = make(2, path_mtu_of(current)), make(3)
    introduce(one, other)
    room_of(one, other, room)
    current[0] = limit
    pass_on(one, other, [superpacket(one, other, 30_000) for _ in range(2)])
    assert "send_too_long" not in one.snapshot().drops
