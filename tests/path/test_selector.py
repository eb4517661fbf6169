"""Single rules of the selector, by example: each call by hand."""

from random import Random

import pytest

from overlay.path import timing, types
from overlay.path.budget import Budget
from overlay.path.selector import Selector
from overlay.path.types import RELAY_PATH, Path, PathChanged
from overlay.wire import disco
from overlay.wire.endpoint import Endpoint

HERE: Endpoint = ("198.51.100.9", 1000)
X: Endpoint = ("192.0.2.1", 1001)
Y: Endpoint = ("192.0.2.2", 1002)
T = 5000.0


def selector(*candidates: Endpoint, relay: bool = True, lan: tuple[Endpoint, ...] = ()) -> Selector:
    made = Selector(relay=relay, random_bytes=Random(1).randbytes)
    made.set_candidates(candidates, lan, T)
    return made


def asked(made: Selector, endpoint: Endpoint) -> bytes:
    """The transaction id of the only ping that waits to be sent."""
    ((pinged, txid),) = made.pings_to_send()
    assert pinged == endpoint
    return txid


def proven_on(endpoint: Endpoint, *, relay: bool = True) -> Selector:
    """A selector that uses this endpoint since T + 0.01."""
    made = selector(endpoint, relay=relay)
    made.data_sent(T)
    assert made.pong_received(endpoint, asked(made, endpoint), HERE, T + 0.01)
    assert made.path == Path("udp", endpoint)
    made.events()
    return made


def test_a_transaction_id_has_the_size_that_disco_carries() -> None:
    assert types.TXID_SIZE == disco.TXID_SIZE


def test_nothing_is_asked_before_there_is_data() -> None:
    made = selector(X, Y)
    assert made.pings_to_send() == []
    assert made.next_timeout() is None
    assert made.path == RELAY_PATH


def test_candidates_that_come_while_data_flows_are_asked_at_once_and_only_new_ones() -> None:
    made = selector(X)
    made.data_sent(T)
    asked(made, X)
    made.set_candidates([X, Y], [], T + 0.1)
    asked(made, Y)


def test_an_unproven_candidate_is_asked_with_growing_pauses() -> None:
    made = selector(X)
    when = T
    times = []
    while when < T + 120:
        made.data_sent(when)
        if made.pings_to_send():
            times.append(when - T)
        next_timeout = made.next_timeout()
        assert next_timeout is not None
        when = next_timeout
        made.handle_timeout(when)
        if made.pings_to_send():
            times.append(when - T)
    assert times == pytest.approx([0, 0.25, 0.75, 1.75, 3.75, 8.75, 18.75, 38.75, 78.75], abs=0.01)


@pytest.mark.parametrize("name", ["unknown txid", "wrong source", "unknown source", "used txid", "late"])
def test_a_pong_that_no_ping_asked_for_changes_nothing(name: str) -> None:
    made = selector(X, Y)
    made.data_sent(T)
    txids = dict(made.pings_to_send())
    spoofed: tuple[Endpoint, bytes, float]
    if name == "used txid":
        assert made.pong_received(X, txids[X], HERE, T + 0.01)
        spoofed = (X, txids[X], T + 0.02)
    else:
        spoofed = {
            "unknown txid": (X, b"\x01" * 12, T + 0.01),
            "wrong source": (Y, txids[X], T + 0.01),
            "unknown source": (("203.0.113.66", 1), txids[X], T + 0.01),
            "late": (X, txids[X], T + timing.PING_LIFE + 0.01),
        }[name]
    made.events()

    def state() -> object:
        return (made.path, made.rtt, made.observed, made.next_timeout(), *map(made.proven, (X, Y, spoofed[0])))

    before = state()
    source, txid, now = spoofed
    assert not made.pong_received(source, txid, ("203.0.113.1", 2), now)
    assert state() == before
    assert made.events() == []
    assert made.pings_to_send() == []


def test_what_the_peer_calls_us_is_kept() -> None:
    made = proven_on(X)
    assert made.observed == HERE
    assert made.rtt == pytest.approx(0.01)


def test_a_path_change_is_told_once() -> None:
    made = selector(X)
    made.data_sent(T)
    made.pong_received(X, asked(made, X), HERE, T + 0.01)
    assert made.events() == [PathChanged(Path("udp", X), T + 0.01)]
    assert made.events() == []


def test_a_ping_makes_a_candidate_and_is_asked_back_even_by_an_idle_pair() -> None:
    made = selector()
    made.ping_received(X, T)
    txid = asked(made, X)
    assert not made.proven(X)
    made.ping_received(X, T + 0.5)
    assert made.pings_to_send() == [], "once a second is enough"
    assert made.pong_received(X, txid, HERE, T + 0.6)
    assert made.proven(X)


def test_who_knocks_while_the_node_is_busy_is_asked_back_as_soon_as_there_is_room() -> None:
    shared = Budget(timing.NODE_RATE, timing.NODE_BURST)
    made = Selector(relay=True, random_bytes=Random(1).randbytes, node_budget=shared)
    made.set_candidates([X], [], T)
    assert shared.take(T, timing.NODE_BURST)
    made.data_sent(T)
    assert made.pings_to_send() == [], "it waits, with all of the peer's"
    made.ping_received(X, T + 1.5 / timing.NODE_RATE)
    asked(made, X)
    assert not shared.take(T + 1.5 / timing.NODE_RATE), "within the budget"


def test_a_path_is_in_doubt_from_when_an_answer_is_overdue_until_it_comes_or_the_path_is_left() -> None:
    made = proven_on(X)
    made.data_sent(T + 1)
    txid = asked(made, X)
    overdue = T + 1 + timing.LIVENESS
    seen = [made.doubtful]
    for now in (overdue - 0.01, overdue):
        made.handle_timeout(now)
        seen.append(made.doubtful)
    assert seen == [False, False, True] and made.path == Path("udp", X)
    assert made.pong_received(X, txid, HERE, overdue + 0.01)
    seen, now = [made.doubtful], T + 2
    while made.path != RELAY_PATH:
        made.data_sent(now)
        made.handle_timeout(now)
        seen.append(made.doubtful)
        now += 0.05
    assert not seen[0] and seen[-2] and not seen[-1]


def test_replayed_pings_from_made_up_sources_neither_flood_nor_fill_nor_push_out() -> None:
    made = proven_on(X)
    made.set_candidates([], [], T + 0.02)
    sent = 0
    for number in range(5000):
        made.ping_received((f"203.0.113.{number % 250}", 1 + number), T + 0.03 + number / 1000)
        sent += len(made.pings_to_send())
    assert sent <= timing.PROBE_BURST + 5 * timing.PROBE_RATE + 1
    assert len(made._candidates) <= timing.MAX_LEARNED
    assert made.proven(X)


def test_authenticated_data_proves_its_source_but_is_no_reason_to_go_there() -> None:
    made = selector()
    made.data_received(X, T)
    assert made.proven(X)
    assert made.path == RELAY_PATH
    asked(made, X)


def test_a_keepalive_proves_its_source_and_wakes_nobody() -> None:
    made = selector(Y)
    made.data_received(X, T, empty=True)
    assert made.proven(X)
    assert made.pings_to_send() == []
    assert made.next_timeout() is None


def test_data_that_comes_in_does_not_save_a_path_that_answers_no_ping() -> None:
    made = proven_on(X)
    when = T + 0.02
    while made.path != RELAY_PATH:
        made.data_sent(when)
        made.data_received(X, when)
        when += 0.02
        assert when < T + 1.05
        if (due := made.next_timeout()) is not None and due <= when:
            made.handle_timeout(due)


def test_a_pause_of_our_own_process_is_no_silence_of_the_path() -> None:
    made = proven_on(X)
    made.data_sent(T + 0.26)
    txid = asked(made, X)
    made.handle_timeout(T + 3.0)  # the answer waits in the socket all the while
    assert made.path == Path("udp", X)
    assert made.pong_received(X, txid, HERE, T + 3.0)
    assert made.path == Path("udp", X)


@pytest.mark.parametrize("rtt", [0.4, 0.9, 1.5])
def test_a_path_of_long_round_trips_is_given_the_time_that_it_takes(rtt: float) -> None:
    made = selector(X)
    made.data_sent(T)
    assert made.pong_received(X, asked(made, X), HERE, T + rtt)
    answers: list[tuple[float, bytes]] = []
    for step in range(1000):
        now = T + rtt + step * 0.01
        while answers and answers[0][0] <= now:
            assert made.pong_received(X, answers.pop(0)[1], HERE, now)
        made.data_sent(now)
        made.handle_timeout(now)
        answers += [(now + rtt, txid) for _, txid in made.pings_to_send()]
    assert made.path == Path("udp", X)


def test_answers_that_come_after_the_path_was_left_do_not_bring_it_back() -> None:
    made = proven_on(X)
    now = T + 0.26
    txids = []
    while made.path != RELAY_PATH:
        made.data_sent(now)
        made.handle_timeout(now)
        txids += [txid for _, txid in made.pings_to_send()]
        now += 0.05
    assert not any(made.pong_received(X, txid, HERE, now) for txid in txids)
    assert made.path == RELAY_PATH
    made.ping_received(X, now)
    assert made.pings_to_send() == [], "it rests, whatever comes from there"


def test_an_endpoint_that_becomes_lan_changes_the_name_of_the_path() -> None:
    made = proven_on(X)
    made.set_candidates([X], [X], T + 0.02)
    assert made.path == Path("lan", X)
    assert made.events() == [PathChanged(Path("lan", X), T + 0.02)]


def test_a_candidate_that_is_no_longer_advertised_stays_while_it_is_of_use() -> None:
    made = proven_on(X)
    made.set_candidates([Y], [], T + 0.02)
    assert made.path == Path("udp", X)
    made = selector(X)
    made.set_candidates([Y], [], T)
    made.data_sent(T)
    asked(made, Y)


def test_learnt_candidates_are_forgotten() -> None:
    made = selector()
    made.data_received(X, T)
    made.pings_to_send()
    made.data_sent(T + timing.ACTIVE + timing.LEARNED_LIFE)
    assert not made.proven(X)
    assert made.pings_to_send() == []


def test_too_many_candidates_are_cut_the_lan_ones_first_kept() -> None:
    many = [("203.0.113.1", port) for port in range(1, 100)]
    made = selector(*many, lan=(X, Y))
    made.data_sent(T)
    pinged = [endpoint for endpoint, _ in made.pings_to_send()]
    assert len(pinged) == timing.MAX_ADVERTISED
    assert pinged[:2] == [X, Y]


def test_a_good_lan_path_ends_the_search() -> None:
    made = selector(X, Y, lan=(X,))
    made.data_sent(T)
    txids = dict(made.pings_to_send())
    assert made.pong_received(X, txids[X], HERE, T + 0.001)
    now = T
    for _ in range(400):
        now += 0.25
        made.data_sent(now)
        made.handle_timeout(now)
        for endpoint, txid in made.pings_to_send():
            assert endpoint == X
            assert made.pong_received(X, txid, HERE, now + 0.001)


def test_link_changed_without_a_relay_keeps_the_path_and_asks() -> None:
    made = proven_on(X, relay=False)
    made.link_changed(T + 0.02)
    assert made.path == Path("udp", X)
    assert made.rtt is None
    txid = asked(made, X)
    assert made.pong_received(X, txid, HERE, T + 0.03)
    assert made.events() == []


def test_a_storm_of_link_changes_stays_in_the_budget() -> None:
    made = selector(X, Y)
    sent = 0
    for step in range(1000):
        made.data_sent(T + step / 100)
        made.link_changed(T + step / 100)
        sent += len(made.pings_to_send())
    assert sent <= timing.PROBE_BURST + 10 * timing.PROBE_RATE + 1


def test_nothing_is_there_without_relay_and_candidates() -> None:
    made = selector(relay=False)
    made.data_sent(T)
    assert made.path is None
    assert made.rtt is None
    made.set_relay(True, T)
    assert made.events() == [PathChanged(RELAY_PATH, T)]
    made.set_relay(False, T + 1)
    assert made.events() == [PathChanged(None, T + 1)]


def test_who_was_never_asked_is_asked_before_those_that_do_not_answer_are_asked_again() -> None:
    """The peer's budget is short where it has many addresses: that of a LAN that is not ours must not keep the one
    waiting by which it is reached."""
    dead = [(f"192.168.{number}.1", 5000) for number in range(14)]
    made = selector(lan=tuple(dead))
    now, came, first = T, T + 1.0, None
    made.data_sent(now)
    while now < T + 20 and first is None:
        if any(endpoint == X for endpoint, _ in made.pings_to_send()):
            first = now
        now += 0.05
        made.data_sent(now)
        if now >= came and len(made.candidates(now)) == len(dead):
            made.called([*((each, "interface") for each in dead), (X, "observed")], now, now)
            assert made.candidates(now)[-1].endpoint == X, "the worst of kind: last in turn among those asked before"
        made.handle_timeout(now)
    assert first is not None and first - came < 0.5
