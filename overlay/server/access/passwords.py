"""Passwords against their hashes: in threads of their own, few at once, and no more waiting than can be served.

Strangers can have these threads work as much as they like. So all else goes first on the processor: users who are in,
and the network's own packets, must not notice.
"""

import asyncio
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from overlay.wire.credentials import SALT_SIZE, fits_password, hash_password

AT_ONCE: Final = 2  # threads, each with 19 MiB for some 30 ms
MOST_WAITING: Final = 64
_NICE: Final = 19


class TooBusy(Exception):
    """More wait already than should."""


class Passwords:
    """One for the whole server."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "passwords", _go_last)  # which begin when there is work
        self._nobody = ""
        self._waiting = 0

    async def fits(self, encoded: str | None, password: str) -> bool:
        """None: of nobody; that takes as long. Raises `TooBusy`. Cancelled, what has begun goes on to its end."""
        if self._waiting >= MOST_WAITING:
            raise TooBusy
        self._waiting += 1
        try:
            return await asyncio.wrap_future(self._threads.submit(self._check, encoded, password.encode()))
        finally:
            self._waiting -= 1

    def _check(self, encoded: str | None, password: bytes) -> bool:
        if not self._nobody:
            self._nobody = hash_password(secrets.token_bytes(16), secrets.token_bytes(SALT_SIZE))
        return fits_password(encoded or self._nobody, password) and encoded is not None


def _go_last() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # to Linux a thread's number is a process's
