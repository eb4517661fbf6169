"""The network map as it is now, and the nodes that are connected to hear of it.

A node that connects gets the whole map, signed; every change after that reaches all within the debounce as one delta.
Knows no registry and no connection: what is connected is a `Link`, which queues
messages and never makes anybody wait.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import anyio
import msgspec
from anyio.abc import TaskStatus

from overlay.errors import UserError
from overlay.wire.control.messages import MapDelta, MapNode, MapRecord, NetworkMap, Refused, ServerMessage, SignedMap
from overlay.wire.control.netmap import diff

DEBOUNCE = 0.05  # s: a node that joins changes its entry several times at once; a person notices 1 s
CROWD = 200  # connected nodes for which the debounce is once more as long: telling all of them takes a fifth of it
VERSION_BLOCK = 1 << 20  # map versions reserved in the registry at a time, so that a change costs no write
_log = logging.getLogger(__name__)

Sign = Callable[[NetworkMap | MapDelta], SignedMap]
ReserveVersions = Callable[[int], Awaitable[None]]


class Link(Protocol):
    """One connected node."""

    number: int

    async def send(self, message: ServerMessage) -> None:
        """Queue a message, without ever waiting. A node that is gone or does not keep up gets nothing any more."""

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
        domain: str,
        networks: tuple[str, ...],
        version: int,
        nodes: Iterable[MapNode],
        records: Iterable[MapRecord] = (),
        sign: Sign,
        reserve: ReserveVersions,
        on_map: Callable[[NetworkMap], None],
        debounce: float = DEBOUNCE,
    ) -> None:
        self._sign = sign
        self._reserve = reserve
        self._on_map = on_map
        self._debounce = debounce
        self._links: dict[int, Link] = {}
        self._nodes = {node.number: node for node in nodes}
        self._records = tuple(records)
        self._reserved = version
        self._changed = anyio.Event()
        self._published = NetworkMap(
            network=network,
            version=version + 1,
            domain=domain,
            networks=networks,
            nodes=tuple(self._nodes.values()),
            records=self._records,
        )
        self._signed: SignedMap | None = None  # `_published`, once somebody asked for it

    @property
    def nodes(self) -> Mapping[int, MapNode]:
        """The map as it will be at the next publishing."""
        return self._nodes

    @property
    def published(self) -> NetworkMap:
        return self._published

    def is_connected(self, number: int) -> bool:
        return number in self._links

    async def connect(self, link: Link) -> None:
        """The node has been welcomed: it gets the map, and from now on all changes. An earlier link of it is closed."""
        earlier = self._links.pop(link.number, None)
        if earlier is not None:
            earlier.close(None)
        if self._signed is None:
            self._signed = self._sign(self._published)
        self._links[link.number] = link
        await link.send(self._signed)  # does not wait: no delta can come in between

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
        self._on_map(self._published)
        task_status.started()
        while True:
            await self._changed.wait()
            await anyio.sleep(self._debounce * (1 + len(self._links) / CROWD))
            self._changed = anyio.Event()
            await self._reserve_versions()
            await self._publish()

    async def _publish(self) -> None:
        old = self._published
        nodes = tuple(self._nodes.values())
        new = msgspec.structs.replace(old, version=old.version + 1, nodes=nodes, records=self._records)
        delta = diff(old, new)
        if not (delta.changed or delta.removed or delta.records_added or delta.records_removed):
            return  # what changed has changed back meanwhile
        self._published = new
        self._signed = None
        signed = self._sign(delta)
        for link in list(self._links.values()):
            await link.send(signed)
        self._on_map(self._published)

    async def _reserve_versions(self) -> None:
        if self._published.version + 1 < self._reserved:
            return
        wanted = self._published.version + VERSION_BLOCK
        try:
            await self._reserve(wanted)
        except UserError as error:
            # The map must go on. After a crash in this state a version may come twice; nodes take whole maps anew.
            _log.error("cannot keep the map's version: %s", error.message)
            return
        self._reserved = wanted
