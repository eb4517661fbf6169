"""The Noise channel: against another implementation in both roles, and against everything that a peer may do wrong."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import Keypair as NoiseKeypair
from noise.connection import NoiseConnection

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.control import channel as channel_module
from overlay.wire.control.channel import (
    BUSY,
    INITIATION_SIZE,
    MAX_MESSAGE,
    MAX_NONCE,
    PROLOGUE,
    REKEY_EVERY,
    RESPONSE_SIZE,
    CipherState,
    NoiseChannel,
)
from overlay.wire.wireguard.primitives import clamp, public_key

CLIENT = clamp(bytes(range(32)))
SERVER = clamp(bytes(range(32, 64)))
SERVER_PUBLIC = public_key(SERVER)


def seeded(seed: int) -> Callable[[int], bytes]:
    return Random(seed).randbytes


def ends(max_message: int = MAX_MESSAGE) -> tuple[NoiseChannel, NoiseChannel]:
    return (
        NoiseChannel.initiator(CLIENT, SERVER_PUBLIC, random_bytes=seeded(1)),
        NoiseChannel.responder(SERVER, random_bytes=seeded(2), max_message=max_message),
    )


def established(max_message: int = MAX_MESSAGE) -> tuple[NoiseChannel, NoiseChannel]:
    client, server = ends(max_message)
    server.receive_data(client.data_to_send())
    client.receive_data(server.data_to_send())
    server.receive_data(client.data_to_send())
    return client, server


def frame(noise_message: bytes) -> bytes:
    return len(noise_message).to_bytes(2, "big") + noise_message


def oracle(*, initiator: bool) -> NoiseConnection:
    other = NoiseConnection.from_name(b"Noise_IK_25519_ChaChaPoly_BLAKE2s")
    other.set_prologue(PROLOGUE)
    if initiator:
        other.set_as_initiator()
        other.set_keypair_from_private_bytes(NoiseKeypair.STATIC, CLIENT)
        other.set_keypair_from_public_bytes(NoiseKeypair.REMOTE_STATIC, SERVER_PUBLIC)
    else:
        other.set_as_responder()
        other.set_keypair_from_private_bytes(NoiseKeypair.STATIC, SERVER)
    other.start_handshake()
    return other


def stream(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


# against another implementation --------------------------------------------------------------------------------------


def test_initiator_agrees_with_another_implementation() -> None:
    ours, other = NoiseChannel.initiator(CLIENT, SERVER_PUBLIC, random_bytes=seeded(1)), oracle(initiator=False)
    first = ours.data_to_send()
    assert other.read_message(first[2:]) == b""
    ours.receive_data(frame(bytes(other.write_message(b""))))
    assert ours.established
    assert ours.remote_key == SERVER_PUBLIC
    confirmation = ours.data_to_send()
    assert other.decrypt(confirmation[2:]) == b""
    assert ours.handshake_hash == other.get_handshake_hash()

    ours.send(b"to the other")
    assert other.decrypt(ours.data_to_send()[2:]) == stream(b"to the other")
    ours.receive_data(frame(other.encrypt(stream(b"from the other"))))
    assert ours.messages() == [b"from the other"]


def test_responder_agrees_with_another_implementation() -> None:
    ours, other = NoiseChannel.responder(SERVER, random_bytes=seeded(1)), oracle(initiator=True)
    ours.receive_data(frame(bytes(other.write_message(b""))))
    answer = ours.data_to_send()
    assert other.read_message(answer[2:]) == b""
    ours.receive_data(frame(other.encrypt(b"")))
    assert ours.remote_key == public_key(CLIENT)
    assert ours.handshake_hash == other.get_handshake_hash()

    ours.receive_data(frame(other.encrypt(stream(b"from the other"))))
    assert ours.messages() == [b"from the other"]
    ours.send(b"to the other")
    assert other.decrypt(ours.data_to_send()[2:]) == stream(b"to the other")


def test_rekeying_agrees_with_another_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "REKEY_EVERY", 4)
    ours, other = NoiseChannel.initiator(CLIENT, SERVER_PUBLIC, random_bytes=seeded(1)), oracle(initiator=False)
    other.read_message(ours.data_to_send()[2:])
    ours.receive_data(frame(bytes(other.write_message(b""))))
    assert other.decrypt(ours.data_to_send()[2:]) == b""
    for number in range(1, 20):
        if number % 4 == 0:
            other.rekey_inbound_cipher()
        ours.send(bytes([number]))
        assert other.decrypt(ours.data_to_send()[2:]) == stream(bytes([number]))
    for number in range(20):
        if number and number % 4 == 0:
            other.rekey_outbound_cipher()
        ours.receive_data(frame(other.encrypt(stream(bytes([number])))))
    assert ours.messages() == [bytes([number]) for number in range(20)]


# what the handshake promises -----------------------------------------------------------------------------------------


def test_the_key_is_shown_only_when_it_is_proven_fresh() -> None:
    client, server = ends()
    server.receive_data(client.data_to_send())
    assert server.remote_key is None
    with pytest.raises(LocalProtocolError):
        server.send(b"too early")
    with pytest.raises(LocalProtocolError):
        _ = server.handshake_hash
    client.receive_data(server.data_to_send())
    assert client.established
    server.receive_data(client.data_to_send())
    assert server.established
    assert server.remote_key == public_key(CLIENT)


def test_a_replayed_initiation_gets_an_answer_and_nothing_more() -> None:
    client, server = ends()
    recorded = client.data_to_send()
    server.receive_data(recorded)
    client.receive_data(server.data_to_send())
    client.send(b"secret of an invite")
    rest = client.data_to_send()
    server.receive_data(rest)
    assert server.messages() == [b"secret of an invite"]

    again = NoiseChannel.responder(SERVER, random_bytes=seeded(3))
    again.receive_data(recorded)
    assert again.remote_key is None
    with pytest.raises(RemoteProtocolError, match="bad_tag"):
        again.receive_data(rest)
    assert again.messages() == []
    assert again.remote_key is None


def test_nothing_can_be_sent_in_the_first_message() -> None:
    client, _ = ends()
    with pytest.raises(LocalProtocolError):
        client.send(b"secret of an invite")
    assert len(client.data_to_send()) == 2 + INITIATION_SIZE


def test_another_server_key_is_refused() -> None:
    client = NoiseChannel.initiator(CLIENT, public_key(clamp(bytes(32))), random_bytes=seeded(1))
    server = NoiseChannel.responder(SERVER, random_bytes=seeded(2))
    with pytest.raises(RemoteProtocolError) as caught:
        server.receive_data(client.data_to_send())
    assert caught.value.reason == "bad_tag"
    assert server.data_to_send() == b""


def test_another_prologue_is_refused() -> None:
    client, _ = ends()
    server = NoiseChannel.responder(SERVER, random_bytes=seeded(2), prologue=b"overlay control v2")
    with pytest.raises(RemoteProtocolError, match="bad_tag"):
        server.receive_data(client.data_to_send())


def test_a_low_order_ephemeral_is_refused() -> None:
    _, server = ends()
    with pytest.raises(RemoteProtocolError, match="low_order_point"):
        server.receive_data(frame(bytes(INITIATION_SIZE)))


def test_a_reflected_initiation_is_refused() -> None:
    client, _ = ends()
    with pytest.raises(RemoteProtocolError, match="bad_length"):
        client.receive_data(client.data_to_send())


def test_a_busy_server_is_told_apart() -> None:
    client, _ = ends()
    with pytest.raises(RemoteProtocolError) as caught:
        client.receive_data(BUSY)
    assert caught.value.reason == "server_busy"


@pytest.mark.parametrize("length", [0, 1, INITIATION_SIZE - 1, INITIATION_SIZE + 1, 0x4745, 65535])
def test_a_first_message_of_another_length_ends_the_channel_at_once(length: int) -> None:
    _, server = ends()
    with pytest.raises(RemoteProtocolError) as caught:
        server.receive_data(length.to_bytes(2, "big"))
    assert caught.value.reason == "bad_length"


@pytest.mark.parametrize("length", [1, RESPONSE_SIZE - 1, RESPONSE_SIZE + 1, 65535])
def test_an_answer_of_another_length_ends_the_channel_at_once(length: int) -> None:
    client, _ = ends()
    with pytest.raises(RemoteProtocolError) as caught:
        client.receive_data(length.to_bytes(2, "big"))
    assert caught.value.reason == "bad_length"


def test_before_the_confirmation_nothing_longer_is_held() -> None:
    client, server = ends()
    server.receive_data(client.data_to_send())
    with pytest.raises(RemoteProtocolError, match="bad_length"):
        server.receive_data((17).to_bytes(2, "big"))


def test_a_failed_channel_stays_failed() -> None:
    client, server = established()
    with pytest.raises(RemoteProtocolError, match="bad_tag"):
        server.receive_data(frame(bytes(20)))
    client.send(b"late")
    with pytest.raises(RemoteProtocolError, match="bad_tag"):
        server.receive_data(client.data_to_send())
    with pytest.raises(LocalProtocolError):
        server.send(b"nobody hears this")
    assert server.remote_key is None


def test_messages_before_the_fault_are_kept() -> None:
    client, server = established()
    client.send(b"whole")
    with pytest.raises(RemoteProtocolError):
        server.receive_data(client.data_to_send() + frame(bytes(20)))
    assert server.messages() == [b"whole"]


# messages ------------------------------------------------------------------------------------------------------------


def test_the_largest_message_goes_through() -> None:
    client, server = established()
    message = Random(5).randbytes(MAX_MESSAGE)
    client.send(message)
    assert client.bytes_to_send > MAX_MESSAGE
    server.receive_data(client.data_to_send())
    assert client.bytes_to_send == 0
    assert server.messages() == [message]


def test_a_larger_message_is_refused_on_both_sides() -> None:
    client, server = established(max_message=10)
    with pytest.raises(LocalProtocolError):
        client.send(bytes(MAX_MESSAGE + 1))
    client.send(bytes(10))
    client.send(bytes(11))
    with pytest.raises(RemoteProtocolError) as caught:
        server.receive_data(client.data_to_send())
    assert caught.value.reason == "message_too_large"
    assert server.messages() == [bytes(10)]


def test_the_limit_can_be_raised_for_a_welcome_peer() -> None:
    client, server = established(max_message=10)
    server.max_message = 100
    client.send(bytes(100))
    server.receive_data(client.data_to_send())
    assert server.messages() == [bytes(100)]


def test_a_replayed_transport_message_is_refused() -> None:
    client, server = established()
    client.send(b"once")
    data = client.data_to_send()
    server.receive_data(data)
    with pytest.raises(RemoteProtocolError, match="bad_tag"):
        server.receive_data(data)


def test_nonces_are_never_used_twice() -> None:
    key = bytes(32)
    with pytest.raises(LocalProtocolError, match="nonces"):
        CipherState(key, nonce=MAX_NONCE).seal(b"")
    with pytest.raises(RemoteProtocolError, match="nonces_used_up"):
        CipherState(key, nonce=MAX_NONCE).open(bytes(16))
    CipherState(key, nonce=MAX_NONCE - 1).seal(b"")


def test_the_key_changes_after_its_share_of_messages() -> None:
    sender = CipherState(bytes(32), nonce=REKEY_EVERY - 1)
    sender.seal(b"the last one of this key")
    box = sender.seal(b"the next key's first")
    with pytest.raises(RemoteProtocolError, match="bad_tag"):
        CipherState(bytes(32), nonce=REKEY_EVERY).open(box)


@given(st.lists(st.binary(max_size=200), max_size=8), st.data())
def test_any_chunking_is_the_identity(messages: list[bytes], data: st.DataObject) -> None:
    client, server = ends()
    cuts = Random(data.draw(st.integers(0, 2**32)))

    def carry(payload: bytes, to: NoiseChannel) -> None:
        while payload:
            size = cuts.randint(1, 40)
            to.receive_data(payload[:size])
            payload = payload[size:]

    carry(client.data_to_send(), server)
    carry(server.data_to_send(), client)
    for message in messages:
        client.send(message)
    carry(client.data_to_send(), server)
    assert server.messages() == messages
    for message in messages:
        server.send(message)
    carry(server.data_to_send(), client)
    assert client.messages() == messages


@given(st.binary(max_size=100), st.data())
def test_a_changed_bit_is_noticed(message: bytes, data: st.DataObject) -> None:
    """In whichever part of the conversation: no message comes out that was not sent, and no key is shown for it."""
    client, server = ends()
    part = data.draw(st.sampled_from(("initiation", "response", "transport")))

    def flip(payload: bytes) -> bytes:
        bit = data.draw(st.integers(0, len(payload) * 8 - 1))
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def meet(payload: bytes, to: NoiseChannel) -> None:
        # A length that grew leaves the channel waiting for bytes that the next message then spoils.
        with pytest.raises(RemoteProtocolError):
            to.receive_data(flip(payload) + bytes(65535))
        assert to.messages() == []
        assert to.remote_key is None

    initiation = client.data_to_send()
    if part == "initiation":
        # The top bit of an X25519 public key is masked (RFC 7748 §5), but the transcript's hash still tells.
        meet(initiation, server)
        return
    server.receive_data(initiation)
    response = server.data_to_send()
    if part == "response":
        meet(response, client)
        return
    client.receive_data(response)
    client.send(message)
    meet(client.data_to_send(), server)


# given away ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_what_comes_behind_the_last_message_is_kept_as_it_came(behind: bytes, sizes: list[int]) -> None:
    client, server = established()
    server.send(b"before")
    client.receive_data(server.data_to_send())
    assert client.messages() == [b"before"]
    client.expect_last()
    server.send(b"last" * 30)
    wire = server.data_to_send() + behind
    assert server.detach() == b""
    start, turn = 0, 0
    messages: list[bytes] = []
    while start < len(wire):
        client.receive_data(wire[start : start + sizes[turn % len(sizes)]])
        start, turn = start + sizes[turn % len(sizes)], turn + 1
        if messages := client.messages():
            break
    assert messages == [b"last" * 30]
    assert client.detach() + wire[start:] == behind


def test_only_an_idle_established_channel_is_given_away() -> None:
    client, server = ends()
    for end in (client, server):
        with pytest.raises(LocalProtocolError):
            end.detach()
    client, server = established()
    client.send(b"waits")
    with pytest.raises(LocalProtocolError):
        client.detach()
    server.receive_data(client.data_to_send())
    client.detach()
    with pytest.raises(LocalProtocolError):
        client.send(b"too late")
