"""Peers that this node lets in at its private exposures, as the server has said.

What has been said holds on while the server is away: who was let in may come back without it.
"""

from collections.abc import Callable
from typing import Final

import anyio

MOST: Final = 1024  # of one exposure; whose time ends first makes room


class Guests:
    """Of one exposure. Called with an overlay address: whether connections from there are taken."""

    def __init__(self, server_is_there: Callable[[], bool]) -> None:
        self._server_is_there = server_is_there
        self._until: dict[str, float] = {}

    def __call__(self, address: str) -> bool:
        until = self._until.get(address)
        return until is not None and (anyio.current_time() < until or not self._server_is_there())

    def let_in(self, address: str, seconds: float) -> None:
        """For so long from now; 0: no longer."""
        now = anyio.current_time()
        if not 0 < seconds:
            self._until.pop(address, None)
            return
        self._until[address] = now + seconds
        if len(self._until) > MOST:
            del self._until[min(self._until, key=lambda each: self._until[each])]
