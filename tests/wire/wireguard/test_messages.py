import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.wireguard import messages
from overlay.wire.wireguard.messages import CookieReply, Initiation, Response

u32 = st.integers(0, 2**32 - 1)


def size(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


def test_layout_of_the_initiation() -> None:
    packed = Initiation(0x04030201, b"e" * 32, b"s" * 48, b"t" * 28).pack()
    assert packed == b"\x01\0\0\0" + b"\x01\x02\x03\x04" + b"e" * 32 + b"s" * 48 + b"t" * 28


def test_layout_of_the_response() -> None:
    packed = Response(0x04030201, 0x08070605, b"e" * 32, b"n" * 16).pack()
    assert packed == b"\x02\0\0\0" + b"\x01\x02\x03\x04" + b"\x05\x06\x07\x08" + b"e" * 32 + b"n" * 16


def test_layout_of_the_cookie_reply() -> None:
    packed = CookieReply(0x04030201, b"x" * 24, b"c" * 32).pack()
    assert packed == b"\x03\0\0\0" + b"\x01\x02\x03\x04" + b"x" * 24 + b"c" * 32


@given(st.builds(Initiation, u32, size(32), size(48), size(28)), size(32))
def test_initiation_round_trip(message: Initiation, macs: bytes) -> None:
    datagram = message.pack() + macs
    assert len(datagram) == messages.SIZES[messages.INITIATION] == 148
    assert messages.parse(datagram) == message


@given(st.builds(Response, u32, u32, size(32), size(16)), size(32))
def test_response_round_trip(message: Response, macs: bytes) -> None:
    datagram = message.pack() + macs
    assert len(datagram) == messages.SIZES[messages.RESPONSE] == 92
    assert messages.parse(datagram) == message


@given(st.builds(CookieReply, u32, size(24), size(32)))
def test_cookie_reply_round_trip(message: CookieReply) -> None:
    assert len(message.pack()) == messages.SIZES[messages.COOKIE_REPLY] == 64
    assert messages.parse(message.pack()) == message


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "short_header"),
        (b"\x01\0\0", "short_header"),
        (b"\x01\0\0\0" + bytes(143), "bad_length"),
        (b"\x01\0\0\0" + bytes(145), "bad_length"),
        (b"\x02\0\0\0" + bytes(87), "bad_length"),
        (b"\x02\0\0\0" + bytes(144), "bad_length"),
        (b"\x03\0\0\0" + bytes(61), "bad_length"),
        (b"\x01\0\0\x01" + bytes(144), "unknown_type"),  # reserved bytes are part of the type
        (b"\x00\0\0\0" + bytes(144), "unknown_type"),
        (b"\x04\0\0\0" + bytes(28), "unknown_type"),
    ],
)
def test_what_is_no_handshake_message(datagram: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        messages.parse(datagram)
    assert caught.value.reason == reason
