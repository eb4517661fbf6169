"""What this network lets through to the server: each carrier tried for itself, and what that says of the network.

Says nothing to the server that a stranger could not: a handshake with a key made for the purpose, and no hello.
"""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import anyio
import msgspec

from overlay.carrier.carriers import CarrierName, DialOptions, Opener
from overlay.carrier.dialling import Found, Outcome, find_server
from overlay.carrier.look_up import LookUp, system_look_up
from overlay.carrier.openers import OPENERS
from overlay.carrier.proxy import excepted
from overlay.carrier.stream import connect
from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.node.inquiry import observe
from overlay.node.interface import Machine, network_key, read_machine
from overlay.node.joining import plan_start
from overlay.node.memory import JOINED_FILE, WELCOME_FILE, Joined
from overlay.node.nat_report import nat_status
from overlay.node.portmap import try_out
from overlay.node.settings import check_ways
from overlay.node.status import NatStatus, PortMappingStatus
from overlay.node.ways import Target
from overlay.path.nat import UNKNOWN_NAT, classify
from overlay.wire.control.address import parse_server_address
from overlay.wire.control.invite import PREFIX
from overlay.wire.control.messages import Welcome
from overlay.wire.endpoint import Endpoint, canonical_endpoint, format_endpoint, parse_endpoint
from overlay.wire.stun import PORT as STUN_PORT

CHECK_TIMEOUT = 5.0
"""Seconds for each carrier; they are tried side by side."""
PORTAL_TIMEOUT = 3.0
_STATUS_LINE = 80  # characters shown of what a stranger answers
_REQUEST = b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"


class CarrierReport(msgspec.Struct, frozen=True, kw_only=True):
    carrier: CarrierName
    works: bool
    address: str | None = None  # where it works
    latency_ms: float | None = None  # from the first packet to the proof that it is the server
    why: str = ""  # why it does not work


class NetReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `overlay netcheck --json` prints."""

    addresses: tuple[str, ...]  # of the server
    network: str  # default gateway and own address there
    ipv4: bool  # this machine has a way out by it
    ipv6: bool
    proxy: str | None  # that the carriers but udp go through, without its password
    udp: str  # "works", "blocked", or "unknown" where nothing works
    captive_portal: str | None  # what answers in the server's place, as far as it looks like that
    nat: NatStatus | None  # None: UDP is not to be used
    port_mapping: PortMappingStatus | None  # None: UDP is not to be used
    best: CarrierName | None
    carriers: tuple[CarrierReport, ...]


def choose_server(given: str, remembered: Joined | None) -> Joined:
    """Which server to check: an invite's, the one at an address (with the key that is remembered), or the remembered.

    Raises `UserError`: "not-joined", "bad-address" (exit 2), what a wrong invite raises (exit 4).
    """
    if not given or given.startswith(PREFIX):
        return plan_start(None if given else remembered, given, "").joined
    try:
        address = str(parse_server_address(given))
    except ValueError as error:
        hint = "Write it as host:port, as wss://host/prefix, or give an invite."
        raise UserError("bad-address", f"The server's address is wrong: {error}.", hint, Exit.USAGE) from error
    if remembered is None:
        raise UserError(
            "not-joined",
            "An address alone does not tell the server from a stranger, and this machine has joined no network yet.",
            "Give an invite: overlay netcheck INVITE.",
            Exit.USAGE,
        )
    return msgspec.structs.replace(remembered, addresses=(address,))


async def check_from(state: StateDir, given: str, ways: Mapping[str, str]) -> NetReport:
    """`check` for a person: `given` as `choose_server` has it, `ways` as the fields of `NodeSettings`.

    Raises `UserError`: as `choose_server`, `check_ways`, and the state folder do.
    """
    carriers, proxy = check_ways(ways["carriers"], ways["proxy"])
    # An invite is enough: who has one need not be able to read this machine's state.
    mine = not given.startswith(PREFIX)
    remembered = state.read_struct(JOINED_FILE, Joined) if mine else None
    welcome = state.read_struct(WELCOME_FILE, Welcome) if mine else None
    joined = choose_server(given, remembered)
    target = Target(
        addresses=joined.addresses,
        server_key=joined.server_key,
        private_key=b"",
        carriers=carriers,
        options=DialOptions(proxy=proxy, pin=joined.pin, ca_file=ways["ca_file"] or None),
        no_proxy=ways["no_proxy"],
    )
    return await check(target, await read_machine(), stun=welcome.stun if welcome is not None else ())


async def check(
    target: Target,
    machine: Machine,
    *,
    openers: Mapping[CarrierName, Opener] = OPENERS,
    look_up: LookUp = system_look_up,
    seconds: float = CHECK_TIMEOUT,
    stun: Sequence[str] = (),
) -> NetReport:
    """Try every carrier of `target`, whose own private key is not used. `stun`: more endpoints than the server's own
    that answer STUN; none known: STUN's usual port is tried."""
    target = replace(target, private_key=secrets.token_bytes(32))
    reports: dict[CarrierName, CarrierReport] = {}
    nat: list[tuple[NatStatus, PortMappingStatus]] = []

    async def try_one(carrier: CarrierName) -> None:
        reports[carrier] = await _try(target, carrier, openers, look_up, seconds)

    async def look_at_nat() -> None:
        status, seen = await _nat(target, machine, stun, look_up)
        nat.append((status, await try_out(seen, machine)))

    async with anyio.create_task_group() as tasks:
        for carrier in target.carriers:
            tasks.start_soon(try_one, carrier)
        if "udp" in target.carriers:
            tasks.start_soon(look_at_nat)
    found = tuple(reports[carrier] for carrier in target.carriers)
    best = next((report.carrier for report in found if report.works), None)
    return NetReport(
        addresses=target.addresses,
        network=network_key(machine),
        ipv4=_has_way(machine, 4),
        ipv6=_has_way(machine, 6),
        proxy=_without_password(target.options.proxy),
        udp=_udp(reports, openers),
        captive_portal=None if best is not None else await _portal(target, look_up),
        nat=nat[0][0] if nat else None,
        port_mapping=nat[0][1] if nat else None,
        best=best,
        carriers=found,
    )


async def _try(
    target: Target, carrier: CarrierName, openers: Mapping[CarrierName, Opener], look_up: LookUp, seconds: float
) -> CarrierReport:
    if carrier not in openers:
        return CarrierReport(carrier=carrier, works=False, why="this release does not have it")
    if all(parse_server_address(each).carrier not in (None, carrier) for each in target.addresses):
        return CarrierReport(carrier=carrier, works=False, why="the server's address is for another carrier")
    outcomes: list[Outcome] = []
    try:
        found: Found = await find_server(
            target.addresses,
            target.server_key,
            target.private_key,
            seconds,
            carriers=(carrier,),
            openers=openers,
            options=target.options,
            look_up=look_up,
            direct=partial(excepted, target.no_proxy),
            on_outcome=outcomes.append,
        )
    except UserError as error:
        return CarrierReport(carrier=carrier, works=False, why=_reasons(outcomes) or error.message.rstrip("."))
    found.connection.lose("closed")
    return CarrierReport(
        carrier=carrier,
        works=True,
        address=format_endpoint(found.connection.remote_address),
        latency_ms=round(found.seconds * 1000, 1),
    )


async def _nat(
    target: Target, machine: Machine, stun: Sequence[str], look_up: LookUp
) -> tuple[NatStatus, list[Endpoint]]:
    servers: list[Endpoint] = []
    for text in target.addresses:
        address = parse_server_address(text)
        with suppress(OSError):
            servers += await _endpoints(address.host, address.port, look_up)
    more = [parse_endpoint(text) for text in stun] or [(host, STUN_PORT) for host, _ in servers]
    seen = await observe([*servers, *more], [each.address for each in machine.addresses])
    endpoints = [each.mapped[0][1] for each in seen]
    return nat_status(classify(seen[0]) if seen else UNKNOWN_NAT, endpoints), endpoints


def _reasons(outcomes: Sequence[Outcome]) -> str:
    """Of one carrier at all addresses: what is the same is said once."""
    places: dict[str, list[str]] = {}
    for outcome in outcomes:
        places.setdefault(outcome.why, []).append(format_endpoint(outcome.attempt.endpoint))
    if len(places) == 1:
        return next(iter(places))
    return "; ".join(f"{why} ({', '.join(where)})" for why, where in places.items())


def _udp(reports: Mapping[CarrierName, CarrierReport], openers: Mapping[CarrierName, Opener]) -> str:
    udp = reports.get("udp")
    if udp is not None and udp.works:
        return "works"
    works = any(report.works for report in reports.values())
    return "blocked" if udp is not None and works and "udp" in openers else "unknown"


def _has_way(machine: Machine, version: int) -> bool:
    everything = "0.0.0.0/0" if version == 4 else "::/0"
    out = {route.interface for route in machine.routes if route.destination == everything}
    return any(each.interface in out and (":" in each.address) == (version == 6) for each in machine.addresses)


def _without_password(proxy: str | None) -> str | None:
    if proxy is None:
        return None
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


async def _portal(target: Target, look_up: LookUp) -> str | None:
    """Who answers plain HTTP in the server's place: it stands for the login page of a hotel, say. None: nobody does."""
    for text in target.addresses:
        address = parse_server_address(text)
        with anyio.move_on_after(PORTAL_TIMEOUT):
            try:
                endpoints = await _endpoints(address.host, address.port, look_up)
                status = await _status_line(endpoints[0], address.host) if endpoints else ""
            except (OSError, anyio.EndOfStream, anyio.BrokenResourceError):
                continue
            if _looks_like_portal(status):
                return status
    return None


async def _endpoints(host: str, port: int, look_up: LookUp) -> Sequence[Endpoint]:
    try:
        return [canonical_endpoint(host, port)]
    except ValueError:
        return await look_up(host, port)


async def _status_line(endpoint: Endpoint, host: str) -> str:
    stream = await connect(endpoint)
    try:
        await stream.send(_REQUEST % host.encode("ascii", "replace"))
        answer = b""
        while b"\n" not in answer and len(answer) < 4 * _STATUS_LINE:
            answer += await stream.receive(4 * _STATUS_LINE)
    finally:
        stream.close()
    line = answer.partition(b"\n")[0].decode("ascii", "replace")
    return "".join(character for character in line if character.isprintable())[:_STATUS_LINE].strip()


def _looks_like_portal(status: str) -> bool:
    """A page or a way to one (RFC 6585 §6 has 511 for just this). The server itself would say 404 or nothing."""
    words = status.split()
    return (
        len(words) >= 2
        and words[0].startswith("HTTP/")
        and (words[1] in ("200", "511") or (len(words[1]) == 3 and words[1].startswith("3")))
    )


__all__ = ["CarrierReport", "NetReport", "check", "choose_server"]
