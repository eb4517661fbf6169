"""Which nodes answer. A node whose machine is unplugged is silent, and its connection does not end for a minute: who
has another node to go to must know sooner.

Nodes that somebody watches are sent a `Ping` each second over the control channel, and their `Pong` is waited for.
"""

from collections.abc import Awaitable, Callable, Collection
from typing import Final

import anyio

from overlay.wire.control.messages import Message, Ping

INTERVAL: Final = 0.5  # s between two pings
PATIENCE: Final = 2.0  # s without an answer: two pings lost, or one and its repetition by TCP


class Pulse:
    def __init__(self, tell: Callable[[int, Message], Awaitable[bool]]) -> None:
        self._tell = tell
        self._asked: dict[int, float] = {}  # node → since when it owes an answer
        self._seq = 0

    async def ask(self, nodes: Collection[int]) -> None:
        """To be called each `INTERVAL`. Those that are not named any more are forgotten."""
        for node in self._asked.keys() - nodes:
            del self._asked[node]
        for node in nodes:
            self._seq += 1
            self._asked.setdefault(node, anyio.current_time())
            if not await self._tell(node, Ping(seq=self._seq)):
                self._asked.pop(node, None)  # not there: that is known in another way

    def heard(self, node: int) -> None:
        """It has answered."""
        self._asked.pop(node, None)

    def is_silent(self, node: int) -> bool:
        return self._asked.get(node, float("inf")) + PATIENCE < anyio.current_time()
