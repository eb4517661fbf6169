"""The values that path selection speaks in. No state, no behaviour."""

from dataclasses import dataclass
from typing import Literal

from overlay.wire.endpoint import Endpoint

PathKind = Literal["relay", "lan", "udp", "tcp"]

Origin = Literal["map", "seen", "punched", "interface", "observed", "mapped", "manual", "predicted"]
"""How we know an endpoint of the peer: the network map has it; its datagrams came from there; a connection was made to
it; or the peer offered it, and said how it knows of it itself."""

TXID_SIZE = 12
"""Bytes of a ping's transaction id: too many to be guessed by one who did not see the ping."""


@dataclass(frozen=True, slots=True)
class Path:
    """One way to carry datagrams to a peer. `endpoint` is where they go; None for the relay, which the engine knows.
    `shown`: what to call it for people, where the engine's own name for it (a link's) says nothing."""

    kind: PathKind
    endpoint: Endpoint | None
    shown: Endpoint | None = None


RELAY_PATH = Path("relay", None)


@dataclass(frozen=True, slots=True)
class PathChanged:
    """Data goes another way from `at` (s, monotonic) on; None: there is no way now."""

    path: Path | None
    at: float


@dataclass(frozen=True, slots=True)
class WantTcp:
    """Data flows, and UDP has brought no direct path since the peer was called: TCP is worth a try."""

    at: float


PathEvent = PathChanged | WantTcp


@dataclass(frozen=True, slots=True)
class CandidateState:
    """One candidate at this moment, for who asks why. Ages and waits in s; None: never, or not planned."""

    endpoint: Endpoint
    kind: PathKind
    origin: Origin
    state: Literal["in use", "proven", "asked", "resting", "silent", "waiting"]
    pings: int  # sent in its life
    pinged: float | None  # s ago
    answered: float | None  # s ago
    rtt: float | None
    next_try: float | None  # in s
