"""Hostile frames: nothing but the named errors comes out, never more than came in, and nothing is hoarded."""

import os

from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.stream.websocket import MAX_CONTROL, MAX_HEADER, WebSocket

from .test_websocket import frame

headers = st.integers(0, 255)
frames = st.one_of(
    st.binary(max_size=50),
    st.builds(frame, headers, st.binary(max_size=200)),
    st.builds(frame, st.sampled_from([0x02, 0x00, 0x80, 0x82, 0x88, 0x89, 0x8A]), st.binary(max_size=200)),
    st.builds(frame, st.sampled_from([0x02, 0x00, 0x80, 0x82, 0x88, 0x89]), st.binary(max_size=130), st.none()),
)


@given(st.lists(frames, max_size=10), st.integers(1, 300), st.booleans())
def test_fuzz_frames(wire: list[bytes], size: int, client: bool) -> None:
    data = b"".join(wire)
    codec = WebSocket(client, os.urandom)
    received = 0
    try:
        for start in range(0, len(data), size):
            received += len(codec.decode(data[start : start + size]))
            assert len(codec._header) <= MAX_HEADER
            assert len(codec._control_payload) <= MAX_CONTROL
    except RemoteProtocolError as error:
        assert error.reason.startswith("websocket_")
    assert received <= len(data)
    assert len(codec.answers()) <= MAX_HEADER + MAX_CONTROL


@given(st.lists(frames, max_size=10), st.lists(st.integers(1, 40), min_size=1, max_size=5), st.booleans())
def test_fuzz_where_it_is_cut_makes_no_difference(wire: list[bytes], sizes: list[int], client: bool) -> None:
    data = b"".join(wire)
    outcomes = []
    for cuts in ([max(1, len(data))], sizes):
        codec = WebSocket(client, os.urandom)
        start, turn, reason = 0, 0, None
        while start < len(data):
            size = cuts[turn % len(cuts)]
            try:
                codec.decode(data[start : start + size])
            except RemoteProtocolError as error:
                reason = error.reason
                break
            start, turn = start + size, turn + 1
        outcomes.append((reason, codec.ended))
    assert outcomes[0] == outcomes[1]
