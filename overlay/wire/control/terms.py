"""What a person sets for an exposure beside its target and place: who may use it, how much, and what targets are told.

It travels as it was set: from the command line to the node, which keeps it, and to the server, which keeps it with the
lease and tells it back. A server that knows less than was asked for is noticed by that: fields that it does not know
are missing from its answer. Everything here is checked where it comes in (`check_terms`).
"""

import re
from typing import Final, Literal, get_args

import msgspec

from overlay.errors import Exit, UserError

MOST_CONNECTIONS: Final = 8192


Balance = Literal["least", "round-robin", "sticky"]
"""Which member of a group serves a user: the one with the fewest connections, each in turn, always the same one."""

_GROUP: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_HEALTH: Final = re.compile(r"tcp|http(:/[!-~]{0,255})?")


class Membership(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one of several exposures that share a place."""

    name: str = ""  # of the group; "": none
    balance: Balance = "least"


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much; 0: what the server allows everybody."""

    connections: int = 0  # users at once


class Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    limits: Limits = Limits()
    group: Membership = Membership()
    health: str = ""  # how the node looks whether its target is well: "tcp", "http:/path"; "": it does not look


NO_TERMS: Final = Terms()


def check_terms(terms: Terms) -> None:
    """Raises `UserError` ("terms-invalid", exit 2)."""
    check_group(terms)
    if not 0 <= terms.limits.connections <= MOST_CONNECTIONS:
        raise _invalid(f"--max-connections is a number from 1 to {MOST_CONNECTIONS}")


def check_group(terms: Terms) -> None:
    """Raises `UserError` ("terms-invalid", exit 2)."""
    group = terms.group
    if group.name and not _GROUP.fullmatch(group.name):
        raise _invalid(f"'{group.name[:64]}' is no name of a group, such as web-1: letters, digits and hyphens")
    if group.balance not in get_args(Balance) or (group.balance != "least" and not group.name):
        raise _invalid("--balance is how the members of a --group share their users")
    if terms.health and not _HEALTH.fullmatch(terms.health):
        raise _invalid(f"'{terms.health[:64]}' is no way to look whether a target is well, such as tcp or http:/health")


def shared(terms: Terms) -> Terms:
    """What is the same for all members of a group."""
    return msgspec.structs.replace(terms, health="")


def _invalid(why: str) -> UserError:
    return UserError("terms-invalid", f"That cannot be exposed: {why}.", "See 'overlay expose --help'.", Exit.USAGE)
