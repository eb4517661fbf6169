"""A session's events, key pairs and settings. Its timers have a file of their own."""

import pytest

from overlay.errors import LocalProtocolError
from overlay.wire.wireguard import messages
from overlay.wire.wireguard.session import (
    DropStaged,
    HandshakeCompleted,
    KeypairAdded,
    KeypairRemoved,
    SendHandshake,
    SendKeepalive,
)

from .ends import START, Clock, Pair, make_device

PRESHARED = bytes(range(32))


def test_the_initiators_events() -> None:
    pair = Pair()
    pair.connect()
    kinds = [type(event) for _, event in pair.a.log]
    # The keepalive goes before anything staged: it is the small packet that proves address and key to the responder.
    assert kinds == [SendHandshake, KeypairAdded, SendKeepalive, HandshakeCompleted]


def test_the_responders_events() -> None:
    pair = Pair()
    pair.connect()
    assert [type(event) for _, event in pair.b.log] == [KeypairAdded, HandshakeCompleted]


def test_the_responder_sends_nothing_under_a_key_before_its_confirmation() -> None:
    pair = Pair()
    pair.lose = lambda datagram: datagram[0] == 4
    pair.a.session.request_handshake(pair.now)
    pair.a.drain(pair.now)
    pair.run(1)
    assert len(pair.b.keypairs) == 1
    assert pair.b.session.sending_keypair(pair.now) is None
    assert pair.b.session.last_handshake is None
    assert pair.a.session.last_handshake == pytest.approx(START + 0.02)


def test_staged_packets_go_when_the_key_is_there_on_either_side() -> None:
    pair = Pair()
    pair.a.send(b"from a", pair.now)
    pair.b.staged.append(b"from b")
    pair.run(1)
    assert (pair.b.received, pair.a.received) == ([b"from a"], [b"from b"])


@pytest.mark.parametrize("preshared_key", [None, PRESHARED], ids=["no_psk", "psk"])
def test_data_both_ways(preshared_key: bytes | None) -> None:
    pair = Pair(preshared_key=preshared_key)
    pair.a.send(b"ping", pair.now)
    pair.run(1)
    pair.b.send(b"pong", pair.now)
    pair.run(1)
    assert (pair.b.received, pair.a.received) == ([b"ping"], [b"pong"])


def test_a_preshared_key_on_one_side_alone_brings_nothing_up() -> None:
    pair = Pair()
    pair.b.session.set_preshared_key(PRESHARED)
    pair.a.send(b"x", pair.now)
    pair.run(1)
    assert pair.a.drops == {"bad_tag": 1}
    assert pair.a.keypairs == {}
    pair.a.session.set_preshared_key(PRESHARED)
    pair.run(6)
    assert pair.b.received == [b"x"]


def test_packets_in_flight_under_the_previous_key_are_still_opened() -> None:
    pair = Pair()
    pair.connect()
    old = pair.a.session.sending_keypair(pair.now)
    assert old is not None
    pair.run(10)
    pair.a.session.request_handshake(pair.now)
    pair.a.drain(pair.now)
    pair.run(1)
    assert pair.a.session.sending_keypair(pair.now) is not old
    pair.a._seal(old, b"late", pair.now)
    pair.run(1)
    assert pair.b.received == [b"late"]


def test_two_renewals_wipe_the_first_key() -> None:
    pair = Pair()
    pair.connect()
    first = [*pair.a.keypairs.values(), *pair.b.keypairs.values()]
    for _ in range(2):
        pair.run(10)
        pair.a.session.request_handshake(pair.now)
        pair.a.drain(pair.now)
    pair.run(1)
    assert all(keypair.send_key == keypair.receive_key == b"" for keypair in first)
    assert len(pair.a.keypairs) == len(pair.b.keypairs) == 2
    assert len(pair.a.device._indices) == len(pair.b.device._indices) == 2
    assert pair.a.session.last_handshake == pytest.approx(pair.now, abs=1.1)


def test_data_told_of_a_dead_key_pair_changes_nothing() -> None:
    pair = Pair()
    pair.connect()
    (keypair,) = pair.b.keypairs.values()
    pair.run(200)
    before = pair.b.session.next_timeout()
    pair.b.session.data_received(keypair, pair.now, empty=False)
    assert pair.b.session.events() == []
    assert pair.b.session.next_timeout() == before


def test_nobody_is_told_to_use_a_key_that_is_already_gone() -> None:
    pair = Pair()
    pair.a.session.request_handshake(pair.now)
    pair.a.drain(pair.now)
    (_, _, initiation) = pair.wire[0]
    result = pair.b.device.receive_handshake(initiation, pair.a.source, pair.now)
    assert result.reply is not None
    assert pair.a.device.receive_handshake(result.reply, pair.b.source, pair.now).session is pair.a.session
    pair.a.device.remove_peer(pair.b.device.public_key)  # before anybody drained the events
    assert [type(event) for event in pair.a.session.events()] == [HandshakeCompleted]


def test_a_removed_peer_is_forgotten_wholly() -> None:
    pair = Pair(preshared_key=PRESHARED, keepalive_a=25.0)
    pair.connect()
    session = pair.a.session
    (keypair,) = pair.a.keypairs.values()
    pair.a.device.remove_peer(session.public_key)
    assert session.events() == [KeypairRemoved(keypair.local_index)]
    assert keypair.send_key == b""
    assert session.sending_keypair(pair.now) is None
    assert session.next_timeout() is None
    assert len(pair.a.device._indices) == 0
    session.request_handshake(pair.now + 100)
    session.handle_timeout(pair.now + 100)
    assert session.events() == []
    assert PRESHARED not in vars(session).values()


def test_a_public_key_of_low_order_never_comes_up_and_breaks_nothing() -> None:
    device = make_device(1, Clock())
    session = device.add_peer(bytes(32), persistent_keepalive=25.0, now=START)
    session.request_handshake(START)
    assert session.events() == [DropStaged()]
    session.handle_timeout(START + 1)
    assert session.events() == [DropStaged()]
    assert len(device._indices) == 0


def test_settings_are_checked() -> None:
    session = make_device(1, Clock()).add_peer(b"\x09" * 32, now=START)
    for interval in (-1.0, float("inf"), float("nan")):
        with pytest.raises(LocalProtocolError):
            session.set_persistent_keepalive(interval, START)
    with pytest.raises(LocalProtocolError):
        session.set_preshared_key(b"short")


def test_a_new_preshared_key_counts_from_the_next_handshake_on() -> None:
    pair = Pair()
    pair.connect()
    pair.a.session.set_preshared_key(PRESHARED)
    pair.b.session.set_preshared_key(PRESHARED)
    pair.a.send(b"old key", pair.now)
    pair.run(10)
    pair.a.session.request_handshake(pair.now)
    pair.a.drain(pair.now)
    pair.run(1)
    pair.a.send(b"new key", pair.now)
    pair.run(1)
    assert pair.b.received == [b"old key", b"new key"]


def test_repr_shows_no_secret() -> None:
    pair = Pair(preshared_key=PRESHARED)
    pair.connect()
    (keypair,) = pair.a.keypairs.values()
    shown = repr((pair.a.session, pair.a.session._local, pair.a.log))
    for secret in (PRESHARED, keypair.send_key, keypair.receive_key, pair.a.session._local.private_key):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


def test_handshakes_go_through_when_a_cookie_is_asked_for() -> None:
    pair = Pair()
    pair.b.under_load = True
    pair.a.send(b"x", pair.now)
    pair.run(1)
    assert pair.b.drops == {"under_load": 1}
    assert pair.b.received == []
    assert pair.sent("a", messages.INITIATION) == [START]  # a cookie is for the next retry
    pair.run(5)
    assert pair.b.received == [b"x"]
    assert pair.sent("b", messages.COOKIE_REPLY) == [pytest.approx(START + 0.01)]


def test_an_initiator_under_load_asks_for_a_cookie_too() -> None:
    pair = Pair()
    pair.a.under_load = True
    pair.a.send(b"x", pair.now)
    pair.run(11)
    assert pair.a.drops == {"under_load": 1}
    assert pair.b.received == [b"x"]
