"""How much goes through an exposure: counted always, held back where something is set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from overlay.carrier.forward import Forwardable, Forwarded, Forwarding, forward_streams
from overlay.carrier.streams import OverTcp
from overlay.server.access.bandwidth import Bandwidth, Pace


class Meter:
    """`up` is towards the target, `down` towards the user; None: as fast as it goes."""

    def __init__(self) -> None:
        self.up: Pace | None = None
        self.down: Pace | None = None
        self._own: tuple[Bandwidth, Bandwidth] | None = None
        self._shared: tuple[Bandwidth, Bandwidth] | None = None
        self._passed = 0  # bytes since the last `collect`, but for those that are followed
        self._followed: dict[int, tuple[Callable[[], int], int]] = {}  # what to ask, and what it said last
        self._next = 0

    @property
    def paces(self) -> tuple[Pace, Pace] | None:
        return (self.up, self.down) if self.up is not None and self.down is not None else None

    def limit(self, rate: float, shared: tuple[Bandwidth, Bandwidth] | None = None) -> None:
        """`rate`: bytes per second each way of this exposure, 0: any; `shared`: with the others of its node."""
        if self._own is None or self._own[0].rate != rate:
            self._own = (Bandwidth(rate), Bandwidth(rate)) if rate else None
        self._shared = shared
        ways = [each for each in (self._own, self._shared) if each is not None]
        self.up = Pace([each[0] for each in ways]) if ways else None
        self.down = Pace([each[1] for each in ways]) if ways else None

    def takes(self, size: int, up: bool) -> bool:
        """Whether a datagram of `size` may go towards the target (`up`) or the user."""
        pace = self.up if up else self.down
        return pace is None or pace.take(size)

    def add(self, size: int) -> None:
        self._passed += size

    def follow(self, count: Callable[[], int]) -> Callable[[], None]:
        """What `count` says grows until the function returned is called."""
        key, self._next = self._next, self._next + 1
        self._followed[key] = (count, count())

        def end() -> None:
            _, before = self._followed.pop(key)
            self._passed += count() - before

        return end

    @contextmanager
    def following(self, count: Callable[[], int]) -> Iterator[None]:
        """What `count` says grows while it is used."""
        end = self.follow(count)
        try:
            yield
        finally:
            end()

    def collect(self) -> int:
        """→ bytes since the last time."""
        passed, self._passed = self._passed, 0
        for key, (count, before) in self._followed.items():
            now = count()
            passed += now - before
            self._followed[key] = (count, now)
        return passed


async def forward_metered(user: Forwardable, target: Forwardable, meter: Meter) -> Forwarded:
    """`forward_streams`, counted and held back."""
    forwarded = Forwarded()
    with meter.following(forwarded.passed):
        return await forward_streams(user, target, forwarded, meter.paces)


def forward_counted(user: OverTcp, target: OverTcp, meter: Meter, ended: Callable[[], object]) -> Forwarding:
    """`Forwarding`, counted; where nothing is held back."""
    forwarded = Forwarded()
    follow_no_more = meter.follow(forwarded.passed)

    def end() -> None:
        follow_no_more()
        ended()

    return Forwarding(user, target, forwarded, end)
