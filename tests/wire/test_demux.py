"""One UDP port, three kinds of datagrams: no first byte is taken for two of them."""

import os

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import encode_quic_version_negotiation
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.demux import QUIC_FIRST, kind_of

COOKIE = b"\x21\x12\xa4\x42"


@pytest.mark.parametrize("kind", range(1, 8))
def test_our_message_types(kind: int) -> None:
    assert kind_of(bytes([kind, 0, 0, 0]) + bytes(28)) == "ours"
    assert kind_of(memoryview(bytes([kind]))) == "ours"


@pytest.mark.parametrize("kind", [b"\x00\x01", b"\x01\x01", b"\x01\x11", b"\x00\x11"])
def test_stun_is_known_by_its_cookie(kind: bytes) -> None:
    message = kind + b"\x00\x00" + COOKIE + os.urandom(12)
    assert kind_of(message) == "stun"
    assert kind_of(memoryview(message)) == "stun"


def test_a_handshake_whose_index_looks_like_the_cookie_is_ours() -> None:
    assert kind_of(b"\x01\x00\x00\x00" + COOKIE + bytes(140)) == "ours"


@pytest.mark.parametrize("datagram", [b"", b"\x00", b"\x08" + bytes(40), b"\x3f" + bytes(40)])
def test_anything_else_is_unknown(datagram: bytes) -> None:
    assert kind_of(datagram) == "unknown"


def test_packets_of_a_real_quic_implementation() -> None:
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True, server_name="a"))
    connection.connect(("192.0.2.1", 443), now=0.0)
    ((initial, _),) = connection.datagrams_to_send(now=0.0)
    assert kind_of(initial) == "quic"
    for _ in range(50):  # its first byte is random
        assert kind_of(encode_quic_version_negotiation(bytes(8), bytes(8), [1])) == "quic"


@given(st.binary(max_size=64))
def test_fuzz_the_hot_path_agrees(datagram: bytes) -> None:
    assert (kind_of(datagram) == "quic") == bool(datagram and datagram[0] >= QUIC_FIRST)
