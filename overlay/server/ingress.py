"""The public ports: users' TCP connections and UDP datagrams, carried to a node by whatever tunnel.

Knows sockets and forwarding; which exposure a port belongs to, and whether its node is there, others know.
"""

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

import anyio
from anyio.abc import TaskGroup

from overlay.carrier.flows import UdpFlows
from overlay.carrier.forward import Forwarding
from overlay.carrier.stream import Reader, TcpStream, reset_on_close, set_options
from overlay.errors import Exit, UserError
from overlay.server.access.gate import Gate
from overlay.server.access.meter import forward_counted, forward_metered
from overlay.server.tunnels import Tunnel, TunnelError, Visitor
from overlay.wire.endpoint import Endpoint, canonical_endpoint, format_endpoint

Protocol = Literal["tcp", "udp"]
ServeUser = Callable[[TcpStream, Visitor], Awaitable[None]]
"""Serves one user, until the connection ends."""

_Ending = anyio.CancelScope | Forwarding
MAX_CONNECTIONS = 1024  # of one port at once; more are closed at once, so that one exposure cannot take all descriptors
BACKLOG = 256
_TURN = 64  # users who are taken before others have their turn
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
            set_options(bound)
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
        self.gate = Gate()
        self._protocol = protocol
        self._drops = drops
        self._sockets = sockets
        self._scope = anyio.CancelScope()
        self._users: dict[socket.socket, tuple[_Ending | None, str]] = {}  # what ends them, and where they are from
        self._flows: list[UdpFlows] = []
        self._readers: list[Reader] = []

    @property
    def connections(self) -> int:
        """Users' TCP connections or UDP flows at this moment."""
        return len(self._users) + sum(flows.count for flows in self._flows)

    def close(self) -> None:
        """Close the port at once, with all that goes through it."""
        self._scope.cancel()
        self._end_users()
        for reader in self._readers:
            reader.stop()
        for bound in self._sockets:
            if bound.fileno() >= 0:
                anyio.notify_closing(bound)
                bound.close()

    def cut_off(self) -> None:
        """End all users' connections and flows; others may come."""
        self._end_users()
        for flows in self._flows:
            flows.end_all()

    def _end_users(self) -> None:
        for ending, _ in tuple(self._users.values()):
            if ending is not None:
                ending.cancel()

    def cut_off_those_shut_out(self) -> None:
        """Who was let in may not be any more."""
        for ending, host in tuple(self._users.values()):
            if ending is not None and self.gate.shuts_out(host):
                ending.cancel()
        for flows in self._flows:
            flows.end_those_shut_out()

    async def run(self, tunnel: Tunnel, serve_user: ServeUser | None = None) -> None:
        """Serve users until `close`: forward what they say, or have them served by `serve_user`."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    for bound in self._sockets:
                        tasks.start_soon(self._serve, bound, tunnel, serve_user, tasks)
        finally:
            self.close()
            for user in self._users:  # those whose task was cancelled before its first step
                user.close()
            self._users.clear()

    async def _serve(
        self, bound: socket.socket, tunnel: Tunnel, serve_user: ServeUser | None, tasks: TaskGroup
    ) -> None:
        if bound.fileno() < 0:
            return  # closed before this task's first step
        if self._protocol == "tcp":
            await self._serve_tcp(bound, tunnel, serve_user, tasks)
        else:
            await self._serve_udp(bound, tunnel)

    async def _serve_tcp(
        self, listener: socket.socket, tunnel: Tunnel, serve_user: ServeUser | None, tasks: TaskGroup
    ) -> None:
        loop, reader, accepted = asyncio.get_running_loop(), Reader(listener), 0
        self._readers.append(reader)
        while True:
            if accepted % _TURN == _TURN - 1:
                await anyio.lowlevel.checkpoint()
            try:
                user, address = listener.accept()
            except BlockingIOError:
                await reader.wait()
                continue
            except OSError as error:
                # The user has gone already, or descriptors ran out: either way the port must stay open.
                self._drops["user_not_accepted"] += 1
                _log.warning("cannot accept a user: %s", error)
                await anyio.sleep(0.1)
                continue
            accepted += 1
            source = canonical_endpoint(address[0], address[1])
            # By HTTP a user is told why there is no answer.
            online = serve_user is not None or tunnel.online()
            refused = self._refused(source, serve_user) if online else "target_offline"
            if refused:
                self._drops[refused] += 1
                reset_on_close(user)
                user.close()
                await anyio.lowlevel.checkpoint()
                continue
            self._users[user] = None, source[0]
            visitor = Visitor.of(user, source)
            if serve_user is not None:
                tasks.start_soon(self._serve_user, user, visitor, serve_user)
            else:
                # Not before others have had their turn: by then he has mostly said something, which goes along.
                loop.call_soon(self._forward, user, visitor, tunnel, tasks)

    def _refused(self, source: Endpoint, serve_user: ServeUser | None) -> str:
        limit = self.gate.terms.limits.connections
        if serve_user is not None:  # by HTTP a user is told what he has done, and one who has asked nothing is none
            return "too_many_users" if len(self._users) >= max(limit, MAX_CONNECTIONS) else ""
        return "too_many_users" if len(self._users) >= (limit or MAX_CONNECTIONS) else self.gate.refuses(source[0])

    def _forward(self, user: socket.socket, visitor: Visitor, tunnel: Tunnel, tasks: TaskGroup) -> None:
        if user not in self._users:
            return  # the port is closed
        stream = TcpStream(user, has_options=True)
        if not stream.is_quiet():
            visitor = replace(visitor, has_spoken=True)
        try:
            inside = tunnel.open_now(visitor) if self.gate.meter.paces is None else None
        except TunnelError as error:
            self._drops[error.reason] += 1
            del self._users[user]
            stream.cut()
            stream.close()
            return
        if inside is None:
            tasks.start_soon(self._open_and_forward, user, stream, visitor, tunnel)
            return
        # Nothing has to be waited for: a task would cost more than all else here.
        forwarding = forward_counted(stream, inside, self.gate.meter, lambda: self._users.pop(user, None))
        if not forwarding.over:
            self._users[user] = forwarding, visitor.source[0]

    async def _open_and_forward(self, user: socket.socket, stream: TcpStream, visitor: Visitor, tunnel: Tunnel) -> None:
        scope = anyio.CancelScope()
        self._users[user] = scope, visitor.source[0]
        try:
            with scope:
                inside = await tunnel.open(visitor)
                await forward_metered(stream, inside, self.gate.meter)
            if scope.cancelled_caught:
                reset_on_close(user)
        except TunnelError as error:
            self._drops[error.reason] += 1
            reset_on_close(user)
        finally:
            stream.close()
            self._users.pop(user, None)

    async def _serve_user(self, user: socket.socket, visitor: Visitor, serve_user: ServeUser) -> None:
        stream = TcpStream(user, has_options=True)
        try:
            await serve_user(stream, visitor)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        finally:
            stream.close()
            self._users.pop(user, None)

    async def _serve_udp(self, bound: socket.socket, tunnel: Tunnel) -> None:
        gate = self.gate
        flows = UdpFlows(
            bound,
            lambda source, local: tunnel.outlet(Visitor(source, local)),
            shuts_out=lambda source: gate.shuts_out(source[0]),
            holds_off=lambda source: gate.holds_off(source[0]),
            passes=gate.meter.takes,
            drops=self._drops,
        )
        self._flows.append(flows)
        with gate.meter.following(lambda: flows.to_target + flows.to_user):
            await flows.run()
