"""Marks on a record's datagrams reach its packets."""

import pytest

from overlay.errors import RemoteProtocolError
from overlay.wire.packet.ecn import CE, ECT_0, ECT_1, NOT_ECT
from overlay.wire.packet.virtio import NO_OFFLOAD
from overlay.wire.record.frames import LENGTH
from overlay.wire.record.marks import decapsulate
from tests.wire.packet.packets import Flow


def record(*fields: int, version: int = 4) -> memoryview:
    """A record of one plain packet for each ECN field; the payload says which one it is."""
    plain = bytearray()
    for index, field in enumerate(fields):
        packet = Flow(version=version, traffic_class=field).packet(b"%d" % index)
        plain += LENGTH.pack(len(packet)) + NO_OFFLOAD + packet
    return memoryview(plain)


@pytest.mark.parametrize("version", [4, 6])
def test_a_mark_reaches_each_packet(version: int) -> None:
    plain = record(ECT_0, ECT_1, CE, version=version)
    stretches, dropped = decapsulate(plain, CE)
    assert (stretches, dropped) == ([plain], 0)
    assert plain == record(CE, CE, CE, version=version)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ((NOT_ECT,), []),
        ((NOT_ECT, NOT_ECT), []),
        ((NOT_ECT, ECT_0), [[1]]),
        ((ECT_0, NOT_ECT), [[0]]),
        ((ECT_0, NOT_ECT, ECT_1, CE, NOT_ECT, NOT_ECT, ECT_0), [[0], [2, 3], [6]]),
    ],
)
def test_a_packet_that_cannot_be_marked_is_dropped_alone(fields: tuple[int, ...], kept: list[list[int]]) -> None:
    marked = [CE if field else NOT_ECT for field in fields]
    whole = bytes(record(*marked))
    size = len(whole) // len(fields)
    stretches, dropped = decapsulate(record(*fields), CE)
    assert dropped == fields.count(NOT_ECT)
    assert [bytes(each) for each in stretches] == [
        b"".join(whole[index * size : (index + 1) * size] for index in indices) for indices in kept
    ]


@pytest.mark.parametrize("outer", [NOT_ECT, ECT_0])
def test_no_mark_changes_nothing(outer: int) -> None:
    plain = record(NOT_ECT, ECT_0, ECT_1, CE)
    before = bytes(plain)
    assert decapsulate(plain, outer) == ([plain], 0)
    assert plain == before


def test_a_keepalive_has_nothing_to_mark() -> None:
    assert decapsulate(memoryview(bytearray()), CE) == ([], 0)


def test_frames_that_are_none() -> None:
    with pytest.raises(RemoteProtocolError):
        decapsulate(memoryview(bytearray(b"\1\2\3")), CE)
