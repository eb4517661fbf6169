"""Forwarding of users' datagrams: one flow per user address, each with an outlet of its own towards the target.

UDP has no end, so a flow ends by silence, and the flows are bounded: the one that was silent for longest makes room.
What cannot be forwarded is dropped and counted, as a network does it.
"""

import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from overlay.carrier.local_address import (
    ANCILLARY_SIZE,
    Ancillary,
    answer_from,
    ask_for_local_address,
    local_address,
    unpacked,
)
from overlay.carrier.outlets import BATCH, LARGEST_DATAGRAM, OpenOutlet, Outlet
from overlay.wire.endpoint import Endpoint, canonical_endpoint

FLOW_IDLE: Final = 60.0  # s; above the 30 s of common NATs, below RFC 4787's 2 min, as a flow costs a socket
FLOW_LIMIT: Final = 1024
_ERROR_PAUSE: Final = 0.1  # s, when the listening socket itself reports an error

_SocketAddress = tuple[str, int] | tuple[str, int, int, int]
_Key = tuple[_SocketAddress, bytes]


class _Flow:
    __slots__ = ("answer_with", "last", "outlet", "user")

    def __init__(self, user: _SocketAddress, answer_with: Ancillary, outlet: Outlet, now: float) -> None:
        self.user = user
        self.answer_with = answer_with
        self.outlet = outlet
        self.last = now


class UdpFlows:
    """Forwards between the users of a bound UDP socket and a target.

    `listening` is a non-blocking socket that stays the caller's. `open_outlet` gives each flow its way to the target;
    one that is stale is replaced. `shuts_out` tells why datagrams of a source are not taken, `holds_off` why one who
    has no flow gets none now ("": it is as he likes; else the name of a counter); `passes` whether so many bytes may
    go to the target (True) or the user (False) now. An answer leaves from the local address that the user wrote to,
    also on a host with several.
    """

    def __init__(
        self,
        listening: socket.socket,
        open_outlet: OpenOutlet,
        *,
        limit: int = FLOW_LIMIT,
        idle: float = FLOW_IDLE,
        shuts_out: Callable[[Endpoint], str] | None = None,
        holds_off: Callable[[Endpoint], str] | None = None,
        passes: Callable[[int, bool], bool] | None = None,
        drops: Counter[str] | None = None,
    ) -> None:
        self.drops: Counter[str] = Counter() if drops is None else drops
        """Datagrams not forwarded, and flows evicted, by reason."""
        self.to_target = 0
        """Bytes forwarded."""
        self.to_user = 0
        self._listening = listening
        self._open_outlet = open_outlet
        self._limit = limit
        self._idle = idle
        self._shuts_out = shuts_out
        self._holds_off = holds_off
        self._passes = passes
        self._flows: OrderedDict[_Key, _Flow] = OrderedDict()  # the longest silent first
        self._buffer = bytearray(LARGEST_DATAGRAM)  # shared: never held across an await
        ask_for_local_address(listening)

    @property
    def count(self) -> int:
        """Flows at this moment."""
        return len(self._flows)

    def end_all(self) -> None:
        """End all flows; others may begin."""
        for key in tuple(self._flows):
            self._close(key)

    def end_those_shut_out(self) -> None:
        """Who was let in may not be any more: nor do answers go to him."""
        for key in tuple(self._flows):
            user, _ = key
            if self._shuts_out is not None and self._shuts_out(canonical_endpoint(user[0], user[1])):
                self._close(key)

    async def run(self) -> None:
        """Forward until cancelled, or until the listening socket is closed."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._expire)
                await self._from_users(tasks)
                tasks.cancel_scope.cancel()
        finally:
            for flow in self._flows.values():
                flow.outlet.close()
            self._flows.clear()

    async def _from_users(self, tasks: TaskGroup) -> None:
        while True:
            try:
                await anyio.wait_readable(self._listening)
            except (anyio.ClosedResourceError, ValueError):  # ValueError: no file descriptor any more
                return
            for _ in range(BATCH):
                try:
                    size, ancillary, _, user = self._listening.recvmsg_into([self._buffer], ANCILLARY_SIZE)
                except BlockingIOError:
                    break
                except OSError:
                    self.drops["listener_failed"] += 1
                    await anyio.sleep(_ERROR_PAUSE)
                    break
                self._forward(memoryview(self._buffer)[:size], user, ancillary, tasks)

    def _forward(self, datagram: memoryview, user: _SocketAddress, ancillary: Ancillary, tasks: TaskGroup) -> None:
        source = canonical_endpoint(user[0], user[1])
        if self._shuts_out is not None and (reason := self._shuts_out(source)):
            self.drops[reason] += 1
            return
        local = local_address(ancillary)
        key = (user, local)
        flow = self._flows.get(key)
        if flow is not None and flow.outlet.stale:
            self._close(key)
            flow = None
        if flow is None:
            if self._holds_off is not None and (reason := self._holds_off(source)):
                self.drops[reason] += 1
                return
            flow = self._open(key, source, tasks)
            if flow is None:
                return
        self._touch(key, flow)
        if self._passes is not None and not self._passes(len(datagram), True):
            self.drops["over_bandwidth"] += 1
            return
        if flow.outlet.send(datagram):
            self.to_target += len(datagram)

    def _open(self, key: _Key, source: Endpoint, tasks: TaskGroup) -> _Flow | None:
        user, local = key
        own = self._listening.getsockname()
        try:
            outlet = self._open_outlet(source, canonical_endpoint(unpacked(local) if local else own[0], own[1]))
        except OSError:
            self.drops["no_socket"] += 1
            return None
        if outlet is None:
            return None
        if len(self._flows) >= self._limit:
            self._close(next(iter(self._flows)))
            self.drops["flow_evicted"] += 1
        flow = self._flows[key] = _Flow(user, answer_from(local), outlet, anyio.current_time())
        tasks.start_soon(self._from_target, key, flow)
        return flow

    async def _from_target(self, key: _Key, flow: _Flow) -> None:
        def deliver(datagram: memoryview) -> None:
            if self._flows.get(key) is flow:
                self._touch(key, flow)
                self._answer(datagram, flow)

        try:
            await flow.outlet.run(deliver)
        finally:
            flow.outlet.close()
            if self._flows.get(key) is flow:
                del self._flows[key]

    def _answer(self, datagram: memoryview, flow: _Flow) -> None:
        if self._passes is not None and not self._passes(len(datagram), False):
            self.drops["over_bandwidth"] += 1
            return
        try:
            self._listening.sendmsg([datagram], flow.answer_with, 0, flow.user)
        except BlockingIOError:
            self.drops["user_full"] += 1
        except OSError:
            self.drops["user_failed"] += 1
        else:
            self.to_user += len(datagram)

    def _touch(self, key: _Key, flow: _Flow) -> None:
        flow.last = anyio.current_time()
        self._flows.move_to_end(key)

    def _close(self, key: _Key) -> None:
        self._flows.pop(key).outlet.close()

    async def _expire(self) -> None:
        while True:
            now = anyio.current_time()
            while self._flows:
                key, flow = next(iter(self._flows.items()))
                if flow.last + self._idle > now:
                    break
                self._close(key)
            oldest = next(iter(self._flows.values()), None)
            await anyio.sleep(self._idle if oldest is None else oldest.last + self._idle - now)
