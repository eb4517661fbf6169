"""Which of the endpoints that a node says it has are told to the others. Pure.

Every peer sends probes to these, so a node could aim the whole network at somebody: the number is bounded, and what
cannot be another machine's endpoint is left out.
"""

from collections.abc import Iterable, Sequence

from overlay.engine.api import Network
from overlay.path.offers import is_usable
from overlay.wire.endpoint import format_endpoint, parse_endpoint

MAX_LAN = 16  # hosts with more usable addresses of their own are rare
MAX_OBSERVED = 4  # one per address family, and the one before it while a NAT changes its mind


def usable_endpoints(texts: Iterable[str], ranges: Sequence[Network], limit: int) -> tuple[tuple[str, ...], int]:
    """The first `limit` usable ones in canonical form, and how many of all were left out."""
    kept: list[str] = []
    left_out = 0
    for text in texts:
        endpoint = _usable(text, ranges) if len(kept) < limit else None
        if endpoint is None:
            left_out += 1
        elif endpoint not in kept:
            kept.append(endpoint)
    return tuple(kept), left_out


def _usable(text: str, ranges: Sequence[Network]) -> str | None:
    try:
        endpoint = parse_endpoint(text)
    except ValueError:
        return None  # counted by the caller
    return format_endpoint(endpoint) if is_usable(endpoint, ranges) else None
