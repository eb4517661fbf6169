"""Virtual time: what a test or simulation runs sans-I/O machines by. Hours pass in milliseconds, and always the same
way."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

_STUCK = 10_000  # actions at one instant: no honest simulation comes near it


class Timed(Protocol):
    """A machine with a timer, as all of `overlay.wire` and `overlay.path` have it."""

    def next_timeout(self) -> float | None: ...

    def handle_timeout(self, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class _Watched:
    machine: Timed
    after: Callable[[], None]


class VirtualClock:
    """Time that passes only when told to. Actions at the same instant run in the order in which they were asked for."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        """s, monotonic; does not start at 0, as no machine may take 0 for "never"."""
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._watched: list[_Watched] = []

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Run `action` at `when`; at once in the next step if that is past."""
        heapq.heappush(self._actions, (max(when, self.now), next(self._order), action))

    def watch(self, machine: Timed, after: Callable[[], None]) -> None:
        """Call the machine's `handle_timeout` when it asks for it, and `after` then, which drains what it has to
        say."""
        self._watched.append(_Watched(machine, after))

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due meanwhile.

        Raises `AssertionError` when a machine asks for the same instant for ever.
        """
        end = self.now + seconds
        while (due := self.next_due()) is not None and due <= end:
            self._run(max(due, self.now))
        self.now = end

    def run_until(self, done: Callable[[], bool], within: float) -> bool:
        """Let time pass till `done()`, or for `within` seconds. Returns `done()`; stops at the instant of the
        change."""
        end = self.now + within
        while not done():
            due = self.next_due()
            if due is None or due > end:
                self.now = end
                return done()
            self._run(max(due, self.now))
        return True

    def next_due(self) -> float | None:
        """When something happens next; None: nothing ever will."""
        times = [self._actions[0][0]] if self._actions else []
        times += [when for each in self._watched if (when := each.machine.next_timeout()) is not None]
        return min(times, default=None)

    def _run(self, now: float) -> None:
        """Everything that is due at `now`."""
        self.now = now
        for _ in range(_STUCK):
            if self._actions and self._actions[0][0] <= now:
                heapq.heappop(self._actions)[2]()
                continue
            for each in self._watched:
                when = each.machine.next_timeout()
                if when is not None and when <= now:
                    each.machine.handle_timeout(now)
                    each.after()
                    break
            else:
                return
        raise AssertionError(f"time does not move past {now}")
