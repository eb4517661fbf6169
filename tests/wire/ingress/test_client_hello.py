"""The server name in hellos that OpenSSL writes, whole, cut anywhere, split over records, and mangled."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.ingress.client_hello import MAX_HELLO, ClientHello, parse_client_hello


def hello(name: str | None, protocols: tuple[str, ...] = ()) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


WITH_NAME = hello("Docs.Example.com", ("h2", "http/1.1"))


def in_records(data: bytes, size: int) -> bytes:
    """The same handshake message in records of `size` bytes."""
    message = data[5:]
    pieces = (message[at : at + size] for at in range(0, len(message), size))
    return b"".join(data[:3] + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def test_names_and_protocols() -> None:
    assert parse_client_hello(WITH_NAME) == ClientHello("docs.example.com", (b"h2", b"http/1.1"))
    assert parse_client_hello(hello(None)) == ClientHello("", ())
    assert parse_client_hello(WITH_NAME + b"what comes behind") == ClientHello("docs.example.com", (b"h2", b"http/1.1"))


@given(st.integers(0, len(WITH_NAME) - 1))
def test_a_part_says_how_much_is_needed(size: int) -> None:
    needed = parse_client_hello(WITH_NAME[:size])
    assert isinstance(needed, int) and size < needed <= len(WITH_NAME)


@given(st.integers(1, 400))
def test_a_hello_over_several_records(size: int) -> None:
    split = in_records(WITH_NAME, size)
    found = parse_client_hello(split)
    assert found == ClientHello("docs.example.com", (b"h2", b"http/1.1"))


@given(st.integers(0, len(WITH_NAME) - 1), st.binary(min_size=1, max_size=4))
def test_fuzz_hellos(at: int, piece: bytes) -> None:
    data = WITH_NAME[:at] + piece + WITH_NAME[at + len(piece) :]
    try:
        found = parse_client_hello(data)
    except RemoteProtocolError as error:
        assert error.reason == "bad_client_hello"
    else:
        assert isinstance(found, ClientHello) or len(data) < found <= MAX_HELLO


@pytest.mark.parametrize("name", [b"a b", b"", b"-a", b"\xff", b"a\0b"])
def test_absurd_names(name: bytes) -> None:
    entry = b"\0" + len(name).to_bytes(2, "big") + name
    names = len(entry).to_bytes(2, "big") + entry
    extension = b"\0\0" + len(names).to_bytes(2, "big") + names
    body = (
        b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + len(extension).to_bytes(2, "big") + extension
    )
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    with pytest.raises(RemoteProtocolError):
        parse_client_hello(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message)
