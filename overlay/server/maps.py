"""What goes to a node of the network map, whatever it has of it already: made, signed and encoded once for all nodes.

A *base* is a whole map, in as many parts as it needs, and stays as it is while the map goes on: behind it stand the
deltas since. So a thousand nodes that join while the map changes all the time get one base and some deltas, and none of
them has a map encoded of its own. A node that was away for a while gets the deltas that it missed.
Knows no node and no connection. What is kept is bounded: the deltas by a share of the map's size.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from overlay.wire.control.codec import encode
from overlay.wire.control.messages import MapDelta, NetworkMap, SignedMap
from overlay.wire.control.netmap import split

KEPT_LEAST: Final = 64 * 1024
"""Bytes of deltas that are kept in any case."""
KEPT_SHARE: Final = 0.5
"""Deltas are kept up to so much of the base's size: nobody who joins gets more than half as much again as it needs."""

Sign = Callable[[NetworkMap | MapDelta], SignedMap]


@dataclass(frozen=True, slots=True)
class _Step:
    mark: bytes
    version: int  # of the map that it makes
    message: bytes


class MapHistory:
    """The map as it is now, and how it became so."""

    def __init__(self, sign: Sign, current: NetworkMap) -> None:
        self.current = current
        self.kept_least = KEPT_LEAST
        self._sign = sign
        self._base: tuple[bytes, ...] = ()
        self._base_version = 0
        self._base_size = 0
        self._steps: deque[_Step] = deque()
        self._steps_size = 0
        self._marks: dict[bytes, int] = {}
        """Of updates that were sent → the version that a node then has, as long as the steps go on from there."""

    def advance(self, delta: MapDelta, after: NetworkMap) -> bytes:
        """`delta` has made `after` of the map. → the message that tells it to those who have the map as it was"""
        signed = self._sign(delta)
        step = _Step(signed.mark, delta.version, encode(signed))
        self.current = after
        self._steps.append(step)
        self._steps_size += len(step.message)
        self._marks[step.mark] = step.version
        self._forget()
        return step.message

    def since(self, mark: bytes) -> Sequence[bytes]:
        """The messages that bring a node up to date whose map was last changed by the update of this mark; whatever
        else it has, if the mark is not known (any more)."""
        version = self._marks.get(mark)
        if version is not None:
            return self._after(version)
        if not self._base:
            self._make_base()
        return (*self._base, *self._after(self._base_version))

    def _after(self, version: int) -> list[bytes]:
        return [step.message for step in self._steps if step.version > version]

    def _make_base(self) -> None:
        signed = [self._sign(part) for part in split(self.current)]
        self._base = tuple(encode(each) for each in signed)
        self._base_version = self.current.version
        self._base_size = sum(map(len, self._base))
        self._marks[signed[-1].mark] = self._base_version

    def _forget(self) -> None:
        most = max(self.kept_least, KEPT_SHARE * self._base_size)
        if self._steps_size <= most:
            return
        while self._steps_size > most:
            self._steps_size -= len(self._steps.popleft().message)
        oldest = self._steps[0].version - 1 if self._steps else self.current.version
        self._marks = {mark: version for mark, version in self._marks.items() if version >= oldest}
        if self._base_version < oldest:
            self._base = ()
