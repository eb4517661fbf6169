"""What a person sets for an exposure beside its target and place: who may use it, how much, and what targets are told.

It travels as it was set: from the command line to the node, which keeps it, and to the server, which keeps it with the
lease and tells it back. A server that knows less than was asked for is noticed by that: fields that it does not know
are missing from its answer. Everything here is checked where it comes in (`check_terms`).
"""

from typing import Final

import msgspec

from overlay.errors import Exit, UserError
from overlay.wire.ingress.proxy_protocol import ProxyProtocol

MOST_CONNECTIONS: Final = 8192


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much; 0: what the server allows everybody."""

    connections: int = 0  # users at once


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the target is told of a user."""

    proxy_protocol: ProxyProtocol = ""  # the header before his bytes


class Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    limits: Limits = Limits()
    told: Told = Told()


NO_TERMS: Final = Terms()


def check_terms(terms: Terms, protocol: str) -> None:
    """Of an exposure that users reach by `protocol`. Raises `UserError` ("terms-invalid", exit 2)."""
    if not 0 <= terms.limits.connections <= MOST_CONNECTIONS:
        raise _invalid(f"--max-connections is a number from 1 to {MOST_CONNECTIONS}")
    if protocol == "udp" and terms.told.proxy_protocol == "v1":
        raise _invalid("version 1 of the PROXY protocol knows no datagrams; ask for --proxy-protocol v2")


def _invalid(why: str) -> UserError:
    return UserError("terms-invalid", f"That cannot be exposed: {why}.", "See 'overlay expose --help'.", Exit.USAGE)
