"""Hostile bytes into what marks packets and answers them: nothing raises, nothing but the ECN field changes."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.packet import ecn, icmp, ip
from overlay.wire.record import marks
from overlay.wire.record.frames import LENGTH
from tests.wire.packet.test_fuzz_packet import hostile

fields = st.integers(0, 3)


@given(hostile, fields)
def test_decapsulate(frame: bytes, outer: int) -> None:
    packet = bytearray(frame[10:])
    before = bytes(packet)
    ecn.decapsulate(memoryview(packet), outer)
    changed = [index for index, (old, new) in enumerate(zip(before, packet, strict=True)) if old != new]
    assert set(changed) <= {1, 10, 11}
    if not ecn.changes_inner(outer):
        assert not changed


@given(hostile)
def test_unreachable(frame: bytes) -> None:
    packet = frame[10:]
    error = icmp.unreachable(packet)
    if error is None:
        return
    assert ip.destination(error) == ip.source(packet)
    assert ip.source(error) == ip.destination(packet)
    assert ip.total_length(error) == len(error) <= (576 if packet[0] >> 4 == 4 else 1280)
    assert icmp.is_unicast(error)
    assert icmp.unreachable(error) is None


@given(st.lists(hostile, max_size=5), st.booleans(), st.integers(0, 200), fields)
def test_marks_of_a_record(frames: list[bytes], whole: bool, size: int, outer: int) -> None:
    plain = b"".join(LENGTH.pack(max(0, len(frame) - 10)) + frame for frame in frames)
    buffer = memoryview(bytearray(plain if whole else plain[:size]))
    with suppress(RemoteProtocolError):
        stretches, dropped = marks.decapsulate(buffer, outer)
        assert len(stretches) <= dropped + 1
        assert sum(map(len, stretches)) + 34 * dropped <= len(buffer)
