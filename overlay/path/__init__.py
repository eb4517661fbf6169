"""Which way to a peer: candidates, proofs, and the choice between them. Sans-I/O; knows no packet, key or socket."""

from overlay.path.selector import Selector
from overlay.path.types import RELAY_PATH, CandidateState, Origin, Path, PathChanged, PathEvent, PathKind, WantTcp

__all__ = [
    "RELAY_PATH",
    "CandidateState",
    "Origin",
    "Path",
    "PathChanged",
    "PathEvent",
    "PathKind",
    "Selector",
    "WantTcp",
]
