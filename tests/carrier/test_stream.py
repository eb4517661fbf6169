"""A TCP socket as a stream: waiting, and being woken, without anything lost or left behind in the event loop."""

import asyncio
import socket
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest

from overlay.carrier.port import TOKEN, TOKEN_SIZE
from overlay.carrier.silence import Silence, take_token
from overlay.carrier.stream import TcpStream

pytestmark = pytest.mark.anyio

Pair = tuple[TcpStream, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A stream, and the socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    stream = TcpStream(near)
    with far, near:
        yield stream, far


async def test_nothing_within_the_time_is_a_timeout_and_loses_nothing(pair: Pair) -> None:
    stream, far = pair
    for piece in (b"one", b"two"):
        with pytest.raises(TimeoutError):
            await stream.receive(within=0.01)
        far.sendall(piece)
        assert await stream.receive(within=5) == piece
    stream.close()


async def test_cancelled_while_it_waits_it_loses_nothing(pair: Pair) -> None:
    stream, far = pair
    for piece in (b"one", b"two"):
        with anyio.move_on_after(0.01) as scope:
            await stream.receive()
        assert scope.cancelled_caught
        far.sendall(piece)
        assert await stream.receive() == piece
    stream.close()


async def test_what_nobody_wants_does_not_keep_the_loop_busy(pair: Pair) -> None:
    stream, far = pair
    far.sendall(b"x")
    assert await stream.receive(within=5) == b"x"
    with pytest.raises(TimeoutError):
        await stream.receive(within=0.01)  # the loop watches from here on
    far.sendall(b"y")

    def is_watched() -> bool:
        return stream._reader is not None and stream._reader._watched

    assert is_watched()
    with anyio.fail_after(5):
        while is_watched():
            await anyio.lowlevel.checkpoint()
    assert await stream.receive(within=5) == b"y"
    stream.close()


@pytest.mark.parametrize("give_up", ["close", "detach"])
async def test_who_waits_is_woken_when_it_is_closed(pair: Pair, give_up: str) -> None:
    stream, _ = pair

    async def waits() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await stream.receive()
        getattr(stream, give_up)()
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()


async def test_who_waits_to_write_is_woken_when_it_is_closed(pair: Pair) -> None:
    stream, _ = pair

    async def waits() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            while True:
                await stream.send(bytes(1 << 20))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waits)
        await anyio.wait_all_tasks_blocked()
        stream.close()


async def test_a_peek_takes_nothing_and_knows_the_end(pair: Pair) -> None:
    stream, far = pair
    far.sendall(b"abcdef")
    with anyio.fail_after(5):
        while await stream.peek(1, 6) != b"abcdef":
            pass
        assert await stream.peek(3) == b"abc"

        async def more() -> None:
            await anyio.wait_all_tasks_blocked()
            far.sendall(b"gh")
            await anyio.wait_all_tasks_blocked()
            far.shutdown(socket.SHUT_WR)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(more)
            assert await stream.peek(8) == b"abcdefgh"
            assert await stream.peek(9) == b"abcdefgh", "that is all there is"
    assert await stream.receive() == b"abcdefgh"
    stream.close()


async def test_silence_ends_once_by_a_word_or_by_time(pair: Pair) -> None:
    stream, far = pair
    near = stream.detach().socket
    ended: list[bool] = []
    happened = asyncio.Event()

    def end(_silence: Silence, heard: bool) -> None:
        ended.append(heard)
        happened.set()

    with anyio.fail_after(5):
        Silence(near, 0.01, end)
        await happened.wait()
        happened.clear()
        assert take_token(near) is None
        Silence(near, 60, end)
        far.sendall(TOKEN + bytes(range(TOKEN_SIZE)))
        await happened.wait()
        Silence(near, 60, end).stop()
    assert ended == [False, True]
    assert take_token(near) == bytes(range(TOKEN_SIZE))


@pytest.mark.parametrize("said", [b"", TOKEN + bytes(TOKEN_SIZE - 1), TOKEN + bytes(TOKEN_SIZE + 1), b"GET / HTTP/1.1"])
async def test_what_is_no_token_alone_stays_where_it_is(pair: Pair, said: bytes) -> None:
    stream, far = pair
    near = stream.detach().socket
    far.sendall(said)
    far.shutdown(socket.SHUT_WR)
    near.settimeout(5)
    near.recv(1, socket.MSG_PEEK)  # it is here
    assert take_token(near) is None
    whole = b""
    while piece := near.recv(100):
        whole += piece
    assert whole == said
