"""A control server of a few lines for the node's tests: real carrier, real Noise channel, real signatures, no registry.

The overlay addresses lie in 127.0.0.0/8, so that a test can listen on them without an interface of the network.
"""

import os
import socket
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
from anyio.abc import SocketAttribute, TaskStatus
from nacl.bindings import crypto_scalarmult_base

from overlay.carrier.tcp import ConnectionLost, ControlConnection, serve
from overlay.wire.control.invite import Invite
from overlay.wire.control.messages import (
    Attach,
    Attached,
    Done,
    Expose,
    Exposed,
    Exposure,
    Hello,
    Leave,
    MapNode,
    Message,
    NetworkMap,
    Ping,
    Pong,
    Refused,
    Unexpose,
    Welcome,
)
from overlay.wire.control.netmap import diff, map_key, sign

NETWORK = "127.77.0.0/16"
SERVER_ADDRESS = "127.77.0.1"
NODE_ADDRESS = "127.77.0.2"


def map_node(number: int, name: str, **fields: Any) -> MapNode:
    return MapNode(number=number, name=name, key=bytes([number]) * 32, addresses=(f"127.77.0.{number}",), **fields)


async def _more(connected: socket.socket) -> bool:
    await anyio.wait_readable(connected)
    try:
        return bool(connected.recv(65536))
    except OSError:
        return False


class StubServer:
    """Welcomes everybody as node 2, or does what `answer` says."""

    def __init__(self) -> None:
        self.private_key = os.urandom(32)
        self.public_key = crypto_scalarmult_base(self.private_key)
        self.seed = os.urandom(32)
        self.port = 0
        self.hellos: list[Hello] = []
        self.received: list[Message] = []
        self.connections: list[ControlConnection] = []
        self.exposures: tuple[Exposure, ...] = ()
        self.silent = False
        """Answers no ping."""
        self.heartbeat = 15.0
        self.answer: Callable[[Hello], Message] = self.welcome
        self.map = NetworkMap(
            network="ab",
            version=5,
            domain="local.test",
            networks=(NETWORK,),
            nodes=(map_node(1, "server", online=True),),
        )
        self.changed = anyio.Event()
        """Replaced after every message that came in."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def invite(self) -> str:
        return Invite((self.address,), self.public_key, bytes(16), "local.test").encode()

    def welcome(self, _hello: Hello) -> Welcome:
        return Welcome(
            number=2,
            name="a",
            addresses=(NODE_ADDRESS,),
            networks=(NETWORK,),
            domain="local.test",
            ticket=7,
            relays=(f"192.0.2.1:{self.port}",),
            map_key=map_key(self.seed),
            heartbeat=self.heartbeat,
            exposures=self.exposures,
        )

    async def run(self, *, port: int = 0, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        async with await anyio.create_tcp_listener(
            local_host="127.0.0.1", local_port=port, reuse_port=True
        ) as listener:
            self.port = listener.extra(SocketAttribute.local_port)
            task_status.started()
            await serve(listener, self.private_key, self._converse)

    async def set_map(self, **fields: Any) -> None:
        """The next version, with other `fields`; connected nodes get the delta."""
        old = self.map
        self.map = msgspec.structs.replace(old, version=old.version + 1, **fields)
        for connection in self.connections:
            await connection.send(sign(diff(old, self.map), self.seed))

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not condition():
                await self.changed.wait()

    async def _converse(self, connection: ControlConnection) -> None:
        hello = await connection.receive()
        if isinstance(hello, Attach):
            await connection.send(Attached())
            detached = await connection.detach()
            assert detached is not None
            with detached.socket:  # a data link to nowhere, until the node lets go of it
                while await _more(detached.socket):
                    continue
            return
        assert isinstance(hello, Hello)
        self.hellos.append(hello)
        answer = self.answer(hello)
        await connection.send(answer)
        self._tell()
        if isinstance(answer, Refused):
            return
        self.connections.append(connection)
        try:
            if hello.map_version != self.map.version:
                await connection.send(sign(self.map, self.seed))
            while True:
                message = await connection.receive()
                self.received.append(message)
                await self._reply(connection, message)
                self._tell()
        except ConnectionLost:
            return
        finally:
            self.connections.remove(connection)
            self._tell()

    async def _reply(self, connection: ControlConnection, message: Message) -> None:
        match message:
            case Ping(seq=seq) if not self.silent:
                await connection.send(Pong(seq=seq))
            case Expose():
                exposure = Exposure(
                    id=message.id or f"x{len(self.exposures) + 1}",
                    protocol=message.protocol,
                    public=message.public or "192.0.2.1:20000",
                    target=message.target,
                    port=message.port,
                )
                self.exposures = (*(each for each in self.exposures if each.id != exposure.id), exposure)
                await connection.send(Exposed(seq=message.seq, exposure=exposure))
            case Unexpose(seq=seq, id=name):
                self.exposures = tuple(each for each in self.exposures if each.id != name)
                await connection.send(Done(seq=seq))
            case Leave():
                await connection.aclose()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()
