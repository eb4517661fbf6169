"""Which acknowledgements may go, and which not: packets made by hand, and a receiver's state as the judge."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.packet.acks import ACK_SIZES, ack_flow, supersedes
from overlay.wire.record.frames import FRAME_HEADER, FRAME_HEADER_SIZE

TIMESTAMPS = b"\1\1\10\12" + bytes(8)


def frame(
    number: int,
    *,
    sequence: int = 7,
    version: int = 4,
    options: bytes = TIMESTAMPS,
    flags: int = 0x10,
    payload: bytes = b"",
    port: int = 1000,
    tos: int = 0,
    protocol: int = 6,
    reserved: int = 0,
    fragment: int = 0,
) -> bytearray:
    tcp = struct.pack(">HHIIBBHHH", port, 443, sequence, number, (20 + len(options)) << 2 | reserved, flags, 500, 0, 0)
    body = tcp + options + payload
    if version == 4:
        ip = struct.pack(
            ">BBHHHBBH4s4s", 0x45, tos, 20 + len(body), 1, fragment, 64, protocol, 0, b"\n\t\0\2", b"\n\t\0\3"
        )
    else:
        ip = struct.pack(">IHBB16s16s", 6 << 28 | tos << 20, len(body), protocol, 64, b"a" * 16, b"b" * 16)
    packet = ip + body
    return bytearray(FRAME_HEADER.pack(len(packet), 1, 0, 0, 0, len(ip), 16) + packet)


def judge(earlier: bytearray, later: bytearray) -> bool:
    """Would the later one take the earlier one's place?"""
    assert len(earlier) == len(later)
    size = len(earlier)
    both = bytearray(b"12345") + earlier + later
    flow = ack_flow(both, 5, size)
    if flow is None or ack_flow(both, 5 + size, size) != flow:
        return False
    return supersedes(both, 5 + size, 5, size)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("options", [b"", TIMESTAMPS])
def test_a_later_one_says_it_all(version: int, options: bytes) -> None:
    assert len(frame(1, version=version, options=options)) in ACK_SIZES
    assert judge(frame(1000, version=version, options=options), frame(2000, version=version, options=options))
    assert judge(frame(0xFFFFFFF0, version=version, options=options), frame(16, version=version, options=options))


@pytest.mark.parametrize("version", [4, 6])
def test_what_says_something_of_its_own_stays(version: int) -> None:
    one = frame(1000, version=version)
    assert not judge(one, frame(1000, version=version))  # a duplicate tells of loss
    assert not judge(frame(2000, version=version), one)  # the older one came later
    assert not judge(one, frame(2000, version=version, sequence=8))  # data was sent in between
    assert not judge(one, frame(2000, version=version, port=1001))
    assert not judge(one, frame(2000, version=version, tos=1))
    assert not judge(frame(1000, version=version, tos=1), frame(2000, version=version))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flags", [0x11, 0x12, 0x14, 0x18, 0x30, 0x50, 0x90, 0x00])
def test_any_flag_but_ack_makes_it_more_than_an_acknowledgement(version: int, flags: int) -> None:
    one = frame(1000, version=version, flags=flags)
    assert ack_flow(one, 0, len(one)) is None


def test_no_acknowledgements() -> None:
    sack = b"\1\1\5\12" + bytes(8)
    for other in (
        frame(1, options=sack),
        frame(1, options=b"", payload=bytes(12)),
        frame(1, version=6, options=b"", payload=bytes(12)),
        frame(1, protocol=17),
        frame(1, version=6, protocol=17),
        frame(1, reserved=1),  # accurate ECN's bit
        frame(1, fragment=0x2000),
        frame(1, fragment=5),
    ):
        assert ack_flow(other, 0, len(other)) is None
    longer = frame(1)
    longer[FRAME_HEADER_SIZE + 3] += 1
    assert ack_flow(longer, 0, len(longer)) is None


@given(st.binary(min_size=max(ACK_SIZES), max_size=max(ACK_SIZES)), st.sampled_from(sorted(ACK_SIZES)))
def test_any_bytes_are_judged_without_an_error(data: bytes, size: int) -> None:
    found = ack_flow(bytearray(data), 0, size)
    assert found is None or len(found) > 12


@given(st.lists(st.integers(0, 1 << 33), min_size=1, max_size=30))
def test_the_highest_number_always_remains(numbers: list[int]) -> None:
    """As whoever receives them sees it: its highest acknowledged number is the same, however many went."""
    start = numbers[0]
    kept: list[int] = []
    for number in numbers:
        number = start + number % 100_000
        if kept and judge(frame(kept[-1] & 0xFFFFFFFF), frame(number & 0xFFFFFFFF)):
            kept[-1] = number
        else:
            kept.append(number)
    assert max(kept) == max(start + number % 100_000 for number in numbers)
