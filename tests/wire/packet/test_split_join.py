"""split ∘ join = identity over whatever packets: many flows mixed, unusual packets among them, and damaged ones."""

from collections import Counter
from random import Random

from hypothesis import example, given
from hypothesis import strategies as st

from overlay.wire.packet.join import join, join_frames
from overlay.wire.packet.superpacket import split
from tests.wire.packet.lies import FLOWS, OPTIONS6
from tests.wire.packet.packets import ACK, FIN, PSH, UDP, Flow
from tests.wire.packet.test_join import cut, without_identification

flows = st.sampled_from(list(FLOWS.values()))
others = st.sampled_from(
    [
        *(Flow(version=version, protocol=protocol) for version in (4, 6) for protocol in (1, 47, 58, 132, 253)),
        Flow(version=6, protocol=UDP, ip_extra=OPTIONS6, extension=44),
        Flow(version=6, protocol=59),
    ]
)


@st.composite
def sendings(draw: st.DrawFn) -> list[bytes]:
    """What one flow sends: a stream as a stack cuts it, or single packets of another protocol; maybe some damaged."""
    data = draw(st.binary(min_size=1, max_size=3000))
    size = draw(st.integers(1, 20) | st.integers(8, 1380))
    if draw(st.booleans()):
        packets = draw(flows).stream(
            data,
            size,
            identification=draw(st.integers(0, 0xFFFF)),
            sequence=draw(st.integers(0, 0xFFFFFFFF)),
            last=draw(st.sampled_from([ACK, ACK | PSH, ACK | FIN])),
        )
    else:
        packets = draw(others).stream(data, max(size, 100))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(packets) - 1))
        damaged = bytearray(packets[at])
        damaged[draw(st.integers(0, len(damaged) - 1))] ^= 1 << draw(st.integers(0, 7))
        packets[at] = bytes(damaged)
    return packets


@given(st.lists(sendings(), max_size=5), st.randoms(use_true_random=False))
def test_any_packets_come_out_as_they_went_in(sent: list[list[bytes]], random: Random) -> None:
    packets = [packet for packets in sent for packet in packets]
    random.shuffle(packets)
    after = cut(join(packets))
    assert Counter(without_identification(after)) == Counter(without_identification(packets))


@given(
    flows, st.binary(min_size=1, max_size=20_000), st.integers(8, 1400), st.sampled_from([ACK, ACK | PSH, ACK | FIN])
)
@example(Flow(), b"x", 1400, ACK)
def test_any_superpacket_is_cut_to_what_a_stack_sends(flow: Flow, data: bytes, size: int, flags: int) -> None:
    numbers = {"identification": 0xFFF0, "sequence": 0xFFFFF000}
    size = max(size, -(-len(data) // 128))
    packets = split(memoryview(flow.superpacket(data, size, flags=flags, **numbers)))
    assert packets == flow.stream(data, size, last=flags, **numbers)


@given(st.lists(st.tuples(flows, st.binary(min_size=1, max_size=3000), st.integers(8, 1400)), max_size=5))
def test_frames_of_any_flows_stand_for_the_same_packets_when_joined(
    sent: list[tuple[Flow, bytes, int]],
) -> None:
    """Superpackets and checksums still to be made, as a record brings them."""
    frames = [memoryview(flow.superpacket(data, max(size, -(-len(data) // 128)))) for flow, data, size in sent]
    frames += [memoryview(flow.partial(flow.packet(data[:1300]))) for flow, data, _ in sent]
    before = [packet for frame in frames for packet in split(frame)]
    after = cut(join_frames(frames))
    assert Counter(without_identification(after)) == Counter(without_identification(before))
