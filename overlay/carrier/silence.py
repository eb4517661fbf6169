"""Those who have connected and said nothing yet: a descriptor and a callback each, no task."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from overlay.carrier.port import TOKEN, TOKEN_SIZE
from overlay.carrier.watch import watch

_CALL: Final = len(TOKEN) + TOKEN_SIZE


class Silence:
    """Calls `ended` once: with True when something (or the end) has come, with False when nothing did `within` s."""

    def __init__(self, accepted: socket.socket, within: float, ended: Callable[["Silence", bool], None]) -> None:
        self.accepted = accepted
        self._ended = ended
        self._number = accepted.fileno()
        self._watch = watch()
        self._watch.add_reader(self._number, partial(self._end, True))
        self._timer = asyncio.get_running_loop().call_later(within, self._end, False)

    def stop(self) -> None:
        self._watch.remove_reader(self._number)
        self._timer.cancel()

    def _end(self, heard: bool) -> None:
        self.stop()
        self._ended(self, heard)


def take_token(accepted: socket.socket) -> bytes | None:
    """The token of a caller without TLS or WebSocket, if it is here and whole; else everything stays where it is."""
    try:
        start = accepted.recv(_CALL + 1, socket.MSG_PEEK)
        if len(start) != _CALL or not start.startswith(TOKEN):
            return None
        return accepted.recv(_CALL)[len(TOKEN) :]
    except OSError:
        return None  # whoever reads next is told
