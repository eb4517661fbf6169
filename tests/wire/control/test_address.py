"""Server addresses as people write them."""

import pytest

from overlay.wire.control.address import parse_address


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
