"""The network map as it is now, and the nodes that are connected to hear of it.

A node that connects gets what it does not have of the map, signed; every change after that reaches all within the
debounce as one delta. The more nodes there are, the longer is the rest between two deltas: the first change after a
quiet time is told at once, and a thousand that join together are told in a few deltas.
Knows no registry and no connection: what is connected is a `Link`, which queues messages and never makes anybody wait.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskStatus

from overlay.errors import UserError
from overlay.server.maps import MapHistory, Sign
from overlay.wire.control.messages import MapDelta, MapNode, MapRecord, NetworkMap, Refused
from overlay.wire.control.netmap import NODES_PER_PART, diff

DEBOUNCE: Final = 0.05  # s: a node that joins changes its entry several times at once; a person notices 1 s
CROWD: Final = 100  # nodes for which the rest between deltas is one debounce: telling them takes a tenth of it
REST_MOST: Final = 2.0  # s; above 4,000 nodes telling takes a larger share of a busy time
VERSION_BLOCK: Final = 1 << 20  # map versions reserved in the registry at a time, so that a change costs no write
_VERSIONS_AHEAD: Final = 1000  # still reserved when a change goes out: it is at most one delta for each part of a map
_TURN: Final = 100  # nodes that are told before other tasks get a turn
_log = logging.getLogger(__name__)

ReserveVersions = Callable[[int], Awaitable[None]]


class Link(Protocol):
    """One connected node."""

    number: int
    host: str
    """The address that it is connected from."""

    async def send(self, messages: Sequence[bytes]) -> None:
        """Queue encoded messages, without ever waiting. Who is gone or does not keep up gets nothing any more."""

    def close(self, refused: Refused | None) -> None:
        """End the connection, after `refused` if there is one."""


class Hub:
    """`version`: highest that any map may have had before; `reserve(v)` keeps v as such, before versions up to it go
    out. `on_map` hears every map, for this machine's own part in the network.
    """

    def __init__(
        self,
        *,
        network: str,
        domains: tuple[str, ...],
        networks: tuple[str, ...],
        version: int,
        nodes: Iterable[MapNode],
        records: Iterable[MapRecord] = (),
        sign: Sign,
        reserve: ReserveVersions,
        on_map: Callable[[NetworkMap], None],
        debounce: float = DEBOUNCE,
    ) -> None:
        self._reserve = reserve
        self._on_map = on_map
        self._debounce = debounce
        self._links: dict[int, Link] = {}
        self._nodes = {node.number: node for node in nodes}
        self._records = tuple(records)
        self._reserved = version
        self._changed = anyio.Event()
        first = NetworkMap(
            network=network,
            version=version + 1,
            domain=domains[0],
            more_domains=domains[1:],
            networks=networks,
            nodes=tuple(self._nodes.values()),
            records=self._records,
        )
        self._history = MapHistory(sign, first)

    @property
    def nodes(self) -> Mapping[int, MapNode]:
        """The map as it will be at the next publishing."""
        return self._nodes

    @property
    def published(self) -> NetworkMap:
        return self._history.current

    def is_connected(self, number: int) -> bool:
        return number in self._links

    async def connect(self, link: Link, mark: bytes = b"") -> None:
        """The node has been welcomed: it gets what came after the update with this mark, or the map, and from now on
        all changes. An earlier link of it is closed."""
        earlier = self._links.pop(link.number, None)
        if earlier is not None:
            earlier.close(None)
        self._links[link.number] = link
        await link.send(self._history.since(mark))  # does not wait: no delta can come in between

    def host_of(self, number: int) -> str | None:
        """Where a node is connected from; None: it is not."""
        link = self._links.get(number)
        return link.host if link is not None else None

    async def tell(self, number: int, message: bytes) -> bool:
        """Send an encoded message to one node. → whether it is connected"""
        link = self._links.get(number)
        if link is None:
            return False
        await link.send([message])  # does not wait
        return True

    def disconnect(self, link: Link) -> bool:
        """The connection is gone. Returns False if another one has taken its place already."""
        if self._links.get(link.number) is not link:
            return False
        del self._links[link.number]
        return True

    def change(self, node: MapNode) -> None:
        """Add a node, or replace its entry."""
        if self._nodes.get(node.number) != node:
            self._nodes[node.number] = node
            self._changed.set()

    def set_records(self, records: Iterable[MapRecord]) -> None:
        """What people have put into the zone, all of it."""
        self._records = tuple(records)
        self._changed.set()

    def remove(self, number: int, refused: Refused) -> None:
        """Take a node out of the map, and close its connection with `refused`."""
        if self._nodes.pop(number, None) is not None:
            self._changed.set()
        link = self._links.pop(number, None)
        if link is not None:
            link.close(refused)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Publish changes until cancelled. Signals `started` when the versions of the first maps are reserved."""
        await self._reserve_versions()
        self._on_map(self.published)
        task_status.started()
        rested = anyio.current_time()
        while True:
            await self._changed.wait()
            await anyio.sleep_until(max(rested, anyio.current_time() + self._debounce))
            self._changed = anyio.Event()
            await self._reserve_versions()
            await self._publish()
            rested = anyio.current_time() + min(REST_MOST, self._debounce * len(self._links) / CROWD)

    async def _publish(self) -> None:
        old = self.published
        nodes = tuple(self._nodes.values())
        new = msgspec.structs.replace(old, version=old.version + 1, nodes=nodes, records=self._records)
        whole = diff(old, new)
        if not (whole.changed or whole.removed or whole.records_added or whole.records_removed):
            return  # what changed has changed back meanwhile
        deltas = _in_steps(whole)
        new = msgspec.structs.replace(new, version=deltas[-1].version)
        messages = [self._history.advance(delta, new) for delta in deltas]
        for told, link in enumerate(list(self._links.values())):
            if told % _TURN == _TURN - 1:
                await anyio.lowlevel.checkpoint()
            # Meanwhile its place may have been taken by one that has these already.
            if self._links.get(link.number) is link:
                await link.send(messages)
        self._on_map(self.published)

    async def _reserve_versions(self) -> None:
        if self.published.version + _VERSIONS_AHEAD < self._reserved:
            return
        wanted = self.published.version + VERSION_BLOCK
        try:
            await self._reserve(wanted)
        except UserError as error:
            # The map must go on. After a crash in this state a version may come twice; marks never do.
            _log.error("cannot keep the map's version: %s", error.message)
            return
        self._reserved = wanted


def _in_steps(whole: MapDelta) -> list[MapDelta]:
    """The delta as several that each fit a message, with a version each."""
    changed = [
        whole.changed[start : start + NODES_PER_PART] for start in range(0, len(whole.changed), NODES_PER_PART)
    ] or [()]
    return [
        MapDelta(
            network=whole.network,
            base=whole.base + number,
            version=whole.base + number + 1,
            changed=part,
            removed=() if number else whole.removed,
            records_added=() if number else whole.records_added,
            records_removed=() if number else whole.records_removed,
        )
        for number, part in enumerate(changed)
    ]
