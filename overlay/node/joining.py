"""Which network a start is for, from what the state folder remembers and the invite that a person gave. No I/O."""

from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from overlay.engine.api import SERVER_NUMBER
from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.node.member import Identity, Relay
from overlay.node.memory import Joined
from overlay.wire.control.hostnames import ascii_label
from overlay.wire.control.invite import Invite
from overlay.wire.control.messages import Welcome
from overlay.wire.endpoint import Endpoint, parse_endpoint

_NAME_LIMIT = 63  # a DNS label: RFC 1035 section 2.3.4


@dataclass(frozen=True, slots=True)
class Start:
    """Where to dial, and what to say first."""

    joined: Joined
    secret: bytes = field(default=b"", repr=False)  # of the invite; empty for a node that is registered


def plan_start(remembered: Joined | None, invite_text: str, chosen_name: str) -> Start:
    """Raises `UserError`: "not-joined" (exit 2), "other-network", and what a wrong invite raises (exit 4)."""
    if not invite_text:
        if remembered is None:
            raise UserError(
                "not-joined",
                "This machine has not joined a network yet.",
                "Make an invite on the server with 'overlay invite', then: overlay up INVITE.",
                Exit.USAGE,
            )
        name = chosen_name or remembered.name
        return Start(
            Joined(
                addresses=remembered.addresses,
                server_key=remembered.server_key,
                domain=remembered.domain,
                pin=remembered.pin,
                name=name,
            )
        )
    invite = Invite.parse(invite_text)
    if remembered is not None and remembered.server_key != invite.server_key:
        raise UserError(
            "other-network",
            f"This state folder belongs to another network already ({remembered.domain} at {remembered.addresses[0]}).",
            "Join the second network with a folder of its own (--state DIR), or remove this one to leave the first.",
        )
    name = chosen_name or (remembered.name if remembered is not None else "")
    # The invite's addresses count: they are newer than what was remembered.
    return Start(
        Joined(
            addresses=invite.addresses,
            server_key=invite.server_key,
            domain=invite.domain,
            pin=invite.pin,
            name=name,
        ),
        invite.secret,
    )


def default_name(host_name: str) -> str:
    """A node's name from the machine's: its first label, with what a label may not have made into hyphens."""
    label = host_name.partition(".")[0].lower()
    with suppress(ValueError):
        label = ascii_label(label)
    kept = "".join(each if each.isascii() and each.isalnum() else "-" for each in label)
    return kept.strip("-")[:_NAME_LIMIT].strip("-") or "node"


def identity_of(welcome: Welcome) -> Identity:
    """Raises `RemoteProtocolError` ("bad_welcome")."""
    try:
        identity = Identity.parse(
            number=welcome.number,
            name=welcome.name,
            addresses=welcome.addresses,
            networks=welcome.networks,
            domains=(welcome.domain, *welcome.more_domains),
        )
    except ValueError as error:
        raise RemoteProtocolError("bad_welcome", str(error)) from error
    if not identity.addresses or identity.addresses[0].version != 4 or not 0 < identity.number < 2**32:
        raise RemoteProtocolError("bad_welcome", "no IPv4 address, or no node number")
    if any(all(address not in network for network in identity.networks) for address in identity.addresses):
        raise RemoteProtocolError("bad_welcome", "an address outside the network's ranges")
    return identity


def relay_of(welcome: Welcome, control: Endpoint | None) -> Relay:
    """The home relay. `control`: where the server was reached just now.

    The server's own relay is tried there first: a server behind a port forwarding may not know its public address.
    Raises `RemoteProtocolError` ("bad_welcome").
    """
    try:
        endpoints = [parse_endpoint(text) for text in welcome.relays]
    except ValueError as error:
        raise RemoteProtocolError("bad_welcome", str(error)) from error
    if control is not None and endpoints and welcome.relay_number == SERVER_NUMBER:
        with suppress(ValueError):  # a name that only a proxy could find
            host = str(ip_address(control[0]))
            endpoints.insert(0, next((each for each in endpoints if each[0] == host), (host, endpoints[0][1])))
    return Relay(tuple(dict.fromkeys(endpoints)), welcome.relay_number, welcome.ticket)


def stun_servers_of(welcome: Welcome) -> tuple[Endpoint, ...]:
    """More endpoints that answer STUN, beside the relay's. Raises `RemoteProtocolError` ("bad_welcome")."""
    try:
        return tuple(parse_endpoint(text) for text in welcome.stun)
    except ValueError as error:
        raise RemoteProtocolError("bad_welcome", str(error)) from error
