"""This node's exposures as its state folder has them, and what is said of them to the server."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import msgspec

from overlay.node.targets import NO_OPTIONS, Target, TargetOptions, Transport
from overlay.wire.control.messages import Expose, Exposure, TunnelKind
from overlay.wire.control.terms import Terms
from overlay.wire.endpoint import parse_endpoint

FILE: Final = "exposures.json"
UNFINISHED: Final = "…"
"""The range of those that are made before it is whole: after a crash they are given back."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One exposure as the state folder has it."""

    id: str
    public: str
    url: str = ""
    target: str  # canonical
    port: int  # on the overlay address
    tunnel: TunnelKind = "single"
    known_as: tuple[str, ...] = ()  # names that users know it by
    service: str = ""
    owner: int = 0  # uid of who exposed it: with this user's rights files are opened
    options: TargetOptions = NO_OPTIONS
    range: str = ""  # the id of the whole range of ports that it is one of
    terms: Terms = Terms()


class KeptFile(msgspec.Struct, frozen=True, kw_only=True):
    exposures: tuple[Kept, ...] = ()


def asked(kept: Kept, seq: int, *, host: str = "", direct: bool = False) -> Expose:
    """What asks for an exposure, or renews it."""
    target = Target.parse(kept.target)
    return Expose(
        seq=seq,
        id=kept.id,
        protocol=target.protocol,
        public=kept.public,
        host=host,
        target=target.told,
        port=kept.port,
        tunnel=kept.tunnel,
        known_as=kept.known_as,
        service=kept.service,
        direct=direct,
        terms=kept.terms,
    )


def agree(theirs: Exposure, ours: Kept) -> bool:
    return (theirs.port, theirs.target, theirs.known_as, theirs.service, theirs.terms) == (
        ours.port,
        Target.parse(ours.target).told,
        ours.known_as,
        ours.service,
        ours.terms,
    )


def places(exposures: Iterable[Kept], address: str) -> dict[tuple[Transport, str, int], str]:
    """Where exposures are reached → their ids: at the server, and at this node's overlay address ("": none)."""
    found: dict[tuple[Transport, str, int], str] = {}
    for kept in exposures:
        transport = Target.parse(kept.target).transport
        if address:
            found[transport, address, kept.port] = kept.id
        with suppress(ValueError):  # of http by name
            found[transport, *parse_endpoint(kept.public)] = kept.id
    return found


def leads_to_itself(target: Target, kept: Kept) -> bool:
    """Whether a target is, as it is written, the place where the server has published it."""
    if f"{target.address}:{target.port}" == kept.public:
        return True
    url = urlsplit(kept.url)
    port = url.port or {"https": 443, "http": 80}.get(url.scheme, 0)
    # Users' requests go on with the name that they came with, so that it leads here from each port of the server.
    return bool(url.hostname) and url.hostname == target.host.lower().rstrip(".") and target.port in (80, 443, port)
