"""Records that people put into the network's zone, as this node's part: asked of the server, read from the map."""

from collections.abc import Awaitable, Callable

from overlay.daemon.records import RecordStatus
from overlay.errors import UserError
from overlay.node.control import Answer
from overlay.wire.control.messages import AddRecord, MapRecord, Message, NetworkMap, Recorded, RemoveRecord
from overlay.wire.control.records import is_shadowed

Request = Callable[[Callable[[int], Message]], Awaitable[Answer]]


class Records:
    """`request` asks the server; `network_map` is the map as it is now."""

    def __init__(self, request: Request, network_map: Callable[[], NetworkMap | None]) -> None:
        self._request = request
        self._map = network_map

    def status(self) -> tuple[RecordStatus, ...]:
        network_map = self._map()
        return tuple(self._show(record) for record in network_map.records) if network_map is not None else ()

    async def add(self, name: str, rtype: str, value: str) -> RecordStatus:
        """Raises `UserError`: "server-unreachable", and what the server answers."""
        answer = await self._request(lambda seq: AddRecord(seq=seq, name=name, rtype=rtype, value=value))
        if not isinstance(answer, Recorded):
            raise UserError("bad-answer", "The server answered something that does not fit the request.")
        return self._show(answer.record)

    async def remove(self, name: str, rtype: str) -> None:
        """Raises `UserError` as `add` does."""
        await self._request(lambda seq: RemoveRecord(seq=seq, name=name, rtype=rtype))

    def _show(self, record: MapRecord) -> RecordStatus:
        network_map = self._map()
        names = {node.name: node.number for node in network_map.nodes} if network_map is not None else {}
        owner = next((name for name, number in names.items() if number == record.node), f"number {record.node}")
        return RecordStatus(
            name=record.name,
            type=record.rtype,
            value=record.value,
            node=owner,
            shadowed=is_shadowed(record, network_map.domains if network_map is not None else (), names),
        )
