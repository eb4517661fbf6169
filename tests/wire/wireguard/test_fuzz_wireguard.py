"""Hostile bytes: whatever arrives is a named drop, and leaves a session exactly as it was."""

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.wireguard import messages, transport
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.session import SendHandshake, Session
from overlay.wire.wireguard.timers import Timers

from .ends import START, Clock, Pair, make_device

SOURCE = bytes([192, 0, 2, 1, 0x30, 0x39])
REASON = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

garbage = st.binary(max_size=200)
shaped = st.sampled_from([1, 2, 3, 4]).flatmap(
    lambda kind: st.binary(min_size=60, max_size=148).map(
        lambda body: (kind.to_bytes(4, "little") + body)[: messages.SIZES.get(kind, 64)]
    )
)


def state(device: Device, session: Session) -> list[Any]:
    """All that a session remembers, as values, so that a change shows."""
    timers = [getattr(session._timers, name) for name in Timers.__slots__]
    slots = session._keypairs
    return [
        session._pending,
        [(keypair.local_index, keypair.send_key, keypair.receive_key, keypair.send_counter) for keypair in slots.all()],
        (id(slots.previous), id(slots.current), id(slots.next)),
        timers,
        session._attempts,
        session._last_timestamp,
        session._last_initiation,
        session._last_sent_handshake,
        session.last_handshake,
        dict(vars(session._cookies)),
        sorted(device._indices._owners),
    ]


def handshake_of(pair: Pair) -> list[bytes]:
    """Initiation, response and cookie reply between two ends, none of them delivered to `a` yet."""
    pair.a.session.request_handshake(pair.now)
    (sent,) = [event.datagram for event in pair.a.session.events() if isinstance(event, SendHandshake)]
    cookie = pair.b.device.receive_handshake(sent, SOURCE, pair.now, under_load=True).reply
    response = pair.b.device.receive_handshake(sent, SOURCE, pair.now).reply
    assert cookie is not None and response is not None
    return [sent, response, cookie]


@given(garbage | shaped)
def test_parsers_raise_nothing_but_remote_protocol_errors(datagram: bytes) -> None:
    for parse in (messages.parse, transport.parse_header):
        try:
            parse(datagram)
        except RemoteProtocolError as error:
            assert REASON.fullmatch(error.reason)


@given(st.lists(garbage | shaped, max_size=5), st.booleans())
def test_garbage_is_dropped_and_changes_nothing(datagrams: list[bytes], under_load: bool) -> None:
    pair = Pair()
    handshake_of(pair)
    for end in (pair.a, pair.b):
        before = state(end.device, end.session)
        for datagram in datagrams:
            result = end.device.receive_handshake(datagram, SOURCE, pair.now, under_load=under_load)
            assert result.drop is not None and REASON.fullmatch(result.drop)
            assert result.session is None and result.reply is None
        assert state(end.device, end.session) == before


@given(st.integers(0, 2), st.data(), st.booleans())
def test_changed_and_truncated_messages_are_dropped_and_change_nothing(
    which: int, data: st.DataObject, under_load: bool
) -> None:
    pair = Pair()
    message = handshake_of(pair)[which]
    # mac2 is not looked at without load, so the last 16 bytes of types 1 and 2 are not a change that shows.
    meaningful = len(message) if which == 2 else len(message) - messages.MAC_SIZE
    hostile = data.draw(
        st.one_of(
            st.integers(0, len(message) - 1).map(lambda cut: message[:cut]),
            st.binary(min_size=1, max_size=40).map(lambda tail: message + tail),
            st.tuples(st.integers(0, meaningful - 1), st.integers(1, 255)).map(
                lambda flip: message[: flip[0]] + bytes([message[flip[0]] ^ flip[1]]) + message[flip[0] + 1 :]
            ),
        )
    )
    for end in (pair.a, pair.b):
        before = state(end.device, end.session)
        result = end.device.receive_handshake(hostile, SOURCE, pair.now, under_load=under_load)
        assert result.drop is not None and REASON.fullmatch(result.drop)
        assert result.session is None and result.reply is None
        assert end.session.events() == [] or end is pair.b
        assert state(end.device, end.session) == before
    # The honest ones still do their work.
    pair.clock.now += 6
    sent, response, cookie = handshake_of(pair)
    assert pair.a.device.receive_handshake(cookie, SOURCE, pair.now).drop is None
    assert pair.a.device.receive_handshake(response, SOURCE, pair.now).session is pair.a.session
    assert pair.a.device.receive_handshake(sent, SOURCE, pair.now).drop == "bad_mac1"


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.booleans())
def test_replayed_and_reflected_messages_never_make_a_second_session(order: list[int], under_load: bool) -> None:
    pair = Pair()
    recorded = handshake_of(pair)
    assert pair.a.device.receive_handshake(recorded[1], SOURCE, pair.now).session is pair.a.session
    pair.clock.now += 10
    for end in (pair.a, pair.b):
        end.session.events()
        before = state(end.device, end.session)
        cookie_before = before.pop(9)
        for index in order:
            result = end.device.receive_handshake(recorded[index], SOURCE, pair.now, under_load=under_load)
            assert result.session is None
            # Only two things may happen: a cookie reply to a message with a right mac1, and a cookie taken once.
            assert (result.reply is not None) == (result.drop == "under_load")
            if result.drop is None:
                assert end is pair.a and index == 2
        after = state(end.device, end.session)
        cookie_after = after.pop(9)
        assert after == before
        assert end.session.events() == []
        if end is pair.b:
            assert cookie_after == cookie_before


@given(st.lists(shaped, max_size=20))
def test_nothing_grows_under_garbage(datagrams: list[bytes]) -> None:
    device = make_device(1, Clock())
    device.add_peer(make_device(2, Clock()).public_key, now=START)
    for datagram in datagrams:
        device.receive_handshake(datagram, SOURCE, START, under_load=True)
    assert len(device._indices) == 0
    assert len(device._limiter) == 0


@given(st.data())
def test_changed_transport_messages_are_dropped(data: st.DataObject) -> None:
    pair = Pair()
    pair.connect()
    pair.a.send(b"honest", pair.now)
    _, _, datagram = pair.wire[-1]
    position = data.draw(st.integers(0, len(datagram) - 1))
    hostile = bytearray(datagram)
    hostile[position] ^= data.draw(st.integers(1, 255))
    if hostile[0] == transport.TYPE:
        try:
            pair.b.receive(bytes(hostile), SOURCE, pair.now)
        except RemoteProtocolError as error:
            assert error.reason == "unknown_type"
    else:
        pair.b.receive(bytes(hostile), SOURCE, pair.now)
    assert pair.b.received == []
    pair.run(1)
    assert pair.b.received == [b"honest"]
    pair.b.receive(datagram, SOURCE, pair.now)
    assert pair.b.received == [b"honest"]
