"""Call-mes on the wire: ours to peers, theirs to us, and what either means for the search for a path. Engine thread.

They go through the relay alone, sealed to the peer: the server sees that two nodes call each other, and not where they
are. It can hold a call back, drop it or repeat it. What it can gain by that is bounded: a call is taken once, a peer's
calls have a rate, all have one together, and what is asked because of them has its own bounds (`overlay.path`).
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from overlay.engine import drops
from overlay.engine.api import CueReceived, Event, PeerOffers, SetReach, WantMapping
from overlay.engine.drops import Drops
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.path.budget import Budget
from overlay.path.nat import UNKNOWN_NAT, NatBehaviour
from overlay.path.offers import is_usable
from overlay.path.punch import counts, predicted
from overlay.wire.disco import CALL_ID_SIZE, MAX_OFFERS, CallMe, Offer
from overlay.wire.endpoint import Endpoint

PEER_RATE: Final = 1.0
PEER_BURST: Final = 6.0
"""Calls of one peer per second, and at once, both ways and answers included: an honest one makes one in two seconds."""

NODE_RATE: Final = 100.0
NODE_BURST: Final = 400.0
"""Calls of all peers: three hundred that join at once are heard."""

REMEMBERED: Final = 32
"""Ids of a peer's last calls; who repeats older ones has the rate in his way."""

ANSWER_LIFE: Final = 10.0
"""s in which an answer counts."""


MAPPING_LIFE: Final = 1.0
"""s in which a NAT's next ports are told from the last one that it gave: later, others behind it may have taken them,
and so have our own pings of the call before."""


class _Known:
    """What goes on with one peer."""

    __slots__ = ("asked", "budget", "half_rtt", "ids", "nat", "offers")

    def __init__(self) -> None:
        self.budget = Budget(PEER_RATE, PEER_BURST)
        self.ids: deque[tuple[bytes, bool]] = deque(maxlen=REMEMBERED)
        self.asked: dict[bytes, float] = {}  # our calls that wait for an answer: id → sent
        self.half_rtt = 0.0  # s; 0: not known
        self.nat = UNKNOWN_NAT
        self.offers: tuple[Offer, ...] = ()


class Calls:
    """`send` puts a message on its way through the relay; False: there is none."""

    def __init__(
        self,
        peers: Peers,
        counted: Drops,
        random_bytes: Callable[[int], bytes],
        on_event: Callable[[Event], None],
        send: Callable[[Peer, CallMe, float], bool],
    ) -> None:
        self.reach = SetReach()
        self.on_called: Callable[[Peer, float], None] = lambda peer, now: None
        """Told when a peer and we have called each other."""
        self._peers = peers
        self._drops = counted
        self._random_bytes = random_bytes
        self._on_event = on_event
        self._send = send
        self._known: dict[int, _Known] = {}
        self._budget = Budget(NODE_RATE, NODE_BURST)
        self._mapping: tuple[Endpoint, float] | None = None  # the last that our NAT made, and when
        self._mapping_wanted = float("-inf")  # since then
        self._unpredicted: set[int] = set()  # whom we called without knowing that

    def half_rtt(self, number: int) -> float:
        """Half a round trip through the relay, s; 0: not known."""
        known = self._known.get(number)
        return 0.0 if known is None else known.half_rtt

    def nat(self, number: int) -> NatBehaviour:
        """What the peer said of its NAT."""
        known = self._known.get(number)
        return UNKNOWN_NAT if known is None else known.nat

    def offers(self, number: int) -> tuple[Offer, ...]:
        """What the peer said last of where it is."""
        known = self._known.get(number)
        return () if known is None else known.offers

    def set_reach(self, reach: SetReach, now: float) -> None:
        """Our own endpoints or NAT are others: who is talked to hears of it."""
        if reach == self.reach:
            return
        self.reach = reach
        for peer in self._peers:
            if peer.selector is not None:
                peer.selector.call_anew(now)
                self._peers.touched.add(peer)

    def mapped(self, endpoint: Endpoint, now: float) -> None:
        """Our NAT made this mapping just now. Who was called without it is called again."""
        self._mapping = endpoint, now
        waiting, self._unpredicted = self._unpredicted, set()
        for number in waiting:
            peer = self._peers.by_number.get(number)
            if peer is not None and peer.selector is not None and peer.selector.wants_call(now):
                self.call(peer, now)

    def forget(self, number: int) -> None:
        """The peer is gone."""
        self._unpredicted.discard(number)
        self._known.pop(number, None)

    def call(self, peer: Peer, now: float) -> None:
        """Tell the peer where we are, and have it knock."""
        self.send(peer, self._ours(peer, self._random_bytes(CALL_ID_SIZE), now, answer=False), now)

    def send(self, peer: Peer, call: CallMe, now: float) -> None:
        """Send a call, one of TCP's maybe."""
        known = self._of(peer)
        if not self._send(peer, call, now):
            self._drops.count(drops.NO_PATH)
        elif not call.answer:
            for id, sent in list(known.asked.items()):
                if now - sent > ANSWER_LIFE or len(known.asked) >= REMEMBERED:
                    del known.asked[id]
            known.asked[call.id] = now

    def received(self, peer: Peer, call: CallMe, now: float) -> None:
        """The peer's call, or its answer to ours, came through a relay; it is authentic."""
        known = self._of(peer)
        if (call.id, call.answer) in known.ids:
            self._drops.count(drops.CALL_REPEATED)
            return
        if not known.budget.take(now) or not self._budget.take(now):
            self._drops.count(drops.CALL_RATE)
            return
        if call.answer:
            sent = known.asked.pop(call.id, None)
            if sent is None or now - sent > ANSWER_LIFE:
                self._drops.count(drops.DISCO_UNASKED)
                return
            if call.way == "udp":  # before it answers for TCP, the peer asks the server where it is
                known.half_rtt = (now - sent) / 2
        known.ids.append((call.id, call.answer))
        if call.nat:
            try:
                known.nat = NatBehaviour.unpack(call.nat)
            except ValueError:
                self._drops.count(drops.OFFER_UNUSABLE)
        if call.way == "tcp":
            self._on_event(CueReceived(peer.number, call, known.half_rtt))
            return
        offers = tuple(offer for offer in call.offers if self._is_usable(offer.endpoint))
        if len(offers) < len(call.offers):
            self._drops.count(drops.OFFER_UNUSABLE, len(call.offers) - len(offers))
        if offers != known.offers:
            known.offers = offers
            self._on_event(PeerOffers(peer.number, offers))
        start = now
        if not call.answer:
            self.send(peer, self._ours(peer, call.id, now, answer=True), now)
            start = now + call.half_rtt  # when our answer is there, and the peer begins
        if peer.selector is not None:
            peer.selector.called(((offer.endpoint, offer.origin) for offer in offers), start, now)
            self._peers.touched.add(peer)
            self.on_called(peer, now)

    def _of(self, peer: Peer) -> _Known:
        known = self._known.get(peer.number)
        if known is None:
            known = self._known[peer.number] = _Known()
        return known

    def _ours(self, peer: Peer, id: bytes, now: float, *, answer: bool) -> CallMe:
        reach = self.reach
        next_ones = [Offer(each, "predicted") for each in self._predicted(peer, now, ask=not answer)]
        return CallMe(
            id=id,
            answer=answer,
            way="udp",
            half_rtt=self.half_rtt(peer.number),
            nat=reach.nat.pack(),
            offers=(*reach.offers[: MAX_OFFERS - len(next_ones)], *next_ones),
        )

    def _predicted(self, peer: Peer, now: float, *, ask: bool) -> list[Endpoint]:
        """What our NAT will give next, if that is known. Else, if `ask`, it is asked for, and the peer called again
        then; not for an answer, lest two such nodes go on answering each other."""
        if not counts(self.reach.nat):
            return []
        if self._mapping is not None and now <= self._mapping[1] + MAPPING_LIFE:
            return predicted(self.reach.nat, self._mapping[0])
        if not ask:
            return []
        self._unpredicted.add(peer.number)
        if now > self._mapping_wanted + MAPPING_LIFE:
            self._mapping_wanted = now
            self._on_event(WantMapping())
        return []

    def _is_usable(self, endpoint: Endpoint) -> bool:
        own = {offer.endpoint for offer in self.reach.offers}
        return is_usable(endpoint) and endpoint not in own and not self._peers.is_inner(endpoint)
