"""A host's endpoints, as whoever connects to it looks them up."""

import socket
from collections.abc import Awaitable, Callable, Sequence

import anyio

from overlay.wire.endpoint import Endpoint, canonical_endpoint

LookUp = Callable[[str, int], Awaitable[Sequence[Endpoint]]]
"""Host name and port → endpoints, best first. Raises `OSError`: the text is the reason."""


async def system_look_up(host: str, port: int) -> list[Endpoint]:
    """By the system's resolver. As `LookUp`."""
    try:
        answers = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OSError(getattr(error, "strerror", None) or str(error)) from error
    return interleaved([canonical_endpoint(address[0], address[1]) for *_, address in answers])


def interleaved(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """IPv6 and IPv4 in turns, starting with the system's first choice (RFC 8305 §4)."""
    if not endpoints:
        return []
    endpoints = list(dict.fromkeys(endpoints))
    first_is_v6 = ":" in endpoints[0][0]
    first = [endpoint for endpoint in endpoints if (":" in endpoint[0]) is first_is_v6]
    second = [endpoint for endpoint in endpoints if (":" in endpoint[0]) is not first_is_v6]
    turns = [endpoint for pair in zip(first, second, strict=False) for endpoint in pair]
    return turns + first[len(second) :] + second[len(first) :]
