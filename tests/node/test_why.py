"""Why a path is what it is: the reason for each state that the engine can be in."""

from dataclasses import replace
from typing import Any

import pytest

from overlay.engine.api import PathSnapshot, PeerDetails, PeerSnapshot
from overlay.node.why import why_report
from overlay.path.nat import UNKNOWN_NAT, NatBehaviour
from overlay.path.types import CandidateState, PathKind
from overlay.wire.control.messages import MapNode

NODE = MapNode(number=3, name="b", key=bytes(32), addresses=("10.77.0.3",), online=True)
EASY = NatBehaviour(True, "endpoint-independent", "address-and-port-dependent")
HARD = NatBehaviour(True, "address-and-port-dependent", "address-and-port-dependent")
ASKED = CandidateState(("198.51.100.7", 41641), "udp", "observed", "silent", 4, 1.5, None, None, 3.25)


def path(kind: PathKind) -> PathSnapshot:
    return PathSnapshot(kind, None if kind == "relay" else ("198.51.100.7", 41641), 1.0, 1444)


def details(kind: PathKind | None = "relay", **fields: Any) -> PeerDetails:
    peer = PeerSnapshot(3, None if kind is None else path(kind), 0.0015, 1.0, 2, 3)
    plain = PeerDetails(peer, True, UNKNOWN_NAT, UNKNOWN_NAT, True, None, (ASKED,))
    return replace(plain, **fields)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (details("lan"), "lan"),
        (details("udp"), "direct"),
        (details("tcp"), "tcp"),
        (details(None), "no-way"),
        (details(active=False), "idle"),
        (details(candidates=(replace(ASKED, state="resting"),)), "resting"),
        (details(candidates=()), "no-candidates"),
        (details(own_nat=HARD, nat=HARD), "both-nats-hard"),
        (details(own_nat=HARD, nat=EASY), "guessing-ports"),
        (details(own_nat=EASY, nat=HARD), "guessing-ports"),
        (details(candidates=(replace(ASKED, pings=0, state="waiting"),)), "not-asked-yet"),
        (details(), "no-answer"),
    ],
)
def test_reasons(found: PeerDetails, reason: str) -> None:
    report = why_report(NODE, found)
    assert report.reason == reason
    assert report.sentence[0].isupper() or report.sentence.startswith("b ")
    assert report.sentence.endswith(".") and ".." not in report.sentence


@pytest.mark.parametrize("kind", ["relay", None])
def test_a_peer_that_is_away(kind: PathKind | None) -> None:
    assert why_report(replace_node(online=False), details(kind)).reason == "offline"


def replace_node(**fields: Any) -> MapNode:
    return MapNode(number=3, name="b", key=bytes(32), addresses=("10.77.0.3",), **fields)


@pytest.mark.parametrize(("next_call", "words"), [(None, " in."), (0.2, "again at once."), (7.6, "again in 8 s.")])
def test_when_it_is_tried_again(next_call: float | None, words: str) -> None:
    assert why_report(NODE, details(next_call=next_call)).sentence.endswith(words)


def test_candidates_are_told_as_they_are() -> None:
    (told,) = why_report(NODE, details()).candidates
    assert (told.endpoint, told.kind, told.origin, told.state) == ("198.51.100.7:41641", "udp", "observed", "silent")
    assert (told.pings, told.pinged_s, told.answered_s, told.rtt_ms, told.next_try_s) == (4, 1.5, None, None, 3.25)


def test_a_connection_has_no_endpoint_to_show() -> None:
    link = replace(ASKED, endpoint=("@link", 5), kind="tcp")
    (told,) = why_report(NODE, details(candidates=(link,))).candidates
    assert (told.endpoint, told.kind) == ("", "tcp")
