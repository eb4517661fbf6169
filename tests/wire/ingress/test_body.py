"""Where a body ends, however it is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.ingress.body import BodyReader, chunk, last_chunk
from overlay.wire.ingress.http1 import Framing, HttpError


def read(framing: Framing, data: bytes, cut: int = 0, extensions: bool = False) -> tuple[bytes, BodyReader]:
    reader = BodyReader(framing, extensions=extensions)
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)] if cut else [data]
    return b"".join(reader.feed(piece) for piece in pieces), reader


@given(
    st.lists(st.binary(max_size=300), max_size=5),
    st.lists(st.tuples(st.sampled_from([b"X-A", b"x-b"]), st.sampled_from([b"", b"1", b"a b"])), max_size=3),
    st.binary(max_size=20),
    st.integers(1, 40),
)
def test_chunks_come_out_as_they_went_in(
    pieces: list[bytes], trailers: list[tuple[bytes, bytes]], behind: bytes, cut: int
) -> None:
    data = b"".join(map(chunk, pieces)) + last_chunk(tuple(trailers)) + behind
    payload, reader = read("chunked", data, cut)
    assert payload == b"".join(pieces) and reader.done
    assert reader.trailers == tuple(trailers) and reader.rest == behind
    assert read(len(payload), payload + behind, cut)[0] == payload


def test_lengths() -> None:
    payload, reader = read(5, b"hello, you", 3)
    assert payload == b"hello" and reader.done and reader.rest == b", you"
    assert read(0, b"next")[1].rest == b"next"
    payload, reader = read(5, b"hel")
    assert payload == b"hel" and not reader.done and not reader.end()
    payload, reader = read("close", b"hel")
    assert payload == b"hel" and not reader.done and reader.end()


BAD_CHUNKS = {
    "an extension": b"5;a=b\r\nhello\r\n0\r\n\r\n",
    "an extension at the end": b"5\r\nhello\r\n0;a\r\n\r\n",
    "an extension with a line end": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "space behind the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "a tab": b"5\t\r\nhello\r\n0\r\n\r\n",
    "a vertical tab": b"5\x0b\r\nhello\r\n0\r\n\r\n",
    "a NUL": b"5\0\r\nhello\r\n0\r\n\r\n",
    "junk": b"5g\r\nhello\r\n0\r\n\r\n",
    "a size that wraps round": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "no name in trailers": b"0\r\n: x\r\n\r\n",
    "underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "bare CR": b"5\r\rhello\r\n0\r\n\r\n",
    "longer than it says": b"4\r\nhello\r\n0\r\n\r\n",
    "shorter than it says": b"6\r\nhello\r\n0\r\n\r\n",
    "a size beyond all bounds": b"fffffffffffffffff\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "folded trailers": b"0\r\nX: a\r\n b\r\n\r\n",
    "bare LF in trailers": b"0\r\nX: a\nContent-Length: 5\r\n\r\n",
    "a size line without end": b"0" * 300,
    "trailers without end": b"0\r\n" + b"X: y\r\n" * 2000,
}


@pytest.mark.parametrize("data", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_bad_chunks(data: bytes, cut: int) -> None:
    with pytest.raises(HttpError) as caught:
        read("chunked", data, cut)
    assert caught.value.status in (400, 431)


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_extensions_of_an_answer_are_left_out(cut: int) -> None:
    payload, reader = read("chunked", b'5 ; a="b"\r\nhello\r\n0;x\r\nX: y\r\n\r\n', cut, extensions=True)
    assert payload == b"hello" and reader.done and reader.trailers == ((b"X", b"y"),)


@given(st.binary(max_size=200), st.integers(1, 20), st.booleans())
def test_fuzz_chunks(data: bytes, cut: int, extensions: bool) -> None:
    try:
        read("chunked", data, cut, extensions)
    except HttpError as error:
        assert error.status in (400, 431)
