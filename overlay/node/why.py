"""Why packets to a peer go the way they go: what the engine knows, in a word and in a sentence. Pure."""

from overlay.daemon.peers import CandidateStatus, WhyReport
from overlay.engine.api import PeerDetails
from overlay.engine.link import is_link
from overlay.node.nat_report import summary
from overlay.node.pings import milliseconds, path_status
from overlay.path import punch
from overlay.path.types import CandidateState
from overlay.wire.control.messages import MapNode
from overlay.wire.endpoint import format_endpoint


def why_report(node: MapNode, details: PeerDetails) -> WhyReport:
    """What to tell about `node`."""
    reason, sentence = _reason(node, details)
    return WhyReport(
        name=node.name,
        addresses=node.addresses,
        online=node.online,
        path=path_status(details.peer.path),
        rtt_ms=milliseconds(details.peer.rtt),
        active=details.active,
        reason=reason,
        sentence=sentence,
        own_nat=summary(details.own_nat),
        peer_nat=summary(details.nat),
        relay=details.relay,
        next_call_s=_rounded(details.next_call),
        candidates=tuple(_candidate(each) for each in details.candidates if each.kind != "relay"),
    )


def _reason(node: MapNode, details: PeerDetails) -> tuple[str, str]:
    path, name = details.peer.path, node.name
    if path is not None and path.kind == "lan":
        return "lan", f"{name} is on a network of this machine's, and is reached there directly."
    if path is not None and path.kind == "udp":
        return "direct", f"Packets go to {name} directly, by UDP: there is no better way."
    if path is not None and path.kind == "tcp":
        return "tcp", f"Packets go to {name} directly, by TCP, since UDP does not get through; it is tried again."
    if path is None and not node.online:
        return "offline", f"{name} is not connected to the server, and nobody answers where it was seen last."
    if path is None:
        return "no-way", f"There is no way to {name} now: neither the relay nor {name} itself answers."
    if not node.online:
        return "offline", f"{name} is not connected to the server, so that the relay cannot reach it."
    if not details.active:
        hint = f"'overlay ping {name} --until-direct' sends some"
        return "idle", f"No data flows to {name}: a direct path is looked for with the next packet ({hint})."
    reason, sentence = _not_direct(name, details)
    return reason, sentence + _next(details)


def _not_direct(name: str, details: PeerDetails) -> tuple[str, str]:
    """Data goes by the relay, and a better way is looked for: a word, and a sentence without its end."""
    asked = [each for each in details.candidates if each.pings]
    if any(each.state == "resting" for each in details.candidates):
        return "resting", f"The direct path to {name} stopped answering, and rests for a while"
    if not details.candidates:
        return (
            "no-candidates",
            f"{name} has been called through the relay, and has not said yet where it may be reached",
        )
    if punch.is_hard(details.own_nat) and punch.is_hard(details.nat):
        facts = "The NATs on both sides give each destination a port of its own, so that neither side knows the other's"
        return "both-nats-hard", f"{facts}; a mapped or opened UDP port on one side would change that"
    if punch.part(details.own_nat, details.nat) is not None:
        facts = "One of the two NATs gives each destination a port of its own"
        return "guessing-ports", f"{facts}, and it takes many probes to meet"
    if not asked:
        return "not-asked-yet", f"The endpoints of {name} are about to be asked"
    many = f"{len(asked)} endpoints" if len(asked) > 1 else "One endpoint"
    return "no-answer", f"{many} of {name} asked without an answer: a firewall on one of the sides lets no UDP in"


def _next(details: PeerDetails) -> str:
    """The end of the sentence: when it is tried again."""
    if details.next_call is None:
        return "."
    return "; both sides try again at once." if details.next_call < 1 else f"; again in {details.next_call:.0f} s."


def _candidate(each: CandidateState) -> CandidateStatus:
    return CandidateStatus(
        endpoint="" if is_link(each.endpoint) else format_endpoint(each.endpoint),
        kind="lan" if each.kind == "lan" else "tcp" if each.kind == "tcp" else "udp",
        origin=each.origin,
        state=each.state,
        pings=each.pings,
        pinged_s=_rounded(each.pinged),
        answered_s=_rounded(each.answered),
        rtt_ms=milliseconds(each.rtt),
        next_try_s=_rounded(each.next_try),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
