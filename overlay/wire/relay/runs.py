"""Runs of relayed datagrams: where their header changes, and another header in front of each of them.

A run is what the kernel gives and takes at once: datagrams of `segment` bytes, one after the other, the last maybe
shorter. Both functions are what a relay does to every byte that passes through it, so there is no Python per datagram
where the sizes allow it. Knows no client and no socket; judges no header.
"""

import itertools
from array import array
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct, iter_unpack
from typing import Final

from overlay.wire.relay.header import RELAY_HEADER_SIZE

_WORD: Final = 4
_NATIVE_WORDS: Final = array("I").itemsize == _WORD
_USUAL_COUNT: Final = 128
"""Datagrams that the kernel joins at most (UDP_MAX_SEGMENTS, 64 before Linux 6.9): up to there a reader is worth
keeping."""


def header_runs(batch: memoryview, segment: int) -> Sequence[tuple[int, int]]:
    """Cut a run where the 16 bytes in front of its datagrams change: byte offsets `(start, end)`.

    Exact, unlike `record.fragments.runs`: a relay cannot find out later that a datagram was somebody else's. A run
    whose datagrams are no longer than a header is left whole; parsing the first of them says so.
    """
    size = len(batch)
    if size <= segment or segment <= RELAY_HEADER_SIZE:
        return ((0, size),)
    count, rest = divmod(size, segment)
    headers: Sequence[bytes]
    if count <= _USUAL_COUNT:
        headers = _reader(segment, count).unpack_from(batch)
    else:
        pattern = f"{RELAY_HEADER_SIZE}s{segment - RELAY_HEADER_SIZE}x"
        headers = [header for (header,) in iter_unpack(pattern, batch[: count * segment])]
    last = batch[count * segment :][:RELAY_HEADER_SIZE]
    if headers.count(headers[0]) == count and (not rest or last == headers[0]):
        return ((0, size),)
    found: list[tuple[int, int]] = []
    at = 0
    for _, group in itertools.groupby([*headers, bytes(last)] if rest else headers):
        start, at = at, at + segment * len(list(group))
        found.append((start, min(at, size)))
    return found


def rewrite(run: memoryview, segment: int, header: bytes) -> None:
    """Put `header` (16 bytes) over that of each datagram of a run, in place.

    Where `segment` is a multiple of 4, as usual, that is three strided copies: the first four bytes are the same in
    all headers. 2.1 µs for 45 datagrams, where a slice assignment for each takes 4.2 and twelve byte columns 6.
    """
    size = len(run)
    count = size // segment
    if count < 4 or segment % _WORD or not _NATIVE_WORDS:
        for at in range(0, size, segment):
            run[at : at + RELAY_HEADER_SIZE] = header
        return
    whole = count * segment
    words = run[:whole].cast("I")
    stride = segment // _WORD
    for column in range(_WORD, RELAY_HEADER_SIZE, _WORD):
        words[column // _WORD :: stride] = array("I", header[column : column + _WORD] * count)
    if whole < size:
        run[whole : whole + RELAY_HEADER_SIZE] = header


@lru_cache(maxsize=256)
def _reader(segment: int, count: int) -> Struct:
    """Takes the headers out of `count` datagrams in one call."""
    body = f"{segment - RELAY_HEADER_SIZE}x"
    return Struct(f"{RELAY_HEADER_SIZE}s{body}" * (count - 1) + f"{RELAY_HEADER_SIZE}s")
