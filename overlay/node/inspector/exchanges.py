"""Requests and their answers as they were seen, the last ones, bounded in number and in bytes. No I/O, no clock.

All exposures of a node share the bytes: where there is no more room the oldest exchange goes, whatever it belongs to.
One that goes while it is under way is forgotten too, and takes no bytes any more.
"""

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from overlay.wire.ingress.http1 import Fields, RequestHead, ResponseHead

MOST_EXCHANGES: Final = 200  # of one exposure
MOST_BYTES: Final = 8 * 1024 * 1024  # of all, heads and bodies
_OVERHEAD: Final = 1024  # bytes that one is counted for beside what it holds
_OVERHEAD_OF_FIELD: Final = 160  # two objects and a pair

State = Literal["open", "done", "cut", "lost"]
"""Under way; whole; ended before its end; what came was not understood."""


@dataclass(slots=True, eq=False)
class Body:
    """The first bytes of a message's payload. `size`: of all that has passed."""

    kept: bytearray = field(default_factory=bytearray)
    size: int = 0


@dataclass(slots=True, eq=False)
class Exchange:
    id: str
    exposure: str
    limit: int  # bytes of each body that are kept
    at: float  # Unix seconds
    began: float  # monotonic
    request: RequestHead
    replay_of: str = ""
    answer: ResponseHead | None = None
    sent: Body = field(default_factory=Body)  # of the request
    received: Body = field(default_factory=Body)  # of the answer; of an upgraded connection: bytes alone
    asked: bool = False  # all of the request has passed
    upgraded: bool = False
    state: State = "open"
    took: float | None = None  # s from the request's head to the answer's end
    cost: int = 0  # bytes it is counted for
    forgotten: bool = False

    @property
    def is_whole(self) -> bool:
        """All of the request is here."""
        return self.asked and self.sent.size == len(self.sent.kept)


class Exchanges:
    """`on_change` is told of each exchange as it begins, is answered, and ends."""

    def __init__(self, on_change: Callable[[Exchange], None] = lambda exchange: None) -> None:
        self._on_change = on_change
        self._kept: OrderedDict[str, Exchange] = OrderedDict()
        self._counts: Counter[str] = Counter()  # by exposure
        self._numbers = itertools.count(1)
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes that all of them are counted for."""
        return self._held

    def of(self, exposure: str) -> list[Exchange]:
        """The oldest first."""
        return [each for each in self._kept.values() if each.exposure == exposure]

    def all(self) -> list[Exchange]:
        """The oldest first."""
        return list(self._kept.values())

    def get(self, name: str) -> Exchange | None:
        return self._kept.get(name)

    def forget(self, exposure: str) -> None:
        for each in self.of(exposure):
            self._forget(each)

    # what a connection says of it

    def begin(
        self, exposure: str, limit: int, request: RequestHead, *, at: float, now: float, replay_of: str = ""
    ) -> Exchange:
        made = Exchange(f"r{next(self._numbers)}", exposure, limit, at, now, request, replay_of)
        self._kept[made.id] = made
        self._counts[exposure] += 1
        if self._counts[exposure] > MOST_EXCHANGES:
            self._forget(self.of(exposure)[0])
        self._count(made, _OVERHEAD + len(request.target) + _size_of(request.fields))
        self._on_change(made)
        return made

    def answered(self, exchange: Exchange, answer: ResponseHead) -> None:
        exchange.answer = answer
        self._count(exchange, _size_of(answer.fields))
        self._on_change(exchange)

    def add(self, exchange: Exchange, body: Body, payload: bytes) -> None:
        body.size += len(payload)
        room = exchange.limit - len(body.kept)
        if room > 0 and payload and not exchange.forgotten:
            kept = payload[:room]
            body.kept += kept
            self._count(exchange, len(kept))

    def ended(self, exchange: Exchange, state: State, now: float) -> None:
        if exchange.state == "open":
            exchange.state = state
            exchange.took = now - exchange.began
            self._on_change(exchange)

    # inside

    def _count(self, exchange: Exchange, size: int) -> None:
        if exchange.forgotten:
            return
        exchange.cost += size
        self._held += size
        while self._held > MOST_BYTES:
            self._forget(next(iter(self._kept.values())))

    def _forget(self, exchange: Exchange) -> None:
        del self._kept[exchange.id]
        self._counts[exchange.exposure] -= 1
        self._held -= exchange.cost
        exchange.forgotten = True
        exchange.sent.kept.clear()
        exchange.received.kept.clear()


def _size_of(fields: Fields) -> int:
    return sum(_OVERHEAD_OF_FIELD + len(name) + len(value) for name, value in fields)
