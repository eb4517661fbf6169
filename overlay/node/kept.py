"""This node's exposures as its state folder has them, and what is said of them to the server."""

from typing import Final

import msgspec

from overlay.node.own_tls import NO_TLS_OPTIONS, TlsOptions
from overlay.node.status import Entry, ExposeWish
from overlay.node.targets import NO_OPTIONS, Target, TargetOptions
from overlay.wire.control.messages import Expose, Exposure, TunnelKind
from overlay.wire.control.terms import Terms

FILE: Final = "exposures.json"


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
    terms: Terms = Terms()
    entry: Entry | None = None
    inspect: int = 0
    wish: ExposeWish | None = None  # what was asked for; None: by a version that did not keep it


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
