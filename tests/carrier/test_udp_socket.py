"""Datagrams in batches over real loopback sockets."""

import os
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.carrier.udp_socket import UdpSocket
from tests.carrier.quic_ends import udp_socket

SO_NO_CHECK = 11


@pytest.fixture
def ends() -> Iterator[tuple[UdpSocket, socket.socket]]:
    with udp_socket() as other:
        other.setblocking(True)
        other.settimeout(5)
        ours = UdpSocket(other.getsockname())
        own = socket.socket(fileno=os.dup(ours.fileno()))
        with own:
            other.connect(own.getsockname())
        yield ours, other
        ours.close()
        assert ours.fileno() == -1 and list(ours.receive()) == []


def arrive(ours: UdpSocket, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        assert select.select([ours], (), (), 5)[0], "it has not come"
        found += ours.receive()
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.sampled_from((1, 40, 1200, 1200, 1200, 1452)), max_size=70), cuts=st.booleans())
def test_datagrams_arrive_as_they_were_sent(
    ends: tuple[UdpSocket, socket.socket], sizes: list[int], cuts: bool
) -> None:
    ours, other = ends
    ours._cuts = cuts
    datagrams = [os.urandom(size) for size in sizes]
    ours.send(datagrams)
    assert [other.recv(65536) for _ in datagrams] == datagrams
    for datagram in datagrams:
        other.send(datagram)
    assert arrive(ours, len(datagrams)) == datagrams
    assert list(ours.receive()) == []


def test_what_the_kernel_joined_is_cut(ends: tuple[UdpSocket, socket.socket]) -> None:
    """Between two of ours: what one has cut, the other gets joined on one machine."""
    ours, other = ends
    with socket.socket(fileno=os.dup(ours.fileno())) as own:
        answering = UdpSocket(own.getsockname())
        with socket.socket(fileno=os.dup(answering.fileno())) as theirs:
            own.connect(theirs.getsockname())
    datagrams = [os.urandom(1200) for _ in range(20)] + [b"the last"]
    answering.send(datagrams)
    assert arrive(ours, len(datagrams)) == datagrams
    answering.close()


def test_where_the_kernel_cannot_cut_they_go_one_by_one(ends: tuple[UdpSocket, socket.socket]) -> None:
    ours, other = ends
    with socket.socket(fileno=os.dup(ours.fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)  # without checksums it does not
    ours.send([b"a", b"b", b"c"])
    assert [other.recv(10) for _ in range(3)] == [b"a", b"b", b"c"]
    assert not ours._cuts
