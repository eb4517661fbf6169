"""Forwarding TCP: byte-exact, with half-close; cut short on one side is cut short on the other."""

import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import anyio
import pytest
from anyio.abc import SocketStream

from overlay.carrier.forward import Forwardable, Forwarded, Forwarding, forward_streams
from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import CodecStream, OverTcp
from overlay.wire.stream.codec import Codec
from overlay.wire.stream.websocket import WebSocket

from .streams import Certificate, tls_pair

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Kind:
    """What is between the forwarder and the target, and of which kind the forwarder's streams are."""

    name: str
    codecs: Callable[[Certificate], tuple[Codec, Codec]] | None = None
    anyio: bool = False


PLAIN = Kind("plain")
CODED = (Kind("ws", lambda _: (_websocket(client=True), _websocket(client=False))), Kind("tls", tls_pair))
OURS = (PLAIN, *CODED)
KINDS = (*OURS, Kind("anyio", anyio=True))


def _websocket(*, client: bool) -> WebSocket:
    return WebSocket(client=client, random_bytes=os.urandom)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    for each in (one, other):
        each.setblocking(False)
    return one, other


class Between:
    """user ══ a [forwarder] b ══ target; the outer ends are the test's."""

    def __init__(self, user: TcpStream, target: OverTcp) -> None:
        self.user = user
        self.target = target
        self.progress = Forwarded()
        self.result: Forwarded | None = None
        self.scope = anyio.CancelScope()
        self.finished = anyio.Event()

    async def end(self) -> Forwarded:
        with anyio.fail_after(5):
            await self.finished.wait()
        assert self.result is not None
        return self.result


@asynccontextmanager
async def forwarding(certificate: Certificate, kind: Kind = PLAIN) -> AsyncIterator[Between]:
    user, a = socket_pair()
    target, b = socket_pair()
    first: Forwardable = TcpStream(a)
    inside: Forwardable = TcpStream(b)
    outside: OverTcp = TcpStream(target)
    if kind.anyio:
        first, inside = await SocketStream.from_socket(a), await SocketStream.from_socket(b)
    elif kind.codecs is not None:
        near, far = kind.codecs(certificate)
        inside, outside = CodecStream(TcpStream(b), near), CodecStream(TcpStream(target), far)
    this = Between(TcpStream(user), outside)

    async def run() -> None:
        try:
            with this.scope:
                this.result = await forward_streams(first, inside, this.progress)
        finally:
            this.finished.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            yield this
        finally:
            tasks.cancel_scope.cancel()
            this.user.close()
            this.target.close()
    assert a.fileno() == -1
    assert b.fileno() == -1


async def read_all(stream: OverTcp) -> bytes:
    pieces: list[bytes] = []
    with anyio.fail_after(10):
        while True:
            try:
                pieces.append(await stream.receive())
            except anyio.EndOfStream:
                return b"".join(pieces)


async def is_reset(stream: OverTcp) -> bool:
    with anyio.fail_after(5):
        try:
            while True:
                await stream.receive()
        except anyio.BrokenResourceError:
            return True
        except anyio.EndOfStream:
            return False


@every_kind
async def test_megabytes_both_ways_at_once_arrive_exactly(kind: Kind, certificate: Certificate) -> None:
    there, back = Random(1).randbytes(3_000_001), Random(2).randbytes(2_000_003)
    received: dict[str, str] = {}

    async def send(stream: OverTcp, data: bytes) -> None:
        await stream.send(data)
        await stream.send_eof()

    async def receive(name: str, stream: OverTcp) -> None:
        received[name] = hashlib.sha256(await read_all(stream)).hexdigest()

    async with forwarding(certificate, kind) as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, this.user, there)
            tasks.start_soon(send, this.target, back)
            tasks.start_soon(receive, "target", this.target)
            tasks.start_soon(receive, "user", this.user)
        result = await this.end()
    assert received == {"target": hashlib.sha256(there).hexdigest(), "user": hashlib.sha256(back).hexdigest()}
    assert result == Forwarded(a_to_b=len(there), b_to_a=len(back))


@every_kind
async def test_half_closed_the_other_way_stays_open(kind: Kind, certificate: Certificate) -> None:
    async with forwarding(certificate, kind) as this:
        await this.user.send(b"question")
        await this.user.send_eof()
        assert await read_all(this.target) == b"question"
        for _ in range(3):
            await this.target.send(b"answer ")
            with anyio.fail_after(5):
                assert await this.user.receive() == b"answer "
        await this.target.send_eof()
        assert await read_all(this.user) == b""
        assert (await this.end()).error is None


@every_kind
@pytest.mark.parametrize("victim", ["user", "target"])
async def test_a_reset_is_passed_on_as_a_reset(victim: str, kind: Kind, certificate: Certificate) -> None:
    async with forwarding(certificate, kind) as this:
        dying, other = (this.user, this.target) if victim == "user" else (this.target, this.user)
        await other.send(b"x")
        with anyio.fail_after(5):
            assert await dying.receive() == b"x"
        cut = dying.extra(anyio.abc.SocketAttribute.raw_socket)
        cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        dying.close()
        assert await is_reset(other)
        assert (await this.end()).error is not None


@every_kind
async def test_cancelled_both_sides_are_reset(kind: Kind, certificate: Certificate) -> None:
    async with forwarding(certificate, kind) as this:
        await this.user.send(b"half of it")
        with anyio.fail_after(5):
            assert await this.target.receive() == b"half of it"
        this.scope.cancel()
        assert await is_reset(this.user)
        assert await is_reset(this.target)


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)
async def test_what_is_not_read_is_not_hoarded(kind: Kind, certificate: Certificate) -> None:
    """Nobody reads at the target: the user's writes stop after what the kernel's four buffers and one chunk hold."""
    async with forwarding(certificate, kind) as this:
        sent = 0
        with anyio.move_on_after(0.3):
            while True:
                sent += await this.user.send_some(bytes(65536))
        assert sent < 32 * 1024 * 1024
        assert this.progress.a_to_b <= sent
        before = this.progress.a_to_b
        await anyio.lowlevel.checkpoint()
        assert this.progress.a_to_b == before


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)
async def test_a_target_that_reads_late_gets_all_of_it(kind: Kind, certificate: Certificate) -> None:
    """Long enough for a pipe; each time that the target reads nothing for a while, the source is left alone."""
    data = Random(3).randbytes(24_000_000 if kind is PLAIN else 12_000_000)
    async with forwarding(certificate, kind) as this:

        async def send() -> None:
            await this.user.send(data)
            await this.user.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            got = hashlib.sha256()
            for _ in range(3):
                await anyio.wait_all_tasks_blocked()
                for _ in range(50):
                    got.update(await this.target.receive())
            got.update(await read_all(this.target))
        await this.target.send_eof()
        assert (await this.end()).error is None
    assert got.hexdigest() == hashlib.sha256(data).hexdigest()


async def test_a_side_that_is_dead_from_the_start_is_a_result() -> None:
    user, a = socket_pair()
    target, b = socket_pair()
    target.setblocking(True)
    user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    user.close()
    result = await forward_streams(TcpStream(a), TcpStream(b))
    assert result.error is not None
    with target, pytest.raises(ConnectionResetError):
        target.recv(1)


@pytest.mark.parametrize("kind", CODED, ids=lambda kind: kind.name)
async def test_what_came_for_a_codec_before_is_forwarded_too(kind: Kind, certificate: Certificate) -> None:
    """The first words and the end of it: the socket itself has nothing more to tell."""
    user, a = socket_pair()
    target, b = socket_pair()
    assert kind.codecs is not None
    near, far = kind.codecs(certificate)
    inside, outside = CodecStream(TcpStream(b), near), CodecStream(TcpStream(target), far)
    ours = TcpStream(user)
    outside.send_now(b"welcome")
    assert outside.end_now()
    inside.unread(await inside.receive())
    ended = anyio.Event()
    Forwarding(TcpStream(a), inside, Forwarded(), ended.set)
    with anyio.fail_after(5):
        assert await read_all(ours) == b"welcome"
        await ours.send(b"bye")
        await ours.send_eof()
        assert await read_all(outside) == b"bye"
        await ended.wait()
    ours.close()
    outside.close()


class Counted:
    """A pace that lets everything pass, and says what did."""

    piece = 1000

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def passed(self, size: int) -> None:
        self.sizes.append(size)


async def test_a_pace_is_asked_about_every_piece_of_its_direction() -> None:
    user, a = socket_pair()
    target, b = socket_pair()
    there, back = Counted(), Counted()
    data = Random(7).randbytes(500_000)
    ends = TcpStream(user), TcpStream(target)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forward_streams, TcpStream(a), TcpStream(b), None, (there, back))

        async def say() -> None:
            await ends[0].send(data)
            await ends[0].send_eof()

        tasks.start_soon(say)
        assert await read_all(ends[1]) == data
        await ends[1].send(b"thanks")
        await ends[1].send_eof()
        assert await read_all(ends[0]) == b"thanks"
    assert sum(there.sizes) == len(data) and max(there.sizes) <= 1000 and back.sizes == [6]
    for each in ends:
        each.close()
