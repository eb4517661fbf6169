"""Finding the server: head starts, what stands in for it, and what a person is told."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.connection import ControlConnection
from overlay.carrier.dialling import dial
from overlay.carrier.look_up import interleaved
from overlay.errors import Exit, UserError
from overlay.wire.control.channel import BUSY, RESPONSE_SIZE
from overlay.wire.control.messages import Ping, Pong
from overlay.wire.wireguard.primitives import clamp, public_key

from .ends import NODE, SERVER_PUBLIC, answer, answer_pings, greeted, serving

pytestmark = pytest.mark.anyio


@contextmanager
def closed_port() -> Iterator[str]:
    """An address where nobody listens, kept so by a socket that is bound and does not."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def silent_port() -> Iterator[str]:
    """An address where the kernel accepts, and nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@asynccontextmanager
async def impostor(behave: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    async def handle(stream: SocketStream) -> None:
        async with stream:
            await behave(stream)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handle)
            yield f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
            tasks.cancel_scope.cancel()


async def failure(*addresses: str, timeout: float = 5.0) -> UserError:  # noqa: ASYNC109 - handed on
    with pytest.raises(UserError) as caught:
        await dial(addresses, SERVER_PUBLIC, NODE, timeout)
    error = caught.value
    assert error.message.endswith(".")
    assert error.hint.endswith(".")
    return error


async def talks(connection: ControlConnection) -> None:
    assert await answer(await greeted(connection), Ping(seq=1)) == Pong(seq=1)
    await connection.aclose()


# finding it ----------------------------------------------------------------------------------------------------------


async def test_the_first_address_that_proves_itself_is_taken() -> None:
    async def hang(stream: SocketStream) -> None:
        await stream.receive()
        await anyio.sleep_forever()

    async def lie(stream: SocketStream) -> None:
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(answer_pings) as server, impostor(hang) as mute, impostor(lie) as liar:
        with closed_port() as closed:
            connection = await dial([closed, liar, mute, server.address], SERVER_PUBLIC, NODE)
            assert connection.remote_address == ("127.0.0.1", server.port)
            await talks(connection)


async def test_a_name_is_looked_up() -> None:
    async with serving(answer_pings) as server:
        await talks(await dial([f"localhost:{server.port}"], SERVER_PUBLIC, NODE))


async def test_an_address_that_is_named_twice_is_tried_once() -> None:
    async with serving(answer_pings) as server:
        await talks(
            await dial([server.address, server.address, f"[::ffff:127.0.0.1]:{server.port}"], SERVER_PUBLIC, NODE)
        )
    assert not server.drops


def test_families_take_turns() -> None:
    v4 = [(f"192.0.2.{number}", 1) for number in range(1, 4)]
    v6 = [("2001:db8::1", 1)]
    assert interleaved([*v6, *v4]) == [v6[0], v4[0], v4[1], v4[2]]
    assert interleaved([*v4, *v6]) == [v4[0], v6[0], v4[1], v4[2]]
    assert interleaved([]) == []


# not finding it ------------------------------------------------------------------------------------------------------


async def test_a_refused_connection_names_the_address() -> None:
    with closed_port() as one, closed_port() as other:
        error = await failure(one, other)
    assert error.code == "server-unreachable"
    assert error.exit_code is Exit.UNREACHABLE
    assert (
        error.message
        == f"The server cannot be reached: {one} by tcp (connection refused); {other} by tcp (connection refused)."
    )


async def test_no_answer_names_the_address_in_time() -> None:
    with silent_port() as silent, closed_port() as closed:
        started = anyio.current_time()
        error = await failure(silent, closed, timeout=1.0)
        assert anyio.current_time() - started < 3
    assert error.code == "server-unreachable"
    assert f"{silent} by tcp (no answer within 1 s)" in error.message
    assert f"{closed} by tcp (connection refused)" in error.message


async def test_a_name_that_does_not_exist_is_named() -> None:
    error = await failure("no-such-host.invalid:443", timeout=10)
    assert error.code == "server-unreachable"
    assert "no-such-host.invalid:443" in error.message


async def test_a_server_with_another_key_is_told() -> None:
    async with serving(answer_pings) as server:
        with pytest.raises(UserError) as caught:
            await dial([server.address], public_key(clamp(bytes(32))), NODE)
        await server.dropped("bad_tag")
    assert caught.value.code == "server-key-mismatch"
    assert caught.value.exit_code is Exit.REFUSED
    assert server.address in caught.value.message


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "its answer is not that of an overlay server"),
        (b"SSH-2.0-OpenSSH\r\n", "its answer is not that of an overlay server"),
        (b"", "it closed the connection"),
        (b"\x00", "it closed the connection"),
        (RESPONSE_SIZE.to_bytes(2, "big") + b"\x09" * RESPONSE_SIZE, "it does not hold the server's key"),
    ],
)
async def test_somebody_else_at_the_port_is_told(answered: bytes, words: str) -> None:
    async def behave(stream: SocketStream) -> None:
        await stream.receive()
        if answered:
            await stream.send(answered)

    async with impostor(behave) as address:
        error = await failure(address)
    assert (error.code, error.exit_code) == ("server-key-mismatch", Exit.REFUSED)
    assert error.message == f"What answers at {address} is not the expected server: {words}."


async def test_a_busy_server_is_told_apart_from_a_wrong_one() -> None:
    async def behave(stream: SocketStream) -> None:
        await stream.send(BUSY)

    async with impostor(behave) as address:
        error = await failure(address)
    assert (error.code, error.exit_code) == ("server-busy", Exit.UNREACHABLE)


@pytest.mark.parametrize("addresses", [(), ("192.0.2.1",), ("server.example.org:443", "no port")])
async def test_a_wrong_address_is_wrong_usage(addresses: tuple[str, ...]) -> None:
    error = await failure(*addresses) if addresses else None
    if error is not None:
        assert (error.code, error.exit_code) == ("bad-address", Exit.USAGE)
        assert addresses[-1] in error.message
    with pytest.raises(UserError, match=r"\."):
        await dial(addresses, SERVER_PUBLIC, NODE)


async def test_a_server_key_that_is_no_key_is_told() -> None:
    async with serving(answer_pings) as server:
        with pytest.raises(UserError) as caught:
            await dial([server.address], bytes(32), NODE)
    assert caught.value.code == "server-key-mismatch"


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.003, 0.01, 0.03])
async def test_cancelled_at_any_moment_it_leaves_no_socket(moment: float) -> None:
    """A socket left behind is a ResourceWarning, which is an error in these tests."""
    async with serving(answer_pings) as server:
        with anyio.move_on_after(moment):
            connection = await dial([server.address], SERVER_PUBLIC, NODE)
            connection.lose("closed")
