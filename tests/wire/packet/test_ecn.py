"""Figure 4 of RFC 6040, cell by cell, and what must not change beside it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.packet import ecn
from overlay.wire.packet.ecn import CE, ECT_0, ECT_1, NOT_ECT
from overlay.wire.packet.superpacket import split
from tests.wire.packet.packets import TCP, UDP, Flow, internet_checksum

FIELDS = (NOT_ECT, ECT_0, ECT_1, CE)
DROP = None
FIGURE_4 = {
    # inner: what leaves for outer Not-ECT, ECT(0), ECT(1), CE
    NOT_ECT: (NOT_ECT, NOT_ECT, NOT_ECT, DROP),
    ECT_0: (ECT_0, ECT_0, ECT_1, CE),
    ECT_1: (ECT_1, ECT_1, ECT_1, CE),
    CE: (CE, CE, CE, CE),
}
CELLS = [(inner, outer, after) for inner, row in FIGURE_4.items() for outer, after in zip(FIELDS, row, strict=True)]

flows = st.builds(
    Flow,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([TCP, UDP]),
    traffic_class=st.integers(0, 255),
    hop_limit=st.integers(1, 255),
    ip_extra=st.sampled_from([b"", bytes(8)]),
)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("inner", "outer", "after"), CELLS)
def test_every_cell_of_figure_4(version: int, inner: int, outer: int, after: int | None) -> None:
    flow = Flow(version=version, traffic_class=0xB8 | inner)
    packet = bytearray(flow.packet(b"data", identification=7))
    before = bytes(packet)
    assert ecn.decapsulate(memoryview(packet), outer) == (after is not None)
    assert packet == (before if after is None else Flow(version=version, traffic_class=0xB8 | after).packet(
        b"data", identification=7
    ))  # fmt: skip


@given(flows, st.binary(max_size=40), st.integers(0, 65535), st.integers(0, 3))
def test_only_the_ecn_field_changes_and_checksums_stay_right(
    flow: Flow, payload: bytes, identification: int, outer: int
) -> None:
    packet = bytearray(flow.packet(payload, identification=identification))
    before = bytes(packet)
    goes_on = ecn.decapsulate(memoryview(packet), outer)
    if flow.version == 4:
        assert internet_checksum(bytes(packet[: (packet[0] & 15) * 4])) == 0
        assert packet[10:12] != b"\xff\xff"  # "-0": no sum of a header with a bit set is that
        packet[10:12] = before[10:12]
    mask = 0x03 if flow.version == 4 else 0x30
    assert packet[1] & ~mask == before[1] & ~mask
    packet[1] = before[1]
    assert packet == before
    assert goes_on or (outer == CE and flow.traffic_class & 3 == NOT_ECT)


@pytest.mark.parametrize("checksum", [0, 1, 2, 3, 0xFFFC, 0xFFFD, 0xFFFE])
def test_a_checksum_at_either_end_of_its_range(checksum: int) -> None:
    for inner, outer, after in CELLS:
        if after is None:
            continue
        flow = Flow(traffic_class=inner)
        bare = flow.packet(b"")
        # An identification that brings the header's checksum where we want it.
        identification = (internet_checksum(bare[:10] + b"\0\0" + bare[12:20]) - checksum) % 0xFFFF
        packet = bytearray(flow.packet(b"", identification=identification))
        assert packet[10] << 8 | packet[11] == checksum
        assert ecn.decapsulate(memoryview(packet), outer)
        assert bytes(packet) == Flow(traffic_class=after).packet(b"", identification=identification)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_each_segment_of_a_superpacket_has_the_mark(version: int, protocol: int) -> None:
    frame = bytearray(Flow(version=version, protocol=protocol, traffic_class=ECT_0).superpacket(bytes(5000), 1200))
    assert ecn.decapsulate(memoryview(frame)[10:], CE)
    assert split(memoryview(frame)) == split(
        memoryview(Flow(version=version, protocol=protocol, traffic_class=CE).superpacket(bytes(5000), 1200))
    )


@pytest.mark.parametrize("version", [4, 6])
def test_the_traffic_class_is_read(version: int) -> None:
    for value in range(256):
        assert ecn.traffic_class(Flow(version=version, traffic_class=value).packet(b"")) == value


def test_there_is_no_work_where_nothing_can_change() -> None:
    for inner, outer, after in CELLS:
        assert ecn.changes_inner(outer) or after == inner
    assert {outer for outer in FIELDS if ecn.changes_inner(outer)} == {ECT_1, CE}


def test_fragments_with_different_fields() -> None:
    for field in FIELDS:
        assert ecn.joined(field, field) == field
        assert ecn.joined(field, CE) == ecn.joined(CE, field) == CE
    assert {ecn.joined(one, other) for one in FIELDS[:3] for other in FIELDS[:3] if one != other} == {NOT_ECT}


@pytest.mark.parametrize("packet", [b"", b"\x45", bytes(19), bytes(20), b"\x55" * 40])
def test_what_is_no_packet_is_left_alone(packet: bytes) -> None:
    buffer = bytearray(packet)
    for outer in FIELDS:
        assert ecn.decapsulate(memoryview(buffer), outer)
    assert buffer == packet
