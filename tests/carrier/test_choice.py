"""The race, the search for a better carrier, and the memory: in virtual time."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.carriers import CARRIERS, CarrierName
from overlay.carrier.choice import (
    FIRST_PAUSE,
    HEAD_START,
    LINK_PAUSE,
    MAX_ATTEMPTS,
    MEMORY_LIFE,
    MEMORY_SIZE,
    SETTLED,
    Attempt,
    BetterSearch,
    Favourite,
    Favourites,
    Race,
    parse_carriers,
)
from overlay.wire.control.address import ServerAddress, parse_server_address

ONE, OTHER = ("192.0.2.1", 443), ("192.0.2.2", 443)
NAME = parse_server_address("vpn.example.org:443")


def started(race: Race, until: float) -> list[tuple[float, CarrierName, str]]:
    """What begins when, if nothing answers and nothing fails."""
    found = []
    now = 0.0
    while now <= until:
        found += [(now, attempt.carrier, attempt.endpoint[0]) for attempt in race.due(now)]
        timeout = race.next_timeout()
        if timeout is None:
            break
        now = timeout
    return found


def mean(low: float, high: float) -> float:
    return (low + high) / 2


# names ---------------------------------------------------------------------------------------------------------------


def test_carriers_as_people_write_them() -> None:
    assert parse_carriers("auto") == CARRIERS
    assert parse_carriers("tls") == ("tls",)
    assert parse_carriers("WSS, udp,wss") == ("wss", "udp")
    assert parse_carriers("ws,auto")[:2] == ("ws", "udp")


@pytest.mark.parametrize("text", ["", "quic", "udp,", "tls;ws"])
def test_a_wrong_carrier_is_told_with_the_list(text: str) -> None:
    with pytest.raises(ValueError, match="auto, udp, tls, wss, tcp, ws"):
        parse_carriers(text)


# the race ------------------------------------------------------------------------------------------------------------


def test_each_carrier_has_a_head_start_before_the_next() -> None:
    race = Race(("udp", "tls", "ws"))
    race.add(NAME, 0, [ONE])
    assert started(race, 9) == [
        (0.0, "udp", ONE[0]),
        (HEAD_START, "tls", ONE[0]),
        (2 * HEAD_START, "ws", ONE[0]),
    ]


def test_neither_a_dead_address_nor_a_blocked_carrier_holds_up_the_rest() -> None:
    race = Race(("udp", "tls", "ws"))
    race.add(NAME, 0, [ONE, OTHER])
    order = [(carrier, host) for _, carrier, host in started(race, 9)]
    assert order == [
        ("udp", ONE[0]),
        ("udp", OTHER[0]),
        ("tls", ONE[0]),
        ("tls", OTHER[0]),
        ("ws", ONE[0]),
        ("ws", OTHER[0]),
    ]


def test_a_failure_lets_the_next_begin_at_once() -> None:
    race = Race(("udp", "tls"))
    race.add(NAME, 0, [ONE])
    (first,) = race.due(0.0)
    assert race.due(0.01) == []
    race.failed(first, 0.02)
    (second,) = race.due(0.02)
    assert second.carrier == "tls"
    assert not race.over
    race.failed(second, 0.03)
    assert race.over


def test_what_worked_last_begins() -> None:
    favourite = Favourite(network="x", carrier="ws", address=str(NAME), wall=0)
    race = Race(("udp", "tls", "ws"), favourite)
    race.add(parse_server_address("192.0.2.2:443"), 0, [OTHER])
    race.add(NAME, 1, [ONE])
    assert started(race, 0) == [(0.0, "ws", ONE[0])]


def test_a_name_that_is_found_later_joins() -> None:
    race = Race(("tcp",))
    race.add(parse_server_address("192.0.2.1:443"), 1, [ONE])
    (first,) = race.due(0.0)
    race.add(NAME, 0, [OTHER, ONE])
    race.failed(first, 1.0)
    assert [attempt.endpoint for attempt in race.due(1.0)] == [OTHER]
    assert race.next_timeout() is None


def test_a_url_fixes_the_carrier() -> None:
    race = Race(("udp", "tls", "wss"))
    race.add(parse_server_address("wss://vpn.example.org/p"), 0, [ONE])
    assert race.due(0.0) == [Attempt("wss", ONE, ServerAddress("vpn.example.org", 443, "wss", "/p"))]
    assert race.next_timeout() is None


@given(
    carriers=st.lists(st.sampled_from(CARRIERS), min_size=1, unique=True),
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    fails=st.randoms(use_true_random=False),
)
def test_every_attempt_begins_once_and_the_race_ends(
    carriers: list[CarrierName], counts: list[int], fails: random.Random
) -> None:
    race = Race(carriers)
    for rank, count in enumerate(counts):
        race.add(NAME, rank, [(f"192.0.{rank % 2}.{number + 1}", 443) for number in range(count)])
    begun: list[Attempt] = []
    now = 0.0
    while not race.over:
        due = race.due(now)
        begun += due
        timeout = race.next_timeout()
        if race.running and (timeout is None or fails.random() < 0.3):
            race.failed(fails.choice(sorted(race.running, key=str)), now)
        elif timeout is not None:
            assert timeout <= now + HEAD_START
            now = max(now, timeout)
    assert len(begun) == len(set(begun)) <= MAX_ATTEMPTS
    if any(counts):
        assert begun[0].carrier == carriers[0]
        assert {attempt.carrier for attempt in begun} == set(carriers)


# a better one --------------------------------------------------------------------------------------------------------


def looks(search: BetterSearch, since: float, until: float) -> list[tuple[float, tuple[CarrierName, ...]]]:
    found = []
    while (now := search.next_timeout()) is not None and now <= until:
        found.append((now - since, search.due(now)))
    return found


def test_udp_is_looked_for_often_and_streams_seldom() -> None:
    search = BetterSearch(CARRIERS, mean)
    search.connected("wss", 0.0)
    found = looks(search, 0.0, 3600.0)
    udp = [now for now, carriers in found if "udp" in carriers]
    tls = [now for now, carriers in found if "tls" in carriers]
    assert udp[0] == FIRST_PAUSE
    pauses = [later - earlier for earlier, later in zip(udp, udp[1:], strict=False)]
    assert pauses[0] == 10.0 and set(pauses[1:]) == {20.0}
    assert len(tls) < 15
    assert all(set(carriers) <= {"udp", "tls"} for _, carriers in found)


@given(st.randoms(use_true_random=False), st.floats(0, 3600))
def test_udp_that_is_back_is_noticed_within_half_a_minute(draw: random.Random, back: float) -> None:
    search = BetterSearch(CARRIERS, draw.uniform)
    search.connected("tls", 0.0)
    looks(search, 0.0, back)
    timeout = search.next_timeout()
    assert timeout is not None and timeout - back <= 24.0 + 1e-6  # and 3 s for the answer


def test_nothing_is_better_than_the_first() -> None:
    search = BetterSearch(CARRIERS, mean)
    search.connected("udp", 0.0)
    assert search.next_timeout() is None
    assert search.due(1e9) == ()


def test_a_link_change_brings_a_look_soon() -> None:
    search = BetterSearch(CARRIERS, mean)
    search.connected("tls", 0.0)
    looks(search, 0.0, 1000.0)
    search.link_changed(1000.0)
    assert search.next_timeout() == 1000.0 + LINK_PAUSE
    assert search.due(1000.0 + LINK_PAUSE) == ("udp",)
    assert search.next_timeout() == 1000.0 + LINK_PAUSE + 2 * FIRST_PAUSE


def test_a_carrier_that_works_and_does_not_last_is_looked_for_seldom_from_the_second_time_on() -> None:
    search = BetterSearch(CARRIERS, mean)
    search.connected("udp", 0.0)
    search.lost(1.0)
    assert search.is_unsteady("udp") and search.steady_first()[-1] == "udp"
    search.connected("tls", 1.0)
    assert search.next_timeout() == 1.0 + FIRST_PAUSE
    search.connected("udp", 1.0 + FIRST_PAUSE)
    search.lost(2.0 + FIRST_PAUSE)
    search.connected("tls", 2.0)
    found = looks(search, 2.0, 3600.0)
    assert found[0] == (SETTLED, ("udp",))
    assert len(found) < 12
    search.connected("udp", 4000.0)
    search.lost(4000.0 + SETTLED)
    search.connected("tls", 4100.0)
    assert search.next_timeout() == 4100.0 + FIRST_PAUSE


def test_taking_over_keeps_the_pauses_of_what_is_better_still() -> None:
    search = BetterSearch(CARRIERS, mean)
    search.connected("wss", 0.0)
    looks(search, 0.0, 100.0)
    before = search.next_timeout()
    search.connected("tls", 100.0)
    assert search.next_timeout() == before


# memory --------------------------------------------------------------------------------------------------------------


def favourite(network: str, wall: float, carrier: CarrierName = "tls") -> Favourite:
    return Favourite(network=network, carrier=carrier, address=str(NAME), wall=wall)


def test_a_network_is_remembered_for_a_week() -> None:
    memory = Favourites().remember(favourite("a", 1000.0)).remember(favourite("b", 1000.0, "ws"))
    assert memory.of("a", CARRIERS, 1000.0 + MEMORY_LIFE - 1) == favourite("a", 1000.0)
    assert memory.of("a", CARRIERS, 1000.0 + MEMORY_LIFE) is None
    assert memory.of("a", CARRIERS, 1000.0 - MEMORY_LIFE) is None
    assert memory.of("c", CARRIERS, 1000.0) is None
    assert memory.of("b", ("udp", "tls"), 1000.0) is None
    assert memory.remember(favourite("c", 1000.0 + MEMORY_LIFE)).networks == (favourite("c", 1000.0 + MEMORY_LIFE),)


@given(st.lists(st.tuples(st.integers(0, 100), st.sampled_from(CARRIERS)), max_size=300))
def test_the_memory_is_bounded_and_holds_the_newest(steps: list[tuple[int, CarrierName]]) -> None:
    memory = Favourites()
    for wall, (network, carrier) in enumerate(steps):
        memory = memory.remember(favourite(str(network), wall, carrier))
        assert len(memory.networks) <= MEMORY_SIZE
        found = memory.of(str(network), CARRIERS, wall)
        assert found is not None and found.carrier == carrier
    assert msgspec.json.decode(msgspec.json.encode(memory), type=Favourites) == memory
