"""The service of leases over a real registry with two nodes, and users on loopback."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from overlay.errors import UserError
from overlay.node.interface import Machine
from overlay.server.admission import add_node
from overlay.server.claims import Surroundings
from overlay.server.exposures import Exposures
from overlay.server.founding import found
from overlay.server.ingress import bind_public
from overlay.server.keys import ServerKeys
from overlay.server.registry import Registry
from overlay.server.settings import ServerSettings
from overlay.wire.control.messages import Expose

HOST = "127.0.0.1"
WEB = {"protocol": "http", "target": "http://127.0.0.1:80"}
NAMES = {2: "a", 3: "b"}
KEYS = ServerKeys(node_key=b"\x08" * 31 + b"\x48", map_seed=b"m" * 32)


class Bench:
    """A registry with two nodes, one exposure service over it, and who is online."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.online = {2, 3}
        self.exposures: Exposures

    async def free_port(self) -> int:
        bound = bind_public("tcp", HOST, 0)[0]
        with bound:
            return int(bound.getsockname()[1])

    async def expose(self, node: int, **request: Any) -> Any:
        wanted = {"seq": 1, "protocol": "tcp", "target": "tcp://127.0.0.1:80", "port": 4000, **request}
        return await self.exposures.expose(node, Expose(**wanted))

    async def refusal(self, node: int, **request: Any) -> UserError:
        with pytest.raises(UserError) as caught:
            await self.expose(node, **request)
        return caught.value


@asynccontextmanager
async def bench(path: Path, **around: Any) -> AsyncIterator[Bench]:
    async def machine() -> Machine:
        return Machine()

    registry = await Registry.open(path)
    try:
        _, nodes = await found(
            registry, ServerSettings(state=str(path.parent)), KEYS, ciphers=(), machine=machine, wall=1.0
        )
        async with registry.transaction() as transaction:
            for number in () if len(nodes) > 1 else (2, 3):
                await add_node(
                    transaction,
                    bytes([number]) * 32,
                    name=NAMES[number],
                    name_chosen=True,
                    ciphers=(),
                    tags=(),
                    wall=1.0,
                    random_bytes=os.urandom,
                )
        it = Bench(registry)
        values: dict[str, Any] = {
            "public_hosts": ("203.0.113.1",),
            "own_ports": frozenset({("tcp", 443)}),
            "address_of": lambda number: HOST if number in it.online else None,
            "name_of": NAMES.__getitem__,
            "wall": lambda: 5.0,
            "randbelow": lambda below: 0,
        }
        async with anyio.create_task_group() as tasks:
            it.exposures = Exposures(registry, Surroundings(**{**values, **around}), tasks)
            await it.exposures.start()
            try:
                yield it
            finally:
                tasks.cancel_scope.cancel()
                it.exposures.close()
    finally:
        await registry.close()


def on_bench(tmp_path: Path, *tests: Callable[[Bench], Awaitable[None]], **around: Any) -> None:
    """Each test gets the service anew, over the same registry."""

    async def main() -> None:
        for test in tests:
            with anyio.fail_after(15):
                async with bench(tmp_path / "registry.sqlite", **around) as it:
                    await test(it)

    anyio.run(main)


async def answer(stream: SocketStream) -> None:
    async with stream:
        await stream.send(b"hello")


async def web(port: int, host: str = "any.test") -> bytes:
    async with await anyio.connect_tcp(HOST, port) as user:
        await user.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode())
        return await user.receive()


async def ask(port: int) -> bytes:
    try:
        async with await anyio.connect_tcp(HOST, port) as user:
            return await user.receive()
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        return b""
