"""Hostile STUN: nothing but named errors comes out, and what is read stays bounded."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.stun import ErrorResponse, Request, Response, decode, encode, message_size
from overlay.wire.stun import attributes as wire

KINDS = st.sampled_from([0x0001, 0x0101, 0x0111, 0x0011, 0x0003])
ATTRIBUTES = st.sampled_from([0x01, 0x03, 0x06, 0x08, 0x09, 0x0A, 0x20, 0x26, 0x27, 0x8022, 0x8028, 0x802B, 0x802C])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    body = b"".join(
        wire.attribute(kind, value)
        for kind, value in draw(st.lists(st.tuples(ATTRIBUTES, st.binary(max_size=24)), max_size=40))
    )
    if draw(st.booleans()):
        body += draw(st.binary(max_size=8))
    length = draw(st.just(len(body)) | st.integers(0, 65535))
    cookie = draw(st.just(wire.MAGIC_COOKIE) | st.binary(min_size=4, max_size=4))
    return wire.HEADER.pack(draw(KINDS), length, cookie, draw(st.binary(min_size=12, max_size=12))) + body


@given(st.one_of(messages(), st.binary(max_size=600)))
def test_fuzz_stun(datagram: bytes) -> None:
    try:
        message_size(datagram)
        message = decode(datagram)
    except RemoteProtocolError as error:
        assert error.reason.startswith("stun_")
        return
    if isinstance(message, Request):
        assert message.size == len(datagram)
        assert len(message.unknown) <= 32
        answer = encode(ErrorResponse(message.transaction_id, 420, message.unknown), 4 * message.size)
        assert len(answer) <= 4 * len(datagram)
    elif isinstance(message, Response):
        assert decode(encode(message)) == message
