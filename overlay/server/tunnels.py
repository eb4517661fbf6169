"""How a user's connection travels from the server to the node. The single tunnel: to the node's overlay address,
through the server's own TUN, where the kernel multiplexes."""

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol
from weakref import WeakSet

import anyio

from overlay.carrier.outlets import Outlet, SocketOutlet
from overlay.carrier.port import Stream, UserStream
from overlay.carrier.stream import TcpStream, connect
from overlay.wire.endpoint import Endpoint, canonical_endpoint
from overlay.wire.ingress.proxy_protocol import UserTls

CONNECT_TIMEOUT: Final = 10.0  # s; three SYNs: a user waits no longer


class TunnelError(Exception):
    """There is no way to the target now. `status`: what a user by HTTP is answered; `reason` names the drop counter."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Visitor:
    """A user's connection, by its two ends as the user sees them, and what is known of it beside."""

    source: Endpoint
    local: Endpoint
    authority: str = ""  # the name that the user asked for
    tls: UserTls | None = None  # it ended here
    alpn: bytes = b""  # what is said in it
    has_spoken: bool = False  # what the user has said goes into the tunnel as soon as that is open

    @classmethod
    def of(cls, user: socket.socket, source: Endpoint) -> "Visitor":
        own = user.getsockname()
        return cls(source, canonical_endpoint(own[0], own[1]))


class Tunnel(Protocol):
    """One exposure's way to its target."""

    def online(self) -> bool:
        """Whether the node is there."""

    async def open(self, visitor: Visitor) -> Stream:
        """A connection for one user. Raises `TunnelError`."""

    def open_now(self, visitor: Visitor) -> UserStream | None:
        """As `open`, where that needs no waiting; None: `open` has to be asked. Raises `TunnelError`."""

    def outlet(self, visitor: Visitor) -> Outlet | None:
        """For the datagrams of one user; None: there is none now, and that is counted. Raises `OSError`."""


async def send_first(stream: Stream, data: bytes) -> None:
    """What goes before a user's bytes. Raises `TunnelError`; the stream is closed if it has not gone."""
    try:
        if (taken := stream.send_now(data)) < len(data):
            await stream.send(data[taken:])
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        stream.close()
        raise TunnelError(502, "tunnel_broken") from error
    except BaseException:
        stream.close()
        raise


class SingleTunnel:
    """`where`: the node's end of it now; None while the node is offline. `drops` counts datagrams by reason."""

    def __init__(self, where: Callable[[], Endpoint | None], drops: Counter[str]) -> None:
        self._where = where
        self._drops = drops
        self._streams: WeakSet[TcpStream] = WeakSet()

    def watch(self, *, closely: bool) -> None:
        """Whether users' connections are to end soon if the node does not answer, as `TcpStream.watch`: by itself the
        kernel repeats what has been sent for a quarter of an hour."""
        for stream in tuple(self._streams):
            stream.watch(closely=closely)

    def online(self) -> bool:
        return self._where() is not None

    async def open(self, visitor: Visitor) -> Stream:
        target = self._where()
        if target is None:
            raise TunnelError(502, "target_offline")
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                stream = await connect(target)
        except TimeoutError as error:
            raise TunnelError(504, "target_failed") from error
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            raise TunnelError(502, "target_refused" if refused else "target_failed") from error
        self._streams.add(stream)
        return stream

    def open_now(self, visitor: Visitor) -> UserStream | None:
        return None

    def outlet(self, visitor: Visitor) -> Outlet | None:
        return SocketOutlet.open(self._where, self._drops)
