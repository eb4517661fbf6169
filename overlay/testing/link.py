"""One direction of a network between two ends, in virtual time: late, lossy, out of order, doubled, cut, or too
narrow."""

from collections import Counter
from collections.abc import Callable
from random import Random

from overlay.testing.clock import VirtualClock


class Link:
    """Datagrams that go in by `send` come out at `deliver`, or do not. The same seed gives the same fates.

    `latency` and `jitter` in s (jitter: uniform on top, and it reorders); `loss`, `duplicate` and `reorder` are
    probabilities, a reordered datagram comes late by `reorder_by` s; `mtu` is the largest datagram in bytes.
    """

    def __init__(
        self,
        clock: VirtualClock,
        deliver: Callable[[bytes], None],
        *,
        latency: float = 0.010,
        jitter: float = 0.0,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        reorder_by: float = 0.020,
        mtu: int = 65_507,
        seed: int = 0,
    ) -> None:
        self.latency = latency
        self.jitter = jitter
        self.loss = loss
        self.duplicate = duplicate
        self.reorder = reorder
        self.reorder_by = reorder_by
        self.mtu = mtu
        self.fates: Counter[str] = Counter()
        """How many were sent, delivered, lost, cut, doubled, reordered, too_big."""
        self._clock = clock
        self._deliver = deliver
        self._random = Random(seed)
        self._generation = 0
        self._cut = False

    def send(self, datagram: bytes | bytearray | memoryview) -> None:
        self.fates["sent"] += 1
        if self._cut:
            self.fates["cut"] += 1
        elif len(datagram) > self.mtu:
            self.fates["too_big"] += 1
        elif self._happens(self.loss):
            self.fates["lost"] += 1
        else:
            self._carry(bytes(datagram))
            if self._happens(self.duplicate):
                self.fates["doubled"] += 1
                self._carry(bytes(datagram))

    def cut(self) -> None:
        """Nothing comes through any more, nor what is under way."""
        self._cut = True
        self._generation += 1

    def mend(self) -> None:
        self._cut = False

    def _happens(self, probability: float) -> bool:
        # No draw where nothing can happen, so that turning one fault on leaves the others' fates as they were.
        return probability > 0.0 and self._random.random() < probability

    def _carry(self, datagram: bytes) -> None:
        delay = self.latency
        if self.jitter > 0.0:
            delay += self._random.random() * self.jitter
        if self._happens(self.reorder):
            self.fates["reordered"] += 1
            delay += self.reorder_by
        generation = self._generation

        def arrive() -> None:
            if generation != self._generation:
                self.fates["cut"] += 1
                return
            self.fates["delivered"] += 1
            self._deliver(datagram)

        self._clock.at(self._clock.now + delay, arrive)
