"""The way to the home relay where UDP fails and a link does not, in virtual time."""

from collections.abc import Collection

import pytest

from overlay.engine.home_relay import KEEPALIVE, LINK_INTERVAL, UDP_ANSWERS, HomeRelay
from overlay.engine.link import link_endpoint
from overlay.wire.endpoint import Endpoint

ONE: Endpoint = ("192.0.2.1", 443)
TWO: Endpoint = ("2001:db8::1", 443)
LINK, OTHER = link_endpoint(1), link_endpoint(2)
NEVER = float("inf")
SELF: Endpoint = ("203.0.113.9", 5000)
NOBODY: Endpoint = ("192.0.0.8", 1)


class World:
    """Who of the endpoints answers, and how late. Notes when pings go out and when the way changes."""

    def __init__(self, *answering: Endpoint) -> None:
        serial = iter(range(1, 1 << 20))
        self.home = HomeRelay((ONE, TWO), lambda size: next(serial).to_bytes(size, "big"), 0.0)
        self.answering: Collection[Endpoint] = answering
        self.delays: dict[Endpoint, float] = {}
        self.now = 0.0
        self.sent: list[tuple[float, Endpoint]] = []
        self.said: list[tuple[Endpoint | None, bool]] = []
        self._answers: list[tuple[float, Endpoint, bytes]] = []

    def run(self, until: float) -> None:
        while True:
            self._answers.sort()
            due = min(self.home.next_timeout(), self._answers[0][0] if self._answers else NEVER)
            if due > until:
                self.now = until
                return
            self.now = max(self.now, due)
            while self._answers and self._answers[0][0] <= self.now:
                _, endpoint, txid = self._answers.pop(0)
                self.home.pong(endpoint, txid, SELF if endpoint in (ONE, TWO) else NOBODY, self.now)
                self._say()
            self.home.handle_timeout(self.now)
            self.drain()

    def drain(self) -> None:
        for endpoint, txid in self.home.pings_to_send():
            self.sent.append((round(self.now, 2), endpoint))
            if endpoint in self.answering:
                self._answers.append((self.now + self.delays.get(endpoint, 0.02), endpoint, txid))
        self._say()

    def add(self, link: Endpoint) -> None:
        self.home.add_link(link, self.now)
        self.drain()

    def active(self) -> Endpoint | None:
        return self.home.active

    def observed(self) -> Endpoint | None:
        return self.home.observed

    def suspect(self) -> bool:
        return self.home.suspect

    def pings(self, since: float, *endpoints: Endpoint) -> list[float]:
        return [when for when, endpoint in self.sent if when >= since and endpoint in endpoints]

    def _say(self) -> None:
        state = (self.home.active, self.home.suspect)
        if not self.said or self.said[-1] != state:
            self.said.append(state)


def test_udp_lost_then_a_link_then_udp_again() -> None:
    world = World(ONE, TWO)
    world.run(10.0)
    assert world.active() == ONE and world.observed() == SELF
    world.answering = ()
    world.home.sent(10.0)
    world.run(12.0)
    assert world.said[-1] == (ONE, True), "within two seconds somebody is told to look for another way"
    world.answering = (LINK,)
    world.add(LINK)
    world.run(12.1)
    assert world.active() == LINK and not world.suspect()
    assert world.observed() == SELF, "a link shows nobody's endpoint"
    world.run(40.0)
    assert world.active() == LINK
    assert len(world.pings(12.1, ONE)) == len(world.pings(12.1, LINK)) == 5
    world.answering = (LINK, ONE)
    world.run(40.0 + (UDP_ANSWERS - 1) * LINK_INTERVAL)
    assert world.active() == LINK, "not before it proved itself"
    world.run(41.0 + UDP_ANSWERS * LINK_INTERVAL)
    assert world.active() == ONE
    start = world.now
    world.run(start + 60)
    assert world.pings(start, LINK) == [], "a link that is not in use is not asked"
    assert {state for state in world.said if state[1]} == {(ONE, True)}


def test_udp_that_answers_now_and_then_is_not_taken_again() -> None:
    world = World(ONE)
    world.run(1.0)
    world.answering = (LINK,)
    world.add(LINK)
    world.run(30.0)
    assert world.active() == LINK
    for step in range(20):
        world.answering = (LINK, ONE) if step % 3 else (LINK,)
        world.run(30.0 + (step + 1) * LINK_INTERVAL)
        assert world.active() == LINK


@pytest.mark.parametrize("first", [LINK, ONE])
def test_at_the_start_udp_is_taken_whichever_answers_first(first: Endpoint) -> None:
    world = World(LINK, ONE)
    world.delays[ONE if first == LINK else LINK] = 0.1
    world.add(LINK)
    world.run(0.05)
    assert world.active() == first
    world.run(0.2)
    assert world.active() == ONE


def test_a_link_that_comes_while_udp_works_changes_nothing() -> None:
    world = World(ONE, LINK)
    world.run(5.0)
    world.add(LINK)
    world.run(100.0)
    assert world.active() == ONE and world.pings(0.0, LINK) == []
    assert world.pings(1.0, ONE) == [25.02, 50.04, 75.06]
    assert KEEPALIVE == 25.0


def test_a_link_that_dies_is_found_within_seconds_and_reported() -> None:
    world = World(LINK)
    world.add(LINK)
    world.run(20.0)
    assert world.active() == LINK
    world.answering = ()
    world.home.sent(20.0)
    world.run(24.0)
    assert world.active() is None and world.suspect()
    assert world.home.dead_links() == [LINK] and world.home.dead_links() == []
    assert world.home.links == []


def test_an_idle_link_that_dies_is_found_too() -> None:
    world = World(LINK)
    world.add(LINK)
    world.run(20.0)
    world.answering = ()
    world.run(20.0 + LINK_INTERVAL + 3)
    assert world.home.dead_links() == [LINK]


def test_a_second_link_takes_over_from_one_that_does_not_answer() -> None:
    world = World(LINK)
    world.add(LINK)
    world.run(20.0)
    world.answering = (OTHER,)
    world.home.sent(20.0)
    world.run(21.9)
    assert world.said[-1] == (LINK, True)
    world.add(OTHER)
    world.run(22.0)
    assert world.active() == OTHER


def test_a_link_that_is_removed_has_udp_asked_at_once() -> None:
    world = World(LINK)
    world.add(LINK)
    world.run(20.0)
    world.answering = (ONE,)
    world.home.remove_link(LINK, world.now)
    assert world.active() is None
    world.run(20.1)
    assert world.active() == ONE
    world.home.remove_link(LINK, world.now)  # again: no harm


def test_an_answer_of_a_link_that_is_gone_is_none() -> None:
    world = World()
    world.add(LINK)
    (txid,) = world.home._outstanding
    world.home.remove_link(LINK, 0.0)
    assert world.home.pong(LINK, txid, NOBODY, 0.01)
    assert world.active() is None
