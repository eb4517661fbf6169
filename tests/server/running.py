"""A whole server in this process, over loopback with the real carrier; only the engine is one that takes notes."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
from nacl.bindings import crypto_scalarmult_base

from overlay.carrier.tcp import ControlConnection, dial
from overlay.daemon.client import LocalClient
from overlay.daemon.state import StateDir
from overlay.engine.api import AddLink, Command, EngineConfig, EngineSnapshot, Event, Inspect
from overlay.node.interface import Assigned, Machine, Route
from overlay.server.daemon import ServerDaemon
from overlay.server.settings import ServerSettings
from overlay.wire.control import netmap
from overlay.wire.control.invite import Invite
from overlay.wire.control.messages import Hello, MapDelta, Message, NetworkMap, Refused, SignedMap, Welcome

M = TypeVar("M", bound=Message)

MACHINE = Machine(
    addresses=(Assigned("192.0.2.10", "eth0"),),
    routes=(Route("192.0.2.0/24", "eth0"), Route("0.0.0.0/0", "eth0")),
)
PATIENCE = 10.0  # s; a test that waits longer has failed


class NotingEngine:
    """Keeps what it is told, and answers that all is quiet."""

    def __init__(self, config: EngineConfig, on_event: Callable[[Event], None]) -> None:
        self.config = config
        self.on_event = on_event
        self.commands: list[Command] = []
        self.interface = None  # no test of this folder makes an interface
        self.port = config.port

    def start(self) -> None:
        return None

    def post(self, *commands: Command) -> None:
        for command in commands:
            if isinstance(command, Inspect):
                command.reply(
                    EngineSnapshot(
                        interface=None,
                        port=self.port,
                        peers=(),
                        relay_rtt=None,
                        drops={"short_header": 1},
                        features={},
                        relayed_bytes=5,
                        relay_waiting=7,
                        timestamp=0,
                    )
                )
            else:
                self.commands.append(command)

    def stop(self) -> None:
        for command in self.commands:
            if isinstance(command, AddLink):
                command.handed.socket.close()


class Running:
    """A server that runs, and what a test asks of it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.ready: dict[str, Any] = {}
        self.engine: NotingEngine | None = None
        self.nodes: list[Node] = []
        self._is_ready = anyio.Event()

    def node(self, private_key: bytes | None = None) -> "Node":
        """A node, whose connection ends with the test."""
        node = Node(private_key)
        self.nodes.append(node)
        return node

    @property
    def commands(self) -> list[Command]:
        assert self.engine is not None
        return self.engine.commands

    def take_ready(self, ready: dict[str, Any]) -> None:
        self.ready = ready
        self._is_ready.set()

    def start_engine(self, config: EngineConfig, on_event: Callable[[Event], None]) -> NotingEngine:
        self.engine = NotingEngine(config, on_event)
        return self.engine

    async def wait(self) -> None:
        with anyio.fail_after(PATIENCE):
            await self._is_ready.wait()

    async def request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The local API."""
        return await anyio.to_thread.run_sync(LocalClient(self.state).request, method, path, body)

    async def invite(self, **wish: Any) -> Invite:
        return Invite.parse((await self.request("POST", "/v1/invites", wish))["invite"])


@asynccontextmanager
async def running(
    state: Path, *, tun: bool = True, port: int = 0, public: tuple[str, ...] = (), **more: Any
) -> AsyncIterator[Running]:
    """A server on loopback. `tun`: it believes that it has an interface."""
    server = Running(state)
    settings = ServerSettings(
        state=str(state),
        listen=(f"127.0.0.1:{port}",),
        public=public,
        tun=tun,
        **{"range": "10.77.0.0/16", "dscp": "copy", **more},
    )

    async def read_host() -> Machine:
        return MACHINE

    with StateDir(state).open().lock():
        daemon = ServerDaemon(
            settings,
            StateDir(state),
            on_ready=server.take_ready,
            start_engine=server.start_engine,
            read_host=read_host,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(daemon.run)
            try:
                await server.wait()
                yield server
            finally:
                for node in server.nodes:
                    node.close()
                daemon.shut_down()


class Node:
    """The other end of a control connection."""

    def __init__(self, private_key: bytes | None = None) -> None:
        self.private_key = private_key or os.urandom(32)
        self.public_key = crypto_scalarmult_base(self.private_key)
        self.replica = netmap.Replica()
        self.updates: list[NetworkMap | MapDelta] = []
        self.mark = b""
        self.welcome: Welcome | None = None
        self.refused: Refused | None = None
        self._connection: ControlConnection | None = None

    @property
    def connection(self) -> ControlConnection:
        assert self._connection is not None
        return self._connection

    @property
    def map(self) -> NetworkMap | None:
        return self.replica.current

    @property
    def number(self) -> int:
        assert self.welcome is not None
        return self.welcome.number

    async def dial(self, invite: Invite) -> "Node":
        """Connect and say nothing."""
        self._connection = await dial(invite.addresses, invite.server_key, self.private_key)
        return self

    async def connect(self, invite: Invite, **hello: Any) -> "Node":
        """Say hello; `welcome` or `refused` is the answer."""
        await self.dial(invite)
        await self.connection.send(Hello(**{"name": "node", "invite": invite.secret, **hello}))
        with anyio.fail_after(PATIENCE):
            answer = await self.connection.receive()
        if isinstance(answer, Welcome):
            self.welcome, self.refused = answer, None
        else:
            assert isinstance(answer, Refused)
            self.welcome, self.refused = None, answer
        return self

    async def receive(self, kind: type[M]) -> M:
        """The next message of this type; maps on the way are applied."""
        with anyio.fail_after(PATIENCE):
            while True:
                message = await self.connection.receive()
                if isinstance(message, SignedMap):
                    assert self.welcome is not None
                    update = netmap.verify(message, self.welcome.map_key)
                    self.updates.append(update)
                    self.replica.take(update)
                    self.mark = message.mark
                if isinstance(message, kind):
                    return message

    async def sees(self, wanted: Callable[[NetworkMap], bool]) -> NetworkMap:
        """Receive until the map is so."""
        while self.map is None or not wanted(self.map):
            await self.receive(SignedMap)
        return self.map

    def close(self) -> None:
        if self._connection is not None:
            self._connection.lose("closed")


def online_names(network_map: NetworkMap) -> set[str]:
    return {node.name for node in network_map.nodes if node.online}
