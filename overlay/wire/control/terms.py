"""What a person sets for an exposure beside its target and place: who may use it, how much, and what targets are told.

It travels as it was set: from the command line to the node, which keeps it, and to the server, which keeps it with the
lease and tells it back. A server that knows less than was asked for is noticed by that: fields that it does not know
are missing from its answer. Everything here is checked where it comes in (`check_terms`).
"""

from typing import Final, Literal

import msgspec

from overlay.errors import Exit, UserError
from overlay.wire.credentials import is_digest, is_password_hash, is_user_name
from overlay.wire.ingress.proxy_protocol import ProxyProtocol
from overlay.wire.networks import NetworkLists

MOST_CONNECTIONS: Final = 8192
MOST_NETWORKS: Final = 256  # in a list
MOST_SECRETS: Final = 256  # users, or tokens


class Access(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who; nothing set: everybody."""

    allow: tuple[str, ...] = ()  # networks, CIDR; () is everybody
    deny: tuple[str, ...] = ()  # networks, which win over those allowed
    # By http, those who show any of these; hashes as `overlay.wire.credentials` has them:
    users: tuple[str, ...] = ()  # "name:hash of the password"
    bearers: tuple[str, ...] = ()  # digests of tokens
    link: str = ""  # digest of what the secret link has in it

    @property
    def is_secret(self) -> bool:
        """Whether users have to show something."""
        return bool(self.users or self.bearers or self.link)


TlsEnd = Literal["", "target", "server", "node"]
"""Where the TLS of users ends that come by a name; "": at the server by http, at the target by tls."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much; 0: what the server allows everybody."""

    connections: int = 0  # users at once


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the target is told of a user."""

    proxy_protocol: ProxyProtocol = ""  # the header before his bytes
    transparent: bool = False  # connections bear his address; within the tunnel a header of v2 tells it to the node


NOTHING_TOLD: Final = Told()


class Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    access: Access = Access()
    limits: Limits = Limits()
    told: Told = NOTHING_TOLD
    tls_end: TlsEnd = ""


NO_TERMS: Final = Terms()


def check_terms(terms: Terms, protocol: str) -> None:
    """Of an exposure that users reach by `protocol`. Raises `UserError` ("terms-invalid", exit 2)."""
    if not 0 <= terms.limits.connections <= MOST_CONNECTIONS:
        raise _invalid(f"--max-connections is a number from 1 to {MOST_CONNECTIONS}")
    if protocol == "udp" and terms.told.proxy_protocol == "v1":
        raise _invalid("version 1 of the PROXY protocol knows no datagrams; ask for --proxy-protocol v2")
    _check_networks(terms.access)
    _check_secrets(terms.access, protocol)


def _check_networks(access: Access) -> None:
    if max(len(access.allow), len(access.deny)) > MOST_NETWORKS:
        raise _invalid(f"--allow and --deny name {MOST_NETWORKS} networks each at the most")
    for network in (*access.allow, *access.deny):
        try:
            NetworkLists((network,))
        except ValueError as error:
            raise _invalid(f"'{network[:64]}' is not a network such as 192.0.2.0/24 or 2001:db8::/32") from error


def _check_secrets(access: Access, protocol: str) -> None:
    if access.is_secret and protocol != "http":
        raise _invalid("users can show a password, a token or a secret link by http alone")
    if max(len(access.users), len(access.bearers)) > MOST_SECRETS:
        raise _invalid(f"there are more than {MOST_SECRETS} users or tokens")
    pairs = [user.partition(":") for user in access.users]
    if len({name for name, _, _ in pairs}) < len(pairs) or not all(
        is_user_name(name) and is_password_hash(password) for name, _, password in pairs
    ):
        raise _invalid("its users are not each a name and the hash of a password")
    if not all(map(is_digest, (*access.bearers, *([access.link] if access.link else ())))):
        raise _invalid("its tokens are not digests")


def _invalid(why: str) -> UserError:
    return UserError("terms-invalid", f"That cannot be exposed: {why}.", "See 'overlay expose --help'.", Exit.USAGE)
