"""A TCP connection from both sides at once, with real sockets; strangers; and what a node does when it is called."""

import contextlib
import itertools
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

from overlay.engine.api import AddLink, Command, CueReceived, RemoveLink, SendCue, WantTcp
from overlay.node.punching import Own, TcpPunching
from overlay.node.tcp_punch import Proof, Punched, TcpPort, punch
from overlay.path.nat import UNKNOWN_NAT
from overlay.path.tcp_punch import Limits, TcpAttempt
from overlay.wire.disco import CallMe, DiscoKey
from overlay.wire.endpoint import Endpoint
from overlay.wire.stream.framing import frames
from overlay.wire.wireguard.primitives import clamp, public_key

LOW, HIGH = 2, 3
KEYS = {number: clamp(os.urandom(32)) for number in (LOW, HIGH)}
ID = b"an id of"
HOSTS = {4: "127.0.0.1", 6: "::1"}

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Side:
    """One node's part in an attempt."""

    def __init__(self, number: int, id: bytes = ID) -> None:
        self.number = number
        self.port = TcpPort()
        self.drops: Counter[str] = Counter()
        self.won: Punched | None = None
        peer = LOW + HIGH - number
        self.proof = Proof(DiscoKey(KEYS[number], public_key(KEYS[peer])), number, peer, id)

    def endpoint(self, family: int = 4) -> Endpoint:
        return HOSTS[family], self.port.port

    async def punch(self, *there: Endpoint) -> None:
        attempt = TcpAttempt(there, anyio.current_time(), Limits())
        decides = self.number == LOW
        self.won = await punch(self.port, attempt, self.proof, decides=decides, drops=self.drops)

    def close(self) -> None:
        self.port.close()
        if self.won is not None:
            self.won.socket.close()


@pytest.fixture
async def sides() -> AsyncIterator[tuple[Side, Side]]:
    made = Side(LOW), Side(HIGH)
    yield made
    for side in made:
        side.close()


async def meet(low: Side, high: Side, at_low: list[Endpoint], at_high: list[Endpoint]) -> None:
    """Both try; they have one connection, the same."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(low.punch, *at_high)
        tasks.start_soon(high.punch, *at_low)
    assert low.won is not None and high.won is not None
    assert low.won.socket.getpeername() == high.won.socket.getsockname()
    low.won.socket.send(b"frames")
    await anyio.wait_readable(high.won.socket)
    assert high.won.socket.recv(100) == b"frames"
    assert low.won.socket.getsockname()[1] == low.port.port and high.won.socket.getsockname()[1] == high.port.port


@pytest.mark.parametrize("family", [4, 6])
async def test_both_connect_at_once(sides: tuple[Side, Side], family: int) -> None:
    low, high = sides
    await meet(low, high, [low.endpoint(family)], [high.endpoint(family)])
    assert low.won is not None and low.won.endpoint == high.endpoint(family)


async def test_of_several_connections_both_keep_the_same(sides: tuple[Side, Side]) -> None:
    low, high = sides
    await meet(low, high, [low.endpoint(6), low.endpoint(4)], [high.endpoint(4), high.endpoint(6)])


async def test_one_listens_only(sides: tuple[Side, Side]) -> None:
    low, high = sides
    await meet(low, high, [low.endpoint()], [])


async def test_the_other_listens_only(sides: tuple[Side, Side]) -> None:
    low, high = sides
    await meet(low, high, [], [high.endpoint()])


async def test_strangers_are_counted_and_the_peer_is_found_all_the_same(sides: tuple[Side, Side]) -> None:
    low, high = sides
    replayed = Side(HIGH, b"bygone! ")
    said = [b"GET / HTTP/1.1\r\n\r\n", b"".join(frames(os.urandom(120), 0)), replayed.proof.ping()[0]]
    strangers = [socket.create_connection(low.endpoint()) for _ in said]
    for stranger, data in zip(strangers, said, strict=True):
        stranger.sendall(data)
    listener = socket.create_server(("127.0.0.1", 0))  # accepts, and says nothing
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(low.punch)
            while low.drops["tcp_stranger"] < len(said):
                await anyio.lowlevel.checkpoint()
            tasks.start_soon(high.punch, listener.getsockname(), low.endpoint())
        assert low.won is not None and high.won is not None
        for stranger in strangers:
            stranger.settimeout(10)
            with contextlib.suppress(ConnectionResetError):  # for what was not read
                assert stranger.recv(100) == b""
    finally:
        for each in (*strangers, listener):
            each.close()
        replayed.close()


# calls ----------------------------------------------------------------------------------------------------------------


class Calling:
    """Two nodes whose cues reach each other; the server does not tell how their ports look from outside."""

    def __init__(self) -> None:
        self.sent: dict[int, list[Command]] = {LOW: [], HIGH: []}
        self.answers = anyio.Event()
        self.looked = {LOW: anyio.Event(), HIGH: anyio.Event()}  # at their own ports, as far as the test lets them
        self.looked[LOW].set()
        self.nodes = {number: self._node(number) for number in (LOW, HIGH)}

    def _node(self, number: int) -> TcpPunching:
        peer = LOW + HIGH - number

        def post(command: Command) -> None:
            self.sent[number].append(command)
            if isinstance(command, SendCue):
                self.nodes[peer].received(CueReceived(number, command.call, 0.0))
                if command.call.answer:
                    self.answers.set()

        async def observe(port: int) -> tuple[Endpoint, socket.socket]:
            raise ConnectionError("no server here")

        async def local(port: int) -> list[Endpoint]:
            await self.looked[number].wait()
            return [("192.0.2.1", port)]

        def key(of: int) -> bytes:
            return public_key(KEYS[of])

        return TcpPunching(KEYS[number], post, observe, local, key, lambda: UNKNOWN_NAT, itertools.count(1))

    def cues(self, number: int) -> list[SendCue]:
        return [command for command in self.sent[number] if isinstance(command, SendCue)]


@pytest.mark.parametrize("late", [False, True])
async def test_when_both_call_the_lower_numbers_call_counts(late: bool) -> None:
    """Also where it comes before the other has called: `late` with that."""
    calling = Calling()
    if not late:
        calling.looked[HIGH].set()
    async with anyio.create_task_group() as tasks:
        for number, node in calling.nodes.items():
            tasks.start_soon(node.run, Own(number, ()))
        await anyio.lowlevel.checkpoint()
        for number, node in calling.nodes.items():
            node.received(WantTcp(LOW + HIGH - number, 0.01))
        await anyio.wait_all_tasks_blocked()
        calling.looked[HIGH].set()
        with anyio.fail_after(10):
            await calling.answers.wait()
        tasks.cancel_scope.cancel()
    called, answered = calling.cues(LOW), calling.cues(HIGH)
    assert [cue.call.answer for cue in called] == [False]
    assert answered[-1].call.answer and answered[-1].call.id == called[0].call.id
    assert all(cue.call.way == "tcp" and cue.call.offers for cue in called + answered)


async def test_a_peer_that_floods_has_one_attempt() -> None:
    calling = Calling()
    node = calling.nodes[LOW]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.run, Own(LOW, ()))
        await anyio.lowlevel.checkpoint()
        calling.nodes[HIGH].received(WantTcp(LOW, 0.0))  # does not run: nothing happens
        node.received(WantTcp(1, 0.0))  # the server: neither
        for _ in range(200):
            node.received(CueReceived(HIGH, CallMe(os.urandom(8), answer=False, way="tcp"), 0.0))
        with anyio.fail_after(10):
            await calling.answers.wait()
            while node.drops["tcp_busy"] < 199:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(calling.cues(LOW)) == 1
    assert not any(isinstance(command, AddLink | RemoveLink) for command in calling.sent[LOW])
