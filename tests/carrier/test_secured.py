"""Two nodes' stream through somebody who must not read it, over real sockets."""

import socket

import anyio
import pytest

from overlay.carrier.forward import forward_streams
from overlay.carrier.secured import secure_from, secure_to
from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import CodecStream
from overlay.errors import RemoteProtocolError
from overlay.wire.wireguard.primitives import clamp, public_key

pytestmark = pytest.mark.anyio

KEY = clamp(bytes(range(32)))


async def pair() -> tuple[CodecStream, CodecStream, TcpStream]:
    """Both ends, and the socket of the first one."""
    ours, theirs = map(TcpStream, socket.socketpair())
    made: list[CodecStream] = []

    async def answer() -> None:
        made.append(await secure_from(theirs, KEY))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            asking = await secure_to(ours, public_key(KEY))
    return asking, made[0], ours


async def test_bytes_and_ends_go_both_ways() -> None:
    one, other, _ = await pair()
    await one.send(b"question")
    await one.send_eof()
    assert await other.receive() == b"question"
    with pytest.raises(anyio.EndOfStream):
        await other.receive()
    await other.send(b"answer")
    assert await one.receive() == b"answer"
    one.close()
    other.close()


async def test_what_is_cut_does_not_look_like_an_end() -> None:
    one, other, tcp = await pair()
    await one.send(b"the half of")
    await tcp.send_eof()
    assert await other.receive() == b"the half of"
    with pytest.raises(anyio.BrokenResourceError):
        await other.receive()
    one.close()
    other.close()


async def test_what_is_cut_is_cut_for_whom_it_is_forwarded_to() -> None:
    one, other, tcp = await pair()
    inside, target = map(TcpStream, socket.socketpair())
    await one.send(b"the half of")
    await tcp.send_eof()
    forwarded = await forward_streams(other, inside)
    assert forwarded.error is not None and forwarded.a_to_b == 11
    assert await target.receive() == b"the half of"
    one.close()
    target.close()


async def test_only_the_holder_of_the_key_is_taken_for_the_peer() -> None:
    ours, theirs = map(TcpStream, socket.socketpair())

    async def answer() -> None:
        with pytest.raises((RemoteProtocolError, anyio.EndOfStream, anyio.BrokenResourceError)):
            await secure_from(theirs, clamp(bytes(32)))
        theirs.close()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            with pytest.raises((RemoteProtocolError, anyio.EndOfStream, anyio.BrokenResourceError)):
                await secure_to(ours, public_key(KEY))
            ours.close()
