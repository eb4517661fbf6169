"""Frames in a stream: what goes in comes out however the stream is cut, and nothing grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import RemoteProtocolError
from overlay.wire.stream.framing import (
    ALIVE,
    FRAME_HEADER,
    FRAME_HEADER_SIZE,
    MAX_DATAGRAMS,
    MAX_RUN,
    FrameReader,
    frames,
)


def datagrams(run: bytes, segment: int) -> list[bytes]:
    return [run[at : at + segment] for at in range(0, len(run), segment)]


def read(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The datagrams in a stream that comes in pieces of those sizes, and the rest at once."""
    reader, found = FrameReader(), []
    for size in [*cuts, len(stream) or 1]:
        for run, segment in reader.receive(stream[:size]):
            assert not run.readonly and 0 < segment <= len(run)
            found += datagrams(bytes(run), segment)
        stream = stream[size:]
        assert reader.held < FRAME_HEADER_SIZE + MAX_RUN
    assert reader.held == 0
    return found


runs = st.tuples(st.binary(min_size=1, max_size=3000), st.integers(0, 1500))


@given(st.lists(st.one_of(runs, st.none()), max_size=5), st.lists(st.integers(1, 900), max_size=30))
def test_what_is_written_is_read_however_it_is_cut(sent: list[tuple[bytes, int] | None], cuts: list[int]) -> None:
    stream, expected = b"", []
    for each in sent:
        if each is None:
            stream += ALIVE
        else:
            run, segment = each
            stream += b"".join(frames(run, segment))
            expected += datagrams(run, segment or len(run))
    assert read(stream, cuts) == expected


def test_a_run_of_more_datagrams_than_a_frame_holds_is_several() -> None:
    run = bytes(range(200)) * 5
    stream = b"".join(frames(run, 10))
    assert [len(frame.run) for frame in FrameReader().receive(stream)] == [640, 360]
    assert read(stream, []) == datagrams(run, 10)


@pytest.mark.parametrize(("segment", "size"), [(0, MAX_RUN), (65535, MAX_RUN), (1024, MAX_RUN)])
def test_the_largest_runs_pass(segment: int, size: int) -> None:
    ((run, found),) = FrameReader().receive(b"".join(frames(bytes(size), segment)))
    assert len(run) == size and found == (segment or size)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ((MAX_RUN + 1, 0, 0), "frame_too_long"),
        ((2**32 - 1, 1400, 0), "frame_too_long"),
        ((10, 0, 1), "frame_bad_reserved"),
        ((MAX_DATAGRAMS * 10 + 1, 10, 0), "frame_too_many"),
    ],
)
def test_what_no_sender_writes_ends_the_stream_before_it_came_whole(header: tuple[int, int, int], reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as raised:
        FrameReader().receive(FRAME_HEADER.pack(*header))
    assert raised.value.reason == reason


def test_a_segment_beyond_the_run_is_one_datagram() -> None:
    ((run, segment),) = FrameReader().receive(FRAME_HEADER.pack(5, 900, 0) + b"12345")
    assert (bytes(run), segment) == (b"12345", 5)


def test_a_frame_that_was_given_out_does_not_change() -> None:
    reader = FrameReader()
    stream = b"".join(frames(b"one", 0)) + b"".join(frames(b"two", 0))
    (first,) = reader.receive(stream[:12])
    (second,) = reader.receive(stream[12:])
    assert (bytes(first.run), bytes(second.run)) == (b"one", b"two")


headers = st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 1))


@given(st.lists(st.one_of(st.binary(max_size=64), headers.map(lambda each: FRAME_HEADER.pack(*each)))))
def test_no_bytes_raise_anything_else_and_none_pile_up(pieces: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for piece in pieces:
            for run, segment in reader.receive(piece):
                assert 0 < segment <= len(run) <= MAX_RUN
                assert len(run) <= segment * MAX_DATAGRAMS
            assert reader.held < FRAME_HEADER_SIZE + MAX_RUN
    except RemoteProtocolError as error:
        assert error.reason in {"frame_too_long", "frame_too_many", "frame_bad_reserved"}
