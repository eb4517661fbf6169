"""What waits for one way out, by whom it came from: deficit round robin (Shreedhar and Varghese 1995), bounded.

Each flow that has something waiting gets its turn, and in each turn a quantum of bytes: who sends much waits behind
itself. A flow may be bound to a token bucket besides: it then sits out until there are tokens, and takes nobody's turn.

Bounds: a flow holds `flow_limit` bytes at most and all together `total_limit`; a flow may also not hold more than what
is left of the total (a dynamic threshold, Choudhury and Hahne 1998). So n flows that want all get total / (n + 1) each,
and whoever comes next still finds room. What does not fit is refused at the tail, before anybody copied it: a flood
then costs its sender's queue and nothing else. Refusing at the head instead would tell the sender one queue's length
sooner, at the price of copying all of a flood in order to throw it away.

No clock, no socket; knows nothing of what waits but its size. `now` in seconds, monotonic.
"""

import heapq
from collections import deque
from typing import Final, Generic, TypeVar

from overlay.path.budget import Budget

T = TypeVar("T")

ITEM_OVERHEAD: Final = 256
"""Bytes that an item costs besides its own, as the limits count: many small ones must not take more memory."""


class _Flow(Generic[T]):
    __slots__ = ("budget", "credit", "held", "items", "key")

    def __init__(self, key: int, credit: int, budget: Budget | None) -> None:
        self.key = key
        self.credit = credit  # bytes that it may send before the next flow's turn
        self.budget = budget
        self.items: deque[tuple[T, int]] = deque()
        self.held = 0  # bytes and overhead of all items


class FairQueue(Generic[T]):
    """Items of flows, each flow known by a number. Look at `head`, send it, `pop` it."""

    def __init__(self, quantum: int, flow_limit: int, total_limit: int) -> None:
        """`quantum`: bytes of a turn, at least those of the largest item: then `head` passes each flow once at most."""
        self._quantum = quantum
        self._flow_limit = flow_limit
        self._total_limit = total_limit
        self._held = 0
        self._flows: dict[int, _Flow[T]] = {}  # those that have something waiting
        self._turns: deque[_Flow[T]] = deque()  # of them, those that may send
        self._resting: list[tuple[float, int, _Flow[T]]] = []  # those that wait for tokens; a heap by time
        self._serial = 0  # breaks ties: flows have no order

    def __contains__(self, key: int) -> bool:
        """Has this flow something waiting? What comes next must go behind it."""
        return key in self._flows

    def __len__(self) -> int:
        """Flows that have something waiting."""
        return len(self._flows)

    @property
    def held(self) -> int:
        """Bytes that wait, with their overhead; `total_limit` at most."""
        return self._held

    @property
    def ready(self) -> bool:
        """Some flow waits for its turn, not for tokens."""
        return bool(self._turns)

    @property
    def is_last(self) -> bool:
        """Is what waits one item?"""
        return len(self._flows) == 1 and all(len(flow.items) == 1 for flow in self._flows.values())

    def room(self, key: int, size: int, limit: int | None = None) -> bool:
        """May flow `key` have `size` bytes more wait? `limit`: bytes for this flow, instead of `flow_limit`."""
        flow = self._flows.get(key)
        wanted = size + ITEM_OVERHEAD + (0 if flow is None else flow.held)
        return wanted <= (self._flow_limit if limit is None else limit) and wanted <= self._total_limit - self._held

    def push(self, key: int, item: T, size: int, now: float, budget: Budget | None = None) -> None:
        """Put `item`, for which there is `room`, behind the flow's others. `budget`: whose tokens its bytes cost."""
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(key, self._quantum, budget)
            if budget is not None and (tokens_at := budget.available_at(now, size)) > now:
                self._rest(flow, tokens_at)
            else:
                self._turns.append(flow)
        flow.items.append((item, size))
        flow.held += size + ITEM_OVERHEAD
        self._held += size + ITEM_OVERHEAD

    def head(self, now: float) -> T | None:
        """The item whose turn it is, None: nobody may send now. Asking again gives the same one."""
        self._wake(now)
        turns = self._turns
        while turns:
            flow = turns[0]
            item, size = flow.items[0]
            if flow.budget is not None and (tokens_at := flow.budget.available_at(now, size)) > now:
                turns.popleft()
                self._rest(flow, tokens_at)
            elif flow.credit < size:
                flow.credit += self._quantum
                turns.rotate(-1)
            else:
                return item
        return None

    def pop(self, now: float, *, sent: bool = True) -> None:
        """Take out what `head` gave just now. If it was not `sent`, it costs neither its turn nor tokens."""
        flow = self._turns[0]
        _, size = flow.items.popleft()
        flow.held -= size + ITEM_OVERHEAD
        self._held -= size + ITEM_OVERHEAD
        if sent:
            flow.credit -= size
            if flow.budget is not None:
                flow.budget.take(now, size)
        if not flow.items:
            self._turns.popleft()
            del self._flows[flow.key]

    def remove(self, key: int) -> list[T]:
        """Forget a flow; what it had waiting, in order."""
        flow = self._flows.pop(key, None)
        if flow is None:
            return []
        self._held -= flow.held
        if flow in self._turns:
            self._turns.remove(flow)
        else:
            self._resting = [entry for entry in self._resting if entry[2] is not flow]
            heapq.heapify(self._resting)
        return [item for item, _ in flow.items]

    def clear(self) -> list[T]:
        """Forget all flows; what they had waiting."""
        return [item for key in list(self._flows) for item in self.remove(key)]

    def next_timeout(self) -> float | None:
        """When a flow that waits for tokens has them; None: none does."""
        return self._resting[0][0] if self._resting else None

    def _rest(self, flow: _Flow[T], until: float) -> None:
        self._serial += 1
        heapq.heappush(self._resting, (until, self._serial, flow))

    def _wake(self, now: float) -> None:
        while self._resting and self._resting[0][0] <= now:
            flow = heapq.heappop(self._resting)[2]
            flow.credit = max(flow.credit, self._quantum)  # as one that just came: it had no turns to save up from
            self._turns.append(flow)
