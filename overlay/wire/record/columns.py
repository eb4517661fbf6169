"""A run's fragment headers read as two columns: what tells a datagram's place in its record, and the record's counter.

One unpacking and a comparison of whole columns stand for a look at each header, as long as records follow one another
the way a sender makes them. Knows no keys.
"""

from collections.abc import Sequence
from functools import lru_cache
from operator import ne
from struct import Struct

from overlay.wire.packet.ip import Octets
from overlay.wire.record.fragments import MESSAGE_TYPE

_WHOSE = 0xFFFFFFFF_000000FF  # receiver index and type
_NEXT_INDEX = 1 << 8


def columns(headers: Octets, offset: int, number: int) -> tuple[Sequence[int], Sequence[int]]:
    """Of `number` headers side by side, each behind `offset` bytes of prefix: what stands before the counter, as a
    number (`receiver index u32 | 0 u8 | count u8 | index u8 | type u8`), and the counters."""
    fields = _pairs(offset, number).unpack_from(headers)
    return fields[::2], fields[1::2]


def of_one_receiver(heads: Sequence[int]) -> bool:
    """Are all record fragments for the same receiver index?"""
    return len({head & _WHOSE for head in heads}) == 1


def records_in_row(heads: Sequence[int], counters: Sequence[int], at: int) -> tuple[int, int]:
    """How many whole records follow one another from position `at` on, and the number of datagrams of each: as many as
    the first one has, in order, and the counters count on. No whole one: (0, 1)."""
    head = heads[at]
    kind, index, fragments, reserved = head.to_bytes(8, "little")[:4]
    number = (len(heads) - at) // fragments if fragments else 0
    if kind != MESSAGE_TYPE or index or reserved or not number:
        return 0, 1
    end = at + number * fragments
    first = counters[at]
    if fragments == 1:
        wanted_heads: Sequence[int] = (head,) * number
        wanted_counters: Sequence[int] = tuple(range(first, first + number))
    else:
        wanted_heads = tuple(range(head, head + fragments * _NEXT_INDEX, _NEXT_INDEX)) * number
        wanted_counters = tuple(first + place // fragments for place in range(number * fragments))
    if heads[at:end] != wanted_heads or counters[at:end] != wanted_counters:
        others = zip(map(ne, heads[at:end], wanted_heads), map(ne, counters[at:end], wanted_counters), strict=True)
        number = next(place for place, differs in enumerate(others) if any(differs)) // fragments
    return (number, fragments) if number else (0, 1)


@lru_cache(maxsize=256)
def _pairs(offset: int, number: int) -> Struct:
    return Struct("<" + (f"{offset}x2Q" if offset else "2Q") * number)
