"""Whatever is reported in whatever order: nothing raises, nothing grows, and time goes on."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.path import timing
from overlay.path.selector import Selector
from overlay.path.types import WantTcp
from overlay.wire.endpoint import Endpoint

ENDPOINTS: list[Endpoint] = [("192.0.2.1", port) for port in range(1, 40)] + [("2001:db8::1", 7)]

endpoints = st.sampled_from(ENDPOINTS)
steps = st.one_of(
    st.tuples(st.just("sent")),
    st.tuples(st.just("received"), st.none() | endpoints, st.booleans()),
    st.tuples(st.just("ping"), endpoints),
    st.tuples(st.just("answer"), st.integers(0, 30)),
    st.tuples(st.just("spoof"), endpoints, st.binary(min_size=12, max_size=12)),
    st.tuples(st.just("candidates"), st.lists(endpoints, max_size=30), st.lists(endpoints, max_size=3)),
    st.tuples(
        st.just("called"),
        st.lists(st.tuples(endpoints, st.sampled_from(("interface", "observed", "predicted"))), max_size=30),
        st.floats(0.0, 2.0),
    ),
    st.tuples(st.just("punched"), endpoints, st.floats(0.0, 5.0)),
    st.tuples(st.just("moved")),
    st.tuples(st.just("relay"), st.booleans()),
    st.tuples(st.just("link")),
    st.tuples(st.just("wait"), st.floats(0.0, 100.0)),
    st.tuples(st.just("timer")),
)


@settings(deadline=None, max_examples=200)
@given(st.booleans(), st.lists(steps, max_size=80))
def test_any_order_of_reports(relay: bool, script: list[tuple[object, ...]]) -> None:
    selector = Selector(relay=relay, random_bytes=Random(0).randbytes)
    now = 1000.0
    out: list[tuple[Endpoint, bytes]] = []
    path = selector.path
    calls = 0
    for step in script:
        match step:
            case ["sent"]:
                selector.data_sent(now)
            case ["received", source, bool(empty)]:
                assert source is None or isinstance(source, tuple)
                selector.data_received(source, now, empty=empty)
            case ["ping", tuple(source)]:
                selector.ping_received(source, now)
            case ["answer", int(number)] if number < len(out):
                source, txid = out.pop(number)
                selector.pong_received(source, txid, ("198.51.100.1", 9), now)
            case ["spoof", tuple(source), bytes(txid)]:
                assert not selector.pong_received(source, txid, ("198.51.100.1", 9), now)
            case ["candidates", list(some), list(lan)]:
                selector.set_candidates(some, lan, now)
            case ["called", list(offers), float(delay)]:
                selector.called(offers, now + delay, now)
            case ["punched", tuple(source), float(ago)]:
                selector.punched(source, now - ago, now)
            case ["moved"]:
                selector.call_anew(now)
            case ["relay", bool(available)]:
                relay = available
                selector.set_relay(available, now)
            case ["link"]:
                selector.link_changed(now)
            case ["wait", float(pause)]:
                now += pause
            case ["timer"]:
                now = max(now, selector.next_timeout() or now)
                selector.handle_timeout(now)
                due = selector.next_timeout()
                assert due is None or due > now
        out += selector.pings_to_send()
        calls += selector.call_due()
        for event in selector.events():
            if isinstance(event, WantTcp):
                continue
            assert event.path != path
            path = event.path
        assert path == selector.path
        assert path is not None or not relay
        assert len(selector._candidates) <= timing.MAX_ADVERTISED + timing.MAX_OFFERED + timing.MAX_LEARNED
        assert path is None or (path.kind == "relay") == (path.endpoint is None)
        assert not (path is not None and path.kind == "relay") or relay
        assert len(out) <= 2000
        assert calls <= len(script)
