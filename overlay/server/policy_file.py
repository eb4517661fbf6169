"""The policy as its file has it now: read at start, at a SIGHUP, and when the file has changed.

What a policy does not allow ends for good, and half a policy allows what the whole one does not, or the other way
round: so a file that changes is read when it has come to rest.
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from overlay.errors import UserError
from overlay.server.policy import FILE, MAX_FILE, Policy, parse_policy

LOOK: Final = 5.0  # s between looks whether the file has changed
REST: Final = 0.5  # s without a change, before it is read
MOST_LOOKS: Final = 20  # at a file that does not come to rest
_log = logging.getLogger(__name__)


class PolicyFile:
    """`current` is what counts: a file that cannot be read any more changes nothing."""

    def __init__(self, state: Path, chosen: str) -> None:
        """`chosen`: another file than that of the state folder. Raises `UserError`: "policy-invalid",
        "policy-unreadable"."""
        self._path = Path(chosen) if chosen else state / FILE
        self._must_be = bool(chosen)
        self._wanted = anyio.Event()
        self._stamp: tuple[int, ...] | None = self._look()
        self.current = self._read()

    def reload(self) -> None:
        """Read it, changed or not."""
        self._stamp = None
        self._wanted.set()

    async def run(self, on_change: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled."""
        while True:
            with anyio.move_on_after(LOOK):
                await self._wanted.wait()
            self._wanted = anyio.Event()
            if self._look() == self._stamp:
                continue
            self._stamp = await self._at_rest()
            try:
                self.current = await anyio.to_thread.run_sync(self._read)
            except UserError as error:
                _log.error("%s The policy stays as it was.", error.message)
                continue
            _log.info("the policy %s counts from now on", self._path)
            await on_change()

    async def _at_rest(self) -> tuple[int, ...]:
        """Until nobody writes to it."""
        stamp = self._look()
        for _ in range(MOST_LOOKS):
            await anyio.sleep(REST)
            before, stamp = stamp, self._look()
            if stamp == before:
                break
        return stamp

    def _look(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def _read(self) -> Policy:
        try:
            with self._path.open("rb") as file:
                return parse_policy(file.read(MAX_FILE + 1), str(self._path))
        except FileNotFoundError:
            if not self._must_be:
                return Policy()
            raise UserError("policy-unreadable", f"There is no policy {self._path}.", "Leave --policy out.") from None
        except OSError as error:
            message = f"The policy {self._path} cannot be read: {error.strerror}."
            raise UserError("policy-unreadable", message, "Let the server read it.") from error
