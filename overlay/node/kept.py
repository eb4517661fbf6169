"""This node's exposures as its state folder has them, and what is said of them to the server."""

from typing import Final

import msgspec

from overlay.node.direct_end import WELL_KNOWN
from overlay.node.status import Entry, ExposeWish
from overlay.node.targets import Target
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
    terms: Terms = Terms()
    entry: Entry | None = None
    wish: ExposeWish | None = None  # what was asked for; None: by a version that did not keep it


class KeptFile(msgspec.Struct, frozen=True, kw_only=True):
    exposures: tuple[Kept, ...] = ()


def asked(kept: Kept, seq: int, *, host: str = "", direct: bool = False) -> Expose:
    """What asks for an exposure, or renews it."""
    return Expose(
        seq=seq,
        id=kept.id,
        protocol=Target.parse(kept.target).protocol,
        public=kept.public,
        host=host,
        target=kept.target,
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
        ours.target,
        ours.known_as,
        ours.service,
        ours.terms,
    )


def is_renewable(old: ExposeWish | None, new: ExposeWish) -> bool:
    """Whether what was exposed for `old` can become `new` and keep its name or port: users' way there is the same, and
    they speak the same. Raises `UserError` for a target that is none."""
    if old is None or _spoken(old) != _spoken(new):
        return False
    mended = msgspec.structs.replace(
        old, target=new.target, known_as=new.known_as, service=new.service, terms=new.terms
    )
    return mended == new


def _spoken(wish: ExposeWish) -> str:
    return target_of(wish).protocol


def target_of(wish: ExposeWish) -> Target:
    """A port of its own carries whatever is said there; a name needs a protocol that tells it. Raises `UserError`."""
    return Target.parse(wish.target, "tcp" if wish.public else "http")


def service_of(wish: ExposeWish) -> str:
    target = target_of(wish)
    transport = "udp" if target.protocol == "udp" else "tcp"
    return wish.service.lower() or WELL_KNOWN.get((transport, target.port), "")
