"""Where the server listens, and under which addresses others reach it."""

import errno
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import anyio
from anyio.abc import Listener, SocketAttribute, SocketStream

from overlay.engine.api import Network
from overlay.errors import Exit, UserError
from overlay.node.interface import Machine, local_candidates
from overlay.wire.control.address import parse_address, parse_server_address
from overlay.wire.endpoint import Endpoint, format_endpoint, parse_endpoint

DEFAULT_PORT = 443  # the one that networks which block others let through
_EVERYWHERE = ("0.0.0.0", "::")
_MAX_ADDRESSES = 8  # in an invite: it must stay short, and a node tries them all
_LOOKUP_TIMEOUT = 5.0  # s; a resolver that does not answer must not keep the server from starting


@dataclass(frozen=True, slots=True)
class Reach:
    """Under which addresses others know the server, best first."""

    addresses: tuple[str, ...]  # "HOST:port" or "wss://HOST:port/prefix" of the control channel, for invites
    relays: tuple[str, ...]  # numeric endpoints of the relay, UDP; STUN is answered there, too
    stun: tuple[str, ...] = ()  # more endpoints where STUN is answered
    warnings: tuple[str, ...] = ()  # sentences

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses without ports, as users of exposures know the server."""
        return tuple(dict.fromkeys(parse_server_address(address).host for address in self.addresses))


def parse_listen(texts: Sequence[str]) -> tuple[Endpoint, ...]:
    """`--listen HOST:PORT`, port 0 for one that the kernel picks; the first one's port is the relay's, too. Raises
    `UserError` ("listen-invalid", exit 2)."""
    found: list[Endpoint] = []
    for text in texts:
        try:
            if text.endswith(":0"):
                found.append((parse_endpoint(text[:-1] + "1")[0], 0))
            else:
                found.append(parse_endpoint(text))
        except ValueError as error:
            raise UserError("listen-invalid", f"{error}.", "As in --listen 0.0.0.0:443.", Exit.USAGE) from error
    return tuple(found)


async def open_listeners(wanted: Sequence[Endpoint]) -> list[Listener[SocketStream]]:
    """Listen by TCP; nothing wanted is port 443 everywhere. Where the kernel picks the port, all get the same.

    Raises `UserError`: "port-taken", "no-permission", "listen-failed".
    """
    listeners: list[Listener[SocketStream]] = []
    port = 0
    try:
        for host, wanted_port in wanted or [(host, DEFAULT_PORT) for host in _EVERYWHERE]:
            try:
                listeners.append(
                    await anyio.create_tcp_listener(local_host=host, local_port=wanted_port or port, backlog=256)
                )
            except OSError as error:
                number = _number(error)
                if not wanted and host == "::" and number in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue  # a host without IPv6
                raise _listen_error((host, wanted_port or port), number, error) from error
            port = listening_port(listeners)
    except BaseException:
        with anyio.CancelScope(shield=True):
            for listener in listeners:
                await listener.aclose()
        raise
    return listeners


def listening_port(listeners: Sequence[Listener[SocketStream]]) -> int:
    """The port of the first listener, which is the relay's, too."""
    return int(listeners[0].extra(SocketAttribute.local_port))


async def find_reach(
    public: Sequence[str], listen: Sequence[Endpoint], port: int, machine: Machine, ranges: Iterable[Network]
) -> Reach:
    """From `--public` if given, else from what is listened on, else from the host's own addresses.

    Raises `UserError`: "public-invalid" (exit 2), "no-address".
    """
    own = _own(listen, port, machine, ranges)
    if not public:
        if not own:
            raise UserError(
                "no-address",
                "The host has no address under which nodes could reach the server.",
                "Name one with --public HOST.",
            )
        return Reach(addresses=tuple(map(format_endpoint, own)), relays=_relays(own, port))
    addresses: list[str] = []
    relays: list[str] = []
    warnings: list[str] = []
    for text in public[:_MAX_ADDRESSES]:
        if "://" in text:  # a reverse proxy's, which relays no UDP
            addresses.append(_parse_url(text))
            continue
        host, public_port = _parse_public(text, port)
        addresses.append(format_endpoint((host, public_port)))
        found = await _look_up(host, public_port)
        relays += found
        if not found:
            warnings.append(f"The public name {host} has no address here: relaying uses the host's own addresses.")
    if not relays:
        relays += _relays(own, port)
    return Reach(addresses=tuple(addresses), relays=tuple(dict.fromkeys(relays)), warnings=tuple(warnings))


async def leads_here(host: str, reach: Reach) -> bool:
    """Whether a name of the DNS has one of the server's public addresses, as this host's resolver finds it now."""
    found = {parse_endpoint(endpoint)[0] for endpoint in await _look_up(host, DEFAULT_PORT)}
    return not found.isdisjoint(parse_endpoint(endpoint)[0] for endpoint in reach.relays)


def _relays(own: Iterable[Endpoint], port: int) -> tuple[str, ...]:
    """Only the first port is one of UDP."""
    return tuple(format_endpoint(endpoint) for endpoint in own if endpoint[1] == port)


def _own(listen: Sequence[Endpoint], port: int, machine: Machine, ranges: Iterable[Network]) -> list[Endpoint]:
    candidates = sorted(local_candidates(machine, port, ranges), key=_preference)
    if not listen:
        return candidates[:_MAX_ADDRESSES]
    found: list[Endpoint] = []
    for host, wanted_port in listen:
        if host in _EVERYWHERE:
            found += [(each, wanted_port or port) for each, _ in candidates if (":" in each) == (":" in host)]
        else:
            found.append((host, wanted_port or port))
    return found[:_MAX_ADDRESSES]


def _preference(endpoint: Endpoint) -> tuple[bool, int]:
    address = ip_address(endpoint[0])
    return (not address.is_global, address.version)


def _parse_url(text: str) -> str:
    try:
        return str(parse_server_address(text))
    except ValueError as error:
        hint = "As in --public wss://vpn.example.org/prefix."
        raise UserError("public-invalid", f"{error}.", hint, Exit.USAGE) from error


def _parse_public(text: str, port: int) -> Endpoint:
    """`HOST` or `HOST:PORT`; an IPv6 address without a port may do without brackets too."""
    candidates = [text, f"{text}:{port}", f"[{text}]:{port}"]
    for candidate in candidates:
        try:
            return parse_address(candidate)
        except ValueError as error:
            reason = error
    raise UserError(
        "public-invalid",
        f"'{text}' is not a public address: {reason}.",
        "As in --public 203.0.113.1 or --public vpn.example.org:8443.",
        Exit.USAGE,
    )


async def _look_up(host: str, port: int) -> list[str]:
    try:
        return [format_endpoint((str(ip_address(host)), port))]
    except ValueError:
        pass  # a name
    try:
        with anyio.fail_after(_LOOKUP_TIMEOUT):
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError, UnicodeError):
        return []  # the caller has a sentence for it
    return [format_endpoint((str(address[4][0]), port)) for address in found]


def _number(error: OSError) -> int | None:
    if error.errno is not None:
        return error.errno
    cause = error.__cause__  # anyio wraps when several addresses failed
    return cause.errno if isinstance(cause, OSError) else None


def _listen_error(endpoint: Endpoint, number: int | None, error: OSError) -> UserError:
    where = format_endpoint(endpoint)
    if number == errno.EADDRINUSE:
        return UserError(
            "port-taken",
            f"The TCP port {where} is taken by another program.",
            "End that program, or choose another port with --listen HOST:PORT.",
        )
    if number in (errno.EACCES, errno.EPERM):
        return UserError(
            "no-permission",
            f"This user may not listen on {where}.",
            "Run the command with sudo, or choose a port from 1024 on with --listen HOST:PORT.",
            Exit.REFUSED,
        )
    return UserError(
        "listen-failed",
        f"Cannot listen on {where}: {error.strerror or error}.",
        "Name one of the host's own addresses with --listen HOST:PORT.",
    )
