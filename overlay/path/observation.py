"""What to ask STUN servers, from which sockets and in which order, to learn what a NAT does (RFC 5780 §4).

State machines without sockets and without STUN: they say what is to be asked (`Ask`) and are told what came of it. Each
question is asked again a few times before it counts as unanswered: "no" is an answer here, and a lost datagram is not.

    1  one socket asks all servers: how is it seen from there?             → mapping, the own reflexive endpoint
    2  a second one asks the first server, and then to be answered from elsewhere → filtering
       and the two send to each other's mapped endpoints                   → hairpinning
    3  more sockets ask the first server, one after the other              → which ports a NAT picks, where it matters
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from overlay.path.nat import Observations, classify
from overlay.wire.endpoint import Endpoint

SENDS: Final = (0.0, 0.25, 0.75)
"""s after the first at which a question is sent. Three get through nearly any loss, and a "no" is known soon."""

PATIENCE: Final = 1.75
"""s after the first at which it counts as unanswered: a round trip of a second is still seen."""

MAX_SERVERS: Final = 6
"""Endpoints asked: two addresses with two ports are enough, and some may not answer."""

FRESH_SOCKETS: Final = 4
"""Sockets opened one after the other to see the step between two mappings: three steps, of which one may be off."""

LIFETIME_PAUSES: Final = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""s of silence that mappings are tried for, the next only if one survived. RFC 4787 REQ-5 asks for two minutes at least
and recommends five; what people have forgets after 30 s. Keepalives are every 25 s anyway: it is to know, not to
tune."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a Binding request from socket number `socket`, which is opened when it is first named."""

    number: int  # of the question; asked again it has the same
    socket: int  # 0: the one whose mapping is of use to us
    to: Endpoint
    change_address: bool = False
    change_port: bool = False
    response_port: int | None = None


@dataclass(slots=True)
class _Question:
    ask: Ask
    began: float
    sent: int = 0
    mapped: Endpoint | None = None  # how the asking socket looked
    source: Endpoint | None = None  # where the answer came from
    over: bool = False

    def next_timeout(self) -> float:
        return self.began + (SENDS[self.sent] if self.sent < len(SENDS) else PATIENCE)


class Questions:
    """Those that are open. After each call drain `asks_to_send`. Times in s, monotonic."""

    def __init__(self) -> None:
        self._open: dict[int, _Question] = {}
        self._number = 0
        self._asks: list[Ask] = []

    def asks_to_send(self) -> list[Ask]:
        asks, self._asks = self._asks, []
        return asks

    def next_timeout(self) -> float | None:
        return min((each.next_timeout() for each in self._open.values() if not each.over), default=None)

    def handle_timeout(self, now: float) -> None:
        """Do what is due by `now`. Early calls are harmless."""
        for question in list(self._open.values()):
            self._send_due(question, now)
        self._go_on(now)

    def answered(self, number: int, at: int, mapped: Endpoint, source: Endpoint, now: float) -> None:
        """A success response came from `source` to socket `at`. One that is not where it is expected, or not from
        there, says nothing: a server of several addresses may answer from another one than was asked."""
        question = self._open.get(number)
        if question is None or question.over:
            return
        ask = question.ask
        # With RESPONSE-PORT it goes to the socket before the asking one.
        right_way = at == ask.socket - (ask.response_port is not None)
        if right_way and (ask.change_address or ask.change_port or source == ask.to):
            self._settle(question, mapped, source, now)

    def refused(self, number: int, now: float) -> None:
        """The server does not do that."""
        question = self._open.get(number)
        if question is not None and not question.over:
            question.over = True
            self._refused(question)
            self._go_on(now)

    def arrived(self, number: int, source: Endpoint, now: float) -> None:
        """The request itself came in at another of our sockets, from `source`."""
        question = self._open.get(number)
        if question is not None and not question.over:
            self._settle(question, source, source, now)

    # for subclasses

    def _ask(self, ask: Ask, now: float) -> _Question:
        question = self._open[ask.number] = _Question(ask, now)
        self._send_due(question, now)
        return question

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _forget(self) -> None:
        self._open.clear()

    def _refused(self, question: _Question) -> None:
        """A question was refused."""

    def _go_on(self, now: float) -> None:
        """Some question may be over."""

    def _settle(self, question: _Question, mapped: Endpoint, source: Endpoint, now: float) -> None:
        question.mapped, question.source, question.over = mapped, source, True
        self._go_on(now)

    def _send_due(self, question: _Question, now: float) -> None:
        while not question.over and now >= question.next_timeout():
            if question.sent < len(SENDS):
                question.sent += 1
                self._asks.append(question.ask)
            else:
                question.over = True


class Observer(Questions):
    """One look at the NAT before this machine, by one address family. Over when `done`; `observations` grow."""

    def __init__(self, servers: Sequence[Endpoint], own: Sequence[str], port: int, now: float) -> None:
        """`servers`: of one family, the first is the one whose view of us peers get. `own`: this machine's addresses.
        `port`: of socket 0."""
        super().__init__()
        self.done = not servers
        self.observations = Observations(own=tuple(own), port=port)
        self._servers = tuple(dict.fromkeys(servers))[:MAX_SERVERS]
        self._ports: dict[int, int] = {0: port}
        self._stage = 0
        self._refusals: set[int] = set()
        self._mapping = [self._put(0, server, now) for server in self._servers]
        self._second: _Question | None = None
        self._filtering: dict[str, _Question] = {}
        self._hairpin: list[_Question] = []
        self._fresh: list[_Question] = []

    @property
    def placed(self) -> bool:
        """All that will be known of how socket 0 looks from outside is."""
        return self.done or self._stage > 0

    def opened(self, socket: int, port: int) -> None:
        """Socket `socket` is bound to `port` on this machine."""
        self._ports[socket] = port

    def _put(
        self, socket: int, to: Endpoint, now: float, *, change_address: bool = False, change_port: bool = False
    ) -> _Question:
        return self._ask(Ask(self._next_number(), socket, to, change_address, change_port), now)

    def _refused(self, question: _Question) -> None:
        self._refusals.add(question.ask.number)

    def _go_on(self, now: float) -> None:
        while not self.done and all(question.over for question in self._open.values()):
            self._forget()
            self._stage += 1
            match self._stage:
                case 1:
                    self._end_mapping(now)
                case 2:
                    self._begin_filtering(now)
                case 3:
                    self._end_filtering()
                    self._begin_fresh(now)
                case _:
                    self._next_fresh(now)

    def _end_mapping(self, now: float) -> None:
        mapped = tuple((each.ask.to, each.mapped) for each in self._mapping if each.mapped is not None)
        self._see(mapped=mapped)
        if not mapped:
            self.done = True  # UDP does not get through, or no server speaks STUN
            return
        self._second = self._put(1, mapped[0][0], now)

    def _begin_filtering(self, now: float) -> None:
        assert self._second is not None
        if self._second.mapped is None:
            return
        to = self._second.ask.to
        self._filtering = {
            "other_address": self._put(1, to, now, change_address=True, change_port=True),
            "other_port": self._put(1, to, now, change_port=True),
        }
        if classify(self.observations).translated:
            own = self.observations.mapped[0][1]
            # Both ways: what filters lets the one in that it was sent to.
            self._hairpin = [self._put(1, own, now), self._put(0, self._second.mapped, now)]

    def _end_filtering(self) -> None:
        for name, question in self._filtering.items():
            if question.ask.number in self._refusals:
                continue
            asked, source = question.ask.to, question.source
            elsewhere = source is not None and (source[0] != asked[0] if name == "other_address" else source != asked)
            if source is None or elsewhere:  # else the server does not know what it was asked for
                self._see(**{name: elsewhere})
        if self._hairpin:
            self._see(hairpin=any(each.source is not None for each in self._hairpin))

    def _begin_fresh(self, now: float) -> None:
        mapping = classify(self.observations).mapping
        if mapping in (None, "endpoint-independent"):
            self.done = True
        else:
            self._next_fresh(now)

    def _next_fresh(self, now: float) -> None:
        fresh = tuple(
            (self._ports.get(each.ask.socket, 0), each.mapped[1]) for each in self._fresh if each.mapped is not None
        )
        self._see(fresh=fresh)
        if len(self._fresh) == FRESH_SOCKETS:
            self.done = True
        else:
            self._fresh.append(self._put(2 + len(self._fresh), self.observations.mapped[0][0], now))

    def _see(self, **seen: Any) -> None:
        self.observations = replace(self.observations, **seen)


class Newest(Questions):
    """How a socket that was just opened looks: the mapping that a NAT which counts gave last. Over when `done`."""

    def __init__(self, server: Endpoint, now: float) -> None:
        super().__init__()
        self.done = False
        self.mapped: Endpoint | None = None
        """None: not known (yet)."""
        self._question = self._ask(Ask(self._next_number(), 0, server), now)

    def _go_on(self, now: float) -> None:
        self.mapped, self.done = self._question.mapped, self._question.over


class LifetimeSearch(Questions):
    """How long is a mapping kept that nobody uses? RFC 5780 §4.6: a second socket has the server answer to the first
    one's mapped port. Over when `done`."""

    def __init__(self, server: Endpoint, now: float, pauses: Sequence[float] = LIFETIME_PAUSES) -> None:
        super().__init__()
        self.done = False
        self.lifetime: float | None = None
        """s that a mapping survived, at least. 0: less than the shortest pause. None: not known (yet)."""
        self._server = server
        self._pauses = tuple(pauses)
        self._round = 0
        self._silent_until: float | None = None
        self._refusal = False
        self._mapping = self._put(now, socket=0)
        self._probe: _Question | None = None
        self._control: _Question | None = None

    def next_timeout(self) -> float | None:
        return self._silent_until if self._silent_until is not None else super().next_timeout()

    def _put(self, now: float, socket: int, response_port: int | None = None) -> _Question:
        number = self._next_number()
        return self._ask(Ask(number, 2 * self._round + socket, self._server, response_port=response_port), now)

    def _refused(self, question: _Question) -> None:
        self._refusal = True

    def _go_on(self, now: float) -> None:
        if self.done or any(not question.over for question in self._open.values()):
            return
        mapped = self._mapping.mapped
        if self._refusal or mapped is None:
            self.done = True
        elif self._probe is None:
            if self._silent_until is None:
                self._silent_until = now + self._pauses[self._round]
            elif now >= self._silent_until:
                self._silent_until = None
                self._probe = self._put(now, socket=1, response_port=mapped[1])
        elif self._probe.source is not None:
            self.lifetime = self._pauses[self._round]
            self._next_round(now)
        elif self._control is None:
            self._control = self._put(now, socket=1)  # was it the mapping that was lost, or all that we sent?
        else:
            if self._control.mapped is not None and self._control.mapped[0] == mapped[0]:
                self.lifetime = self.lifetime or 0.0
            self.done = True

    def _next_round(self, now: float) -> None:
        self._round += 1
        if self._round == len(self._pauses):
            self.done = True
            return
        self._forget()
        self._probe = self._control = None
        self._mapping = self._put(now, socket=0)
