"""The values that path selection speaks in. No state, no behaviour."""

from dataclasses import dataclass
from typing import Literal

from overlay.wire.endpoint import Endpoint

PathKind = Literal["relay", "lan", "udp", "tcp"]

TXID_SIZE = 12
"""Bytes of a ping's transaction id: too many to be guessed by one who did not see the ping."""


@dataclass(frozen=True, slots=True)
class Path:
    """One way to carry datagrams to a peer. `endpoint` is where they go; None for the relay, which the engine knows."""

    kind: PathKind
    endpoint: Endpoint | None


RELAY_PATH = Path("relay", None)


@dataclass(frozen=True, slots=True)
class PathChanged:
    """Data goes another way from `at` (s, monotonic) on; None: there is no way now."""

    path: Path | None
    at: float


PathEvent = PathChanged
