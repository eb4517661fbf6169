"""Calls between peers: what is sent, what is taken, and what a flood, a repeat or a lie comes to."""

import os
from collections import Counter
from dataclasses import replace

import pytest

from overlay.engine import api, drops
from overlay.engine.calls import ANSWER_LIFE, PEER_BURST, Calls
from overlay.engine.drops import Drops
from overlay.engine.peer import Peer
from overlay.engine.peers import Peers
from overlay.path.nat import NatBehaviour
from overlay.wire.disco import CallMe, Offer
from overlay.wire.wireguard.device import Device
from overlay.wire.wireguard.primitives import clamp
from tests.engine.rig import Machine

HERE = Offer(("203.0.113.9", 1000), "observed")
THERE = Offer(("198.51.100.7", 41641), "observed")
T = 100.0


class Ends:
    """Our calls, with one peer."""

    def __init__(self) -> None:
        self.drops = Drops()
        device = Device(clamp(os.urandom(32)), random_bytes=os.urandom, tai64n=lambda: bytes(12), jitter=lambda: 0.0)
        self.peers = Peers(device, self.drops, os.urandom, lambda: 1380)
        self.peer: Peer = self.peers.set(Machine(3).config(endpoints=()), T)
        self.sent: list[CallMe] = []
        self.events: list[api.Event] = []
        self.reached = True
        self.calls = Calls(self.peers, self.drops, os.urandom, self.events.append, self._send)
        self.calls.set_reach(api.SetReach(NatBehaviour(translated=False), (HERE,)), T)

    def _send(self, peer: Peer, call: CallMe, now: float) -> bool:
        assert peer is self.peer
        self.sent.append(call)
        return self.reached

    def pinged(self, now: float) -> set[tuple[str, int]]:
        assert self.peer.selector is not None
        self.peer.selector.handle_timeout(now)
        return {endpoint for endpoint, _ in self.peer.selector.pings_to_send()}

    def received(self, call: CallMe, now: float) -> Counter[str]:
        before = self.drops.counts.copy()
        self.calls.received(self.peer, call, now)
        return self.drops.counts - before


def call(*offers: Offer, answer: bool = False, half_rtt: float = 0.0) -> CallMe:
    return CallMe(os.urandom(8), answer, "udp", half_rtt, NatBehaviour(mapping="endpoint-independent").pack(), offers)


def test_a_call_is_answered_at_once_and_the_peer_is_asked_when_the_answer_is_there() -> None:
    ends = Ends()
    theirs = call(THERE, half_rtt=0.05)
    assert not ends.received(theirs, T)
    (answer,) = ends.sent
    assert (answer.id, answer.answer, answer.offers) == (theirs.id, True, (HERE,))
    assert ends.pinged(T + 0.04) == set()
    assert ends.pinged(T + 0.0501) == {THERE.endpoint}
    assert ends.events == [api.PeerOffers(3, (THERE,))]
    assert ends.calls.nat(3).mapping == "endpoint-independent"


def test_an_answer_tells_the_round_trip_and_starts_the_asking() -> None:
    ends = Ends()
    ends.calls.call(ends.peer, T)
    (ours,) = ends.sent
    assert not ours.answer
    assert not ends.received(replace(call(THERE, answer=True), id=ours.id), T + 0.06)
    assert ends.calls.half_rtt(3) == pytest.approx(0.03)
    assert ends.pinged(T + 0.06) == {THERE.endpoint}
    assert len(ends.sent) == 1, "an answer is not answered"


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_to_no_call_changes_nothing(late: bool) -> None:
    ends = Ends()
    ends.calls.call(ends.peer, T)
    answer = call(THERE, answer=True)
    if late:
        answer = replace(answer, id=ends.sent[0].id)
    now = T + ANSWER_LIFE + 0.01 if late else T + 0.01
    assert ends.received(answer, now) == {drops.DISCO_UNASKED: 1}
    assert ends.pinged(now) == set()


def test_a_call_counts_once() -> None:
    ends = Ends()
    theirs = call(THERE)
    ends.received(theirs, T)
    assert ends.received(theirs, T + 1) == {drops.CALL_REPEATED: 1}
    assert len(ends.sent) == 1


def test_a_flood_of_calls_gets_a_bounded_number_of_answers_and_probes() -> None:
    ends = Ends()
    dropped: Counter[str] = Counter()
    victims: Counter[tuple[str, int]] = Counter()
    for number in range(3000):
        now = T + number / 100
        offers = [Offer(("192.0.2.1", 1 + port), "observed") for port in range(16)]
        dropped += ends.received(call(*offers), now)
        victims.update(endpoint for endpoint in ends.pinged(now))
    assert dropped[drops.CALL_RATE] >= 2900
    assert len(ends.sent) <= PEER_BURST + 31
    assert sum(victims.values()) <= 16 + 4 * 31


def test_endpoints_where_no_node_can_be_are_left_out_and_counted() -> None:
    ends = Ends()
    bad = [("127.0.0.1", 1), ("::1", 1), ("224.0.0.1", 1), ("0.0.0.0", 1), ("169.254.1.1", 1), ("10.0.0.3", 1)]
    bad += [("fd00::3", 1), ("255.255.255.255", 1), HERE.endpoint]
    found = ends.received(call(*(Offer(endpoint, "interface") for endpoint in bad), THERE), T)
    assert found == {drops.OFFER_UNUSABLE: len(bad)}
    assert ends.pinged(T) == {THERE.endpoint}


def test_a_call_for_tcp_is_handed_on() -> None:
    ends = Ends()
    theirs = replace(call(THERE), way="tcp")
    ends.received(theirs, T)
    assert ends.events == [api.CueReceived(3, theirs, 0.0)]
    assert ends.sent == [] and ends.pinged(T) == set()


def test_our_new_endpoints_are_told_to_who_is_talked_to_and_to_nobody_else() -> None:
    ends = Ends()
    selector = ends.peer.selector
    assert selector is not None
    selector.set_relay(True, T)
    ends.calls.set_reach(api.SetReach(offers=(HERE, THERE)), T)
    assert not selector.call_due()
    selector.data_sent(T + 1)
    assert selector.call_due()
    ends.calls.set_reach(api.SetReach(offers=(THERE,)), T + 1.1)
    assert selector.call_due()


def test_without_a_relay_nothing_is_called_and_that_is_counted() -> None:
    ends = Ends()
    ends.reached = False
    ends.calls.call(ends.peer, T)
    assert ends.drops.counts[drops.NO_PATH] == 1


COUNTING = NatBehaviour(translated=True, mapping="address-and-port-dependent", port_preserved=False, port_delta=2)


def told(sent: CallMe) -> list[tuple[str, int]]:
    return [offer.endpoint for offer in sent.offers if offer.origin == "predicted"]


def test_a_nats_next_ports_are_told_from_a_mapping_made_just_now_or_not_at_all() -> None:
    ends = Ends()
    ends.calls.set_reach(api.SetReach(COUNTING, (HERE,)), T)
    assert ends.peer.selector is not None
    ends.peer.selector.set_relay(True, T)
    ends.peer.selector.data_sent(T)
    ends.calls.call(ends.peer, T)
    assert told(ends.sent[-1]) == [] and ends.events == [api.WantMapping()]
    ends.calls.mapped(("203.0.113.9", 5000), T + 0.1)
    assert len(ends.sent) == 2 and told(ends.sent[-1])[:2] == [("203.0.113.9", 5002), ("203.0.113.9", 5004)]
    ends.received(call(THERE), T + 0.5)
    assert ends.sent[-1].answer and told(ends.sent[-1])[0] == ("203.0.113.9", 5002)
    ends.received(call(THERE), T + 5)
    assert ends.sent[-1].answer and told(ends.sent[-1]) == [], "old"
    assert ends.events.count(api.WantMapping()) == 1, "an answer asks for none"
    ends.calls.call(ends.peer, T + 5)
    ends.calls.call(ends.peer, T + 5.1)
    assert told(ends.sent[-1]) == [] and ends.events.count(api.WantMapping()) == 2
    number = len(ends.sent)
    ends.calls.mapped(("203.0.113.9", 5100), T + 5.2)
    ends.calls.mapped(("203.0.113.9", 5102), T + 5.3)
    assert len(ends.sent) == number + 1, "once"


def test_who_is_reached_meanwhile_is_not_called_again() -> None:
    ends = Ends()
    ends.calls.set_reach(api.SetReach(COUNTING, (HERE,)), T)
    ends.calls.call(ends.peer, T)  # no data flows
    ends.calls.mapped(("203.0.113.9", 5000), T + 0.1)
    assert len(ends.sent) == 1
