"""What a person sets for an exposure beside its target and place: who may use it, how much, and what targets are told.

It travels as it was set: from the command line to the node, which keeps it, and to the server, which keeps it with the
lease and tells it back. A server that knows less than was asked for is noticed by that: fields that it does not know
are missing from its answer. Everything here is checked where it comes in (`check_terms`).
"""

from typing import Final

import msgspec

from overlay.errors import Exit, UserError
from overlay.wire.networks import NetworkLists

MOST_CONNECTIONS: Final = 8192
MOST_NETWORKS: Final = 256  # in a list


class Access(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who; nothing set: everybody."""

    allow: tuple[str, ...] = ()  # networks, CIDR; () is everybody
    deny: tuple[str, ...] = ()  # networks, which win over those allowed


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much; 0: what the server allows everybody."""

    connections: int = 0  # users at once


class Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    access: Access = Access()
    limits: Limits = Limits()


NO_TERMS: Final = Terms()


def check_terms(terms: Terms) -> None:
    """Raises `UserError` ("terms-invalid", exit 2)."""
    if not 0 <= terms.limits.connections <= MOST_CONNECTIONS:
        raise _invalid(f"--max-connections is a number from 1 to {MOST_CONNECTIONS}")
    _check_networks(terms.access)


def _check_networks(access: Access) -> None:
    if max(len(access.allow), len(access.deny)) > MOST_NETWORKS:
        raise _invalid(f"--allow and --deny name {MOST_NETWORKS} networks each at the most")
    for network in (*access.allow, *access.deny):
        try:
            NetworkLists((network,))
        except ValueError as error:
            raise _invalid(f"'{network[:64]}' is not a network such as 192.0.2.0/24 or 2001:db8::/32") from error


def _invalid(why: str) -> UserError:
    return UserError("terms-invalid", f"That cannot be exposed: {why}.", "See 'overlay expose --help'.", Exit.USAGE)
