"""Fuzz target: no bytes make the parser raise anything but `RemoteProtocolError`."""

from hypothesis import example, given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.relay import RELAY_HEADER_SIZE, pack_header, parse_header


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: b"\x06\x00\x00\x00" + tail))
@example(b"")
def test_datagram(data: bytes) -> None:
    try:
        header = parse_header(data)
    except RemoteProtocolError as error:
        assert error.reason.startswith("relay_")
    else:
        assert data[:RELAY_HEADER_SIZE] == pack_header(*header), "there is one way to write a header"
