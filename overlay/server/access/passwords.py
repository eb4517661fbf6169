"""Passwords against their hashes: in threads, few at once, and no more waiting than can be served."""

import secrets
from typing import Final

import anyio
import anyio.to_thread

from overlay.wire.credentials import SALT_SIZE, fits_password, hash_password

AT_ONCE: Final = 2  # threads, each with 19 MiB for some 30 ms
MOST_WAITING: Final = 64


class TooBusy(Exception):
    """More wait already than should."""


class Passwords:
    """One for the whole server."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None  # made within the event loop
        self._nobody = ""
        self._waiting = 0

    async def fits(self, encoded: str | None, password: str) -> bool:
        """None: of nobody; that takes as long. Raises `TooBusy`."""
        if self._waiting >= MOST_WAITING:
            raise TooBusy
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(AT_ONCE)
        self._waiting += 1
        try:
            fits = await anyio.to_thread.run_sync(self._check, encoded, password.encode(), limiter=self._limiter)
        finally:
            self._waiting -= 1
        return fits

    def _check(self, encoded: str | None, password: bytes) -> bool:
        if not self._nobody:
            self._nobody = hash_password(secrets.token_bytes(16), secrets.token_bytes(SALT_SIZE))
        return fits_password(encoded or self._nobody, password) and encoded is not None
