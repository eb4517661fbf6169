"""Connections to a target that bear the user's own address and port as their source (`--transparent`).

The sockets are bound to addresses of other machines (IP_TRANSPARENT, which needs root's rights); `return_routes` has
the answers come back. What the target takes for the user's address decides about trust there, so nobody may come as
this machine itself: its own addresses, loopback among them, and what is no single host's are refused and counted.
"""

import errno
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network, ip_address
from typing import Final

import anyio

from overlay.carrier.outlets import Deliver, Outlet, SocketOutlet
from overlay.carrier.stream import TcpStream, connect_socket
from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.node.return_routes import Hold, ReturnRoutes, UnusableAddress
from overlay.node.targets import NO_OPTIONS, Target, TargetOptions
from overlay.wire.control.terms import Terms, check_terms
from overlay.wire.endpoint import Endpoint, canonical_endpoint
from overlay.wire.ingress.proxy_protocol import ProxyHeader, parse_proxy_header

MOST_WAITING: Final = 32  # datagrams of one flow, while its way back is made
PROBE_TIMEOUT: Final = 3.0  # s; two SYNs
_PROBES: Final = {4: "192.0.2.1", 6: "2001:db8:ffff:ffff::1"}  # of documentation (RFC 5737, RFC 3849): nobody's
_RESERVED: Final = (IPv4Network("0.0.0.0/8"), IPv4Network("240.0.0.0/4"))
_IP_TRANSPARENT: Final = 19  # <linux/in.h>; the socket module has it from Python 3.14 on
_IPV6_TRANSPARENT: Final = 75  # <linux/in6.h>
_LONGEST_HEADER: Final = 1024  # bytes of a datagram that may be header: the server writes addresses and a name


class _HeldStream(TcpStream):
    """The user's address is led back as long as it is open."""

    def __init__(self, connected: socket.socket, hold: Hold) -> None:
        super().__init__(connected)
        self._hold = hold

    def close(self) -> None:
        super().close()
        self._hold.release()


class Transparent:
    """Of one target. `drops` counts by reason what was not as it should be."""

    def __init__(self, routes: ReturnRoutes, drops: Counter[str]) -> None:
        self._routes = routes
        self._drops = drops

    async def connect(self, target: Target, user: Endpoint) -> TcpStream:
        """Raises `OSError`; `UnusableAddress` among them."""
        return await self._connect(_seen_by(user, host_endpoints(target)), user)

    async def open_outlet(self, target: Target, user: Endpoint) -> tuple[Outlet, Hold]:
        """For one user's datagrams. Raises as `connect` does."""
        endpoint = _seen_by(user, host_endpoints(target))
        hold = await self._routes.hold(endpoint, "udp", user[0])
        try:
            bound = self._bind(socket.SOCK_DGRAM, user)
            try:
                bound.connect(endpoint)
            except BaseException:
                bound.close()
                raise
            return SocketOutlet(bound, endpoint, lambda: endpoint, self._drops), hold
        except BaseException:
            hold.release()
            raise

    async def check(self, target: Target) -> None:
        """Before it is published. Raises `UserError`: "transparent-target", "answers-stray"."""
        for endpoint in host_endpoints(target):
            ours = ip_address(endpoint[0]).is_loopback or await self._routes.is_local(endpoint[0])
            if not ours:
                await self._probe(endpoint)

    async def _probe(self, endpoint: Endpoint) -> None:
        """Whether answers of another machine come by this one: to a connection from an address that is nobody's."""
        user = (_PROBES[ip_address(endpoint[0]).version], 0)
        try:
            with anyio.fail_after(PROBE_TIMEOUT):
                (await self._connect(endpoint, user)).close()
        except ConnectionRefusedError:
            return  # this has come back
        except OSError as error:  # TimeoutError is one
            raise UserError(
                "answers-stray",
                f"{endpoint[0]} is another machine, and what it answers to users' addresses does not come back here.",
                "Make this machine the gateway of that one, run overlay there, or use --proxy-protocol.",
            ) from error

    async def _connect(self, endpoint: Endpoint, user: Endpoint) -> TcpStream:
        hold = await self._routes.hold(endpoint, "tcp", user[0])
        try:
            try:
                connected = await _connected(self._bind(socket.SOCK_STREAM, user), endpoint)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                # His last connection from this port is not over for the kernel yet.
                connected = await _connected(self._bind_elsewhere(socket.SOCK_STREAM, user), endpoint)
            return _HeldStream(connected, hold)
        except BaseException:
            hold.release()
            raise

    def _bind(self, kind: socket.SocketKind, user: Endpoint) -> socket.socket:
        try:
            return bind_as(kind, user)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return self._bind_elsewhere(kind, user)

    def _bind_elsewhere(self, kind: socket.SocketKind, user: Endpoint) -> socket.socket:
        self._drops["transparent_other_port"] += 1
        return bind_as(kind, (user[0], 0))


class TransparentOutlet:
    """An `Outlet` for one user's datagrams. Who that is, is known, or each datagram says it in a PROXY header."""

    def __init__(
        self,
        open_outlet: Callable[[Endpoint], Awaitable[tuple[Outlet, Hold]]],
        begin: Callable[[ProxyHeader], bytes],
        drops: Counter[str],
        known: ProxyHeader | None = None,
    ) -> None:
        """`begin`: what the target's datagrams begin with, for whom."""
        self._open_outlet = open_outlet
        self._begin = begin
        self._drops = drops
        self._header = known
        self._told = known is None
        self._start = b"" if known is None else begin(known)
        self._inner: Outlet | None = None
        self._waiting: list[bytes] = []
        self._known = anyio.Event()
        self._scope = anyio.CancelScope()
        self._stale = False
        self._refused = ""  # why nothing of this user's is taken; the flow stays, so that this is found out once
        if known is not None:
            self._known.set()

    @property
    def stale(self) -> bool:
        return self._stale or (self._inner is not None and self._inner.stale)

    def send(self, datagram: memoryview) -> bool:
        if self._told:
            try:
                datagram = self._without_header(datagram)
            except RemoteProtocolError as error:
                self._drops[error.reason] += 1
                return False
        if self._refused:
            self._drops[self._refused] += 1
            return False
        whole = memoryview(self._start + datagram)
        if self._inner is not None:
            return self._inner.send(whole)
        if len(self._waiting) >= MOST_WAITING:
            self._drops["target_full"] += 1
            return False
        self._waiting.append(bytes(whole))
        return True

    async def run(self, deliver: Deliver) -> None:
        with self._scope:
            await self._known.wait()
            assert self._header is not None
            try:
                inner, hold = await self._open_outlet(user_of(self._header))
            except OSError as error:
                self._refused = error.reason if isinstance(error, UnusableAddress) else "target_failed"
                self._drops[self._refused] += len(self._waiting)
                self._waiting.clear()
                await anyio.sleep_forever()
            try:
                for datagram in self._waiting:
                    inner.send(memoryview(datagram))
                self._waiting.clear()
                self._inner = inner
                await inner.run(deliver)
            finally:
                inner.close()
                hold.release()

    def close(self) -> None:
        self._scope.cancel()

    def _without_header(self, datagram: memoryview) -> memoryview:
        found = parse_proxy_header(bytes(datagram[:_LONGEST_HEADER]))
        if isinstance(found, int):
            raise RemoteProtocolError("bad_proxy_header", "cut short")
        header, size = found
        if self._header is None:
            self._header, self._start = header, self._begin(header)
            self._known.set()
        elif header.source != self._header.source:
            self._stale = True  # the server has given the flow's port to another user
            raise RemoteProtocolError("flow_changed_hands")
        return datagram[size:]


def check_told(terms: Terms, target: Target, options: TargetOptions = NO_OPTIONS, *, up: bool) -> None:
    """Whether such a target can be told what it is to be, and by a machine that is `up`. Raises `UserError`:
    "told-nobody", "transparent-not-up", "transparent-target", and what `check_terms` raises."""
    check_terms(terms, target.protocol)
    told = terms.told
    if told.proxy_protocol and target.kind == "folder":
        raise UserError(
            "told-nobody",
            "A folder is served by overlay itself, which has no use for PROXY headers.",
            "Leave out --proxy-protocol.",
            Exit.USAGE,
        )
    if not told.transparent:
        return
    if target.kind != "host":
        raise _unfit("a unix socket or a folder sees no addresses", "Leave out --transparent.")
    if options.proxy:
        raise _unfit("through a proxy it sees that one's address", "Leave out --transparent, or --target-proxy.")
    host_endpoints(target)
    if not up:
        raise UserError(
            "transparent-not-up",
            "Connections with users' own addresses need root's rights and the network's interface on this machine.",
            "Run 'sudo overlay up' first, or use --proxy-protocol.",
            Exit.REFUSED,
        )


def host_endpoints(target: Target) -> list[Endpoint]:
    """What a target's host stands for by itself. Raises `UserError` ("transparent-target")."""
    if target.host.lower() == "localhost":
        return [("127.0.0.1", target.port), ("::1", target.port)]
    try:
        endpoint = canonical_endpoint(target.host, target.port)
    except ValueError as error:
        raise _unfit(
            f"'{target.host}' is a name, and the way back is made for an address", "Write its address, or localhost."
        ) from error
    if ip_address(endpoint[0]).is_unspecified:  # with an address bound, the kernel would take that for the target's
        return [("::1" if ":" in endpoint[0] else "127.0.0.1", target.port)]
    return [endpoint]


def user_of(header: ProxyHeader) -> Endpoint:
    """Raises `UnusableAddress`."""
    if header.source is None:
        raise UnusableAddress("transparent_unknown_user", "the server does not say who the user is")
    return header.source


def _seen_by(user: Endpoint, endpoints: list[Endpoint]) -> Endpoint:
    """Where this user is taken to, if a connection may bear his address as far as that tells. Raises
    `UnusableAddress`."""
    address = ip_address(user[0])
    if (
        address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or address.is_link_local
        or any(address in network for network in _RESERVED if address.version == 4)
    ):
        raise UnusableAddress("transparent_own_address", "the user's address is no other host's")
    for endpoint in endpoints:
        if ip_address(endpoint[0]) == address:  # no machine takes what comes from outside with its own address
            raise UnusableAddress("transparent_own_address", "the user's address is the target's own")
        if ip_address(endpoint[0]).version == address.version:
            return endpoint
    raise UnusableAddress("transparent_other_family", f"the target has no address of IPv{address.version}")


async def _connected(connecting: socket.socket, endpoint: Endpoint) -> socket.socket:
    try:
        await connect_socket(connecting, endpoint)
    except BaseException:
        connecting.close()
        raise
    return connecting


def bind_as(kind: socket.SocketKind, user: Endpoint) -> socket.socket:
    """A socket that does not block, with somebody else's address. Raises `OSError`."""
    six = ":" in user[0]
    bound = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if six:
            bound.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            bound.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # his last connections in TIME_WAIT
        bound.bind(user)
    except BaseException:
        bound.close()
        raise
    return bound


def _unfit(why: str, hint: str) -> UserError:
    return UserError("transparent-target", f"The target cannot be reached with --transparent: {why}.", hint, Exit.USAGE)
