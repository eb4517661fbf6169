"""Finding the server: all its addresses by all carriers, with head starts, until one proves that it is the server.

A way counts as found only when the Noise handshake with the expected key is done: a stranger at the first address does
not keep us from the server at the second, nor a proxy that opens TLS from the carrier after it. The order of attempts
is `overlay.carrier.choice`'s.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import anyio

from overlay.carrier.carriers import CarrierName, DialOptions, Opener
from overlay.carrier.choice import Attempt, Favourite, Race
from overlay.carrier.connection import ControlConnection
from overlay.carrier.limits import DEFAULT_LIMITS, Limits
from overlay.carrier.look_up import LookUp, system_look_up
from overlay.carrier.openers import OPENERS
from overlay.carrier.stream import errno_text
from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.wire.control.address import ServerAddress, parse_server_address
from overlay.wire.control.channel import NoiseChannel
from overlay.wire.control.codec import decode_server_message
from overlay.wire.endpoint import canonical_endpoint, format_endpoint

LOOKUP_TIMEOUT: Final = 5.0  # s for a name; the race goes on meanwhile with what is numeric
_READ_SIZE: Final = 4096
_NO_OPTIONS: Final = DialOptions()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt."""

    attempt: Attempt
    kind: str  # "unreachable", "stranger", "busy", "unanswered"
    why: str = ""  # the end of a sentence
    seconds: float = 0.0  # since it began


@dataclass(frozen=True, slots=True)
class Found:
    """The server, proven."""

    connection: ControlConnection
    address: ServerAddress
    why: str  # why this carrier and none that is wished for more, for a person
    seconds: float  # from its beginning to the proof


@dataclass
class _Search:
    """What the attempts share: the first to succeed wins, the others' reasons are kept for the error."""

    race: Race
    winner: ControlConnection | None = None
    won: Attempt | None = None
    won_after: float = 0.0
    on_outcome: Callable[[Outcome], None] = lambda outcome: None
    outcomes: dict[Attempt, Outcome] = field(default_factory=dict)
    began: dict[Attempt, float] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)  # name → why it is not found
    looking: int = 0  # names that are looked up
    ended: float | None = None  # when the last attempt failed
    news: anyio.Event = field(default_factory=anyio.Event)

    def end(self, attempt: Attempt, kind: str, why: str) -> None:
        self.ended = now = anyio.current_time()
        self.keep(Outcome(attempt, kind, why, now - self.began[attempt]))
        self.race.failed(attempt, now)
        self.tell()

    def keep(self, outcome: Outcome) -> None:
        self.outcomes[outcome.attempt] = outcome
        self.on_outcome(outcome)

    def give_up_at(self, linger: float) -> float:
        """When those that still run have had their time, after all others have failed."""
        if self.ended is None or self.looking or self.race.next_timeout() is not None:
            return float("inf")
        return self.ended + linger

    def tell(self) -> None:
        self.news.set()
        self.news = anyio.Event()


async def dial(
    addresses: Sequence[str],
    server_key: bytes,
    private_key: bytes,
    timeout: float = 10.0,  # noqa: ASYNC109 - part of the error's sentence, and of the contract
    limits: Limits = DEFAULT_LIMITS,
    *,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> ControlConnection:
    """`find_server` by TCP alone, where only the connection is of interest."""
    found = await find_server(
        addresses, server_key, private_key, timeout, limits, carriers=("tcp",), random_bytes=random_bytes
    )
    return found.connection


async def find_server(
    addresses: Sequence[str],
    server_key: bytes,
    private_key: bytes,
    timeout: float = 10.0,  # noqa: ASYNC109 - part of the error's sentence, and of the contract
    limits: Limits = DEFAULT_LIMITS,
    *,
    carriers: Sequence[CarrierName],
    openers: Mapping[CarrierName, Opener] = OPENERS,
    options: DialOptions = _NO_OPTIONS,
    favourite: Favourite | None = None,
    linger: float = float("inf"),
    look_up: LookUp = system_look_up,
    direct: Callable[[str, int], bool] = lambda host, port: False,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> Found:
    """Connect to the server with the public key `server_key`, by the first carrier that proves it.

    Addresses are as `parse_server_address` takes them. Of `options`, host and path come from the address. `favourite`
    is what worked last on this network. `direct` says of a host and port that the proxy of `options` is not for it.
    `on_outcome` hears of each attempt that has not won.

    Raises `UserError` within `timeout` s: `server-unreachable` (exit code 5) names every address and carrier, and what
    happened there; `server-busy` (5) when it turns us away for now; `server-key-mismatch` (4) when something else than
    this server answers; `bad-address` (2). All but the last two are worth trying again. A server that is going down in
    the very moment can look like a mismatch, so a daemon that has been connected before tries again after that, too.

    Once an attempt has failed and none is left to begin, those that are silent have `linger` s more: where a server
    that is down refuses TCP, and UDP is blocked, it pays to begin anew.
    """
    parsed = _parse(addresses)
    usable = [carrier for carrier in carriers if carrier in openers]
    search = _Search(Race(usable, favourite), on_outcome=on_outcome)

    def options_for(address: ServerAddress) -> DialOptions:
        return options_at(address, options, direct)

    async def attempt(each: Attempt) -> None:
        connection = await _attempt(
            each, openers, options_for(each.address), server_key, private_key, limits, random_bytes, search
        )
        if connection is None:
            return
        if search.winner is None:
            search.winner, search.won = connection, each
            search.won_after = anyio.current_time() - search.began[each]
            tasks.cancel_scope.cancel()
        else:
            connection.lose("closed")  # two proved themselves in the same turn of the loop

    finished = False
    try:
        with anyio.move_on_after(timeout) as clock:
            async with anyio.create_task_group() as tasks:
                for rank, address in enumerate(parsed):
                    try:
                        search.race.add(address, rank, [canonical_endpoint(address.host, address.port)])
                    except ValueError:
                        search.looking += 1
                        proxied = options_for(address).proxy is not None
                        tasks.start_soon(_look_up, look_up, address, rank, search, proxied)
                while search.looking or not search.race.over:
                    news = search.news
                    now = anyio.current_time()
                    for each in search.race.due(now):
                        search.began[each] = now
                        tasks.start_soon(attempt, each)
                    give_up_at = search.give_up_at(linger)
                    if now >= give_up_at:
                        tasks.cancel_scope.cancel()
                        break
                    next_start = search.race.next_timeout()
                    with anyio.move_on_at(give_up_at if next_start is None else next_start):
                        await news.wait()
        finished = True
    finally:
        if not finished and search.winner is not None:
            search.winner.lose("closed")  # our caller was cancelled: nobody would close it
    silence = f"no answer within {timeout:g} s" if clock.cancelled_caught else "no answer so far"
    ended = anyio.current_time()
    for each, began in search.began.items():
        if each not in search.outcomes and each != search.won:
            search.keep(Outcome(each, "unanswered", silence, ended - began))
    if search.winner is not None and search.won is not None:
        why = _why(search.won, usable, search.outcomes, favourite)
        return Found(search.winner, search.won.address, why, search.won_after)
    raise _failure(search, parsed, carriers, timeout)


def options_at(address: ServerAddress, options: DialOptions, direct: Callable[[str, int], bool]) -> DialOptions:
    """What of `options` holds at this address. `direct`: whether no proxy is used for a host and port."""
    found = replace(options, host=_host_of(address), path=address.path)
    if address.carrier is not None:
        # A URL leads to somebody's reverse proxy, with a certificate of its own: the pin is of the server's.
        found = replace(found, pin=b"", authorities=True)
    return replace(found, proxy=None) if direct(address.host, address.port) else found


async def _look_up(look_up: LookUp, address: ServerAddress, rank: int, search: _Search, proxied: bool) -> None:
    try:
        with anyio.fail_after(LOOKUP_TIMEOUT):
            search.race.add(address, rank, await look_up(address.host, address.port))
    except TimeoutError:
        search.unknown[str(address)] = "the name servers do not answer"
    except OSError as error:
        search.unknown[str(address)] = f"the name is not found: {error.strerror or error}"
    finally:
        if proxied and str(address) in search.unknown:
            # Behind such a proxy the name servers often know this network alone: the proxy finds the name.
            search.race.add(address, rank, [(address.host, address.port)], without=("udp",))
        search.looking -= 1
        search.tell()


async def _attempt(
    attempt: Attempt,
    openers: Mapping[CarrierName, Opener],
    options: DialOptions,
    server_key: bytes,
    private_key: bytes,
    limits: Limits,
    random_bytes: Callable[[int], bytes],
    search: _Search,
) -> ControlConnection | None:
    try:
        stream = await openers[attempt.carrier](attempt.endpoint, options)
    except OSError as error:
        search.end(attempt, "unreachable", errno_text(error.errno) if error.errno else _words(error))
        return None
    except RemoteProtocolError as error:
        search.end(attempt, "stranger", str(error).removeprefix(f"{error.reason}: "))
        return None
    established = False
    try:
        channel = NoiseChannel.initiator(private_key, server_key, random_bytes=random_bytes)
        await stream.send(channel.data_to_send())
        while (key := channel.remote_key) is None:
            channel.receive_data(await stream.receive(_READ_SIZE))
        await stream.send(channel.data_to_send())
        established = True
        return ControlConnection(
            stream, channel, key, attempt.endpoint, decode_server_message, limits, carrier=attempt.carrier
        )
    except anyio.EndOfStream:
        search.end(attempt, "stranger", "it closed the connection")
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        below = error.__cause__
        if isinstance(below, RemoteProtocolError):  # TLS or WebSocket, broken after its set-up
            search.end(attempt, "stranger", str(below).removeprefix(f"{below.reason}: "))
        else:
            search.end(attempt, "unreachable", _words(error))
    except RemoteProtocolError as error:
        if error.reason == "server_busy":
            search.race.abandon(attempt.endpoint)
            search.end(attempt, "busy", "it takes no more new connections for now")
        elif error.reason == "bad_tag":
            search.end(attempt, "stranger", "it does not hold the server's key")
        else:
            search.end(attempt, "stranger", "its answer is not that of an overlay server")
    finally:
        if not established:
            stream.close()
    return None


def _words(error: Exception) -> str:
    """In the middle of a sentence: the system's words begin with a capital, an abbreviation keeps its own."""
    text = str(error) or "connection lost"
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _host_of(address: ServerAddress) -> str:
    try:
        canonical_endpoint(address.host, address.port)
    except ValueError:
        return address.host
    return ""  # numeric: the endpoint says it


def _parse(addresses: Sequence[str]) -> list[ServerAddress]:
    if not addresses:
        raise UserError("bad-address", "There is no server address to connect to.", exit_code=Exit.USAGE)
    try:
        return [parse_server_address(address) for address in addresses]
    except ValueError as error:
        raise UserError(
            "bad-address",
            f"The server's address is wrong: {error}.",
            "Write it as host:port, or as wss://host/prefix.",
            Exit.USAGE,
        ) from error


# in words ------------------------------------------------------------------------------------------------------------


def _why(
    won: Attempt, carriers: Sequence[CarrierName], outcomes: Mapping[Attempt, Outcome], favourite: Favourite | None
) -> str:
    """`udp: no answer; tls: connection refused`: of each carrier that is wished for more."""
    reasons: dict[CarrierName, str] = {}
    for attempt, outcome in outcomes.items():
        if carriers.index(attempt.carrier) < carriers.index(won.carrier):
            reasons.setdefault(attempt.carrier, "no answer" if outcome.kind == "unanswered" else outcome.why)
    if reasons:
        return "; ".join(f"{carrier}: {reasons[carrier]}" for carrier in carriers if carrier in reasons)
    if won.address.carrier is not None:
        return "the server's address says so"
    if len(carriers) == 1:
        return "the only one allowed"
    if favourite is not None and carriers.index(won.carrier) > 0:
        return "worked last on this network"
    return "first choice"


def told(outcomes: Sequence[tuple[str, str, str]]) -> str:
    """(address, carrier, why)… → `192.0.2.1:443 by udp (no answer), by tls and ws (refused); …`."""
    places: dict[str, dict[str, list[str]]] = {}
    for address, carrier, why in outcomes:
        carriers = places.setdefault(address, {}).setdefault(why, [])
        if carrier and carrier not in carriers:
            carriers.append(carrier)
    sentences = []
    for address, reasons in places.items():
        parts = [f"{_by(carriers)}({why})" for why, carriers in reasons.items()]
        sentences.append(f"{address} {', '.join(parts)}")
    return "; ".join(sentences)


def _by(carriers: Sequence[str]) -> str:
    if not carriers:
        return ""
    names = ", ".join(carriers[:-1]) + " and " + carriers[-1] if len(carriers) > 1 else carriers[0]
    return f"by {names} "


def _failure(
    search: _Search, addresses: Sequence[ServerAddress], carriers: Sequence[CarrierName], seconds: float
) -> UserError:
    outcomes = list(search.outcomes.values())
    rows = [(format_endpoint(each.attempt.endpoint), str(each.attempt.carrier), each.why) for each in outcomes]
    rows += [(name, "", why) for name, why in search.unknown.items()]
    strangers = [each for each in outcomes if each.kind == "stranger"]
    if strangers:
        # Who answers and proves another key says more than a middlebox that closes what it does not know.
        first = next((each for each in strangers if "key" in each.why), strangers[0])
        place = format_endpoint(first.attempt.endpoint)
        shown = (place, str(first.attempt.carrier), first.why)
        others = [row for row in rows if row != shown]
        by = f" by {first.attempt.carrier}" if len(carriers) > 1 else ""
        also = f"; also tried: {told(others)}" if others else ""
        return UserError(
            "server-key-mismatch",
            f"What answers at {place}{by} is not the expected server: {first.why}{also}.",
            "Check the address and the port; if the server was set up anew, ask for a new invite.",
            Exit.REFUSED,
        )
    busy = list(dict.fromkeys(format_endpoint(each.attempt.endpoint) for each in outcomes if each.kind == "busy"))
    if busy:
        return UserError(
            "server-busy",
            f"The server at {', '.join(busy)} takes no more new connections for now.",
            "Try again in a few seconds.",
            Exit.UNREACHABLE,
        )
    if not rows:
        fits = any(address.carrier in (None, *carriers) for address in addresses)
        why = f"no answer within {seconds:g} s" if fits else f"it is not for the carriers {', '.join(carriers)}"
        rows = [(str(address), "", why) for address in addresses]
    return UserError(
        "server-unreachable",
        f"The server cannot be reached: {told(rows)}.",
        "Check that the server runs, and what the firewalls on the way let through: 'overlay netcheck' tells.",
        Exit.UNREACHABLE,
    )
