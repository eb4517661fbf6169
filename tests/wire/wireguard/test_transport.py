import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.wireguard import transport

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


def test_layout() -> None:
    buffer = bytearray(b"\xff" * 20)
    transport.pack_header_into(buffer, 2, 0x04030201, 0x0807060504030201)
    assert buffer.hex() == "ffff" + "04000000" + "01020304" + "0102030405060708" + "ffff"


@given(u32, u64)
def test_parse_is_the_inverse_of_pack(index: int, counter: int) -> None:
    buffer = bytearray(transport.MINIMUM_SIZE)
    transport.pack_header_into(memoryview(buffer), 0, index, counter)
    assert transport.parse_header(buffer) == (index, counter)
    assert transport.parse_header(memoryview(buffer)) == (index, counter)


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "short_header"),
        (b"\x04" + bytes(14), "short_header"),
        (b"\x04" + bytes(30), "bad_length"),
        (b"\x04\x01" + bytes(40), "unknown_type"),
        (b"\x05" + bytes(40), "unknown_type"),
    ],
)
def test_what_is_no_transport_message(datagram: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        transport.parse_header(datagram)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("length", "mtu", "zeros"),
    [
        (0, 1420, 0),
        (1, 1420, 15),
        (16, 1420, 0),
        (84, 1420, 12),
        (1409, 1420, 11),
        (1420, 1420, 0),
        (1421, 1420, 15),
        (2830, 1420, 10),
        (84, 0, 12),
    ],
)
def test_padding(length: int, mtu: int, zeros: int) -> None:
    assert transport.padding(length, mtu) == zeros


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_padding_is_short_and_stays_within_the_mtu(length: int, mtu: int) -> None:
    zeros = transport.padding(length, mtu)
    assert 0 <= zeros < 16
    if 0 < length <= mtu:
        assert length + zeros <= mtu
        assert (length + zeros) % 16 == 0 or length + zeros == mtu
