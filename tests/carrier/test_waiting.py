"""Whoever has to wait comes in turn, and waiting costs a bounded amount."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.limits import DEFAULT_LIMITS, Door, Visit
from overlay.carrier.waiting import PATIENCE, ROOM, ROOM_PER_ADDRESS, WaitingRoom


def admitted(room: WaitingRoom, door: Door, now: float) -> list[tuple[bytes, Visit]]:
    return [(key, visit) for key, _, visit in room.admit(lambda host: door.enter(host, now), now)]


def test_they_come_in_the_order_of_arrival() -> None:
    limits = replace(DEFAULT_LIMITS, strangers=2)
    room, door = WaitingRoom(), Door(limits)
    for number in range(6):
        assert room.enter(bytes([number]), (f"192.0.2.{number}", 1), b"first", b"", 0.0)
    assert room.enter(b"\x00", ("192.0.2.0", 1), b"again", b"", 1.0)
    order = []
    for turn in range(3):
        visits = admitted(room, door, float(turn))
        order += [key[0] for key, _ in visits]
        for _, visit in visits:
            visit.leave()
    assert order == [0, 1, 2, 3, 4, 5]
    assert not room


def test_a_crowd_behind_one_address_keeps_nobody_else_waiting() -> None:
    limits = replace(DEFAULT_LIMITS, strangers_per_address=1)
    room, door = WaitingRoom(), Door(limits)
    for number in range(20):
        room.enter(bytes([number]), ("192.0.2.1", number), b"x", b"", 0.0)
    room.enter(b"other", ("192.0.2.2", 1), b"x", b"", 0.0)
    assert [key for key, _ in admitted(room, door, 0.0)] == [b"\x00", b"other"]


def test_both_datagrams_are_kept() -> None:
    room = WaitingRoom()
    for datagram in (b"first", b"second", b"third"):
        room.enter(b"a", ("192.0.2.1", 1), datagram, b"id", 0.0)
    ((_, waiting, _),) = room.admit(lambda host: Door(DEFAULT_LIMITS).enter(host, 0.0), 0.0)
    assert (waiting.first, waiting.latest, waiting.original_id) == (b"first", b"third", b"id")


def test_whoever_is_silent_is_forgotten() -> None:
    room, door = WaitingRoom(), Door(DEFAULT_LIMITS)
    room.enter(b"a", ("192.0.2.1", 1), b"x", b"", 0.0)
    room.enter(b"b", ("192.0.2.1", 2), b"x", b"", 0.0)
    room.enter(b"b", ("192.0.2.1", 2), b"x", b"", 5.0)
    assert [key for key, _ in admitted(room, door, PATIENCE + 1)] == [b"b"]
    assert not room


def test_the_room_is_bounded() -> None:
    room = WaitingRoom()
    taken = sum(room.enter(b"%d" % number, ("192.0.2.1", 1), b"x", b"", 0.0) for number in range(2 * ROOM))
    assert taken == ROOM_PER_ADDRESS
    for number in range(2 * ROOM):
        room.enter(b"n%d" % number, (f"2001:db8:{number // 64:x}::1", 1), b"x", b"", 0.0)
    assert len(room) == ROOM


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 4), st.floats(0.0, 3.0), st.booleans()), min_size=1, max_size=60
    )
)
def test_counts_agree_whatever_happens(steps: list[tuple[int, int, float, bool]]) -> None:
    room, door, now = WaitingRoom(), Door(replace(DEFAULT_LIMITS, strangers_per_address=1)), 0.0
    for key, host, pause, leave in steps:
        now += pause
        room.enter(bytes([key]), (f"192.0.2.{host}", key), b"x", b"", now)
        for _, visit in admitted(room, door, now):
            if leave:
                visit.leave()
        assert len(room) == room._networks.total()
