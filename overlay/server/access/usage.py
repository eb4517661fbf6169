"""How much went through exposures this month, each and all of a node's: counted at the gates, kept in the registry, and
held against quotas. Months are those of UTC; a clock that jumps into another one begins anew.
"""

import datetime
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio

from overlay.errors import UserError
from overlay.server.access.gate import Gate
from overlay.server.registry import Registry
from overlay.server.schema import UsageRecord

LOOK: Final = 1.0  # s between looks at what has gone through: by so much a quota may be passed
SAVE: Final = 5.0  # s between writings, the most that a crash loses
ALL: Final = 0  # in an exposure's place: all of the node
_log = logging.getLogger(__name__)

Key = tuple[int, int]  # node, exposure


@dataclass(frozen=True, slots=True)
class _Watched:
    node: int
    gate: Gate
    cut_off: Callable[[], None]


class Usage:
    """`look` and `save` now and then, as `run` does."""

    def __init__(
        self, registry: Registry, wall: Callable[[], float], quota_of_node: Callable[[int], int] = lambda node: 0
    ) -> None:
        """`quota_of_node`: bytes a month, 0: any."""
        self._registry = registry
        self._wall = wall
        self._quota_of_node = quota_of_node
        self._month = month_of(wall())
        self._bytes: dict[Key, int] = {}
        self._unsaved: set[Key] = set()
        self._watched: dict[int, _Watched] = {}

    async def start(self) -> None:
        async with self._registry.transaction() as transaction:
            records = await transaction.usage()
        self._bytes = {(each.node, each.exposure): each.bytes for each in records if each.month == self._month}

    def watch(self, number: int, node: int, gate: Gate, cut_off: Callable[[], None]) -> None:
        """Hold an exposure against its quota and its node's. `cut_off` ends what goes through it."""
        self._watched[number] = _Watched(node, gate, cut_off)
        self._judge(number)

    def forget(self, number: int) -> None:
        """It was given back; what its node has used stays."""
        watched = self._watched.pop(number, None)
        if watched is not None:
            self._count(number, watched)
            self._bytes.pop((watched.node, number), None)
            self._unsaved.discard((watched.node, number))

    def forget_node(self, node: int) -> None:
        """It was removed, and what is kept of it."""
        for key in [key for key in self._bytes if key[0] == node]:
            del self._bytes[key]
        self._unsaved = {key for key in self._unsaved if key[0] != node}

    def of_exposure(self, number: int) -> int:
        """Bytes this month, as of the last look."""
        watched = self._watched.get(number)
        return self._bytes.get((watched.node, number), 0) if watched is not None else 0

    def look(self) -> None:
        """Count what has gone through, and close or open gates."""
        month = month_of(self._wall())
        if month != self._month:
            self._month = month
            self._bytes.clear()
            self._unsaved.clear()
        for number, watched in self._watched.items():
            self._count(number, watched)
        for number in tuple(self._watched):
            self._judge(number)

    async def save(self) -> None:
        """A registry that refuses is logged, and tried again."""
        keys, self._unsaved = self._unsaved, set()
        if not keys:
            return
        records = [
            UsageRecord(node=node, exposure=exposure, month=self._month, bytes=self._bytes[node, exposure])
            for node, exposure in keys
        ]
        try:
            async with self._registry.transaction() as transaction:
                await transaction.set_usage(records)
        except UserError as error:
            self._unsaved |= keys & self._bytes.keys()
            _log.error("cannot keep what exposures have used: %s", error.message)

    async def run(self) -> None:
        """Until cancelled."""
        saved_at = anyio.current_time()
        while True:
            await anyio.sleep(LOOK)
            self.look()
            if anyio.current_time() >= saved_at + SAVE:
                await self.save()
                saved_at = anyio.current_time()

    def _count(self, number: int, watched: _Watched) -> None:
        passed = watched.gate.meter.collect()
        if passed:
            for key in ((watched.node, number), (watched.node, ALL)):
                self._bytes[key] = self._bytes.get(key, 0) + passed
                self._unsaved.add(key)

    def _judge(self, number: int) -> None:
        node, gate, cut_off = (watched := self._watched[number]).node, watched.gate, watched.cut_off
        own, nodes = gate.terms.limits.quota, self._quota_of_node(node)
        used_up = bool(
            (own and self._bytes.get((node, number), 0) >= own) or (nodes and self._bytes.get((node, ALL), 0) >= nodes)
        )
        gate.opens_in = until_next_month(self._wall()) if used_up else 0.0
        before, gate.used_up = gate.used_up, used_up
        if used_up:
            cut_off()  # at each look: who was at the door in the moment when it closed has slipped in
        if used_up and not before:
            _log.warning("exposure x%d has used up its quota of this month: nobody is let in", number)
        elif before and not used_up:
            _log.info("exposure x%d has a quota again", number)


def month_of(wall: float) -> str:
    """`2026-11`"""
    return datetime.datetime.fromtimestamp(wall, datetime.UTC).strftime("%Y-%m")


def until_next_month(wall: float) -> float:
    """s"""
    now = datetime.datetime.fromtimestamp(wall, datetime.UTC)
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return ((first + datetime.timedelta(days=32)).replace(day=1) - now).total_seconds()
