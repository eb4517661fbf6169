"""The target's side of an exposure: one connection to it after the other, and why there is none."""

import errno
import socket
from typing import Final

import anyio

from overlay.carrier.stream import TcpStream, connect
from overlay.carrier.streams import CodecStream
from overlay.errors import Exit, UserError
from overlay.node.deputy import Deputy, Order, connect_unix
from overlay.node.rights import are_ours, check_may_act_for, user_name
from overlay.node.targets import NO_OPTIONS, Target, TargetOptions
from overlay.node.tls_target import TlsTarget
from overlay.wire.endpoint import Endpoint, canonical_endpoint

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to reach the target, over all addresses of its name; three SYNs."""
CHECK_TIMEOUT: Final = 1.0  # s for a look before it is published
_QUEUE_PAUSE: Final = (
    0.05  # s between looks at a unix socket whose queue is full: the kernel does not tell when it is not
)

TargetStream = TcpStream | CodecStream


class TargetEnd:
    """Of one exposure. `run` while it is used; `trouble`: why the last try failed, "" if it did not."""

    def __init__(self, target: Target, options: TargetOptions = NO_OPTIONS, *, owner: int = 0) -> None:
        """`owner`: uid of the user with whose rights files are opened."""
        self.target = target
        self.trouble = ""
        self.prefix = "/"
        """The path under which a folder is published."""
        self._owner = owner
        self._tls = TlsTarget(target.host, options) if target.secure else None
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

        Raises `UserError`: "target-forbidden", "target-missing", "ca-invalid".
        """
        if self._tls is not None:
            await self._tls.check()
        if self.target.kind == "host":
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

    async def open(self) -> TargetStream:
        """A connection for one user. Raises `OSError`, whose text is the end of a sentence, and `TimeoutError`; what
        it was, `trouble` says."""
        try:
            with anyio.fail_after(CONNECT_TIMEOUT):
                stream = await self._open()
        except TimeoutError:
            self.trouble = f"no answer within {CONNECT_TIMEOUT:g} s"
            raise
        except OSError as error:
            self.trouble = error.strerror or str(error)
            raise
        self.trouble = ""
        return stream

    async def resolve(self) -> list[Endpoint]:
        """At least one endpoint of a host, as the system orders them. Raises `OSError`."""
        host, port = self.target.host, self.target.port
        try:
            return [canonical_endpoint(host, port)]
        except ValueError:
            kind = socket.SOCK_DGRAM if self.target.protocol == "udp" else socket.SOCK_STREAM
            try:
                found = await anyio.getaddrinfo(host, port, type=kind)
            except OSError as error:
                raise OSError(f"its name cannot be found ({error.strerror})") from error
            return [canonical_endpoint(str(address[0]), port) for *_, address in found]

    async def _open(self) -> TargetStream:
        if self.target.kind != "host":
            return await self._open_file()
        problem: OSError | None = None
        for endpoint in await self.resolve():
            try:
                stream = await connect(endpoint)
            except OSError as error:
                problem = error
            else:
                return stream if self._tls is None else await self._secure(self._tls, stream)
        assert problem is not None
        raise problem

    async def _secure(self, tls: TlsTarget, stream: TcpStream) -> CodecStream:
        try:
            return await tls.secure(stream)
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
