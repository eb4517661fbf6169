"""Users' requests to what is exposed by http, as the server tells of them, for those on this machine who watch."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectSendStream

from overlay.daemon.localapi import Produce, Write
from overlay.errors import UserError
from overlay.wire.control.messages import Message, RequestEntry, Watch

GOODBYE: Final = 1.0  # s that telling the server may hold up one who no longer watches
BACKLOG: Final = 256  # requests that wait for who watches them; more are left out
_log = logging.getLogger(__name__)


class RequestLog:
    """Of all exposures; the server tells of those alone that somebody watches."""

    def __init__(self, request: Callable[[Callable[[int], Message]], Awaitable[object]]) -> None:
        """`request` asks the server."""
        self._request = request
        self._watchers: dict[str, set[MemoryObjectSendStream[RequestEntry]]] = {}

    def watch(self, name: str) -> Produce:
        """What writes requests to the exposure of this id as they come, a JSON document a line, until it ends: the last
        ones, where they come faster than they are taken."""

        async def produce(write: Write) -> None:
            sending, receiving = anyio.create_memory_object_stream[RequestEntry](BACKLOG)
            watchers = self._watchers.setdefault(name, set())
            watchers.add(sending)
            with sending, receiving:
                try:
                    await self._tell_server(name, wanted=True)
                    await write(b"\n")  # from now on nothing is missed
                    async for entry in receiving:
                        await write(msgspec.json.encode(entry) + b"\n")
                finally:
                    watchers.discard(sending)
                    if not watchers and self._watchers.get(name) is watchers:
                        del self._watchers[name]
                        with anyio.move_on_after(GOODBYE, shield=True):
                            await self._tell_server(name, wanted=False)

        return produce

    def requested(self, name: str, entries: tuple[RequestEntry, ...]) -> None:
        """The server tells of requests."""
        for sending in self._watchers.get(name, ()):
            for entry in entries:
                with suppress(anyio.WouldBlock, anyio.BrokenResourceError):
                    sending.send_nowait(entry)

    async def ask_again(self) -> None:
        """The server has forgotten who watches."""
        for name in tuple(self._watchers):
            await self._tell_server(name, wanted=True)

    def end(self, name: str) -> None:
        """The exposure is gone."""
        for sending in self._watchers.pop(name, ()):
            sending.close()

    async def _tell_server(self, name: str, *, wanted: bool) -> None:
        try:
            await self._request(lambda seq: Watch(seq=seq, id=name, wanted=wanted))
        except UserError as error:
            _log.debug("requests to %s are not told: %s", name, error)
