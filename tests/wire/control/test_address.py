"""Server addresses as people write them."""

import pytest

from overlay.wire.control.address import ServerAddress, parse_address, parse_server_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server.example.org:443", ("server.example.org", 443)),
        ("Server.Example.ORG.:443", ("server.example.org", 443)),
        ("localhost:1", ("localhost", 1)),
        ("my_host:65535", ("my_host", 65535)),
        ("192.0.2.1:443", ("192.0.2.1", 443)),
        ("[2001:DB8::1]:443", ("2001:db8::1", 443)),
        ("[::ffff:192.0.2.1]:443", ("192.0.2.1", 443)),
    ],
)
def test_an_address_is_read(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":443",
        "server.example.org",
        "server.example.org:",
        "server.example.org:0",
        "server.example.org:65536",
        "server.example.org:" + "9" * 5000,
        "server.example.org:٤٤٣",
        "server.example.org:-1",
        "192.0.2.1",
        "192.0.2:443",
        "192.0.2.256:443",
        "2001:db8::1",
        "2001:db8::1:443",
        "[2001:db8::1]",
        "[server.example.org]:443",
        "-server.example.org:443",
        "server..example.org:443",
        "a" * 64 + ":443",
        ("a" * 60 + ".") * 5 + "a:443",
        "http://server.example.org:443",
        "user@server.example.org:443",
        "server example.org:443",
    ],
)
def test_nonsense_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server.example.org:443", ServerAddress("server.example.org", 443)),
        ("[2001:db8::1]:443", ServerAddress("2001:db8::1", 443)),
        ("wss://vpn.example.org/prefix/x", ServerAddress("vpn.example.org", 443, "wss", "/prefix/x")),
        ("WSS://VPN.example.org", ServerAddress("vpn.example.org", 443, "wss")),
        ("ws://vpn.example.org", ServerAddress("vpn.example.org", 80, "ws")),
        ("ws://192.0.2.1:8080/", ServerAddress("192.0.2.1", 8080, "ws")),
        ("tls://[2001:db8::1]", ServerAddress("2001:db8::1", 443, "tls")),
        ("tcp://[2001:db8::1]:80", ServerAddress("2001:db8::1", 80, "tcp")),
        ("udp://a:1/", ServerAddress("a", 1, "udp")),
    ],
)
def test_a_url_fixes_the_carrier(text: str, expected: ServerAddress) -> None:
    address = parse_server_address(text)
    assert address == expected
    assert parse_server_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "http://server.example.org",
        "://server.example.org",
        "wss://",
        "wss:///prefix",
        "wss://user@server.example.org/",
        "wss://server.example.org:0/",
        "wss://server.example.org:x/",
        "wss://server.example.org/a b",
        "wss://server.example.org/a\r\nX: y",
        "wss://server.example.org/?q",
        "wss://server.example.org/#f",
        "wss://server.example.org/%zz",
        "wss://server.example.org/" + "a" * 600,
        "tls://server.example.org/prefix",
        "tcp://2001:db8::1",
        "udp://server example.org",
    ],
)
def test_a_wrong_url_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        parse_server_address(text)
