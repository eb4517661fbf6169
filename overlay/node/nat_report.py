"""What a NAT's behaviour means for people: one sentence, beside the words of the RFC."""

from collections.abc import Iterable

from overlay.node.status import NatStatus
from overlay.path.nat import NatBehaviour
from overlay.wire.endpoint import Endpoint, format_endpoint


def nat_status(nat: NatBehaviour, endpoints: Iterable[Endpoint]) -> NatStatus:
    return NatStatus(
        summary=summary(nat),
        endpoints=tuple(map(format_endpoint, endpoints)),
        translated=nat.translated,
        mapping=nat.mapping,
        filtering=nat.filtering,
        hairpinning=nat.hairpinning,
        port_preserved=nat.port_preserved,
        port_delta=nat.port_delta,
        lifetime_s=nat.lifetime,
    )


def summary(nat: NatBehaviour) -> str:
    """A sentence on what direct paths have to expect."""
    if nat.translated is None:
        return "Not known: nothing answers by UDP."
    if not nat.translated:
        if nat.filtering == "endpoint-independent":
            return "None: this machine has a public address, and all peers reach it."
        if nat.filtering is None:
            return "None: this machine has a public address."
        return "None, but a firewall: peers reach this machine once it has sent to them."
    if nat.mapping is None:
        return "There is one; of which kind is not known: the server's second STUN port does not answer."
    if nat.mapping == "endpoint-independent":
        if nat.filtering == "endpoint-independent":
            return "An open one: all peers reach this machine directly."
        return "An easy one: direct paths to most peers."
    if nat.port_delta is not None:
        return "A hard one, with ports that can be guessed: direct paths to most peers, after some time."
    return "A hard one: direct paths to peers whose NAT is easy, after some time; others by the relay."
