"""This node's exposures as its state folder has them, and what is said of them to the server."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from overlay.errors import Exit, UserError
from overlay.node.own_tls import NO_TLS_OPTIONS, TlsOptions
from overlay.node.status import Entry, ExposeWish, ExposureStatus
from overlay.node.targets import NO_OPTIONS, Target, TargetOptions, Transport
from overlay.wire.control.messages import Expose, Exposure, GroupMember, TunnelKind
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
    tls: TlsOptions = NO_TLS_OPTIONS
    range: str = ""  # the id of the whole range of ports that it is one of
    terms: Terms = Terms()
    entry: Entry | None = None
    inspect: int = 0
    wish: ExposeWish | None = None  # what was asked for; None: by a version that did not keep it

    def is_over(self, now: float) -> bool:
        """`now`: Unix time, s."""
        return 0 < self.terms.expires <= now


class KeptFile(msgspec.Struct, frozen=True, kw_only=True):
    exposures: tuple[Kept, ...] = ()


def asked(kept: Kept, seq: int, *, host: str = "", direct: bool = False) -> Expose:
    """What asks for an exposure, or renews it."""
    target = Target.parse(kept.target)
    return Expose(
        seq=seq,
        id=kept.id,
        protocol="tls" if kept.terms.tls_end == "node" else target.protocol,
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


def host_of(public: str) -> str:
    """Of what is exposed by TLS: "app.example.com:443" → "app.example.com"."""
    return public.rpartition(":")[0]


def url_of(theirs: Exposure, ours: Kept) -> str:
    """Where a browser finds it. Of TLS that ends here the server does not know that http is in it."""
    if ours.terms.tls_end != "node" or Target.parse(ours.target).protocol != "http":
        return theirs.url
    return f"https://{theirs.public.removesuffix(':443')}/"


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


def check_circle(kept: Kept) -> None:
    """Raises `UserError` ("target-loop") if a target is, as it is written, the place where the server has published
    it."""
    target, url = Target.parse(kept.target), urlsplit(kept.url)
    if target.kind != "host":
        return
    # Users' requests go on with the name that they came with, so that it leads here from each port of the server.
    ports = (80, 443) if url.port is None else (url.port,)
    at_name = url.hostname == target.host.lower().rstrip(".") and target.port in ports
    if at_name or f"{target.address}:{target.port}" == kept.public:
        raise UserError(
            "target-loop",
            f"{target.text} is where users would reach this exposure itself.",
            "Name the service that is to be reached, not the place where it is published.",
            Exit.USAGE,
        )


def granted(wanted: Kept, exposure: Exposure) -> Kept:
    """As the server has granted it."""
    return msgspec.structs.replace(
        wanted,
        id=exposure.id,
        public=exposure.public,
        url=url_of(exposure, wanted),
        tunnel=exposure.tunnel,
        known_as=exposure.known_as,
        service=exposure.service,
    )


def status_of(
    kept: Kept,
    *,
    connections: int,
    direct: bool,
    trouble: str,
    certificate: Literal["self-signed", "acme"] | None,
    problem: str | None = None,
    members: tuple[GroupMember, ...] = (),
) -> ExposureStatus:
    """As the local API shows it."""
    return ExposureStatus(
        id=kept.id,
        public=kept.public,
        url=kept.url or None,
        target=kept.target,
        tunnel=kept.tunnel,
        connections=connections,
        known_as=kept.known_as,
        service=kept.service,
        direct=direct,
        trouble=trouble,
        certificate=certificate,
        range=kept.range,
        terms=kept.terms,
        entry=kept.entry,
        inspect=kept.inspect,
        problem=problem,
        members=members,
    )


def unknown_exposure(name: str) -> UserError:
    return UserError(
        "exposure-unknown",
        f"This node has no exposure '{name[:64]}'.",
        "See 'overlay expose ls' for those it has.",
    )


def not_up() -> UserError:
    return UserError(
        "not-up",
        "The network is not up on this machine yet.",
        "Try again when 'overlay status' says 'connected'.",
        Exit.NOT_RUNNING,
    )
