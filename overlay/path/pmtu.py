"""How large a datagram a path takes: Datagram Packetization Layer Path MTU Discovery (DPLPMTUD, RFC 8899). Sans-I/O.

Sizes are bytes of UDP payload, whatever stands in it; a relay's envelope is part of it. A probe is a disco ping padded
to a size and sent with DF, on the way that data takes: its pong proves that the size passes, and no pong, after
`MAX_PROBES` tries, that it does not. Nothing else is believed: an ICMP "fragmentation needed" can be made up by who
guesses a port, and many a path sends none (RFC 8899 §4.6). Only our own kernel's refusal counts at once (`refused`).

    BASE      nothing is proven: a ladder of sizes is asked at the same time, the largest that is answered is used
    SEARCH    one size at a time upwards: usual sizes first, then halves of the gap that is left
    COMPLETE  the largest is found; larger ones are tried again after `PMTU_RAISE_TIMER`
    ERROR     nothing is answered, not even the smallest: that one is used, and the ladder asked more seldom

In SEARCH and COMPLETE the size in use is asked for again while much is sent with it (`CONFIRMATION_TIMER`); when that
finds no answer, the ladder below it is asked, and the data shrinks with its first answer: a black hole costs the
confirmation's interval, two round trips and a probe's timer. Without data there are no probes at all.

It knows no path, key or socket. Calls and their order: report (`data_sent`, `pong_received`, `refused`,
`handle_timeout`), then drain `probes_to_send`, and look at `size` and `timeout`.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from overlay.path.budget import Budget
from overlay.path.types import TXID_SIZE

MIN_PLPMTU: Final = 548
"""Bytes: 576, what every IPv4 host takes (RFC 791 §3.2), less 28 of IPv4 and UDP headers. Nothing smaller is tried."""

BASE_PLPMTU: Final = 1232
"""Bytes: 1280, what every IPv6 path takes (RFC 8200 §5), less 48 of IPv6 and UDP headers. (RFC 8899 §5.1.2: 1200.)"""

MAX_PLPMTU: Final = 8972
"""Bytes: 9000, the usual jumbo frame, less 28. A superpacket takes eight such datagrams, and eight of 9200."""

LADDER: Final = (1452, BASE_PLPMTU, MIN_PLPMTU)
"""Bytes. Asked all at once, largest first, on a path of which nothing is known: the first fits 1500, IPv4 or IPv6."""

STEPS: Final = (
    MIN_PLPMTU, BASE_PLPMTU, 1252, 1352, 1372, 1392, 1412, 1432, 1444, 1452, 1464, 1472,
    2256, 4304, 8452, 8952, MAX_PLPMTU,
)  # fmt: skip
"""Bytes: usual MTUs less 28 or 48: 576, 1280, 1400, 1420 (WireGuard), 1440, 1460, 1480 (tunnels), 1492 (PPPoE), 1500,
2304 (802.11), 4352 (FDDI, ATM), 8500 (clouds' gateways), 9000. Between two of them, `GRANULARITY` decides."""

GRANULARITY: Final = 16
"""Bytes: a gap of at most this is not searched: 16 bytes in 548 are 3 % of the path."""

FINE_BELOW: Final = 1472
"""Bytes: gaps above are not searched, steps alone count there. Each failure costs `MAX_PROBES` large datagrams, and
what lies between the steps is rare and gains little."""

MAX_PROBES: Final = 3
"""Tries of one size (RFC 8899 §5.1.2). The pauses between them double, so that a short outage is not taken for a
size."""

MAX_LADDERS: Final = 6
"""Ladders without any answer that make an error. Twice a probe's time each: an outage of a second changes nothing."""

PROBE_TIMER: Final = 0.5
MIN_PROBE_TIMER: Final = 0.15
MAX_PROBE_TIMER: Final = 2.0
"""s until a probe counts as lost, before the round trip is known, and the bounds of three round trips after. (RFC 8899
§5.1.1 asks for a second and more only where there is no round trip to go by.) An answer that comes later than that
counts all the same, so that a queue on the way does no harm."""

PMTU_RAISE_TIMER: Final = 600.0
"""s after which a larger size is tried again (RFC 8899 §5.1.1)."""

TICK: Final = 0.5
"""s between two looks at how much was sent."""

CONFIRMATION_TIMER: Final = 1.0
CONFIRMATION_DATAGRAMS: Final = 32
"""s between confirmations of the size in use, and how many of its datagrams the data must fill for each: at most 3 %
of the traffic …"""

SLOW_CONFIRMATION_TIMER: Final = 5.0
SLOW_CONFIRMATION_DATAGRAMS: Final = 4
"""… and for less traffic than that: a few small packets a minute are not worth a large one."""

QUIET: Final = 5.0
"""s without data after which nothing is asked any more, until there is data again."""

ERROR_PAUSE: Final = 2.0
"""s between two ladders while nothing is answered: a relay that starts again is back to large datagrams soon."""

PROBE_LIFE: Final = 5.0
"""s in which an answer counts. No usable path is slower."""

PROBE_RATE: Final = 4.0
PROBE_BURST: Final = 32.0
"""Occasions to probe per second, and at once, of one peer; a ladder is one. A search on a fast path needs the burst;
the rate bounds what a path that comes and goes can make us send."""

NEVER: Final = float("inf")


class State(Enum):
    """RFC 8899 §5.2."""

    BASE = "base"
    SEARCH = "search"
    COMPLETE = "complete"
    ERROR = "error"


class PathMtu:
    """One path, one direction. Times in s, monotonic; `random_bytes(n)` gives n unguessable bytes."""

    __slots__ = (
        "_answer_by", "_asked_total", "_budget", "_candidate", "_confirmed_at", "_confirming", "_initial", "_ladder_at",
        "_last_data", "_limit", "_outstanding", "_probes", "_random_bytes", "_rounds", "_rtt", "_search_at", "_tick_at",
        "_tries", "asleep", "size", "state", "timeout", "total", "waiting",
    )  # fmt: skip

    def __init__(self, initial: int, budget: Budget, random_bytes: Callable[[int], bytes], total: int = 0) -> None:
        """`initial`: the size that data has until the first answer. `budget`: shared by the paths of one peer.
        `total`: as in `data_sent`, so far."""
        self.state = State.BASE
        self.size = initial
        """Bytes that a datagram of data may have now."""
        self.asleep = True
        """Nothing is asked, no timer runs. Call `data_sent` when `total` is no longer what it was."""
        self.total = total
        self.timeout = NEVER
        """When `handle_timeout` is to be called."""
        self.waiting = False
        """There are probes to send."""
        self._initial = initial
        self._budget = budget
        self._random_bytes = random_bytes
        self._outstanding: dict[bytes, tuple[int, float]] = {}  # txid → (size, sent), oldest first
        self._probes: list[tuple[int, bytes]] = []
        self._rtt: float | None = None  # smoothed
        self._limit = MAX_PLPMTU + 1  # the smallest size that is known to fail
        self._confirmed_at = float("-inf")  # `size`, or a larger one
        self._confirming = False  # a confirmation or a ladder waits for an answer until `_answer_by`
        self._answer_by = NEVER
        self._rounds = 0  # ladders in a row without any answer
        self._ladder_at = 0.0  # when the present one was first asked
        self._candidate = 0  # the size that is searched for; 0: none
        self._tries = 0
        self._search_at = NEVER
        self._tick_at = NEVER
        self._last_data = float("-inf")
        self._asked_total = total  # what `total` was at the last confirmation

    # --- what the caller reports --------------------------------------------------------------------------------------

    def data_sent(self, total: int, now: float) -> None:
        """So many bytes of data went to the peer until now, on any path. To be called while `asleep`; else
        `handle_timeout` hears of it soon enough."""
        if total != self.total:
            self.total = total
            self._last_data = now
        if not self.asleep or now >= self._last_data + QUIET:
            return
        self.asleep = False
        self._tick_at = now + TICK
        if now >= self._confirmed_at + PMTU_RAISE_TIMER and self.state is not State.BASE:
            self._forget()
        if self.state in (State.BASE, State.ERROR):
            self._ask_ladder(now)
        else:
            if self.state is State.SEARCH:
                self._search(now)
            elif now >= self._search_at:
                self._raise(now)
            self._confirm_if_due(now)
        self._schedule()

    def pong_received(self, txid: bytes, now: float) -> bool:
        """An authentic pong came. False, and nothing changed, if no probe of this path asked for it."""
        asked = self._outstanding.pop(txid, None)
        if asked is None or now > asked[1] + PROBE_LIFE:
            return False
        size, sent = asked
        sample = now - sent
        self._rtt = sample if self._rtt is None else self._rtt + (sample - self._rtt) / 8  # RFC 6298 §2, alpha
        if size > self.size or (self._rounds and sent >= self._ladder_at and size < self.size):
            self._use(size, now)
        elif size == self.size:
            self._confirmed(now)
        self._schedule()
        return True

    def refused(self, size: int, now: float) -> None:
        """This machine's own kernel takes no datagram of `size`: its interface is too narrow."""
        self._limit = min(self._limit, size)
        self._outstanding = {txid: asked for txid, asked in self._outstanding.items() if asked[0] < size}
        self._probes = [probe for probe in self._probes if probe[0] < size]
        if size <= self.size:
            self.size = max((rung for rung in LADDER if rung < size), default=MIN_PLPMTU)
            self.state = State.BASE
            self._candidate = 0
            self._search_at = NEVER
            self._rounds = 0
            if not self.asleep:
                self._ask_ladder(now)
        elif self._candidate >= size:
            self._search(now)
        self._schedule()

    def handle_timeout(self, total: int, now: float) -> None:
        """To be called at `next_timeout`; earlier or later does no harm. `total`: as in `data_sent`."""
        if self.asleep:
            return
        if total != self.total:
            self.total = total
            self._last_data = now
        if now >= self._last_data + QUIET:
            self.rest(total)
            return
        if now >= self._answer_by:
            self._ask_ladder(now)
        if now >= self._search_at:
            if self.state is State.COMPLETE:
                self._raise(now)
            else:
                self._try(now)
        if now >= self._tick_at:
            self._tick_at = now + TICK
            self._confirm_if_due(now)
        self._schedule()

    def rest(self, total: int) -> None:
        """Data goes another way, or there is none: ask nothing until there is. What was found stays known."""
        self.total = total
        self.asleep = True
        self.waiting = False
        self.timeout = NEVER
        self._probes = []
        self._confirming = False
        self._answer_by = NEVER
        self._rounds = 0
        self._tick_at = NEVER
        if self.state is not State.COMPLETE:
            self._candidate = 0
            self._search_at = NEVER

    # --- what the caller drains ---------------------------------------------------------------------------------------

    def probes_to_send(self) -> list[tuple[int, bytes]]:
        """Sizes of the pings to send now, in this order, each with its transaction id."""
        probes, self._probes = self._probes, []
        self.waiting = False
        return probes

    def _schedule(self) -> None:
        """Runs after every change, so that asking for the timeout costs nothing."""
        self.timeout = NEVER if self.asleep else min(self._tick_at, self._answer_by, self._search_at)

    # --- the ladder: nothing is known, or nothing is sure any more ----------------------------------------------------

    def _ask_ladder(self, now: float) -> None:
        """Ask all rungs at once; once more each time that none was answered."""
        if not self._budget.take(now):
            self._confirming = True
            self._answer_by = self._budget.available_at(now)
            return
        if self._rounds == 0:
            self._ladder_at = now
        elif self.state is State.BASE:
            self.size = min(self.size, BASE_PLPMTU)
        self._candidate = 0
        if self.state is not State.COMPLETE:
            self._search_at = NEVER
        self._confirming = True
        if self._rounds >= MAX_LADDERS:
            self.state = State.ERROR
            self._search_at = NEVER
            self.size = MIN_PLPMTU
            self._answer_by = now + max(ERROR_PAUSE, self._timer(1))
        else:
            self._rounds += 1
            self._answer_by = now + self._timer(1)
        known = self.state not in (State.BASE, State.ERROR)
        rungs = {rung for rung in LADDER if rung < self._limit and (not known or rung < self.size)}
        for size in sorted(rungs | {self.size} if known else rungs, reverse=True):
            self._ask(size, now)

    def _use(self, size: int, now: float) -> None:
        """This size passes: data may have it from now on."""
        self.size = size
        self.state = State.SEARCH
        if size >= self._limit:
            self._limit = MAX_PLPMTU + 1  # what failed before was something else
        self._candidate = 0
        self._confirmed(now)

    def _confirmed(self, now: float) -> None:
        self._confirmed_at = now
        self._confirming = False
        self._answer_by = NEVER
        self._rounds = 0
        if self.state is not State.COMPLETE and not self._candidate:
            self.state = State.SEARCH
            if not self.asleep:
                self._search(now)

    def _confirm_if_due(self, now: float) -> None:
        """Is the size in use asked for again? Only if something would be lost with it."""
        if self._confirming or self.size <= MIN_PLPMTU or self.state in (State.BASE, State.ERROR):
            return
        age, sent = now - self._confirmed_at, self.total - self._asked_total
        much = age >= CONFIRMATION_TIMER and sent >= CONFIRMATION_DATAGRAMS * self.size
        little = age >= SLOW_CONFIRMATION_TIMER and sent >= SLOW_CONFIRMATION_DATAGRAMS * self.size
        if (much or little) and self._budget.take(now):
            self._asked_total = self.total
            self._confirming = True
            self._answer_by = now + self._timer(0)
            self._ask(self.size, now)

    def _forget(self) -> None:
        """What was known is too old to begin with."""
        self.state = State.BASE
        self.size = self._initial
        self._limit = MAX_PLPMTU + 1
        self._candidate = 0
        self._search_at = NEVER

    # --- the search ---------------------------------------------------------------------------------------------------

    def _search(self, now: float) -> None:
        """Go for the next larger size, or be content."""
        self._candidate = self._next_candidate()
        self._tries = 0
        if self._candidate:
            self.state = State.SEARCH
            self._try(now)
        else:
            self.state = State.COMPLETE
            self._search_at = now + PMTU_RAISE_TIMER

    def _next_candidate(self) -> int:
        step = next((step for step in STEPS if step > self.size), 0)
        if step and step < self._limit:
            return step
        if self._limit <= FINE_BELOW and self._limit - self.size > GRANULARITY:
            return (self.size + self._limit) // 2
        return 0

    def _try(self, now: float) -> None:
        if self._tries >= MAX_PROBES:
            self._limit = min(self._limit, self._candidate)
            self._search(now)
        elif self._budget.take(now):
            self._search_at = now + self._timer(self._tries)
            self._tries += 1
            self._ask(self._candidate, now)
        else:
            self._search_at = self._budget.available_at(now)

    def _raise(self, now: float) -> None:
        self._limit = MAX_PLPMTU + 1
        self._search(now)

    # --- probes -------------------------------------------------------------------------------------------------------

    def _timer(self, tries: int) -> float:
        """s until the probe after `tries` lost ones counts as lost."""
        timer = PROBE_TIMER if self._rtt is None else min(max(MIN_PROBE_TIMER, 3.0 * self._rtt), MAX_PROBE_TIMER)
        return timer * float(2**tries)

    def _ask(self, size: int, now: float) -> None:
        for txid, (_, sent) in list(self._outstanding.items()):
            if now - sent <= PROBE_LIFE:
                break
            del self._outstanding[txid]
        txid = self._random_bytes(TXID_SIZE)
        self._outstanding[txid] = (size, now)
        self._probes.append((size, txid))
        self.waiting = True
