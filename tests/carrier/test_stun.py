"""STUN on the TCP port: connections that stay, and how many may."""

import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute

from overlay.carrier import stun
from overlay.carrier.connection import ControlConnection
from overlay.carrier.tcp import serve
from overlay.wire.endpoint import Endpoint
from overlay.wire.stun import Request, Response, decode, encode

PATIENCE = 5.0  # s


async def nobody(connection: ControlConnection) -> None:
    raise AssertionError("no node is expected here")


def answer(message: bytes, source: Endpoint) -> bytes | None:
    request = decode(message)
    assert isinstance(request, Request)
    return None if request.change_port else encode(Response(request.transaction_id, source))


@asynccontextmanager
async def port(*, speaks: bool = True) -> AsyncIterator[tuple[int, Counter[str]]]:
    drops: Counter[str] = Counter()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await serve(listener, os.urandom(32), nobody, drops=drops, stun=answer if speaks else None)

            tasks.start_soon(run)
            yield listener.extra(SocketAttribute.local_port), drops
            tasks.cancel_scope.cancel()


async def asked(to: int | socket.socket, request: bytes | None = None) -> tuple[bytes, socket.socket]:
    """Ask over a new connection or one that is there. → what came back (nothing: it was closed), and the connection"""
    if isinstance(to, int):
        held = socket.create_connection(("127.0.0.1", to))
        held.setblocking(False)
    else:
        held = to
    for byte in request or encode(Request(bytes(12))):  # slowly: no read of the server holds a whole message
        held.send(bytes([byte]))
    with anyio.fail_after(PATIENCE):
        await anyio.wait_readable(held)
    try:
        return held.recv(1024), held
    except ConnectionResetError:
        return b"", held


def test_a_connection_stays_and_answers_again() -> None:
    async def main() -> None:
        async with port() as (number, drops):
            data, held = await asked(number)
            for _ in range(3):
                message = decode(data)
                assert isinstance(message, Response) and message.mapped == held.getsockname()
                data, _ = await asked(held)
            assert (await asked(held, encode(Request(bytes(12), change_port=True))))[0] == b""
            held.close()
            assert drops == {}

    anyio.run(main)


def test_as_many_as_one_address_has_places_for_and_nodes_have_theirs() -> None:
    async def main() -> None:
        async with port() as (number, drops):
            held = [await asked(number) for _ in range(stun.MAX_PER_NETWORK)]
            assert all(data for data, _ in held)
            data, refused = await asked(number)
            assert (data, drops) == (b"", {"stun_full": 1})
            refused.close()
            held.pop()[1].close()
            with anyio.fail_after(PATIENCE):
                while not (again := await asked(number))[0]:  # till the server has seen that one went
                    again[1].close()
            for _, each in (*held, again):
                each.close()

    anyio.run(main)


def test_its_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stun, "STAY", 0.05)

    async def main() -> None:
        async with port() as (number, _):
            data, held = await asked(number)
            assert data
            with anyio.fail_after(PATIENCE):
                await anyio.wait_readable(held)
            assert held.recv(1) == b""
            held.close()

    anyio.run(main)


@pytest.mark.parametrize("garbage", [b"\x00\x01\xff\xff" + bytes(16), b"\x00\x01\x00\x00" + bytes(16)])
def test_what_is_no_stun_ends_it(garbage: bytes) -> None:
    async def main() -> None:
        async with port() as (number, drops):
            data, held = await asked(number, garbage)
            held.close()
            assert data == b"" and drops.total() == 1 and next(iter(drops)).startswith("stun_bad_")

    anyio.run(main)


def test_a_port_that_does_not_speak_it() -> None:
    async def main() -> None:
        async with port(speaks=False) as (number, _):
            data, held = await asked(number, b"\x00\x01")
            assert data == b""
            held.close()

    anyio.run(main)
