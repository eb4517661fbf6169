"""Who a message is for, in which order it is checked, and that nothing changes when a check fails."""

import pytest

from overlay.errors import LocalProtocolError
from overlay.wire.wireguard import messages
from overlay.wire.wireguard.constants import INITIATION_INTERVAL, LOAD_HANDSHAKES, RATE_BURST
from overlay.wire.wireguard.device import Device, HandshakeResult
from overlay.wire.wireguard.session import SendHandshake, Session

from .ends import START, Clock, Pair, make_device

SOURCE = bytes([192, 0, 2, 1, 0x30, 0x39])


def initiation(session: Session, now: float) -> bytes:
    session.request_handshake(now)
    (datagram,) = [event.datagram for event in session.events() if isinstance(event, SendHandshake)]
    return datagram


def two() -> tuple[Clock, Device, Session, Device, Session]:
    clock = Clock()
    a, b = make_device(1, clock), make_device(2, clock)
    return clock, a, a.add_peer(b.public_key, now=START), b, b.add_peer(a.public_key, now=START)


def test_an_initiation_gives_session_and_response() -> None:
    _, a, to_b, b, to_a = two()
    result = b.receive_handshake(initiation(to_b, START), SOURCE, START)
    assert result.session is to_a
    assert result.drop is None
    assert result.reply is not None and len(result.reply) == messages.SIZES[messages.RESPONSE]
    answer = a.receive_handshake(result.reply, SOURCE, START)
    assert answer == HandshakeResult(session=to_b)
    assert to_b.last_handshake == START


def test_a_view_of_the_bytes_will_do() -> None:
    _, _, to_b, b, to_a = two()
    assert b.receive_handshake(memoryview(initiation(to_b, START)), SOURCE, START).session is to_a


def test_a_replayed_initiation_is_dropped() -> None:
    _, _, to_b, b, _ = two()
    datagram = initiation(to_b, START)
    assert b.receive_handshake(datagram, SOURCE, START).session
    assert b.receive_handshake(datagram, SOURCE, START + 100) == HandshakeResult(drop="replayed_initiation")


def test_an_older_initiation_is_dropped() -> None:
    clock, _, to_b, b, _ = two()
    older = initiation(to_b, START)
    clock.now += 6
    newer = initiation(to_b, START + 6)
    assert b.receive_handshake(newer, SOURCE, START + 6).session
    assert b.receive_handshake(older, SOURCE, START + 7).drop == "replayed_initiation"


def test_initiations_that_come_too_close_are_a_flood() -> None:
    clock, _, to_b, b, _ = two()
    datagrams = []
    for step in range(3):
        clock.now = START + 6 * step
        datagrams.append(initiation(to_b, clock.now))
    assert b.receive_handshake(datagrams[0], SOURCE, START).session
    assert b.receive_handshake(datagrams[1], SOURCE, START + INITIATION_INTERVAL / 2).drop == "initiation_flood"
    assert b.receive_handshake(datagrams[2], SOURCE, START + INITIATION_INTERVAL).session


def test_a_stranger_gets_no_answer() -> None:
    clock, _, _, b, _ = two()
    stranger = make_device(3, clock).add_peer(b.public_key, now=START)
    assert b.receive_handshake(initiation(stranger, START), SOURCE, START) == HandshakeResult(drop="unknown_peer")
    assert len(b._indices) == 0


def test_a_message_for_somebody_else_is_dropped_before_any_curve_arithmetic() -> None:
    clock, a, _, b, _ = two()
    elsewhere = a.add_peer(make_device(3, clock).public_key, now=START)
    assert b.receive_handshake(initiation(elsewhere, START), SOURCE, START).drop == "bad_mac1"


def test_reflected_messages_are_dropped() -> None:
    _, a, to_b, b, _ = two()
    sent = initiation(to_b, START)
    assert a.receive_handshake(sent, SOURCE, START).drop == "bad_mac1"
    response = b.receive_handshake(sent, SOURCE, START).reply
    assert response is not None
    assert b.receive_handshake(response, SOURCE, START).drop == "bad_mac1"
    cookie = b.receive_handshake(sent, SOURCE, START, under_load=True).reply
    assert cookie is not None
    assert b.receive_handshake(cookie, SOURCE, START).drop == "unknown_index"


def test_a_response_is_taken_once() -> None:
    _, a, to_b, b, _ = two()
    response = b.receive_handshake(initiation(to_b, START), SOURCE, START).reply
    assert response is not None
    assert a.receive_handshake(response, SOURCE, START).session is to_b
    to_b.events()
    assert a.receive_handshake(response, SOURCE, START).drop == "unknown_index"
    assert to_b.events() == []


def test_a_response_to_an_initiation_that_was_replaced_is_dropped() -> None:
    clock, a, to_b, b, _ = two()
    response = b.receive_handshake(initiation(to_b, START), SOURCE, START).reply
    assert response is not None
    clock.now += 6
    initiation(to_b, clock.now)
    assert a.receive_handshake(response, SOURCE, clock.now).drop == "unknown_index"


def test_mac2_without_load_is_not_looked_at() -> None:
    _, _, to_b, b, to_a = two()
    datagram = initiation(to_b, START)
    assert b.receive_handshake(datagram[:-16] + b"\xff" * 16, SOURCE, START).session is to_a


def test_under_load_a_cookie_is_asked_for_and_its_source_only() -> None:
    clock, a, to_b, b, to_a = two()
    first = b.receive_handshake(initiation(to_b, START), SOURCE, START, under_load=True)
    assert (first.session, first.drop) == (None, "under_load")
    assert first.reply is not None and len(first.reply) == messages.SIZES[messages.COOKIE_REPLY]
    assert a.receive_handshake(first.reply, SOURCE, START) == HandshakeResult()
    assert a.receive_handshake(first.reply, SOURCE, START).drop == "unexpected_cookie"
    clock.now += 5
    second = initiation(to_b, clock.now)
    elsewhere = b.receive_handshake(second, SOURCE[:-1] + b"\0", clock.now, under_load=True)
    assert elsewhere.drop == "under_load"
    assert b.receive_handshake(second, SOURCE, clock.now, under_load=True).session is to_a


def test_a_forged_cookie_reply_is_dropped() -> None:
    _, a, to_b, b, _ = two()
    reply = b.receive_handshake(initiation(to_b, START), SOURCE, START, under_load=True).reply
    assert reply is not None
    forged = reply[:-1] + bytes([reply[-1] ^ 1])
    assert a.receive_handshake(forged, SOURCE, START).drop == "bad_tag"
    assert a.receive_handshake(reply, SOURCE, START) == HandshakeResult()


def test_load_is_noticed_and_then_each_source_has_its_budget() -> None:
    clock, a, to_b, b, to_a = two()
    datagram = initiation(to_b, START)
    drops = [b.receive_handshake(datagram, SOURCE, START).drop for _ in range(LOAD_HANDSHAKES)]
    assert drops == [None] + ["replayed_initiation"] * (LOAD_HANDSHAKES - 2) + ["under_load"]
    reply = b.receive_handshake(datagram, SOURCE, START).reply
    assert reply is not None
    assert a.receive_handshake(reply, SOURCE, START).drop is None
    clock.now += 5
    datagram = initiation(to_b, clock.now)
    results = [b.receive_handshake(datagram, SOURCE, clock.now, under_load=True) for _ in range(RATE_BURST + 1)]
    assert results[0].session is to_a
    assert [result.drop for result in results[1:]] == ["replayed_initiation"] * (RATE_BURST - 1) + ["rate_limited"]


def test_garbage_with_a_wrong_mac1_is_no_load() -> None:
    _, _, to_b, b, to_a = two()
    datagram = initiation(to_b, START)
    for _ in range(3 * LOAD_HANDSHAKES):
        assert b.receive_handshake(datagram[:-32] + bytes(32), SOURCE, START).drop == "bad_mac1"
    assert b.receive_handshake(datagram, SOURCE, START).session is to_a


def test_the_clock_of_a_peer_may_jump_back() -> None:
    clock, _, to_b, b, to_a = two()
    assert b.receive_handshake(initiation(to_b, START), SOURCE, START).session
    clock.now -= 900  # the wall clock of a; its monotonic time goes on
    assert b.receive_handshake(initiation(to_b, START + 10), SOURCE, START + 10).session is to_a


def test_peers_are_kept_by_key() -> None:
    clock, a, to_b, b, _ = two()
    assert a.session(b.public_key) is to_b
    assert a.add_peer(b.public_key, b"k" * 32, 25.0, now=START) is to_b
    assert to_b.next_timeout() == START
    assert (list(a), len(a)) == ([to_b], 1)
    a.remove_peer(b.public_key)
    assert a.session(b.public_key) is None
    assert len(a) == 0
    with pytest.raises(LocalProtocolError):
        a.remove_peer(b.public_key)
    assert b.receive_handshake(bytes(148), SOURCE, clock.now).drop == "unknown_type"


def test_a_peer_that_was_removed_and_added_has_a_new_session() -> None:
    pair = Pair()
    pair.connect()
    pair.b.device.remove_peer(pair.a.device.public_key)
    pair.b.drain(pair.now)
    assert pair.b.keypairs == {}
    pair.b.session = pair.b.device.add_peer(pair.a.device.public_key, now=pair.now)
    pair.run(20)
    pair.a.send(b"x", pair.now)
    pair.run(30)
    pair.a.send(b"y", pair.now)
    pair.run(10)
    assert pair.b.received[-1] == b"y"


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_keys_of_a_wrong_size_are_refused(key: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        make_device(1, Clock()).add_peer(key, now=START)


def test_our_own_key_is_no_peer() -> None:
    device = make_device(1, Clock())
    with pytest.raises(LocalProtocolError):
        device.add_peer(device.public_key, now=START)


def test_a_peer_that_is_refused_is_not_kept() -> None:
    device = make_device(1, Clock())
    with pytest.raises(LocalProtocolError):
        device.add_peer(b"\x09" * 32, b"short", now=START)
    assert len(device) == 0
