"""Pings that a person asks for: the bookkeeping by numbers, and round trips between real engines on loopback."""

import queue

from overlay.engine import api
from overlay.engine.echoes import LIFE, MOST, Echoes
from tests.engine.rig import PATIENCE, Machine, acquaint

PATH = api.PathSnapshot("udp", ("192.0.2.1", 1), 0.0, 1444)


def txid(number: int) -> bytes:
    return number.to_bytes(12, "big")


def test_an_answer_counts_once_and_only_from_the_peer_that_was_asked() -> None:
    echoes, answers = Echoes(), list[api.PingAnswer]()
    echoes.asked(3, txid(1), PATH, answers.append, 10.0)
    assert not echoes.answered(4, txid(1), 10.1)
    assert not echoes.answered(3, txid(2), 10.1)
    assert echoes.answered(3, txid(1), 10.25)
    assert not echoes.answered(3, txid(1), 10.3)
    assert answers == [api.PingAnswer(PATH, 0.25)]


def test_a_late_answer_is_taken_and_told_to_nobody() -> None:
    echoes, answers = Echoes(), list[api.PingAnswer]()
    echoes.asked(3, txid(1), PATH, answers.append, 0.0)
    assert echoes.answered(3, txid(1), LIFE)
    assert not answers


def test_the_oldest_go_when_there_are_too_many() -> None:
    echoes, answers = Echoes(), list[api.PingAnswer]()
    for number in range(MOST + 10):
        echoes.asked(3, txid(number), PATH, answers.append, 1.0)
    assert [echoes.answered(3, txid(number), 1.0) for number in range(MOST + 10)] == [False] * 10 + [True] * MOST


def answer(machine: Machine, number: int) -> api.PingAnswer:
    replies: queue.Queue[api.PingAnswer] = queue.Queue()
    machine.engine.post(api.PingPeer(number, replies.put))
    return replies.get(timeout=PATIENCE)


def test_a_ping_by_relay_and_one_directly() -> None:
    with Machine(1, relay_clients=True) as relay, Machine(2) as one, Machine(3) as other:
        acquaint(one, other, direct=False)
        for node in (one, other):
            node.set_relay(relay)
            node.wait_for(api.Observed)
        relayed = answer(one, 3)
        assert relayed.path is not None and relayed.path.kind == "relay"
        assert relayed.rtt is not None and relayed.rtt > 0.0
        acquaint(one, other)
        while (found := answer(one, 3)).path is None or found.path.kind == "relay":
            pass
        assert found.path.endpoint == other.endpoint and found.rtt is not None


def test_without_any_way_the_answer_is_that() -> None:
    with Machine(2) as one, Machine(3) as other:
        acquaint(one, other, direct=False)
        assert answer(one, 3) == api.PingAnswer(None, None)
        assert answer(one, 9) == api.PingAnswer(None, None), "a node that is no peer"
