"""One exposure's socket on the overlay address: takes what comes from the server, and nobody else, to the target.
Without an overlay address (no TUN) there is none, and users come by dynamic tunnels alone."""

import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import anyio

from overlay.carrier.flows import UdpFlows
from overlay.carrier.forward import Forwarded, Forwarding, forward_streams
from overlay.carrier.http import answer, read_head, say
from overlay.carrier.outlets import HeadedOutlet, Outlet, SocketOutlet, StreamOutlet, join
from overlay.carrier.port import Stream
from overlay.carrier.quic import QuicStream
from overlay.carrier.reached import REACHED
from overlay.carrier.stream import Reader, TcpStream, reset_on_close, set_options
from overlay.carrier.streams import CodecStream, OverTcp
from overlay.carrier.tapped import TappedStream
from overlay.carrier.tls import agreed
from overlay.errors import RemoteProtocolError, UserError
from overlay.node.return_routes import UnusableAddress
from overlay.node.target_end import TargetEnd, TargetStream
from overlay.node.targets import Target
from overlay.node.transparent import TransparentOutlet, user_of
from overlay.wire.endpoint import Endpoint, canonical_endpoint
from overlay.wire.ingress.proxy_protocol import ProxyHeader, encode, parse_proxy_header
from overlay.wire.ingress.trouble import trouble_field, trouble_page

CONNECTION_LIMIT: Final = 1024
"""Of one exposure at once, as at the server's end: one exposure cannot take all descriptors."""
EXPLAIN_TIMEOUT: Final = 5.0
"""Seconds for a request's head to come and its answer to go, where the target is not reached."""
LOOKUP_INTERVAL: Final = 30.0
"""Seconds after which the name of a UDP target is looked up anew."""
HEADER_TIMEOUT: Final = 10.0  # s for the server to say who a user is
_BACKLOG: Final = 256
_TURN: Final = 64  # users who are taken before others have their turn
_ACCEPT_PAUSE: Final = 0.1  # s, when the system has no descriptor left

_log = logging.getLogger(__name__)

SEAL_TIMEOUT: Final = 10.0  # s for a peer's handshake
Seal = Callable[[OverTcp], Awaitable[CodecStream]]
"""What is within what a peer has sealed. Raises `RemoteProtocolError`, and as the stream does."""
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
        peers: bool = False,
        says_reached: bool = False,
    ) -> None:
        """At `address`, or nowhere (""); port 0 picks one. `accepts`: whose connections are taken: the server's, as a
        rule. `peers`: these come here themselves; they may read why a target is not reached, and it is for this end to
        tell the target of them. `says_reached`: as `overlay.carrier.reached` has it. Raises `UserError` ("port-taken")
        if that is taken."""
        self.tap: Callable[[TargetStream], TappedStream] | None = None  # who looks at what goes to the target
        self.tls: EndTls | None = None  # for users whose TLS ends here
        self.seal: Seal | None = None  # for peers whom the server leads here, which must not read along
        self._inside = inside
        self._target = inside.target
        self._peers = peers
        self.accepts = accepts
        self._drops = drops
        self._says_reached = says_reached
        self._scope = anyio.CancelScope()
        self._served: dict[Stream, anyio.CancelScope | Forwarding] = {}  # outside of `run`, and what ends them
        self._here: dict[Stream, tuple[anyio.CancelScope | Forwarding, str]] = {}  # who came here himself, by address
        self._reader: Reader | None = None
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
        for ending in tuple(self._served.values()):
            ending.cancel()
        if self._reader is not None:
            self._reader.stop()
        if self._socket is not None and self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()

    def end_refused(self) -> None:
        """End what goes through for those whose connections are not taken any more."""
        for ending, address in tuple(self._here.values()):
            if not self.accepts(address):
                self._drops["exposure_revoked"] += 1
                ending.cancel()
        if self._flows is not None:
            self._flows.end_those_shut_out()

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
            reader, taken = Reader(listening), 0
            self._reader = reader
            while True:
                taken += 1
                if taken % _TURN == 0:
                    await anyio.lowlevel.checkpoint()
                try:
                    accepted, source = listening.accept()
                except BlockingIOError:
                    await reader.wait()
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
                stream = TcpStream(accepted, has_options=True)
                endpoint = canonical_endpoint(source[0], source[1])
                if not self._serve_now(stream, endpoint[0]):
                    self._streams += 1
                    tasks.start_soon(self._forward, accepted, stream, endpoint)

    async def serve(self, stream: Stream) -> None:
        """A user whom the server sends by a dynamic tunnel; closes the stream."""
        if self._streams >= CONNECTION_LIMIT:
            self._drops["exposure_limit"] += 1
            stream.cut()
            stream.close()
            return
        self._streams += 1
        scope = self._served[stream] = anyio.CancelScope()
        try:
            with scope:
                unsealed = stream if self.seal is None else await self._unseal(stream, self.seal)
                if unsealed is not None:
                    await self._forward_to_target(unsealed)
        finally:
            del self._served[stream]
            self._streams -= 1

    def serve_now(self, stream: OverTcp, ended: Callable[[], object]) -> bool:
        """The same without a task, where nothing has to be waited for; `ended` is called when the stream is closed.
        → whether it is so; if not, nothing has happened."""
        return self._serve_now(stream, "", ended)

    def _serve_now(self, stream: OverTcp, address: str, ended: Callable[[], object] = lambda: None) -> bool:
        """`address`: of who came to this end himself; "": nobody did."""
        told = self._inside.told
        tells = told.transparent or (told.proxy_protocol and (self._peers or self._target.protocol == "http"))
        if tells or self._says_reached or self.seal is not None or self.tls is not None or self.tap is not None:
            return False
        if self._target.protocol == "udp" or self._streams >= CONNECTION_LIMIT:
            return False
        inside = self._inside.open_now()
        if inside is None:
            return False
        self._failing = False
        self._streams += 1

        def end() -> None:
            self._streams -= 1
            self._served.pop(stream, None)
            self._here.pop(stream, None)
            ended()

        forwarding = Forwarding(stream, inside, Forwarded(), end)
        if not forwarding.over:
            self._served[stream] = forwarding
            if address:
                self._here[stream] = forwarding, address
        return True

    def _unwanted(self, host: str) -> str | None:
        if not self.accepts(canonical_endpoint(host, 0)[0]):
            return "exposure_not_the_server"
        return "exposure_limit" if self._streams >= CONNECTION_LIMIT else None

    async def _forward(self, accepted: socket.socket, stream: TcpStream, source: Endpoint) -> None:
        scope = anyio.CancelScope()
        self._here[stream] = scope, source[0]
        try:
            own = accepted.getsockname()
            peer = ProxyHeader(source, canonical_endpoint(own[0], own[1])) if self._peers else None
            with scope:
                await self._forward_to_target(stream, peer)
            if scope.cancelled_caught:
                stream.cut()
        finally:
            del self._here[stream]
            stream.close()  # and not the socket alone: it may be watched
            self._streams -= 1

    async def _forward_to_target(self, stream: Stream, user: ProxyHeader | None = None) -> None:
        if self._target.protocol == "udp":
            await self._carry_datagrams(stream)
            return
        reads_header = not self._peers and self._takes_header()
        if reads_header:
            user = await self._read_header(stream)
        secured: Stream | None = stream
        if reads_header and user is None:
            secured = None
        elif self.tls is not None:
            await self._say_reached(stream)  # the user's first bytes are awaited here
            secured = await self._end_tls(stream, self.tls)
            if user is not None:
                tls, alpn = agreed(secured)
                user = replace(user, tls=tls, alpn=alpn)
        if secured is None:
            stream.cut()
            stream.close()
            return
        stream = secured
        inside, unfit = None, ""
        try:
            inside = await self._connect_for(user)
        except UnusableAddress as error:  # this user's trouble, and nobody else's
            self._drops[error.reason] += 1
            unfit = str(error)
            _log.debug("%s: a user is turned away: %s", self._target.text, error)
        if inside is not None:
            if self.tls is None:
                await self._say_reached(stream)
            await forward_streams(stream, inside if self.tap is None else self.tap(inside))
            return
        try:
            if self._says_reached or self._target.protocol != "http" or not await self._explain(stream, unfit):
                stream.cut()
        finally:
            stream.close()

    async def _explain(self, stream: Stream, unfit: str) -> bool:
        """Say why there is nothing to say, to who speaks HTTP; `unfit`: why not to this user alone. → whether that
        could be done"""
        inside = self._inside
        sentence = f"{self._target.text} is not reachable: {unfit or inside.trouble}"
        slow = inside.slow and not unfit
        body = trouble_page(sentence) if self._peers else None
        extra = () if self._peers else (trouble_field(sentence),)
        try:
            with anyio.fail_after(EXPLAIN_TIMEOUT):
                head, _ = await read_head(stream)
                with_body = not head.startswith(b"HEAD ")
                await say(stream, answer(504 if slow else 502, body, with_body=with_body, extra=extra))
        except (TimeoutError, RemoteProtocolError, anyio.EndOfStream, anyio.BrokenResourceError):
            return False
        return True

    async def _say_reached(self, stream: Stream) -> None:
        if self._says_reached:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # what comes next says so
                await stream.send(REACHED)

    async def _unseal(self, stream: Stream, seal: Seal) -> Stream | None:
        try:
            if isinstance(stream, QuicStream):
                raise RemoteProtocolError("private_unsealed", "by QUIC nobody is led here")
            if self._inside.told.transparent:
                raise RemoteProtocolError("private_unsealed", "there is no address that the target could see")
            with anyio.fail_after(SEAL_TIMEOUT):
                return await seal(stream)
        except (RemoteProtocolError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            self._drops["private_unsealed"] += 1
            _log.debug("a peer does not get through to %s: %s", self._target.text, error)
            stream.cut()
            stream.close()
            return None

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

    def _takes_header(self) -> bool:
        """What the server writes before a user's bytes goes to the target as it is, unless it is meant for this end, or
        this end has a word in what comes behind: it may have to begin or end TLS, to explain, to show requests."""
        told = self._inside.told
        has_a_word = self._target.protocol == "http" or self.tls is not None
        return told.transparent or (bool(told.proxy_protocol) and has_a_word)

    async def _read_header(self, stream: Stream) -> ProxyHeader | None:
        """Takes it from the stream, and not a byte more. None: there is none, which is counted."""
        data, needed = b"", 1
        try:
            with anyio.fail_after(HEADER_TIMEOUT):
                while len(data) < needed:
                    data += await stream.receive(needed - len(data))
                    found = parse_proxy_header(data)
                    if isinstance(found, tuple):
                        return found[0]
                    needed = found
        except RemoteProtocolError as error:
            self._drops[error.reason] += 1
        except (TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._drops["no_proxy_header"] += 1
        return None

    async def connect(self) -> TargetStream | None:
        """To the target, for this node itself; None: it is not reachable, which is counted."""
        return await self._connect(None, encode(ProxyHeader(), self._inside.told.proxy_protocol))

    async def _connect_for(self, user: ProxyHeader | None) -> TargetStream | None:
        """`user`: of whom this end has to tell the target; None: nobody. Raises `UnusableAddress`."""
        if user is None:
            return await self._connect(None, b"")
        told = self._inside.told
        return await self._connect(user_of(user) if told.transparent else None, encode(user, told.proxy_protocol))

    async def _connect(self, user: Endpoint | None, opening: bytes) -> TargetStream | None:
        try:
            stream = await self._inside.open(user, opening)
        except UnusableAddress:
            raise
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

    def _outlet_for(self, source: Endpoint, local: Endpoint) -> Outlet | None:
        return self._outlet(ProxyHeader(source, local, "udp") if self._peers else None)

    def _outlet(self, user: ProxyHeader | None = None) -> Outlet | None:
        kind = self._inside.told.proxy_protocol
        if self._inside.told.transparent:
            return TransparentOutlet(self._inside.open_outlet, lambda user: encode(user, kind), self._drops, user)
        inner = SocketOutlet.open(lambda: self._endpoint, self._drops)
        header = b"" if user is None else encode(user, kind)
        return inner if inner is None or not header else HeadedOutlet(inner, header, self._drops)

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
            self._outlet_for,
            limit=CONNECTION_LIMIT,
            shuts_out=lambda source: "" if self.accepts(source[0]) else "exposure_not_the_server",
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
            set_options(bound)
            bound.listen(_BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound
