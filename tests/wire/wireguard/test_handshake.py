"""The handshake against an independent Noise implementation, as initiator and as responder, byte for byte."""

import pytest
from noise.connection import Keypair as NoiseKey
from noise.connection import NoiseConnection

from overlay.errors import RemoteProtocolError
from overlay.wire.wireguard import handshake
from overlay.wire.wireguard.handshake import CONSTRUCTION, IDENTIFIER, TransportKeys
from overlay.wire.wireguard.messages import Initiation, Response
from overlay.wire.wireguard.primitives import aead_open, aead_seal, clamp, dh, public_key

STATIC_I = clamp(b"\x11" * 32)
STATIC_R = clamp(b"\x22" * 32)
EPHEMERAL_I = clamp(b"\x33" * 32)
EPHEMERAL_R = clamp(b"\x44" * 32)
PUBLIC_I = public_key(STATIC_I)
PUBLIC_R = public_key(STATIC_R)
STATIC_STATIC = dh(STATIC_I, PUBLIC_R)
TIMESTAMP = bytes.fromhex("400000006553f10a3b000000")
PRESHARED = bytes(range(32))

presharing = pytest.mark.parametrize("preshared_key", [handshake.NO_PRESHARED_KEY, PRESHARED], ids=["no_psk", "psk"])


def oracle(*, initiator: bool, preshared_key: bytes) -> NoiseConnection:
    noise = NoiseConnection.from_name(CONSTRUCTION)
    noise.set_prologue(IDENTIFIER)
    noise.set_psks(preshared_key)
    if initiator:
        noise.set_as_initiator()
        noise.set_keypair_from_private_bytes(NoiseKey.STATIC, STATIC_I)
        noise.set_keypair_from_private_bytes(NoiseKey.EPHEMERAL, EPHEMERAL_I)
        noise.set_keypair_from_public_bytes(NoiseKey.REMOTE_STATIC, PUBLIC_R)
    else:
        noise.set_as_responder()
        noise.set_keypair_from_private_bytes(NoiseKey.STATIC, STATIC_R)
        noise.set_keypair_from_private_bytes(NoiseKey.EPHEMERAL, EPHEMERAL_R)
    with pytest.warns(UserWarning, match="ephemeral keypairs is already set"):  # as a vector needs it
        noise.start_handshake()
    return noise


def initiate() -> tuple[Initiation, handshake.PendingInitiation]:
    return handshake.create_initiation(
        static_public=PUBLIC_I,
        remote_static=PUBLIC_R,
        static_static=STATIC_STATIC,
        ephemeral_private=EPHEMERAL_I,
        sender_index=7,
        timestamp=TIMESTAMP,
    )


def consume(message: Initiation) -> handshake.ConsumedInitiation:
    opened = handshake.open_initiation(message, static_private=STATIC_R, static_public=PUBLIC_R)
    return handshake.consume_initiation(opened, static_static=dh(STATIC_R, opened.remote_static))


def respond(message: Initiation, preshared_key: bytes) -> tuple[Response, TransportKeys]:
    return handshake.create_response(
        consume(message), ephemeral_private=EPHEMERAL_R, sender_index=9, preshared_key=preshared_key
    )


def finish(response: Response, pending: handshake.PendingInitiation, preshared_key: bytes) -> TransportKeys:
    return handshake.consume_response(response, pending, static_private=STATIC_I, preshared_key=preshared_key)


@presharing
def test_as_initiator_against_the_oracle(preshared_key: bytes) -> None:
    noise = oracle(initiator=False, preshared_key=preshared_key)
    message, pending = initiate()
    assert noise.read_message(message.ephemeral + message.static_box + message.timestamp_box) == TIMESTAMP
    answer = bytes(noise.write_message(b""))
    keys = finish(Response(9, 7, answer[:32], answer[32:]), pending, preshared_key)
    assert noise.decrypt(aead_seal(keys.send, 0, b"there", b"")) == b"there"
    assert aead_open(keys.receive, 0, bytes(noise.encrypt(b"back")), b"") == b"back"


@presharing
def test_as_responder_against_the_oracle(preshared_key: bytes) -> None:
    noise = oracle(initiator=True, preshared_key=preshared_key)
    first = bytes(noise.write_message(TIMESTAMP))
    message = Initiation(7, first[:32], first[32:80], first[80:])
    assert message == initiate()[0]  # the same ephemeral key gives the same bytes
    assert consume(message).timestamp == TIMESTAMP
    response, keys = respond(message, preshared_key)
    assert noise.read_message(response.ephemeral + response.empty_box) == b""
    assert aead_open(keys.receive, 0, bytes(noise.encrypt(b"there")), b"") == b"there"
    assert noise.decrypt(aead_seal(keys.send, 0, b"back", b"")) == b"back"


@presharing
def test_both_ends_derive_the_same_keys(preshared_key: bytes) -> None:
    message, pending = initiate()
    consumed = consume(message)
    assert (consumed.remote_index, consumed.remote_static, consumed.timestamp) == (7, PUBLIC_I, TIMESTAMP)
    response, responder = respond(message, preshared_key)
    assert (response.sender_index, response.receiver_index) == (9, 7)
    initiator = finish(response, pending, preshared_key)
    assert (initiator.send, initiator.receive) == (responder.receive, responder.send)
    assert initiator.send != initiator.receive


def test_known_answer() -> None:
    message, pending = initiate()
    response, _ = respond(message, PRESHARED)
    keys = finish(response, pending, PRESHARED)
    assert message.pack().hex() == (
        "01000000070000007b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b1481e498317da959fba466"
        "69572516a5e6c021bfa620bb6c56ca0082e1feae14988c2c64d024c617734a263f76a008df04d0f94bad8ee75ec8dac26955"
        "74e5f1e953b690288ec56caa0e655cdd"
    )
    assert response.pack().hex() == (
        "020000000900000007000000ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6b015841941915"
        "164509c197527ebe319c"
    )
    assert keys.send.hex() == "870ea0fffff57deb751f6fc7b30b0d26e672da21a0220f4869266c9df64e8ffc"
    assert keys.receive.hex() == "4dc2b0020d17e7ceb0d34eb369c5da695190a92fd30eee6d12db56f49a9f7aae"


def test_a_wrong_preshared_key_is_a_bad_tag() -> None:
    message, pending = initiate()
    response, _ = respond(message, PRESHARED)
    with pytest.raises(RemoteProtocolError) as caught:
        finish(response, pending, handshake.NO_PRESHARED_KEY)
    assert caught.value.reason == "bad_tag"


def test_a_message_for_another_key_is_a_bad_tag() -> None:
    message, _ = initiate()
    with pytest.raises(RemoteProtocolError) as caught:
        handshake.open_initiation(message, static_private=STATIC_I, static_public=PUBLIC_I)
    assert caught.value.reason == "bad_tag"


def test_knowing_a_public_key_is_not_having_it() -> None:
    # Somebody who lacks the initiator's private key can write its public key into a message, but not the timestamp.
    message, _ = handshake.create_initiation(
        static_public=PUBLIC_I,
        remote_static=PUBLIC_R,
        static_static=bytes(32),
        ephemeral_private=EPHEMERAL_I,
        sender_index=7,
        timestamp=TIMESTAMP,
    )
    opened = handshake.open_initiation(message, static_private=STATIC_R, static_public=PUBLIC_R)
    assert opened.remote_static == PUBLIC_I
    with pytest.raises(RemoteProtocolError) as caught:
        handshake.consume_initiation(opened, static_static=STATIC_STATIC)
    assert caught.value.reason == "bad_tag"


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_an_ephemeral_of_low_order_is_refused_on_both_sides(point: bytes) -> None:
    message, pending = initiate()
    with pytest.raises(RemoteProtocolError) as caught:
        consume(Initiation(7, point, message.static_box, message.timestamp_box))
    assert caught.value.reason == "low_order_point"
    response, _ = respond(message, PRESHARED)
    with pytest.raises(RemoteProtocolError) as caught:
        finish(Response(9, 7, point, response.empty_box), pending, PRESHARED)
    assert caught.value.reason == "low_order_point"


def test_no_secret_shows_in_a_repr() -> None:
    message, pending = initiate()
    _, keys = respond(message, PRESHARED)
    shown = repr((pending, keys, consume(message)))
    for secret in (EPHEMERAL_I, pending.chain, pending.hash, keys.send, keys.receive):
        assert repr(secret)[2:-1] not in shown
