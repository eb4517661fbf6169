"""Header runs and rewriting, against the plain way to do each."""

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.wire.relay import RELAY_HEADER_SIZE, header_runs, pack_header, rewrite

HEADERS = [pack_header(2, 7), pack_header(3, 7), pack_header(2, 8), bytes(16), b"\x05" + bytes(15)]


def test_runs_of_one_header_are_cut_exactly() -> None:
    one, other = pack_header(2, 7) + bytes(84), pack_header(3, 7) + bytes(84)
    run = one * 3 + other + one * 2 + one[:50]
    assert list(header_runs(memoryview(run), 100)) == [(0, 300), (300, 400), (400, 650)]
    assert list(header_runs(memoryview(one * 5), 100)) == [(0, 500)]
    assert list(header_runs(memoryview(one * 400), 100)) == [(0, 40_000)]
    assert list(header_runs(memoryview(one * 400 + other), 100)) == [(0, 40_000), (40_000, 40_100)]
    assert list(header_runs(memoryview(one), 100)) == [(0, 100)]
    assert list(header_runs(memoryview(one + b"\x06"), 100)) == [(0, 100), (100, 101)]
    assert list(header_runs(memoryview(bytes(30)), 10)) == [(0, 30)]
    assert list(header_runs(memoryview(b""), 0)) == [(0, 0)]


runs = st.tuples(
    st.lists(st.sampled_from(HEADERS), min_size=1, max_size=160),
    st.integers(RELAY_HEADER_SIZE + 1, 70),
    st.integers(0, 70),
).map(lambda drawn: (b"".join(header.ljust(drawn[1], b"x") for header in drawn[0]), *drawn[1:]))


@settings(deadline=None)
@given(runs)
def test_each_piece_has_one_header_and_its_neighbour_another(drawn: tuple[bytes, int, int]) -> None:
    data, segment, cut = drawn
    data = data[: max(1, len(data) - cut % segment)]  # the last datagram may be shorter
    pieces = list(header_runs(memoryview(data), segment))
    assert [start for start, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
    assert pieces[-1][1] == len(data)
    headers = []
    for start, end in pieces:
        (header,) = {data[at : min(at + RELAY_HEADER_SIZE, end)] for at in range(start, end, segment)}
        headers.append(header)
    assert all(one != other for one, other in zip(headers, headers[1:], strict=False))


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(RELAY_HEADER_SIZE + 1, 120), st.integers(0, 102))
def test_rewriting_changes_the_headers_and_nothing_else(count: int, segment: int, cut: int) -> None:
    datagrams = [pack_header(9, 1) + bytes([index]) * (segment - RELAY_HEADER_SIZE) for index in range(count)]
    datagrams[-1] = datagrams[-1][: max(RELAY_HEADER_SIZE + 1, segment - cut)]
    run = bytearray(b"".join(datagrams))
    header = pack_header(4_000_000_000, 2**64 - 2)
    rewrite(memoryview(run), segment, header)
    assert run == b"".join(header + datagram[RELAY_HEADER_SIZE:] for datagram in datagrams)


@settings(deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 200))
def test_fuzz_header_runs(data: bytes, segment: int) -> None:
    """Fuzz target: any bytes are cut somewhere, whole."""
    pieces = list(header_runs(memoryview(data), segment or len(data)))
    assert sum(end - start for start, end in pieces) == len(data)
