"""The target's side of an exposure: one connection to it after the other, and why there is none."""

import errno
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

import anyio

from overlay.carrier.outlets import Outlet
from overlay.carrier.stream import TcpStream, connect, connect_now
from overlay.carrier.streams import CodecStream, OverTcp
from overlay.errors import Exit, UserError
from overlay.node.deputy import Deputy, Order, connect_unix
from overlay.node.return_routes import Hold, UnusableAddress
from overlay.node.rights import are_ours, check_may_act_for, user_name
from overlay.node.target_proxy import connect_by, parse_target_proxy
from overlay.node.targets import NO_OPTIONS, Target, TargetOptions
from overlay.node.tls_target import TlsTarget
from overlay.node.transparent import Transparent
from overlay.wire.control.terms import NOTHING_TOLD, Told
from overlay.wire.endpoint import Endpoint, canonical_endpoint

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to reach the target, over all addresses of its name; three SYNs."""
CHECK_TIMEOUT: Final = 1.0  # s for a look before it is published
_QUEUE_PAUSE: Final = 0.05  # s between tries at a unix socket whose queue is full, which cannot be waited for

TargetStream = OverTcp
LookUp = Callable[[str], tuple[str, ...] | None]
"""Addresses of a name in the network's zones; None: it is in none of them."""


class NotInNetworkError(OSError):
    """A name is the network's, and this machine has no interface in it."""


class TargetEnd:
    """Of one exposure. `run` while it is used; `trouble`: why the last try failed, "" if it did not."""

    def __init__(
        self,
        target: Target,
        options: TargetOptions = NO_OPTIONS,
        *,
        owner: int = 0,
        told: Told = NOTHING_TOLD,
        transparent: Transparent | None = None,
        look_up: LookUp = lambda name: None,
        ours: Callable[[Endpoint], str] = lambda endpoint: "",
    ) -> None:
        """`owner`: uid of the user with whose rights files are opened; `told`: what the target is told of users;
        `transparent`: makes connections with their addresses, if that is so. `look_up`: the network's names. `ours`:
        which exposure of this node is reached at an endpoint, "" if none is; a target there would lead in a circle."""
        self.target = target
        self._look_up = look_up
        self._ours = ours
        self.told = told
        self.transparent = transparent
        self.trouble = ""
        self.slow = False  # it did not refuse the last time: it said nothing
        self.prefix = "/"
        """The path under which a folder is published."""
        self._owner = owner
        self._proxy = parse_target_proxy(options.proxy) if options.proxy else None
        self._tls = TlsTarget(target.host, options) if target.secure else None
        self._near = _near(target) if self._proxy is None and self._tls is None and transparent is None else None
        self._deputy: Deputy | None = None
        # A folder is served by a process of its own in any case, beside the daemon's loop.
        if target.kind == "folder" or (target.kind == "unix" and not are_ours(owner)):
            order = Order(kind=target.kind, path=target.path, owner=owner, listing=options.listing)
            self._deputy = Deputy(order)

    async def run(self) -> None:
        """Until `close`."""
        if self._deputy is not None:
            await self._deputy.run()

    def close(self) -> None:
        if self._deputy is not None:
            self._deputy.close()

    async def check(self) -> None:
        """Before it is published: what its owner may not open is refused. A service may come later, a folder not.

        Raises `UserError`: "target-forbidden", "target-missing", "target-loop", "ca-invalid", "transparent-target",
        "answers-stray".
        """
        if self.transparent is not None:
            await self.transparent.check(self.target)
        if self._tls is not None:
            await self._tls.check()
        if self.target.kind == "host":
            await self._check_circle()
            return
        check_may_act_for(self._owner)
        try:
            with anyio.move_on_after(CHECK_TIMEOUT if self.target.kind == "unix" else CONNECT_TIMEOUT):
                (await self._open_file()).close()
        except PermissionError as error:
            raise UserError(
                "target-forbidden",
                f"{self.target.path} is not published: {user_name(self._owner)} may not open it.",
                "Ask its owner for access, or run the command with sudo if you may.",
                Exit.REFUSED,
            ) from error
        except OSError as error:
            if self.target.kind == "folder":
                raise UserError(
                    "target-missing",
                    f"The folder {self.target.path} cannot be read: {error.strerror}.",
                    "Name a folder, as in: overlay expose ./dist",
                ) from error

    async def open(self, user: Endpoint | None = None, opening: bytes = b"") -> TargetStream:
        """A connection that begins with `opening`; for a user, whose address it bears if that is wanted, or for this
        node itself.

        Raises `OSError`, whose text is the end of a sentence, and `TimeoutError`; what it was, `trouble` says; and
        `UnusableAddress`, which is the user's trouble alone.
        """
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                stream = await self._open(user, opening)
        except UnusableAddress:
            raise
        except TimeoutError:
            self.trouble, self.slow = f"no answer within {CONNECT_TIMEOUT:g} s", True
            raise
        except OSError as error:
            words = error.strerror or str(error)
            self.trouble, self.slow = words[:1].lower() + words[1:], False
            raise
        self.trouble = ""
        return stream

    def open_now(self) -> TcpStream | None:
        """As `open`, where that needs no waiting; None: `open` has to be asked, and knows what is wrong if something
        is."""
        if self._near is None or self._ours(self._near):
            return None
        stream = connect_now(self._near)
        if stream is not None:
            self.trouble = ""
        return stream

    async def _check_circle(self) -> None:
        if self._proxy is not None:
            return
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                found = await self._find()
        except NotInNetworkError as error:
            raise UserError(
                "not-up",
                f"{self.target.text} is not published: {error}.",
                "Bring the network up on this machine, or expose it where it is.",
                Exit.NOT_RUNNING,
            ) from error
        except OSError:
            return  # a name may come later
        for endpoint in found:
            if name := self._ours(endpoint):
                raise UserError(
                    "target-loop",
                    f"{self.target.text} is where exposure {name} of this machine itself is reached.",
                    "Name the service that is to be reached, not the place where it is published.",
                    Exit.USAGE,
                )

    async def open_outlet(self, user: Endpoint) -> tuple[Outlet, Hold]:
        """For the datagrams of a user, whose address they are to bear. Raises as `open` does."""
        assert self.transparent is not None
        return await self.transparent.open_outlet(self.target, user)

    async def resolve(self) -> list[Endpoint]:
        """At least one endpoint of a host: by the network's own names, whatever the system asks, else as the system
        orders them. Raises `OSError`, also for a place of our own."""
        found = await self._find()
        for endpoint in found:
            if name := self._ours(endpoint):
                raise OSError(f"it is where exposure {name} of this machine itself is reached")
        return found

    async def _find(self) -> list[Endpoint]:
        host, port = self.target.host, self.target.port
        try:
            return [canonical_endpoint(host, port)]
        except ValueError:
            addresses = self._look_up(host)
            if addresses is not None:
                if not addresses:
                    raise OSError(f"the network has no {host}") from None
                return [canonical_endpoint(address, port) for address in addresses]
            kind = socket.SOCK_DGRAM if self.target.protocol == "udp" else socket.SOCK_STREAM
            try:
                found = await anyio.getaddrinfo(host, port, type=kind)
            except OSError as error:
                raise OSError(f"its name cannot be found ({error.strerror})") from error
            return [canonical_endpoint(str(address[0]), port) for *_, address in found]

    async def _open(self, user: Endpoint | None, opening: bytes) -> TargetStream:
        if self.target.kind != "host":
            stream: TargetStream = await self._open_file()
        elif self.transparent is not None and user is not None:
            stream = await self.transparent.connect(self.target, user)
        else:
            stream = await self._connect()
        return await self._begin(stream, opening)

    async def _connect(self) -> TargetStream:
        if self._proxy is not None:
            return await connect_by(self._proxy, self.target.host, self.target.port)
        problem: OSError | None = None
        for endpoint in await self.resolve():
            try:
                return await connect(endpoint)
            except OSError as error:
                problem = error
        assert problem is not None
        raise problem

    async def _begin(self, stream: TargetStream, opening: bytes) -> TargetStream:
        """What tells of the user goes before TLS."""
        try:
            if opening:
                await stream.send(opening)
            if self._tls is None:
                return stream
            if isinstance(stream, CodecStream):
                raise OSError("it does not speak TLS (it speaks first)")
            return await self._tls.secure(stream)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            stream.close()
            raise OSError("it has closed the connection") from error
        except BaseException:
            stream.close()
            raise

    async def _open_file(self) -> TcpStream:
        while True:
            try:
                if self._deputy is not None:
                    return TcpStream(await self._deputy.connect(self.prefix))
                return TcpStream(connect_unix(self.target.path))
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
            await anyio.sleep(_QUEUE_PAUSE)


def _near(target: Target) -> Endpoint | None:
    """Where it is, if that is an address of the loopback."""
    if target.kind != "host":
        return None
    try:
        return canonical_endpoint(target.host, target.port) if ip_address(target.host).is_loopback else None
    except ValueError:
        return None
