"""Fuzz targets: no bytes from a gateway make the parsers raise anything but `RemoteProtocolError`."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.portmap import nat_pmp, pcp

_REASON = re.compile(r"[a-z]+(_[a-z]+)*")


@given(
    st.binary(max_size=20)
    | st.binary(min_size=14, max_size=14).map(lambda tail: b"\x00\x81" + tail)
    | st.binary(min_size=10, max_size=10).map(lambda tail: b"\x00\x80" + tail)
    | st.binary(max_size=1104)
    | st.binary(min_size=56, max_size=56).map(lambda tail: b"\x02\x81\x00\x00" + tail)
)
@example(b"")
def test_response(data: bytes) -> None:
    for parse in (nat_pmp.parse_response, pcp.parse_response):
        try:
            parse(data)
        except RemoteProtocolError as error:
            assert _REASON.fullmatch(error.reason)
