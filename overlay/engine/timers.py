"""One heap of deadlines for everything in the engine that waits. No clock: `now` is an argument.

An owner has at most one deadline that counts. Moving it earlier costs a heap push; moving it later costs nothing, since
whoever is woken too early says so and is armed again. That is what makes timers that every packet moves affordable.
"""

import heapq
from typing import Protocol


class Waiter(Protocol):
    """What can be armed. `armed` is this module's: the deadline that counts, None: not armed."""

    armed: float | None


class Timers:
    """Deadlines in s, on the engine's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiter]] = []
        self._serial = 0  # breaks ties: waiters have no order

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, waiter: Waiter, deadline: float | None) -> None:
        """Have `waiter` come out of `due` at `deadline` or before; None: no need."""
        if deadline is None or (waiter.armed is not None and waiter.armed <= deadline):
            return
        waiter.armed = deadline
        self._serial += 1
        heapq.heappush(self._heap, (deadline, self._serial, waiter))

    def next(self) -> float | None:
        """The earliest deadline, None if there is none."""
        heap = self._heap
        while heap and heap[0][2].armed != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[Waiter]:
        """Take out all whose deadline has come; each is to be armed again if it still waits."""
        found: list[Waiter] = []
        while self._heap and self._heap[0][0] <= now:
            deadline, _, waiter = heapq.heappop(self._heap)
            if waiter.armed == deadline:
                waiter.armed = None
                found.append(waiter)
        return found
