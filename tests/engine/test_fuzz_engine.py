"""Whatever arrives at a socket: the engine counts it and goes on."""

import os
import socket
import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.engine import api
from overlay.engine.loop import clock
from overlay.wire.disco import DiscoKey, Ping
from overlay.wire.relay import pack_header
from tests.engine.rig import Machine, acquaint
from tests.engine.test_engine import exchange, wait_for_drop
from tests.engine.test_loop import Driven, introduce

kinds = st.integers(0, 9)
bodies = st.one_of(st.binary(max_size=300), st.integers(0, 1500).map(bytes))


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.booleans(), kinds, st.booleans(), st.integers(0, 255), st.integers(1, 5), bodies), max_size=6
    ),
    st.integers(1, 1500),
)
def check(driven: Driven, parts: list[tuple[bool, int, bool, int, int, bytes]], segment: int) -> None:
    index = next(iter(driven.loop._peers.receivers), 1)
    run = b""
    for relayed, kind, known, fragment, count, body in parts:
        prefix = pack_header(3, 77) if relayed else b""
        header = struct.pack("<BBBBIQ", kind, fragment, count, 0, index if known else 9, fragment)
        run += prefix + header + body
    driven.loop._inbound._traffic_class = segment & 0xFF
    driven.loop._inbound.run(memoryview(bytearray(run[:65000])), segment, ("127.0.0.1", 9), clock())
    driven.loop.turn(0.0)
    assert "internal_error" not in driven.loop._drops.counts


def test_no_bytes_at_a_socket_raise() -> None:
    one, other = Driven(2), Driven(3)
    try:
        introduce(one, other)
        one.post(api.SetRelay((("127.0.0.1", 9),), 1, os.urandom(32), 77))
        one.loop.turn(0.0)
        check(one)
    finally:
        one.close()
        other.close()


def test_what_an_observer_sends_again_or_back_changes_nothing() -> None:
    """A ping between two engines is sent again, to both, whole, cut short and with a bit flipped."""
    with Machine(2) as one, Machine(3) as other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as observer:
        acquaint(one, other)
        exchange(one, other)
        ping = DiscoKey(one.private_key, other.public_key).seal(Ping(os.urandom(12)), 2, os.urandom(24))
        for datagram in (ping, ping[:40], ping[:-1] + bytes([ping[-1] ^ 1])):
            for machine in (one, other):
                observer.sendto(datagram, machine.endpoint)
                observer.sendto(datagram, machine.endpoint)
        wait_for_drop(other, "bad_tag")
        wait_for_drop(one, "disco_stranger")  # its own number: reflected
        exchange(one, other)
        assert "internal_error" not in {**one.snapshot().drops, **other.snapshot().drops}
        path = other.snapshot().peers[0].path
        assert path is not None
        assert path.endpoint == one.endpoint
