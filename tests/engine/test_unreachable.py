"""What a program of this machine is told about packets that cannot go, and how long they wait before."""

import socket
from collections.abc import Iterator

import pytest

from overlay.engine import api
from overlay.engine.drops import Drops
from overlay.engine.features import ALL, Features
from overlay.engine.loop import clock
from overlay.engine.peer import KEY_PATIENCE, PATH_PATIENCE, Peer
from overlay.engine.unreachable import BURST, RATE, Unreachable
from overlay.wire.endpoint import Endpoint
from overlay.wire.packet import icmp
from overlay.wire.packet.superpacket import split
from overlay.wire.packet.virtio import NO_OFFLOAD
from overlay.wire.record.frames import LENGTH
from tests.engine.rig import Machine, fake_tun, udp4, udp6
from tests.engine.test_loop import Driven, Make, make
from tests.wire.packet.packets import TCP, UDP, Flow

__all__ = ["make"]  # the fixture

NOWHERE: Endpoint = ("127.0.0.1", 9)
OTHER, OTHER6 = "10.0.0.3", "fd00::3"


def frame(packet: bytes, offload: bytes = NO_OFFLOAD) -> memoryview:
    return memoryview(LENGTH.pack(len(packet)) + offload + packet)


class Answers:
    """An `Unreachable` with a kernel behind it."""

    def __init__(self, features: Features = ALL) -> None:
        self.drops = Drops()
        self.tun, self.kernel = fake_tun(features)
        self.kernel.setblocking(False)
        self.unreachable = Unreachable(self.tun, self.drops)

    def received(self) -> list[bytes]:
        found: list[bytes] = []
        try:
            while True:
                found.append(self.kernel.recv(1 << 17))
        except BlockingIOError:
            return found

    def close(self) -> None:
        self.tun.close()
        self.kernel.close()


@pytest.fixture
def answers() -> Iterator[Answers]:
    made = Answers()
    yield made
    made.close()


@pytest.mark.parametrize("version", [4, 6])
def test_the_error_quotes_the_packet(answers: Answers, version: int) -> None:
    packet = Flow(version=version, protocol=UDP).packet(b"to nobody")
    answers.unreachable.answer(frame(packet), 0.0)
    error = icmp.unreachable(packet)
    assert error is not None
    assert answers.received() == [NO_OFFLOAD + error]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_of_a_superpacket_the_first_segment_is_quoted(answers: Answers, version: int, protocol: int) -> None:
    whole = Flow(version=version, protocol=protocol).superpacket(bytes(range(256)) * 20, 400)
    answers.unreachable.answer(frame(whole[10:], whole[:10]), 0.0)
    error = icmp.unreachable(split(memoryview(whole))[0])
    assert error is not None
    assert answers.received() == [NO_OFFLOAD + error]


def test_a_checksum_that_was_left_to_the_device_is_made_before_it_is_quoted(answers: Answers) -> None:
    flow = Flow(protocol=TCP)
    packet = flow.packet(b"syn")
    partial = flow.partial(packet)
    answers.unreachable.answer(frame(partial[10:], partial[:10]), 0.0)
    error = icmp.unreachable(packet)
    assert error is not None
    assert answers.received() == [NO_OFFLOAD + error]


def test_a_device_without_offload_fields_gets_the_error_too() -> None:
    answers = Answers(Features(tun_vnet=False))
    packet = Flow(protocol=UDP).packet(b"to nobody")
    answers.unreachable.answer(frame(packet), 0.0)
    assert answers.received() == [icmp.unreachable(packet)]
    answers.close()


def test_what_gets_no_error(answers: Answers) -> None:
    error = icmp.unreachable(Flow(protocol=UDP).packet(b""))
    assert error is not None
    answers.unreachable.answer(frame(error), 0.0)
    answers.unreachable.answer(frame(Flow(protocol=UDP).packet(b""), b"\1\5" + bytes(8)), 0.0)
    assert answers.received() == []
    assert answers.drops.counts == {"bad_offload": 1}


def test_errors_per_second_are_bounded(answers: Answers) -> None:
    packet = frame(Flow(protocol=UDP).packet(b""))
    for _ in range(int(BURST) + 10):
        answers.unreachable.answer(packet, 1.0)
    assert len(answers.received()) == BURST
    assert answers.drops.counts == {"icmp_rate": 10}
    for _ in range(1000):
        answers.unreachable.answer(packet, 1.1)
    assert len(answers.received()) == pytest.approx(RATE * 0.1, abs=1)


def test_a_kernel_that_takes_nothing_costs_a_counter(answers: Answers) -> None:
    answers.kernel.close()
    answers.unreachable.answer(frame(Flow(protocol=UDP).packet(b"")), 0.0)
    assert answers.drops.counts == {"tun_refused": 1}
    answers.kernel = socket.socket()


def test_without_a_tun_nobody_is_told() -> None:
    counted = Drops()
    Unreachable(None, counted).answer(frame(Flow(protocol=UDP).packet(b"")), 0.0)
    assert not counted.counts


# --- in an engine -----------------------------------------------------------------------------------------------------


def known(one: Driven, *, endpoints: tuple[Endpoint, ...]) -> Peer:
    """`one` knows node 3, which does not answer."""
    one.post(api.SetPeer(Machine(3).config(endpoints=endpoints, transport="wireguard" if endpoints else "record")))
    one.loop.turn(0.0)
    return one.loop._peers.by_number[3]


def send(one: Driven, *packets: bytes) -> None:
    for packet in packets:
        one.kernel.send(NO_OFFLOAD + packet)
    one.loop.turn(0.0)


def test_a_peer_without_a_way_is_unreachable_after_three_seconds(make: Make) -> None:
    one = make(2)
    peer = known(one, endpoints=())
    packets = [udp4("10.0.0.2", OTHER, b"four"), udp6("fd00::2", OTHER6, b"six")]
    before = clock()
    send(one, *packets)
    assert one.received() == []
    deadline = one.loop._timers.next()
    assert deadline is not None
    assert deadline <= clock() + PATH_PATIENCE
    one.loop._attendance.timeout(peer, before + PATH_PATIENCE - 0.01)
    assert one.received() == []
    one.loop._attendance.timeout(peer, clock() + PATH_PATIENCE)
    assert one.received() == [icmp.unreachable(packet) for packet in packets]
    assert one.loop._drops.counts["no_path"] == 2
    send(one, packets[0])  # waits anew: a way may have come
    assert one.received() == []


def test_a_peer_that_does_not_answer_is_unreachable_after_three_initiations(make: Make) -> None:
    one = make(2)
    peer = known(one, endpoints=(NOWHERE,))
    packet = udp4("10.0.0.2", OTHER, b"hello?")
    before = clock()
    send(one, packet)
    for waited in (PATH_PATIENCE + 0.1, KEY_PATIENCE - 0.01):
        one.loop._attendance.timeout(peer, before + waited)
        assert one.received() == []
    one.loop._attendance.timeout(peer, clock() + KEY_PATIENCE)
    assert one.received() == [icmp.unreachable(packet)]
    assert one.loop._drops.counts["staged_given_up"] == 1
    assert peer.session.next_timeout() is not None  # it asks on


def test_a_session_that_gives_up_tells_those_who_wait(make: Make) -> None:
    one = make(2)
    peer = known(one, endpoints=(NOWHERE,))
    packet = udp4("10.0.0.2", OTHER, b"hello?")
    send(one, packet)
    now = clock()
    for _ in range(100):
        deadline = peer.session.next_timeout()
        if not peer.staging or deadline is None:
            break
        now = max(now, deadline)
        peer.staging.since = now  # as if it had just come
        one.loop._attendance.timeout(peer, now)
    assert one.received() == [icmp.unreachable(packet)]
    assert one.loop._drops.counts["staged_given_up"] == 1
