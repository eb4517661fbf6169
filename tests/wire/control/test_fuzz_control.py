"""Hostile bytes at every parser of the control channel: nothing but the named errors ever comes out."""

import zlib
from contextlib import suppress
from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from overlay.errors import RemoteProtocolError, UserError
from overlay.wire.control import netmap
from overlay.wire.control.address import parse_address, parse_server_address
from overlay.wire.control.channel import INITIATION_SIZE, RESPONSE_SIZE, NoiseChannel
from overlay.wire.control.codec import decode_node_message, decode_server_message, encode
from overlay.wire.control.invite import PREFIX, Invite
from overlay.wire.control.messages import MAP_CONTEXT, SignedMap

from .test_channel import CLIENT, SERVER, SERVER_PUBLIC, established, frame, seeded
from .test_codec import NODE_MESSAGES, SERVER_MESSAGES

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
known_bytes = st.sampled_from([encode(message) for message in (*NODE_MESSAGES, *SERVER_MESSAGES)])


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A right message with a piece cut out, put in, or changed."""
    data = draw(known_bytes)
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 8)))
    return data[:start] + draw(st.binary(max_size=8)) + data[end:]


@st.composite
def reshaped(draw: st.DrawFn) -> bytes:
    """A right message with a field of another type."""
    fields = msgspec.json.decode(draw(known_bytes))
    fields[draw(st.sampled_from(sorted(fields)))] = draw(json_values)
    return msgspec.json.encode(fields)


frames = st.one_of(
    st.binary(max_size=300),
    st.binary(min_size=INITIATION_SIZE, max_size=INITIATION_SIZE).map(frame),
    st.binary(min_size=RESPONSE_SIZE, max_size=RESPONSE_SIZE).map(frame),
    st.binary(max_size=100).map(frame),
)


@given(st.lists(frames, max_size=5), st.booleans())
def test_fuzz_handshake(chunks: list[bytes], initiator: bool) -> None:
    channel = (
        NoiseChannel.initiator(CLIENT, SERVER_PUBLIC, random_bytes=seeded(1))
        if initiator
        else NoiseChannel.responder(SERVER, random_bytes=seeded(2))
    )
    channel.data_to_send()
    for chunk in chunks:
        with suppress(RemoteProtocolError):
            channel.receive_data(chunk)
    assert channel.remote_key is None
    assert channel.messages() == []


@given(st.lists(frames, max_size=5))
def test_fuzz_transport(chunks: list[bytes]) -> None:
    _, server = established()
    for chunk in chunks:
        with suppress(RemoteProtocolError):
            server.receive_data(chunk)
    assert server.messages() == []


@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_fuzz_stream_of_an_authenticated_peer(garbage: bytes, seed: int) -> None:
    """A peer with a right key that frames its messages wrongly."""
    client, server = established(max_message=64)
    sealing = client._send
    assert sealing is not None
    cuts = Random(seed)
    with suppress(RemoteProtocolError):
        while garbage:
            size = cuts.randint(1, 50)
            server.receive_data(frame(sealing.seal(garbage[:size])))
            garbage = garbage[size:]
    assert all(len(message) <= 64 for message in server.messages())


@given(st.one_of(st.binary(max_size=200), json_values.map(msgspec.json.encode), mangled(), reshaped()))
def test_fuzz_messages(data: bytes) -> None:
    for decode in (decode_node_message, decode_server_message):
        with suppress(RemoteProtocolError):
            decode(data)


MAP_BODY = msgspec.json.encode(
    {"kind": "full", "network": "6f", "version": 1, "domain": "d", "networks": [], "nodes": []}
)


@st.composite
def mangled_maps(draw: st.DrawFn) -> bytes:
    start = draw(st.integers(0, len(MAP_BODY)))
    end = draw(st.integers(start, min(len(MAP_BODY), start + 8)))
    return MAP_BODY[:start] + draw(st.binary(max_size=8)) + MAP_BODY[end:]


@given(
    st.one_of(st.binary(max_size=200), json_values.map(msgspec.json.encode), mangled_maps()),
    st.booleans(),
    st.booleans(),
)
def test_fuzz_maps(body: bytes, packed: bool, signed: bool) -> None:
    seed = bytes(32)
    body = zlib.compress(body) if packed else body
    signature = SigningKey(seed).sign(MAP_CONTEXT + body).signature if signed else bytes(64)
    with suppress(RemoteProtocolError):
        netmap.verify(SignedMap(body=body, signature=signature), netmap.map_key(seed))


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_fuzz_map_signatures(signature: bytes, key: bytes) -> None:
    with suppress(RemoteProtocolError):
        netmap.verify(SignedMap(body=zlib.compress(MAP_BODY), signature=signature), key)


@given(st.one_of(st.text(max_size=200), st.text(max_size=200).map(PREFIX.__add__), st.binary(max_size=200).map(repr)))
def test_fuzz_invites(text: str) -> None:
    with suppress(UserError):
        Invite.parse(text)


@given(json_values)
def test_fuzz_invites_with_a_right_checksum(value: object) -> None:
    import base64

    from overlay.wire.wireguard.primitives import hash_

    with suppress(OverflowError):  # msgpack has no larger integers
        body = msgspec.msgpack.encode(value)
        text = base64.urlsafe_b64encode(body + hash_(body)[:4]).rstrip(b"=").decode()
        with suppress(UserError):
            Invite.parse(PREFIX + text)


@given(st.text(max_size=60))
def test_fuzz_addresses(text: str) -> None:
    with suppress(ValueError):
        parse_address(text)


@given(st.text(max_size=60), st.sampled_from(["", "wss://", "ws://a/", "tls://"]))
def test_fuzz_server_addresses(text: str, start: str) -> None:
    with suppress(ValueError):
        address = parse_server_address(start + text)
        assert parse_server_address(str(address)) == address
