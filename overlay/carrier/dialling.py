"""Finding the server: all its addresses, with head starts (RFC 8305), until one of them proves that it is the server.

An address counts as found only when the Noise handshake with the expected key is done: a stranger at the first address
does not keep us from the server at the second.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio

from overlay.carrier.connection import ControlConnection
from overlay.carrier.limits import DEFAULT_LIMITS, Limits
from overlay.carrier.stream import connect, errno_text
from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.wire.control.address import parse_address
from overlay.wire.control.channel import NoiseChannel
from overlay.wire.control.codec import decode_server_message
from overlay.wire.endpoint import Endpoint, canonical_endpoint, format_endpoint

HEAD_START: Final = 0.25  # s before the next address is tried as well (RFC 8305 §8)
MAX_ATTEMPTS: Final = 16  # addresses in all, however many a name resolves to
_READ_SIZE: Final = 4096


@dataclass
class _Race:
    """What the attempts share: the first to succeed wins, the others' reasons are kept for the error."""

    winner: ControlConnection | None = None
    unreachable: dict[str, str] = field(default_factory=dict)  # address → why, as the end of a sentence
    strangers: dict[str, str] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)


async def dial(
    addresses: Sequence[str],
    server_key: bytes,
    private_key: bytes,
    timeout: float = 10.0,  # noqa: ASYNC109 - part of the error's sentence, and of the contract
    limits: Limits = DEFAULT_LIMITS,
    *,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> ControlConnection:
    """Connect to the server with the public key `server_key`, at the first of `addresses` ("host:port") that proves it.

    Raises `UserError` within `timeout` s: `server-unreachable` (exit code 5) names every address and what happened
    there; `server-busy` (5) when it turns us away for now; `server-key-mismatch` (4) when something else than this
    server answers; `bad-address` (2). All but the last two are worth trying again. A server that is going down in the
    very moment can look like a mismatch, so a daemon that has been connected before tries again after that, too.
    """
    parsed = _parse(addresses)
    race = _Race()

    async def attempt(endpoint: Endpoint, done: anyio.Event) -> None:
        try:
            connection = await _attempt(endpoint, server_key, private_key, limits, random_bytes, race)
        finally:
            done.set()
        if connection is None:
            return
        if race.winner is None:
            race.winner = connection
            tasks.cancel_scope.cancel()
        else:
            connection.lose("closed")  # two proved themselves in the same turn of the loop

    tried: list[str] = []
    finished = False
    try:
        with anyio.move_on_after(timeout) as clock:
            async with anyio.create_task_group() as tasks:
                for endpoint in await _resolve(parsed, race):
                    tried.append(format_endpoint(endpoint))
                    done = anyio.Event()
                    tasks.start_soon(attempt, endpoint, done)
                    with anyio.move_on_after(HEAD_START):
                        await done.wait()
        finished = True
    finally:
        if not finished and race.winner is not None:
            race.winner.lose("closed")  # our caller was cancelled: nobody would close it
    if race.winner is not None:
        return race.winner
    if clock.cancelled_caught:
        outcomes = race.unreachable.keys() | race.strangers.keys() | set(race.busy)
        unanswered = [address for address in tried or addresses if address not in outcomes]
        race.unreachable.update(dict.fromkeys(unanswered, f"no answer within {timeout:g} s"))
    raise _failure(race)


async def _attempt(
    endpoint: Endpoint,
    server_key: bytes,
    private_key: bytes,
    limits: Limits,
    random_bytes: Callable[[int], bytes],
    race: _Race,
) -> ControlConnection | None:
    name = format_endpoint(endpoint)
    try:
        stream = await connect(endpoint)
    except OSError as error:
        race.unreachable[name] = errno_text(error.errno) if error.errno else str(error)
        return None
    established = False
    try:
        channel = NoiseChannel.initiator(private_key, server_key, random_bytes=random_bytes)
        await stream.send(channel.data_to_send())
        while (key := channel.remote_key) is None:
            channel.receive_data(await stream.receive(_READ_SIZE))
        await stream.send(channel.data_to_send())
        established = True
        return ControlConnection(stream, channel, key, endpoint, decode_server_message, limits)
    except anyio.EndOfStream:
        race.strangers[name] = "it closed the connection"
    except anyio.BrokenResourceError as error:
        race.unreachable[name] = str(error) or "connection lost"
    except RemoteProtocolError as error:
        if error.reason == "server_busy":
            race.busy.append(name)
        else:
            race.strangers[name] = "its answer is not that of an overlay server"
            if error.reason == "bad_tag":
                race.strangers[name] = "it does not hold the server's key"
    finally:
        if not established:
            stream.close()
    return None


def _parse(addresses: Sequence[str]) -> list[tuple[str, int]]:
    if not addresses:
        raise UserError("bad-address", "There is no server address to connect to.", exit_code=Exit.USAGE)
    try:
        return [parse_address(address) for address in addresses]
    except ValueError as error:
        raise UserError(
            "bad-address", f"The server's address is wrong: {error}.", "Write it as host:port.", Exit.USAGE
        ) from error


async def _resolve(parsed: Sequence[tuple[str, int]], race: _Race) -> list[Endpoint]:
    """All endpoints in order of preference, without repeats; names that are not found go to `race.unreachable`."""
    found: list[list[Endpoint]] = [[] for _ in parsed]

    async def look_up(index: int, host: str, port: int) -> None:
        try:
            answers = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            race.unreachable[f"{host}:{port}"] = f"the name is not found: {getattr(error, 'strerror', None) or error}"
            return
        found[index] = _interleaved([canonical_endpoint(address[0], address[1]) for *_, address in answers])

    async with anyio.create_task_group() as tasks:
        for index, (host, port) in enumerate(parsed):
            try:
                found[index] = [canonical_endpoint(host, port)]
            except ValueError:
                tasks.start_soon(look_up, index, host, port)
    return list(dict.fromkeys(endpoint for endpoints in found for endpoint in endpoints))[:MAX_ATTEMPTS]


def _interleaved(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """IPv6 and IPv4 in turns, starting with the system's first choice (RFC 8305 §4)."""
    if not endpoints:
        return []
    first_is_v6 = ":" in endpoints[0][0]
    first = [endpoint for endpoint in endpoints if (":" in endpoint[0]) is first_is_v6]
    second = [endpoint for endpoint in endpoints if (":" in endpoint[0]) is not first_is_v6]
    turns = [endpoint for pair in zip(first, second, strict=False) for endpoint in pair]
    return turns + first[len(second) :] + second[len(first) :]


def _failure(race: _Race) -> UserError:
    if race.strangers:
        address, why = next(iter(race.strangers.items()))
        return UserError(
            "server-key-mismatch",
            f"What answers at {address} is not the expected server: {why}.",
            "Check the address and the port; if the server was set up anew, ask for a new invite.",
            Exit.REFUSED,
        )
    if race.busy:
        return UserError(
            "server-busy",
            f"The server at {', '.join(race.busy)} takes no more new connections for now.",
            "Try again in a few seconds.",
            Exit.UNREACHABLE,
        )
    outcomes = "; ".join(f"{address} ({why})" for address, why in race.unreachable.items())
    return UserError(
        "server-unreachable",
        f"The server cannot be reached: {outcomes}.",
        "Check that the server runs, and that the firewalls on the way let this TCP port through.",
        Exit.UNREACHABLE,
    )
