"""Fuzz targets: no bytes from a gateway make the parsers raise anything but `RemoteProtocolError`."""

import re
from contextlib import suppress
from ipaddress import IPv4Address

from hypothesis import example, given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.portmap import igd, nat_pmp, pcp, ssdp
from overlay.wire.portmap.client import Client
from overlay.wire.portmap.http import Call

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


_WORDS = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n", b"ST: ssdp:InternetGatewayDevice", b"LOCATION: http://", b"a:", b"65536", b"/", b"\r\n"]
    + [b"Content-Length: 3", b"Transfer-Encoding: chunked", b"\r\n\r\n", b"<?xml?>", b"<service>", b"</service>"]
    + [b"<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>", b"<controlURL>", b"</controlURL>"]
    + [
        b"<UPnPError>",
        b"<errorCode>",
        b"725",
        b"</errorCode>",
        b"</UPnPError>",
        b"<AddPortMappingResponse/>",
        b"<!DOCTYPE",
    ]
)
_TEXTS = st.binary(max_size=200) | st.lists(_WORDS | st.binary(max_size=3), max_size=16).map(b"".join)


@given(_TEXTS, st.integers(0, 999))
@example(b'<?xml version="1.0" encoding="utf-7"?><a/>', 200)
def test_upnp(data: bytes, status: int) -> None:
    location = ssdp.Location(80, "/")
    for parse in (
        lambda: ssdp.parse_answer(data),
        lambda: igd.parse_description(data, location),
        lambda: igd.parse_result(status, data, "AddPortMapping"),
        lambda: Call("GET", "192.168.1.1", 80, "/").receive(data),
    ):
        try:
            parse()
        except igd.ActionRefused as refused:
            assert 0 <= refused.code < 100_000 and str(refused).isprintable()
        except RemoteProtocolError as error:
            assert _REASON.fullmatch(error.reason)


@given(
    _TEXTS.map(
        lambda text: (
            b"<s><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
            b"<controlURL>" + text + b"</controlURL></service></s>"
        )
    )
)
def test_where_a_description_sends_us(data: bytes) -> None:
    """A path that a router names is one that a request can be made of, or none at all."""
    with suppress(RemoteProtocolError):
        for service in igd.parse_description(data, ssdp.Location(80, "/")):
            assert Call("POST", "192.168.1.1", service.control.port, service.control.path).request
