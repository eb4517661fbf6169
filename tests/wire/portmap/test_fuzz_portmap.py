"""Fuzz targets: no bytes from a gateway make the parsers raise anything but `RemoteProtocolError`."""

import re
from contextlib import suppress
from ipaddress import IPv4Address

from hypothesis import example, given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.portmap import nat_pmp, pcp
from overlay.wire.portmap.client import Client

_REASON = re.compile(r"[a-z]+(_[a-z]+)*")


_MESSAGES = (
    st.binary(max_size=20)
    | st.binary(min_size=14, max_size=14).map(lambda tail: b"\x00\x81" + tail)
    | st.binary(min_size=10, max_size=10).map(lambda tail: b"\x00\x80" + tail)
    | st.binary(max_size=1104)
    | st.binary(min_size=56, max_size=56).map(lambda tail: b"\x02\x81\x00\x00" + tail)
)


@given(_MESSAGES)
@example(b"")
def test_response(data: bytes) -> None:
    for parse in (nat_pmp.parse_response, pcp.parse_response):
        try:
            parse(data)
        except RemoteProtocolError as error:
            assert _REASON.fullmatch(error.reason)


@given(st.lists(_MESSAGES, max_size=8))
def test_client(messages: list[bytes]) -> None:
    client = Client(IPv4Address("192.168.1.2"), "udp", 41641, bytes(12), 0.0)
    for now, data in enumerate(messages):
        with suppress(RemoteProtocolError):
            client.receive_datagram(data, float(now))
        client.handle_timeout(float(now))
        assert len(client.datagrams_to_send()) <= 4
        assert client.next_timeout() > now
