"""Dynamic tunnels: connections that nodes make for users when the server asks, by carriers of their own.

The server sends a node one-time tokens over the control channel; the node connects by the carrier and shows one. What
has come waits ready, a few of them, so that the next user need not wait; when one is used, eight bytes say for which
exposure, and from then on every byte is the user's or the target's. A token counts once, for one node and some seconds.

How many wait follows the users: twice as many when they come faster than connections do, half as many when it was
enough for some time. They are asked for by the half of what is wanted, as a message costs more than a connection.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import anyio

from overlay.carrier.outlets import Outlet, StreamOutlet
from overlay.carrier.port import TOKEN_SIZE, Caller, Stream, UserStream
from overlay.carrier.quic import QuicStream
from overlay.carrier.stream import TcpStream
from overlay.server.tunnels import TunnelError, Visitor
from overlay.wire.control.messages import Message, Supply, TunnelCarrier

READY: Final = 4  # connections that wait for users, of one node by one carrier, once there was a user; at least
MOST_READY: Final = 64  # where users come fast
MOST_WAITING: Final = 1024  # users who wait for one node
MOST_TOKENS: Final = 64  # in one message
PATIENCE: Final = 10.0  # s that a user waits for the node's connection, as by the single tunnel
TOKEN_LIFE: Final = 15.0  # s
START_SIZE: Final = 8  # bytes: the exposure's number, big-endian

Key = tuple[int, TunnelCarrier]
Tell = Callable[[int, Message], Awaitable[bool]]
"""Sends a message to a node. → whether it is there."""


@dataclass(eq=False)
class _Wish:
    """A user who waits."""

    came: anyio.Event = field(default_factory=anyio.Event)
    stream: Stream | None = None
    offline: bool = False


@dataclass(eq=False)
class _Pool:
    ready: deque[Stream] = field(default_factory=deque)
    waiting: deque[_Wish] = field(default_factory=deque)
    asked: dict[bytes, float] = field(default_factory=dict)  # token → when it ends
    wanted: int = READY
    was_short: bool = False  # since the last `rest`
    asking: bool = False


class Callers:
    """All methods are for the event loop."""

    def __init__(
        self, tell: Tell, pin: Callable[[], bytes], random_bytes: Callable[[int], bytes], drops: Counter[str]
    ) -> None:
        """`pin`: of the certificate that nodes meet now, for tls and wss."""
        self._tell = tell
        self._pin = pin
        self._random_bytes = random_bytes
        self.drops = drops
        self._pools: dict[Key, _Pool] = {}
        self._tokens: dict[bytes, Key] = {}

    def take(self, caller: Caller) -> None:
        """A node's connection has come; closing it is ours from now on."""
        key = self._tokens.pop(caller.token, None)
        pool = self._pools.get(key) if key is not None else None
        if pool is None or pool.asked.pop(caller.token) < anyio.current_time():
            self.drops["unknown_token"] += 1
            caller.stream.close()
            return
        if isinstance(caller.stream, QuicStream):
            caller.stream.admit()
        while pool.waiting:
            wish = pool.waiting.popleft()
            if not wish.came.is_set():
                wish.stream = caller.stream
                wish.came.set()
                return
        pool.ready.append(caller.stream)

    async def open(self, node: int, number: int, carrier: TunnelCarrier, *, more: bool = False) -> Stream:
        """A connection to the target of exposure `number`. `more` is sent on it at once. Raises `TunnelError`."""
        pool = self._pools.setdefault((node, carrier), _Pool())
        stream = self._ready(pool)
        if stream is None:
            stream = await self._wait(node, carrier, pool)
        start = number.to_bytes(START_SIZE, "big")
        try:
            taken = _send_start(stream, start, more=more)
            if taken < START_SIZE:
                await stream.send(start[taken:])
            await self._ask(node, carrier, pool)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            stream.close()
            raise TunnelError(502, "tunnel_broken") from error
        except BaseException:
            stream.close()
            raise
        return stream

    def open_now(self, node: int, number: int, carrier: TunnelCarrier, *, more: bool = False) -> UserStream | None:
        """The same if one waits ready, and others need not be asked for; None: `open` has to be asked."""
        pool = self._pools.get((node, carrier)) if carrier != "udp" else None
        if pool is None or (_is_short(pool, beside=1) and not pool.asking):
            return None
        stream = self._ready(pool)
        if stream is None:
            return None
        assert not isinstance(stream, QuicStream)  # not by this carrier
        try:
            taken = _send_start(stream, number.to_bytes(START_SIZE, "big"), more=more)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            taken = 0
        if taken == START_SIZE:
            return stream
        stream.close()  # it takes nothing, and nobody waits for that
        return None

    def rest(self) -> None:
        """Called now and then: where users come slower than they did, fewer connections wait for them."""
        for pool in self._pools.values():
            if not pool.was_short:
                pool.wanted = max(READY, pool.wanted // 2)
                while len(pool.ready) > pool.wanted:
                    pool.ready.popleft().close()
            pool.was_short = False

    async def renew(self, node: int) -> None:
        """The node has come, maybe as another process than before: what waits of it may be nobody's, which QUIC does
        not tell for a while, and what it was asked for is lost."""
        for (number, carrier), pool in tuple(self._pools.items()):
            if number == node:
                self._clear(pool)
                if pool.waiting:
                    await self._ask(node, carrier, pool)

    def forget_node(self, node: int) -> None:
        """It is gone: what waits of it is of no use."""
        for key in [key for key in self._pools if key[0] == node]:
            self._clear(self._pools.pop(key))

    def close(self) -> None:
        for node in {key[0] for key in self._pools}:
            self.forget_node(node)

    # inside ----------------------------------------------------------------------------------------------------------

    def _clear(self, pool: _Pool) -> None:
        for token in pool.asked:
            self._tokens.pop(token, None)
        pool.asked.clear()
        while pool.ready:
            pool.ready.popleft().close()

    def _ready(self, pool: _Pool) -> Stream | None:
        while pool.ready:
            stream = pool.ready.popleft()
            if stream.is_quiet():
                return stream
            stream.close()  # the node has closed it, or its daemon has gone
        return None

    async def _wait(self, node: int, carrier: TunnelCarrier, pool: _Pool) -> Stream:
        if len(pool.waiting) >= MOST_WAITING:
            raise TunnelError(503, "too_many_waiting")
        if pool.asked or pool.waiting:  # else this is the first user
            pool.wanted = min(2 * pool.wanted, MOST_READY)
        pool.was_short = True
        wish = _Wish()
        pool.waiting.append(wish)
        try:
            with anyio.move_on_after(PATIENCE):
                await self._ask(node, carrier, pool)
                await wish.came.wait()
        except BaseException:
            if wish.stream is not None:
                wish.stream.close()
            raise
        finally:
            wish.came.set()  # whatever comes now is for somebody else
            if wish in pool.waiting:
                pool.waiting.remove(wish)
        if wish.offline:
            raise TunnelError(502, "target_offline")
        if wish.stream is None:
            raise TunnelError(504, "node_does_not_call")
        return wish.stream

    async def _ask(self, node: int, carrier: TunnelCarrier, pool: _Pool) -> None:
        """Have the node call as often as is wanted; if it is not there, whoever waits is told."""
        if pool.waiting:
            self._forget_old(pool)
        if pool.asking or not _is_short(pool):
            return
        pool.asking = True
        try:
            await anyio.lowlevel.checkpoint()  # who comes in the same turn of the loop is asked for at once
            self._forget_old(pool)
            ends = anyio.current_time() + TOKEN_LIFE
            there = True
            while there and (missing := pool.wanted + len(pool.waiting) - len(pool.ready) - len(pool.asked)) > 0:
                tokens = tuple(self._random_bytes(TOKEN_SIZE) for _ in range(min(missing, MOST_TOKENS)))
                for token in tokens:
                    pool.asked[token] = ends
                    self._tokens[token] = (node, carrier)
                there = await self._tell(node, Supply(carrier=carrier, tokens=tokens, pin=self._pin()))
        finally:
            pool.asking = False
        if not there:
            while pool.waiting:
                wish = pool.waiting.popleft()
                wish.offline = True
                wish.came.set()

    def _forget_old(self, pool: _Pool) -> None:
        now = anyio.current_time()
        for token in [token for token, ends in pool.asked.items() if ends < now]:
            del pool.asked[token]
            self._tokens.pop(token, None)


def _is_short(pool: _Pool, *, beside: int = 0) -> bool:
    """Whether more are to be asked for; `beside`: so many are taken at once."""
    return len(pool.ready) + len(pool.asked) - len(pool.waiting) - beside <= pool.wanted // 2


def _send_start(stream: Stream, start: bytes, *, more: bool) -> int:
    return stream.send_now(start, more=more) if isinstance(stream, TcpStream) else stream.send_now(start)


class DynamicTunnel:
    """`overlay.server.tunnels.Tunnel`: one exposure's."""

    def __init__(
        self, callers: Callers, node: int, number: int, carrier: TunnelCarrier, online: Callable[[], bool]
    ) -> None:
        self._callers = callers
        self._node = node
        self._number = number
        self._carrier = carrier
        self.online = online

    async def open(self, visitor: Visitor) -> Stream:
        if not self.online():
            raise TunnelError(502, "target_offline")
        return await self._callers.open(self._node, self._number, self._carrier, more=visitor.has_spoken)

    def open_now(self, visitor: Visitor) -> UserStream | None:
        if not self.online():
            raise TunnelError(502, "target_offline")
        return self._callers.open_now(self._node, self._number, self._carrier, more=visitor.has_spoken)

    def outlet(self, visitor: Visitor) -> Outlet | None:
        drops = self._callers.drops
        if not self.online():
            drops["target_offline"] += 1
            return None

        async def open_stream() -> Stream:
            try:
                return await self.open(visitor)
            except TunnelError as error:
                drops[error.reason] += 1
                raise anyio.BrokenResourceError from error

        return StreamOutlet(open_stream, drops)
