"""The public ports: users' TCP connections and UDP datagrams, carried to a node's overlay address by the single tunnel.

The kernel does the tunnel's part: a connection to the overlay address goes out by the server's own TUN. Knows sockets
and forwarding; which exposure a port belongs to, and whether its node is there, others know.
"""

import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import anyio
from anyio.abc import TaskGroup

from overlay.carrier.forward import UdpFlows, forward_streams
from overlay.carrier.stream import TcpStream, connect, reset_on_close
from overlay.errors import Exit, UserError
from overlay.wire.endpoint import Endpoint, format_endpoint

Protocol = Literal["tcp", "udp"]
Target = Callable[[], Endpoint | None]
"""Where the port leads now; None while its node is offline."""

CONNECT_TIMEOUT = 10.0  # s; three SYNs: a user waits no longer
MAX_CONNECTIONS = 1024  # of one port at once; more are closed at once, so that one exposure cannot take all descriptors
BACKLOG = 256
_WILDCARDS = ("0.0.0.0", "::")
_log = logging.getLogger(__name__)


def bind_public(protocol: Protocol, host: str, port: int) -> list[socket.socket]:
    """Sockets of a public port, on one address of the host or on all of them ("").

    Raises `UserError`: "port-taken" (by what, this cannot know), "port-permission", "public-not-here".
    """
    sockets: list[socket.socket] = []
    with ExitStack() as undo:
        for address in (host,) if host else _WILDCARDS:
            try:
                bound = _bind(protocol, address, port)
            except OSError as error:
                if not host and address == "::" and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue  # a host without IPv6
                raise _bind_error(protocol, host, port, error) from error
            undo.callback(bound.close)
            sockets.append(bound)
        undo.pop_all()
    return sockets


def _bind(protocol: Protocol, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    bound = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections in TIME_WAIT do not matter
        bound.bind((address, port))
        if protocol == "tcp":
            bound.listen(BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound


def _bind_error(protocol: Protocol, host: str, port: int, error: OSError) -> UserError:
    where = f"{protocol} port {format_endpoint((host, port)) if host else port}"
    if error.errno == errno.EADDRINUSE:
        return UserError(
            "port-taken",
            f"The public {where} is taken by another program on the server's host.",
            "Choose another port, or leave the choice to the server.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError(
            "port-permission",
            f"The server may not open the public {where}.",
            "Choose a port from 1024 on, or give the server the capability CAP_NET_BIND_SERVICE.",
            Exit.REFUSED,
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(
            "public-not-here",
            f"The server's host does not have the address {host}.",
            "Leave the address out, or name one of the server's own.",
        )
    return UserError("port-failed", f"The public {where} could not be opened: {error.strerror}.")


class PublicPort:
    """One open public port."""

    def __init__(self, protocol: Protocol, sockets: list[socket.socket], drops: Counter[str]) -> None:
        """`drops` counts users turned away, and datagrams, by reason."""
        self._protocol = protocol
        self._drops = drops
        self._sockets = sockets
        self._scope = anyio.CancelScope()
        self._users: set[socket.socket] = set()
        self._flows: list[UdpFlows] = []

    @property
    def connections(self) -> int:
        """Users' TCP connections or UDP flows at this moment."""
        return len(self._users) + sum(flows.count for flows in self._flows)

    def close(self) -> None:
        """Close the port at once, with all that goes through it."""
        self._scope.cancel()
        for bound in self._sockets:
            if bound.fileno() >= 0:
                anyio.notify_closing(bound)
                bound.close()

    async def run(self, target: Target) -> None:
        """Serve users until `close`."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    for bound in self._sockets:
                        tasks.start_soon(self._serve, bound, target, tasks)
        finally:
            self.close()
            for user in self._users:  # those whose task was cancelled before its first step
                user.close()
            self._users.clear()

    async def _serve(self, bound: socket.socket, where: Target, tasks: TaskGroup) -> None:
        if bound.fileno() < 0:
            return  # closed before this task's first step
        serve = self._serve_tcp if self._protocol == "tcp" else self._serve_udp
        await serve(bound, where, tasks)

    async def _serve_tcp(self, listener: socket.socket, where: Target, tasks: TaskGroup) -> None:
        while True:
            try:
                user, _ = listener.accept()
            except BlockingIOError:
                try:
                    await anyio.wait_readable(listener)
                except anyio.ClosedResourceError:
                    return
                continue
            except OSError as error:
                # The user has gone already, or descriptors ran out: either way the port must stay open.
                _log.warning("cannot accept a user: %s", error)
                await anyio.sleep(0.1)
                continue
            target = where()
            if target is None or len(self._users) >= MAX_CONNECTIONS:
                self._drops["target_offline" if target is None else "too_many_users"] += 1
                reset_on_close(user)
                user.close()
                await anyio.lowlevel.checkpoint()
                continue
            self._users.add(user)
            tasks.start_soon(self._forward, user, target)

    async def _forward(self, user: socket.socket, target: Endpoint) -> None:
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                inside = await connect(target)
        except (OSError, TimeoutError) as error:
            self._drops["target_refused" if isinstance(error, ConnectionRefusedError) else "target_failed"] += 1
            _log.debug("a user of %s was turned away: %s", format_endpoint(target), error)
            reset_on_close(user)
        else:
            await forward_streams(TcpStream(user), inside)
        finally:
            user.close()
            self._users.discard(user)

    async def _serve_udp(self, bound: socket.socket, where: Target, _tasks: TaskGroup) -> None:
        flows = UdpFlows(bound, where, drops=self._drops)
        self._flows.append(flows)
        await flows.run()
