"""One exposure's socket on the overlay address: takes what comes from the server, and nobody else, to the target.
Without an overlay address (no TUN) there is none, and users come by dynamic tunnels alone."""

import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import anyio

from overlay.carrier.flows import UdpFlows
from overlay.carrier.forward import forward_streams
from overlay.carrier.outlets import Outlet, SocketOutlet, StreamOutlet, join
from overlay.carrier.port import Stream
from overlay.carrier.reached import REACHED
from overlay.carrier.stream import TcpStream, reset_on_close
from overlay.carrier.tapped import TappedStream
from overlay.errors import RemoteProtocolError, UserError
from overlay.node.target_end import TargetEnd, TargetStream
from overlay.node.targets import Target
from overlay.wire.endpoint import Endpoint, canonical_endpoint

CONNECTION_LIMIT: Final = 1024
"""Of one exposure at once, as at the server's end: one exposure cannot take all descriptors."""
LOOKUP_INTERVAL: Final = 30.0
"""Seconds after which the name of a UDP target is looked up anew."""
_BACKLOG: Final = 256
_ACCEPT_PAUSE: Final = 0.1  # s, when the system has no descriptor left

_log = logging.getLogger(__name__)

EndTls = Callable[[Stream], Awaitable[Stream | None]]
"""What is in a user's TLS; None: that was all. Raises `RemoteProtocolError`, `TimeoutError`, and as the stream does."""


class TunnelEnd:
    """Listens from its making on. `drops` counts by reason what did not get through."""

    def __init__(
        self,
        inside: TargetEnd,
        address: str,
        port: int,
        accepts: Callable[[str], bool],
        drops: Counter[str],
        *,
        says_reached: bool = False,
    ) -> None:
        """At `address`, or nowhere (""); port 0 picks one. `accepts`: whose connections are taken: the server's, as a
        rule. `says_reached`: as `overlay.carrier.reached` has it. Raises `UserError` ("port-taken") if that is
        taken."""
        self.tap: Callable[[TargetStream], TappedStream] | None = None  # who looks at what goes to the target
        self.tls: EndTls | None = None  # for users whose TLS ends here
        self._inside = inside
        self._target = inside.target
        self.accepts = accepts
        self._drops = drops
        self._says_reached = says_reached
        self._scope = anyio.CancelScope()
        self._dynamic: set[anyio.CancelScope] = set()  # of users by dynamic tunnels
        self._streams = 0
        self._flows: UdpFlows | None = None
        self._endpoint: Endpoint | None = None  # of a UDP target
        self._failing = False  # the target did not answer the last time: say it once
        try:
            self._socket = _bind(self._target, address, port) if address else None
        except OSError as error:
            raise UserError(
                "port-taken",
                f"Port {port} of the overlay address {address} cannot be used: {error.strerror}.",
                "End the program that has it, or expose the target again.",
            ) from error
        self.port: int = self._socket.getsockname()[1] if self._socket is not None else 0

    @property
    def connections(self) -> int:
        """TCP connections, or UDP flows, at this moment."""
        return self._streams + (self._flows.count if self._flows is not None else 0)

    def close(self) -> None:
        """Close at once, with all that goes through. May be called again."""
        self._scope.cancel()
        for scope in tuple(self._dynamic):
            scope.cancel()
        if self._socket is not None and self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()

    async def run(self) -> None:
        """Forward until `close`."""
        try:
            with self._scope:
                if self._target.protocol == "udp":
                    await self._run_udp(self._socket)
                elif self._socket is None:
                    await anyio.sleep_forever()
                else:
                    await self._run_tcp(self._socket)
        finally:
            self.close()

    async def _run_tcp(self, listening: socket.socket) -> None:
        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    accepted, source = listening.accept()
                except BlockingIOError:
                    await anyio.wait_readable(listening)
                    continue
                except OSError as error:
                    # The caller has gone already, or descriptors ran out: either way the exposure stays open.
                    self._drops["exposure_accept_failed"] += 1
                    _log.debug("cannot accept a connection for %s: %s", self._target.text, error)
                    await anyio.sleep(_ACCEPT_PAUSE)
                    continue
                reason = self._unwanted(source[0])
                if reason is not None:
                    self._drops[reason] += 1
                    reset_on_close(accepted)
                    accepted.close()
                    await anyio.lowlevel.checkpoint()
                    continue
                self._streams += 1
                tasks.start_soon(self._forward, accepted)

    async def serve(self, stream: Stream) -> None:
        """A user whom the server sends by a dynamic tunnel; closes the stream."""
        if self._streams >= CONNECTION_LIMIT:
            self._drops["exposure_limit"] += 1
            stream.cut()
            stream.close()
            return
        self._streams += 1
        scope = anyio.CancelScope()
        self._dynamic.add(scope)
        try:
            with scope:
                await self._forward_to_target(stream)
        finally:
            self._dynamic.discard(scope)
            self._streams -= 1

    def _unwanted(self, host: str) -> str | None:
        if not self.accepts(canonical_endpoint(host, 0)[0]):
            return "exposure_not_the_server"
        return "exposure_limit" if self._streams >= CONNECTION_LIMIT else None

    async def _forward(self, accepted: socket.socket) -> None:
        try:
            with accepted:
                await self._forward_to_target(TcpStream(accepted))
        finally:
            self._streams -= 1

    async def _forward_to_target(self, stream: Stream) -> None:
        if self._target.protocol == "udp":
            await self._carry_datagrams(stream)
            return
        if self.tls is not None:
            await self._say_reached(stream)  # the user's first bytes are awaited here
            secured = await self._end_tls(stream, self.tls)
            if secured is None:
                stream.cut()
                stream.close()
                return
            stream = secured
        inside = await self.connect()
        if inside is None:
            stream.cut()
            stream.close()
            return
        if self.tls is None:
            await self._say_reached(stream)
        await forward_streams(stream, inside if self.tap is None else self.tap(inside))

    async def _say_reached(self, stream: Stream) -> None:
        if self._says_reached:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # what comes next says so
                await stream.send(REACHED)

    async def _end_tls(self, stream: Stream, tls: EndTls) -> Stream | None:
        try:
            return await tls(stream)
        except (RemoteProtocolError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            self._drops["exposure_tls_failed"] += 1
            _log.debug("a user of %s does not get through TLS: %s", self._target.text, error)
            return None

    async def _carry_datagrams(self, stream: Stream) -> None:
        """Of one user, whose flow the server ends."""
        target = self._outlet()
        if target is None:
            stream.close()
            return

        async def given() -> Stream:
            return stream

        await join(StreamOutlet(given, self._drops), target)

    async def connect(self) -> TargetStream | None:
        """To the target; None: it is not reachable, which is counted."""
        try:
            stream = await self._inside.open()
        except OSError:  # TimeoutError is one
            self._drops["exposure_target_unreachable"] += 1
            _log.log(
                logging.DEBUG if self._failing else logging.WARNING,
                "%s is not reachable: %s",
                self._target.text,
                self._inside.trouble,
            )
            self._failing = True
            return None
        self._failing = False
        return stream

    def _outlet(self) -> Outlet | None:
        return SocketOutlet.open(lambda: self._endpoint, self._drops)

    async def _run_udp(self, bound: socket.socket | None) -> None:
        async with anyio.create_task_group() as tasks:
            if bound is not None:
                self._flows = self._make_flows(bound)
                tasks.start_soon(self._flows.run)
            while True:
                try:
                    found = await self._inside.resolve()
                    if self._endpoint not in found:  # a name with several addresses: open flows stay where they are
                        self._endpoint = found[0]
                except OSError as error:
                    _log.warning("%s: %s", self._target.text, error)
                await anyio.sleep(LOOKUP_INTERVAL)

    def _make_flows(self, bound: socket.socket) -> UdpFlows:
        return UdpFlows(
            bound,
            lambda source, local: self._outlet(),
            limit=CONNECTION_LIMIT,
            accepts=lambda source: self.accepts(source[0]),
            drops=self._drops,
        )


def _bind(target: Target, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if target.protocol == "udp" else socket.SOCK_STREAM
    bound = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if target.protocol != "udp":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not matter
        bound.bind((address, port))
        if target.protocol != "udp":
            bound.listen(_BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound
