"""Datagrams that the kernel does not join, taken several at once: what comes is what was sent, in order and apart."""

import socket
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.engine import run
from overlay.engine.features import Features
from overlay.engine.several import MAX_DATAGRAMS
from overlay.engine.udp import UdpSocket, open_udp

HEADER = bytes([5]) + bytes(15)


@pytest.fixture
def receiver() -> Iterator[UdpSocket]:
    sockets = open_udp(0, Features(udp_gro=False))
    yield sockets.ipv4
    sockets.close()


@pytest.fixture
def senders() -> Iterator[list[socket.socket]]:
    made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for each in made:
        each.bind(("127.0.0.1", 0))
    yield made
    for each in made:
        each.close()


def drain(receiver: UdpSocket) -> list[tuple[bytes, int]]:
    """All datagrams that wait, and where each came from; looks at each run in every way there is."""
    found: list[tuple[bytes, int]] = []
    held = receiver.begin()
    while (taken := receiver.receive()) is not None:
        assert taken is held
        pieces = b"".join(taken.pieces())
        if taken.whole:
            stride = taken.offset + 16
            box = taken.box()
            apart = b"".join(
                bytes(part)
                for at in range(taken.count)
                for part in (
                    taken.headers[at * stride : (at + 1) * stride],
                    box[at * taken.payload : (at + 1) * taken.payload],
                )
            )
            assert apart == pieces
        joined = bytes(taken.joined())
        assert joined == pieces == b"".join(taken.pieces())
        source = taken.source[1]
        found += [(joined[at : at + taken.segment], source) for at in range(0, len(joined), taken.segment or 1)]
        if taken.drained and not taken.followed:
            assert receiver.receive() is None
            break
    return found


def taught(receiver: UdpSocket, sender: socket.socket, size: int = 1442) -> None:
    """It has seen that datagrams come one by one."""
    sent = [HEADER + number.to_bytes(2, "big") + bytes(size - 18) for number in range(2 * MAX_DATAGRAMS)]
    for each in sent:
        sender.sendto(each, receiver._socket.getsockname())
    assert [data for data, _ in drain(receiver)] == sent
    assert receiver._run._several is not None


def test_what_waits_together_is_one_run(receiver: UdpSocket, senders: list[socket.socket]) -> None:
    taught(receiver, senders[0])
    for count in (2, 5, MAX_DATAGRAMS):
        sent = [HEADER + bytes([number]) * 1426 for number in range(count)]
        sent[-1] = sent[-1][:100]
        for each in sent:
            senders[0].sendto(each, receiver._socket.getsockname())
        taken = receiver.receive()
        assert taken is not None
        assert (taken.whole, taken.count, taken.segment, taken.size) == (True, count, 1442, 1442 * (count - 1) + 100)
        assert bytes(taken.headers[: 16 * count]) == HEADER * count
        assert bytes(taken.box()) == b"".join(each[16:] for each in sent)
        assert taken.drained == (count < MAX_DATAGRAMS)
        assert not taken.followed


sizes = st.sampled_from([0, 1, 15, 16, 17, 511, 512, 1441, 1442, 1443, 1442, 1442, 9000, 65507])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.lists(st.lists(st.tuples(sizes, st.integers(0, 1), st.booleans()), max_size=12), min_size=1, max_size=6),
    st.integers(0, 1 << 30),
)
def test_datagrams_of_any_size_source_and_class_come_as_they_were_sent(
    receiver: UdpSocket,
    senders: list[socket.socket],
    batches: list[list[tuple[int, int, bool]]],
    seed: int,
) -> None:
    chance = Random(seed)
    taught(receiver, senders[0])
    for batch in batches:
        sent = []
        for size, who, marked in batch:
            sender = senders[who]
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 3 if marked else 0)
            data = (chance.choice([b"\5", b"\4", b"\7", b"\6"]) + chance.randbytes(size))[:size]
            sender.sendto(data, receiver._socket.getsockname())
            if size:  # an empty one has no bytes to be told by
                sent.append((data, sender.getsockname()[1]))
        assert drain(receiver) == sent


def test_the_class_is_that_of_each_datagram(receiver: UdpSocket, senders: list[socket.socket]) -> None:
    taught(receiver, senders[0])
    for value in (0, 3, 3, 1, 0):
        senders[0].setsockopt(socket.IPPROTO_IP, socket.IP_TOS, value)
        senders[0].sendto(HEADER + bytes(1426), receiver._socket.getsockname())
    found = []
    while (taken := receiver.receive()) is not None:
        found += [taken.traffic_class] * taken.count
    assert found == [0, 3, 3, 1, 0]


def test_places_are_made_for_what_most_datagrams_are(receiver: UdpSocket, senders: list[socket.socket]) -> None:
    taught(receiver, senders[0])
    for _ in range(4):
        for _ in range(10):
            senders[0].sendto(HEADER + bytes(1000), receiver._socket.getsockname())
        assert len(drain(receiver)) == 10
    for _ in range(10):
        senders[0].sendto(HEADER + bytes(1000), receiver._socket.getsockname())
    taken = receiver.receive()
    assert taken is not None
    assert (taken.whole, taken.count, taken.segment) == (True, 10, 1016)


def test_one_at_a_time_is_taken_as_it_comes(receiver: UdpSocket, senders: list[socket.socket]) -> None:
    """Who answers each packet with one never gets there, and who did is back soon."""
    for _ in range(4 * MAX_DATAGRAMS):
        senders[0].sendto(HEADER + bytes(100), receiver._socket.getsockname())
        receiver.begin()
        assert receiver.receive() is not None
    assert receiver._run._several is None
    taught(receiver, senders[0])
    for _ in range(run._MAX_ALONE + 1):
        senders[0].sendto(HEADER + bytes(100), receiver._socket.getsockname())
        receiver.begin()
        taken = receiver.receive()
        assert taken is not None
        assert (taken.whole, taken.count) == (True, 1)
    assert receiver._run._several is None


def test_where_the_kernel_joins_after_all_nothing_is_lost(senders: list[socket.socket]) -> None:
    sockets = open_udp(0, Features())
    try:
        receiver = sockets.ipv4
        taught(receiver, senders[0])
        for cut in (1442, 600):
            for _ in range(3):
                sent = bytes([5]) * 30_000
                senders[0].sendmsg([sent], [(17, 103, cut.to_bytes(2, "little"))], 0, receiver._socket.getsockname())
                senders[0].sendto(HEADER + b"x", receiver._socket.getsockname())
                found = drain(receiver)
                assert b"".join(data for data, _ in found) == sent + HEADER + b"x"
                assert len(found[0][0]) == cut
        assert receiver._run._several is None
    finally:
        sockets.close()


def test_a_relay_takes_what_it_forwards_as_it_comes(receiver: UdpSocket, senders: list[socket.socket]) -> None:
    receiver.forwards(1 << 20)
    for _ in range(2):
        for _ in range(2 * MAX_DATAGRAMS):
            senders[0].sendto(bytes([6]) + bytes(1000), receiver._socket.getsockname())
        assert len(drain(receiver)) == 2 * MAX_DATAGRAMS
    assert receiver._run._several is None
