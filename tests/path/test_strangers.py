"""What an endpoint gets that never answers, whoever names it, and however often."""

from collections import Counter
from random import Random

from overlay.path import timing
from overlay.path.selector import Selector
from overlay.path.strangers import Strangers
from overlay.wire.endpoint import Endpoint

VICTIM: Endpoint = ("192.0.2.1", 53)
HOUR = 3600


def test_a_few_pings_then_one_now_and_then_and_after_the_span_anew() -> None:
    strangers = Strangers()
    for number in range(timing.UNPROVEN_PINGS):
        assert strangers.next_ping(VICTIM, float(number)) <= number
        strangers.pinged(VICTIM, float(number))
    last = timing.UNPROVEN_PINGS - 1
    assert strangers.next_ping(VICTIM, last + 1.0) == last + timing.UNPROVEN_PAUSE
    assert strangers.next_ping(VICTIM, timing.UNPROVEN_SPAN) <= timing.UNPROVEN_SPAN


def asked(endpoints_of_call: int, seconds: int) -> Counter[Endpoint]:
    """Pings in so many seconds of data to a peer that calls each second, with that many other endpoints and the
    victim's."""
    selector, random = Selector(relay=True, random_bytes=Random(1).randbytes), Random(2)
    found: Counter[Endpoint] = Counter()
    for now in range(seconds):
        others: list[Endpoint] = [(f"198.51.{random.randrange(256)}.9", 1 + n) for n in range(endpoints_of_call)]
        selector.called(((each, "observed") for each in [VICTIM, *others]), float(now), float(now))
        selector.data_sent(float(now))
        found.update(endpoint for endpoint, _ in selector.pings_to_send())
    return found


def test_a_peer_that_names_a_victim_each_second_aims_a_ping_in_twenty_seconds_at_it() -> None:
    rounds = HOUR / timing.UNPROVEN_SPAN
    most = rounds * (timing.UNPROVEN_PINGS + timing.UNPROVEN_SPAN / timing.UNPROVEN_PAUSE)
    assert 0 < asked(0, HOUR)[VICTIM] <= most


def test_thousands_of_endpoints_of_one_peer_are_under_its_budget() -> None:
    found = asked(15, 600)
    assert sum(found.values()) <= timing.PROBE_BURST + 600 * timing.PROBE_RATE
