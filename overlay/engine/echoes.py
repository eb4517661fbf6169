"""Pings that a person asked for: one round trip each, on the way that data to the peer goes. Engine thread.

They prove nothing and change no path; what the selector asks on its own account is `overlay.path`'s.
"""

from dataclasses import dataclass
from typing import Final

from overlay.engine.api import PathSnapshot, PingAnswer, PingReply

LIFE: Final = 10.0
"""s after which an answer is nobody's any more: who asked has given up."""

MOST: Final = 256
"""Pings that may be under way; the oldest is forgotten for one more."""


@dataclass(frozen=True, slots=True)
class _Asked:
    number: int
    sent: float
    path: PathSnapshot
    reply: PingReply


class Echoes:
    """Those that wait for their answers."""

    def __init__(self) -> None:
        self._asked: dict[bytes, _Asked] = {}  # by transaction id, oldest first

    def asked(self, number: int, txid: bytes, path: PathSnapshot, reply: PingReply, now: float) -> None:
        """A ping to node `number` goes out on `path`."""
        for known, earlier in list(self._asked.items()):
            if now - earlier.sent < LIFE and len(self._asked) < MOST:
                break
            del self._asked[known]
        self._asked[txid] = _Asked(number, now, path, reply)

    def answered(self, number: int, txid: bytes, now: float) -> bool:
        """An authentic pong of node `number` came. False: it answers none of these."""
        asked = self._asked.get(txid)
        if asked is None or asked.number != number:
            return False
        del self._asked[txid]
        if now - asked.sent < LIFE:
            asked.reply(PingAnswer(asked.path, now - asked.sent))
        return True
