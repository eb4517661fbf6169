"""TLS as a codec, without a socket: two ends in memory."""

import ssl
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.tls import Tls
from overlay.errors import RemoteProtocolError
from overlay.wire.stream.codec import Stacked
from overlay.wire.stream.websocket import WebSocket

from .streams import Certificate, tls_pair


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    yield Certificate(tmp_path_factory.mktemp("tls"))


def said(codec: Tls, data: bytes) -> tuple[bytes, bool]:
    """→ what `codec` makes of `data`, and whether the peer has ended."""
    return codec.decode(data), codec.ended


@pytest.fixture(scope="module", params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def ends(request: pytest.FixtureRequest, certificate: Certificate) -> tuple[Tls, Tls]:
    return tls_pair(certificate, request.param)


@given(data=st.data())
def test_what_one_end_encodes_the_other_decodes_cut_anywhere(ends: tuple[Tls, Tls], data: st.DataObject) -> None:
    sender, receiver = data.draw(st.permutations(ends))
    message = bytes(data.draw(st.integers(0, 70_000)))
    size = data.draw(st.integers(1, 20_000)) if len(message) < 20_000 else data.draw(st.integers(500, 70_000))
    wire = sender.encode(message)
    assert b"".join(receiver.decode(wire[at : at + size]) for at in range(0, len(wire), size)) == message
    assert receiver.answers() == b""


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_end_is_told_and_the_other_direction_stays_open(certificate: Certificate, newest: ssl.TLSVersion) -> None:
    client, server = tls_pair(certificate, newest)
    assert said(server, client.encode(b"last") + client.end()) == (b"last", True)
    assert said(client, server.encode(b"answer")) == (b"answer", False)
    assert said(client, server.end()) == (b"", True)
    assert server.decode(b"whatever follows") == b""


def test_websocket_within(certificate: Certificate) -> None:
    client, server = tls_pair(certificate)
    here = Stacked(client, WebSocket(client=True, random_bytes=bytes))
    there = Stacked(server, WebSocket(client=False, random_bytes=bytes))
    assert there.decode(here.encode(b"x" * 100_000)) == b"x" * 100_000
    assert here.decode(there.encode(b"y")) == b"y"
    assert there.decode(here.end()) == b""
    assert there.ended


@given(data=st.data())
def test_fuzz_records(certificate: Certificate, data: st.DataObject) -> None:
    """Changed, cut and repeated records: data as it was sent, or the one error."""
    client, server = tls_pair(certificate)
    wire = bytearray(client.encode(b"hello"))
    place = data.draw(st.integers(0, len(wire) - 1))
    wire[place] ^= data.draw(st.integers(1, 255))
    try:
        assert server.decode(bytes(wire) + data.draw(st.binary(max_size=50))) == b""
    except RemoteProtocolError as error:
        assert error.reason == "tls_failed"


def test_what_is_no_tls_is_refused(certificate: Certificate) -> None:
    _, server = tls_pair(certificate)
    with pytest.raises(RemoteProtocolError) as caught:
        server.decode(b"GET / HTTP/1.1\r\n\r\n")
    assert caught.value.reason == "tls_failed"
