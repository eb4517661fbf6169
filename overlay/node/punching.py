"""TCP to peers where UDP does not get through: when the engine wants it, or a peer calls, one attempt is made, and the
connection that comes of it given to the engine as a link. Whom to connect to and when is `overlay.path.tcp_punch`'s
business, the sockets are `overlay.node.tcp_punch`'s.

Whoever begins asks the server how a new port of his looks from outside, and tells the peer by a call-me, through the
relay and sealed. The peer does the same and answers; then both connect at the same moment. If both called, the call of
the node with the lower number counts.
"""

import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from overlay.engine.api import (
    SERVER_NUMBER,
    AddLink,
    Command,
    CueReceived,
    LinkLost,
    Network,
    RemoveLink,
    SendCue,
    WantTcp,
)
from overlay.errors import RemoteProtocolError
from overlay.node.tcp_punch import Observe, Proof, Punched, TcpPort, punch
from overlay.path.nat import UNKNOWN_NAT, NatBehaviour
from overlay.path.punch import predicted
from overlay.path.tcp_punch import MAX_ATTEMPTS, Limits, TcpAttempt, Turns, decides, is_worth, targets
from overlay.wire.disco import CALL_ID_SIZE, MAX_OFFERS, CallMe, DiscoKey, Offer
from overlay.wire.endpoint import Endpoint

ANSWER_TIME: Final = 4.0
"""s that a peer may take to answer a call: it asks the server how its port looks, and two ways through the relay."""

WAITING: Final = 256
"""Events that wait to be looked at; what comes beyond is said again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Own:
    """Who we are while the engine runs."""

    number: int
    networks: Sequence[Network]


@dataclass(slots=True)
class _Pair:
    turns: Turns = field(default_factory=Turns)
    calling: bytes = b""  # the id of our call that waits for its answer
    heard: CueReceived | None = None  # the answer, or the peer's own call that counts instead
    news: anyio.Event = field(default_factory=anyio.Event)
    link: int | None = None  # that the engine has

    def call(self, id: bytes) -> None:
        self.calling, self.heard, self.news = id, None, anyio.Event()


class TcpPunching:
    """`run` while there is an engine. All methods are for the event loop."""

    def __init__(
        self,
        private_key: bytes,
        post: Callable[[Command], None],
        observe: Observe,
        local: Callable[[int], Awaitable[Iterable[Endpoint]]],
        public_key: Callable[[int], bytes | None],
        nat: Callable[[], NatBehaviour],
        numbers: Iterator[int],
    ) -> None:
        """`local`: this machine's own endpoints with that port. `public_key`: of a node. `nat`: ours. `numbers`: for
        links, shared with whoever else adds some."""
        self.drops: Counter[str] = Counter()
        self._private_key = private_key
        self._post = post
        self._observe = observe
        self._local = local
        self._public_key = public_key
        self._nat = nat
        self._numbers = numbers
        self._limits = Limits()
        self._pairs: dict[int, _Pair] = {}
        self._running = 0
        self._events: MemoryObjectSendStream[CueReceived | WantTcp] | None = None

    def received(self, event: CueReceived | WantTcp | LinkLost) -> None:
        """The engine's event."""
        if isinstance(event, LinkLost):
            for pair in self._pairs.values():
                if pair.link == event.number:
                    pair.link = None
                    _log.debug("the TCP connection to a peer is lost: %s", event.reason)
            return
        if self._events is None:
            return  # it is said again
        try:
            self._events.send_nowait(event)
        except anyio.WouldBlock:
            self.drops["tcp_crowded"] += 1

    async def run(self, own: Own) -> None:
        """Until cancelled. The engine closes what was handed to it when it ends."""
        self._running, self._pairs = 0, {}
        self._events, taken = anyio.create_memory_object_stream[CueReceived | WantTcp](WAITING)
        try:
            async with self._events, taken, anyio.create_task_group() as tasks:
                while True:
                    self._take(await taken.receive(), own, tasks)
        finally:
            self._events = None

    def _take(self, event: CueReceived | WantTcp, own: Own, tasks: TaskGroup) -> None:
        if event.number in (SERVER_NUMBER, own.number):
            return  # the server is reached by carriers
        pair = self._pairs.setdefault(event.number, _Pair())
        if isinstance(event, CueReceived) and pair.calling:
            ours = event.call.answer and event.call.id == pair.calling
            if ours or (not event.call.answer and not decides(own.number, event.number)):
                pair.heard = event
                pair.news.set()
            return
        if isinstance(event, CueReceived) and event.call.answer:
            return  # too late
        if self._running >= MAX_ATTEMPTS or pair.turns.running:
            self.drops["tcp_busy"] += 1
        elif isinstance(event, WantTcp):
            self._begin(pair)
            tasks.start_soon(self._call, own, pair, event)
        elif pair.turns.cued(anyio.current_time()):
            self._begin(pair)
            tasks.start_soon(self._answer, own, pair, event)
        else:
            self.drops["tcp_cue_rate"] += 1

    def _begin(self, pair: _Pair) -> None:
        pair.turns.running = True
        self._running += 1

    def _end(self, pair: _Pair, port: TcpPort | None) -> None:
        pair.turns.running = False
        pair.calling = b""
        self._running -= 1
        if port is not None:
            port.close()

    async def _call(self, own: Own, pair: _Pair, wish: WantTcp) -> None:
        """We want it: tell the peer, and begin when its answer is there."""
        port = None
        try:
            pair.call(secrets.token_bytes(CALL_ID_SIZE))  # the peer may call while we look at our port
            port, offers = await self._open()
            if pair.heard is None:
                self._send(wish.number, pair.calling, wish.half_rtt, offers, answer=False)
                with anyio.move_on_after(ANSWER_TIME):
                    await pair.news.wait()
            pair.calling = b""
            heard = pair.heard
            if heard is None:
                _log.debug("node %d does not answer the call for TCP", wish.number)
            elif heard.call.answer:
                await self._attempt(own, pair, heard, port, offers, anyio.current_time())
            else:
                await self._answered(own, pair, heard, port, offers)
        except OSError as error:
            _log.debug("no TCP to node %d: %s", wish.number, error)
        finally:
            self._end(pair, port)

    async def _answer(self, own: Own, pair: _Pair, cue: CueReceived) -> None:
        """The peer wants it."""
        port = None
        try:
            port, offers = await self._open()
            await self._answered(own, pair, cue, port, offers)
        except OSError as error:
            _log.debug("no TCP to node %d: %s", cue.number, error)
        finally:
            self._end(pair, port)

    async def _answered(
        self, own: Own, pair: _Pair, cue: CueReceived, port: TcpPort, offers: tuple[Offer, ...]
    ) -> None:
        self._send(cue.number, cue.call.id, cue.half_rtt, offers, answer=True)
        start = anyio.current_time() + (cue.call.half_rtt or cue.half_rtt)  # when the answer is there
        await self._attempt(own, pair, cue, port, offers, start)

    async def _open(self) -> tuple[TcpPort, tuple[Offer, ...]]:
        port = TcpPort()
        try:
            await port.observe(self._observe)
            offers = {endpoint: Offer(endpoint, "interface") for endpoint in await self._local(port.port)}
            if port.observed is not None:
                offers.setdefault(port.observed, Offer(port.observed, "observed"))
                for endpoint in predicted(self._nat(), port.observed):
                    offers.setdefault(endpoint, Offer(endpoint, "predicted"))
        except BaseException:
            port.close()
            raise
        # The last ones are those that the NAT will give: a machine with many addresses shows fewer of them.
        found = tuple(offers.values())
        outside = tuple(offer for offer in found if offer.origin != "interface")
        inside = tuple(offer for offer in found if offer.origin == "interface")
        return port, inside[: MAX_OFFERS - len(outside)] + outside

    def _send(self, number: int, id: bytes, half_rtt: float, offers: tuple[Offer, ...], *, answer: bool) -> None:
        call = CallMe(
            id=id, answer=answer, way="tcp", half_rtt=half_rtt, nat=self._nat().pack(), offers=offers[:MAX_OFFERS]
        )
        self._post(SendCue(number, call))

    async def _attempt(
        self, own: Own, pair: _Pair, cue: CueReceived, port: TcpPort, offers: tuple[Offer, ...], start: float
    ) -> None:
        number, key = cue.number, self._public_key(cue.number)
        try:
            disco = None if key is None else DiscoKey(self._private_key, key)
        except RemoteProtocolError:
            disco = None
        if disco is None or not is_worth(self._nat(), _unpacked(cue.call.nat)):
            return
        there = targets(
            ((offer.endpoint, offer.origin) for offer in cue.call.offers),
            (offer.endpoint for offer in offers),
            own.networks,
        )
        attempt = TcpAttempt(there, start, self._limits)
        proof = Proof(disco, own.number, number, cue.call.id)
        punched = await punch(port, attempt, proof, decides=decides(own.number, number), drops=self.drops)
        if punched is None:
            _log.debug("no TCP connection to node %d came about, of %d begun", number, attempt.connects)
        else:
            self._give(number, pair, punched)

    def _give(self, number: int, pair: _Pair, punched: Punched) -> None:
        before, pair.link = pair.link, next(self._numbers)
        self._post(AddLink(pair.link, punched, None, "tcp", peer=number, shown=punched.endpoint))
        if before is not None:
            self._post(RemoveLink(before))
        _log.info("a TCP connection to node %d: %s", number, punched.endpoint)


def _unpacked(nat: bytes) -> NatBehaviour:
    try:
        return NatBehaviour.unpack(nat)
    except ValueError:
        return UNKNOWN_NAT
