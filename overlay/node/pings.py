"""What the event loop asks the engine's thread, and waits for: one round trip to a peer. Knows no map."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import anyio

from overlay.daemon.peers import PathStatus, PingResult
from overlay.engine.api import Command, PathSnapshot, PingAnswer, PingPeer
from overlay.wire.endpoint import format_endpoint

T = TypeVar("T")


def hand_over(function: Callable[[T], None]) -> Callable[[T], None]:
    """`function` for the engine's thread to call: it runs on the event loop's. Dropped once that has ended."""
    loop = asyncio.get_running_loop()

    def call(value: T) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            loop.call_soon_threadsafe(function, value)

    return call


async def asked(ask: Callable[[Callable[[T], None]], object], patience: float) -> T | None:
    """What the engine's thread replies to a command that `ask` posts, waited for `patience` seconds at most."""
    arrived = anyio.Event()
    found: list[T] = []

    def take(answer: T) -> None:
        found.append(answer)
        arrived.set()

    ask(hand_over(take))
    with anyio.move_on_after(patience):
        await arrived.wait()
    return found[0] if found else None


async def ping(post: Callable[[Command], None], number: int, patience: float) -> PingResult:
    """One round trip to node `number`, waited for `patience` seconds at most."""
    found: PingAnswer | None = await asked(lambda reply: post(PingPeer(number, reply)), patience)
    answer = found or PingAnswer(None, None)
    return PingResult(path=path_status(answer.path), rtt_ms=milliseconds(answer.rtt))


def path_status(path: PathSnapshot | None) -> PathStatus | None:
    if path is None:
        return None
    endpoint = format_endpoint(path.endpoint) if path.endpoint is not None else None
    return PathStatus(kind=path.kind, endpoint=endpoint, since=path.since, mtu=path.mtu)


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
