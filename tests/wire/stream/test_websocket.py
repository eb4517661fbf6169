"""The frame codec: against itself, against wsproto's, and against what a peer must not do."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.stream.codec import Stacked
from overlay.wire.stream.websocket import MAX_CONTROL, MAX_EMPTY, WebSocket, masked


def end(client: bool) -> WebSocket:
    return WebSocket(client, os.urandom)


def frame(first: int, payload: bytes = b"", mask: bytes | None = b"\1\2\3\4", length: bytes | None = None) -> bytes:
    """One frame, right or wrong."""
    if length is None:
        size = len(payload)
        length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    if mask is None:
        return bytes([first]) + length + payload
    return bytes([first, length[0] | 0x80]) + length[1:] + mask + masked(payload, mask)


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """`data` in pieces of these sizes, over and over."""
    start, turn = 0, 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        yield data[start : start + size]
        start, turn = start + size, turn + 1


sizes = st.lists(st.integers(1, 5000), min_size=1, max_size=5)
messages = st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 70_000).map(os.urandom)), max_size=5)


@given(st.binary(max_size=5000), st.binary(min_size=4, max_size=4))
def test_masking_is_that_of_the_rfc(data: bytes, mask: bytes) -> None:
    expected = bytes(octet ^ mask[place % 4] for place, octet in enumerate(data))
    assert masked(data, mask) == expected
    assert masked(memoryview(data), mask) == expected


@given(messages, sizes, st.booleans())
def test_what_one_end_encodes_the_other_decodes_cut_anywhere(messages: list[bytes], sizes: list[int], up: bool) -> None:
    sender, receiver = end(client=up), end(client=not up)
    wire = b"".join(bytes(sender.encode(message)) for message in messages) + sender.end()
    assert b"".join(receiver.decode(piece) for piece in cut(wire, sizes)) == b"".join(messages)
    assert receiver.ended
    assert receiver.decode(b"whatever follows") == b""


@given(messages, sizes, st.booleans())
def test_wsproto_understands_us(messages: list[bytes], sizes: list[int], up: bool) -> None:
    sender = end(client=up)
    receiver = Connection(ConnectionType.SERVER if up else ConnectionType.CLIENT)
    wire = b"".join(bytes(sender.encode(message)) for message in messages) + sender.end()
    received, closed = b"", False
    for piece in cut(wire, sizes):
        receiver.receive_data(piece)
        for event in receiver.events():
            assert isinstance(event, BytesMessage | CloseConnection)
            if isinstance(event, BytesMessage):
                received += bytes(event.data)
            else:
                closed = event.code == 1000
    assert received == b"".join(messages)
    assert closed


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=8), sizes, st.booleans())
def test_we_understand_wsproto_with_fragments_and_pings(
    parts: list[tuple[bytes, bool]], sizes: list[int], up: bool
) -> None:
    sender = Connection(ConnectionType.CLIENT if up else ConnectionType.SERVER)
    receiver = end(client=not up)
    wire = b""
    for number, (part, finished) in enumerate(parts):
        wire += sender.send(BytesMessage(data=part, message_finished=finished))
        wire += sender.send(Ping(payload=bytes([number])))
    wire += sender.send(CloseConnection(code=1001))
    assert b"".join(receiver.decode(piece) for piece in cut(wire, sizes)) == b"".join(part for part, _ in parts)
    assert receiver.ended
    answer = receiver.answers()
    assert receiver.answers() == b""
    if parts:
        sender.receive_data(answer)
        assert list(sender.events()) == [Pong(payload=bytes([len(parts) - 1]))]


def test_a_flood_of_pings_is_answered_once() -> None:
    server = end(client=False)
    server.decode(frame(0x89, b"x" * MAX_CONTROL) * (MAX_EMPTY - 1) + frame(0x89, b"last"))
    assert server.answers() == b"\x8a\x04last"
    server.decode(frame(0x82, b"data") + frame(0x89) * MAX_EMPTY)


def test_after_our_end_nothing_is_sent() -> None:
    server = end(client=False)
    assert server.end() == b"\x88\x02\x03\xe8"
    assert server.end() == b""
    server.decode(frame(0x89))
    assert server.answers() == b""
    with pytest.raises(LocalProtocolError):
        server.encode(b"more")
    assert server.decode(frame(0x82, b"still to come")) == b"still to come"


def test_what_has_come_of_a_huge_frame_is_handed_on_and_not_kept() -> None:
    server = end(client=False)
    header = b"\x82\xff" + (2**62).to_bytes(8, "big") + bytes(4)
    assert server.decode(header + b"x" * 1000) == b"x" * 1000
    for _ in range(10):
        assert server.decode(b"y" * 100_000) == b"y" * 100_000


@pytest.mark.parametrize(
    ("client", "wire", "reason"),
    [
        (False, frame(0x82, b"x", mask=None), "websocket_unmasked"),
        (True, frame(0x82, b"x"), "websocket_masked"),
        (False, frame(0xC2, b"x"), "websocket_reserved_bits"),
        (False, frame(0x81, b"text"), "websocket_opcode"),
        (False, frame(0x83), "websocket_opcode"),
        (False, frame(0x8B), "websocket_opcode"),
        (False, frame(0x09), "websocket_control_frame"),
        (False, frame(0x89, b"x" * 126), "websocket_control_frame"),
        (False, frame(0x88, b"x"), "websocket_control_frame"),
        (False, frame(0x80, b"x"), "websocket_fragment"),
        (False, frame(0x02, b"x") + frame(0x82, b"x"), "websocket_fragment"),
        (False, frame(0x82) * (MAX_EMPTY + 1), "websocket_empty_frames"),
        (False, frame(0x89) * (MAX_EMPTY + 1), "websocket_empty_frames"),
        (False, frame(0x82, length=b"\x7e\0\x7d"), "websocket_length"),
        (False, frame(0x82, length=b"\x7f" + (65535).to_bytes(8, "big")), "websocket_length"),
        (False, frame(0x82, length=b"\x7f" + (2**63).to_bytes(8, "big")), "websocket_length"),
    ],
)
def test_what_breaks_the_protocol_is_refused(client: bool, wire: bytes, reason: str) -> None:
    for sizes in ([len(wire)], [1]):
        receiver = end(client)
        with pytest.raises(RemoteProtocolError) as caught:
            for piece in cut(wire, sizes):
                receiver.decode(piece)
        assert caught.value.reason == reason
        with pytest.raises(RemoteProtocolError):
            receiver.decode(b"")


def test_one_within_the_other() -> None:
    here, there = (Stacked(end(client), end(client)) for client in (True, False))
    assert there.decode(here.encode(b"hello")) == b"hello"
    assert here.decode(there.encode(b"welcome")) == b"welcome"
    there.decode(here.end())
    assert there.ended
