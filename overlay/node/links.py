"""Data links: relayed packets over a stream, while the relay is not reached by UDP.

`LinkWish` decides when one is wanted, in virtual time; `DataLinks` dials, attaches, and hands the stream to the engine.
It never sees a packet.
"""

import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import anyio

from overlay.carrier.carriers import CarrierName, Detached
from overlay.carrier.connection import ConnectionLost, ControlConnection
from overlay.engine.api import AddLink, Command, LinkLost, RelayChanged, RemoveLink
from overlay.errors import UserError
from overlay.node.backoff import Backoff
from overlay.wire.control.messages import Attach, Attached, Refused

ATTACH_TIMEOUT: Final = 10.0  # s for the server's answer
UNDECIDED: Final = 2.0
"""s from the start in which UDP may show that it works: the engine's own pings tell within one round trip."""
KEPT: Final = 60.0
"""s that UDP must have been the way to the relay before a link is given up: what comes and goes must find it ready."""
LINK_HOST: Final = "@link"
"""Stands for an address where the relay is reached by a link."""

_log = logging.getLogger(__name__)

Dial = Callable[[Sequence[CarrierName]], Awaitable[ControlConnection]]


class LinkWish:
    """Whether a link is wanted. Times in s."""

    def __init__(self, now: float, *, udp: bool, in_vain: bool = False) -> None:
        """`udp`: the relay may be reached by UDP at all. `in_vain`: something else tried just now, and came through by
        another way: a link is made at once, lest the first packet wait until the relay has proven silent."""
        self._udp = udp
        self._needed = in_vain or not udp
        self._undecided_until: float | None = None if self._needed else now + UNDECIDED
        self._udp_since: float | None = None

    def relay_changed(self, change: RelayChanged, now: float) -> None:
        by_link = change.endpoint is not None and change.endpoint[0] == LINK_HOST
        works = change.endpoint is not None and not by_link and not change.suspect
        if not works:
            self._udp_since = None
        elif self._udp_since is None:
            self._udp_since = now
        if works or by_link:
            self._undecided_until = None
        elif self._undecided_until is None or change.suspect:
            self._needed = True
            self._undecided_until = None

    def wanted(self, now: float) -> bool:
        if self._undecided_until is not None and now >= self._undecided_until:
            self._needed, self._undecided_until = True, None
        if self._udp and self._udp_since is not None and now >= self._udp_since + KEPT:
            self._needed = False
        return self._needed

    def next_timeout(self) -> float | None:
        """When `wanted` may say something else by itself."""
        if self._undecided_until is not None:
            return self._undecided_until
        if self._needed and self._udp and self._udp_since is not None:
            return self._udp_since + KEPT
        return None


class DataLinks:
    """At most one link at a time. `run` while there is an engine; each run has its own links."""

    def __init__(
        self,
        dial: Dial,
        carriers: Callable[[], Sequence[CarrierName]],
        post: Callable[[Command], None],
        *,
        udp: bool,
        udp_in_vain: Callable[[], bool] = lambda: False,
        numbers: Iterator[int] | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`carriers`: those that can carry a link now, best first. `udp`: the relay may be reached by UDP at all.
        `udp_in_vain`: the control connection tried it in vain. `numbers`: for links, shared with whoever else adds
        some; None: nobody does."""
        self.carrier: CarrierName | None = None  # of the link while there is one
        self.in_use = False  # relayed packets go over the link
        self.last_error = ""
        self._dial = dial
        self._carriers = carriers
        self._post = post
        self._udp = udp
        self._udp_in_vain = udp_in_vain
        self._uniform = uniform
        self._numbers = numbers or itertools.count(1)
        self._link: int | None = None
        self._wish: LinkWish | None = None
        self._last_change: RelayChanged | None = None  # of this engine, which may be there before `run`
        self._failed: list[CarrierName] = []  # whose links broke, the latest last
        self._backoff = Backoff(uniform)
        self._since = 0.0
        self._retry_at = 0.0
        self._news = anyio.Event()

    async def run(self) -> None:
        """Until cancelled. The engine closes what was handed to it when it ends."""
        self._wish = LinkWish(anyio.current_time(), udp=self._udp, in_vain=self._udp_in_vain())
        if self._last_change is not None:
            self._wish.relay_changed(self._last_change, anyio.current_time())
        self._forget()
        self._backoff, self._retry_at, self._failed = Backoff(self._uniform), 0.0, []
        try:
            while True:
                self._news = news = anyio.Event()
                now = anyio.current_time()
                wanted = self._wish.wanted(now)
                if not wanted and self._link is not None:
                    self._give_up()
                elif wanted and self._link is None and now >= self._retry_at:
                    await self._open()
                    continue
                timeouts = [self._wish.next_timeout()]
                if wanted and self._link is None:
                    timeouts.append(self._retry_at)
                with anyio.move_on_at(min((each for each in timeouts if each is not None), default=float("inf"))):
                    await news.wait()
        finally:
            self._wish = self._last_change = None
            self._forget()

    def relay_changed(self, change: RelayChanged) -> None:
        """The engine's event."""
        self._last_change = change
        self.in_use = change.endpoint is not None and change.endpoint[0] == LINK_HOST
        if self._wish is not None:
            self._wish.relay_changed(change, anyio.current_time())
            self._news.set()

    def link_lost(self, lost: LinkLost) -> None:
        """The engine's event."""
        if lost.number != self._link or self.carrier is None:
            return  # one of before
        now = anyio.current_time()
        _log.info("the data link by %s is lost: %s", self.carrier, lost.reason)
        self._put_last(self.carrier)
        self._backoff.lasted(now - self._since)
        self._forget()
        self._retry_at = now + self._backoff.next()
        self._news.set()

    def server_is_back(self) -> None:
        """The control connection works again: a link that waits for its next try need not wait any longer."""
        self._retry_at = 0.0
        self._news.set()

    def link_changed(self) -> None:
        """The machine's addresses or routes are others: what failed may work now."""
        self._retry_at = 0.0
        self._failed.clear()
        self._news.set()

    # inside ----------------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._link, self.carrier, self.in_use = None, None, False

    async def _open(self) -> None:
        try:
            detached, carrier = await self._attached()
        except UserError as error:
            self.last_error = error.message
            _log.debug("no data link: %s", error.message)
            self._retry_at = anyio.current_time() + self._backoff.next()
            return
        number = next(self._numbers)
        self._link, self.carrier, self.last_error = number, carrier, ""
        self._since = anyio.current_time()
        _log.info("packets may go to the relay by %s", carrier)
        self._post(AddLink(number=number, handed=detached, client=None, carrier=carrier))

    async def _attached(self) -> tuple[Detached, CarrierName]:
        """A stream that the server has attached. Raises `UserError`."""
        # What broke last comes last; who never broke keeps the order of the control connection's choice.
        carriers = sorted(
            self._carriers(), key=lambda carrier: self._failed.index(carrier) if carrier in self._failed else -1
        )
        if not carriers:
            raise UserError("no-carrier", "No carrier is allowed that could carry packets in place of UDP.")
        connection = await self._dial(carriers)
        try:
            with anyio.fail_after(ATTACH_TIMEOUT):
                connection.expect_last()
                await connection.send(Attach())
                answer = await connection.receive()
                if isinstance(answer, Refused):
                    raise UserError(answer.code, answer.message, answer.hint)
                if not isinstance(answer, Attached):
                    raise UserError("protocol", f"The server began with {type(answer).__name__}.")
                detached = await connection.detach()
        except (ConnectionLost, TimeoutError) as error:
            self._put_last(connection.carrier)
            raise UserError("link-lost", f"The data link was not attached: {error or 'no answer'}.") from error
        finally:
            connection.lose("closed")  # not the socket, if it was given away
        if detached is None:
            raise UserError("no-carrier", f"The carrier {connection.carrier} cannot be handed on.")
        return detached, connection.carrier

    def _give_up(self) -> None:
        assert self._link is not None
        _log.info("UDP is back: the data link by %s is not needed any more", self.carrier)
        self._post(RemoveLink(self._link))
        self._forget()
        self._backoff = Backoff(self._uniform)

    def _put_last(self, carrier: CarrierName) -> None:
        if carrier in self._failed:
            self._failed.remove(carrier)
        self._failed.append(carrier)
