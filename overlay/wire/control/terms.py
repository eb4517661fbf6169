"""What a person sets for an exposure beside its target and place: who may use it, how much, and what targets are told.

It travels as it was set: from the command line to the node, which keeps it, and to the server, which keeps it with the
lease and tells it back. A server that knows less than was asked for is noticed by that: fields that it does not know
are missing from its answer. Everything here is checked where it comes in (`check_terms`).
"""

import re
from typing import Final, Literal, get_args

import msgspec

from overlay.errors import Exit, UserError
from overlay.wire.credentials import is_digest, is_password_hash, is_user_name
from overlay.wire.ingress.proxy_protocol import ProxyProtocol
from overlay.wire.ingress.rewrite import Forwarding, Rewrite, make_rewrite
from overlay.wire.networks import NetworkLists

MOST_CONNECTIONS: Final = 8192
MOST_OFTEN: Final = 1_000_000
LEAST_BANDWIDTH: Final = 64e3 / 8  # bytes per second: what is less would have one datagram in a quarter of a second
MOST_BANDWIDTH: Final = 1e12 / 8
MOST_QUOTA: Final = 10**18  # bytes
_PERIODS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FREQUENCY: Final = re.compile(r"([0-9]{1,7})/([smhd])")
LATEST: Final = 253402300800.0  # the year 10000, Unix time
MOST_NETWORKS: Final = 256  # in a list
MOST_FIELDS: Final = 32  # to set, or to remove, of requests or answers
MOST_SECRETS: Final = 256  # users, or tokens
MOST_TAGS: Final = 16
LONGEST_TAG: Final = 64  # characters


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
Balance = Literal["least", "round-robin", "sticky"]
"""Which member of a group serves a user: the one with the fewest connections, each in turn, always the same one."""

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
_HEALTH: Final = re.compile(r"tcp|http(:/[!-~]{0,255})?")


class Membership(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one of several exposures that share a place."""

    name: str = ""  # of the group; "": none
    balance: Balance = "least"


class Private(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At no public place: for peers alone, those with one of the tags or with the token."""

    name: str = ""  # by which peers ask for it; "": it is public
    tags: tuple[str, ...] = ()
    token: str = ""  # its digest; "": there is none


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much; 0: what the server allows everybody."""

    connections: int = 0  # users at once
    connection_rate: str = ""  # of each address, "10/s": new connections, or flows of datagrams; "": any
    request_rate: str = ""  # as above: requests by http
    bandwidth: float = 0.0  # bytes per second each way, of all users together
    quota: int = 0  # bytes both ways in a calendar month (UTC)


class Headers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What targets and users are told by http: as `overlay.wire.ingress.rewrite.make_rewrite` takes it."""

    forwarded: Forwarding = "set"
    host: str = ""  # what the target is asked for
    request: tuple[str, ...] = ()  # "Name: value"
    request_remove: tuple[str, ...] = ()
    response: tuple[str, ...] = ()
    response_remove: tuple[str, ...] = ()

    def rewrite(self) -> Rewrite:
        """Raises `ValueError` with the rest of a sentence."""
        return make_rewrite(
            forwarding=self.forwarded,
            host=self.host,
            request=self.request,
            request_remove=self.request_remove,
            response=self.response,
            response_remove=self.response_remove,
        )


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the target is told of a user."""

    proxy_protocol: ProxyProtocol = ""  # the header before his bytes
    transparent: bool = False  # connections bear his address; within the tunnel a header of v2 tells it to the node


NOTHING_TOLD: Final = Told()


class Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    access: Access = Access()
    limits: Limits = Limits()
    headers: Headers = Headers()
    expires: float = 0.0  # Unix time, s; 0: never
    told: Told = NOTHING_TOLD
    tls_end: TlsEnd = ""
    group: Membership = Membership()
    private: Private = Private()
    health: str = ""  # how the node looks whether its target is well: "tcp", "http:/path"; "": it does not look


NO_TERMS: Final = Terms()


def check_terms(terms: Terms, protocol: str) -> None:
    """Of an exposure that users reach by `protocol`. Raises `UserError` ("terms-invalid", exit 2)."""
    check_group(terms)
    _check_private(terms.private)
    if not 0 <= terms.expires < LATEST:
        raise _invalid("--expires is a length of time, as in 2h")
    if not 0 <= terms.limits.connections <= MOST_CONNECTIONS:
        raise _invalid(f"--max-connections is a number from 1 to {MOST_CONNECTIONS}")
    _check_limits(terms.limits, protocol)
    if protocol == "udp" and terms.told.proxy_protocol == "v1":
        raise _invalid("version 1 of the PROXY protocol knows no datagrams; ask for --proxy-protocol v2")
    _check_networks(terms.access)
    _check_secrets(terms.access, protocol)
    _check_headers(terms.headers, protocol)


def parse_frequency(text: str) -> tuple[int, float]:
    """`100/m` → how often, and in how many seconds. Raises `ValueError`."""
    found = _FREQUENCY.fullmatch(text.strip().lower())
    if found is None or not 0 < int(found[1]) <= MOST_OFTEN:
        raise ValueError
    return int(found[1]), _PERIODS[found[2]]


def _check_limits(limits: Limits, protocol: str) -> None:
    for option, text in (("--connection-rate", limits.connection_rate), ("--request-rate", limits.request_rate)):
        try:
            if text:
                parse_frequency(text)
        except ValueError as error:
            raise _invalid(f"{option} is a number per s, m, h or d, as in 10/s or 100/m") from error
    if limits.request_rate and protocol != "http":
        raise _invalid("requests are counted by http alone: --connection-rate is for all")
    if limits.bandwidth and not LEAST_BANDWIDTH <= limits.bandwidth <= MOST_BANDWIDTH:  # true for NaN, too
        raise _invalid("--bandwidth is from 64kbit to 1000Gbit")
    if not 0 <= limits.quota <= MOST_QUOTA:
        raise _invalid("--quota is an amount of data up to 1000000TB")


def _check_headers(headers: Headers, protocol: str) -> None:
    if headers != Headers() and protocol != "http":
        raise _invalid("headers are of http alone")
    lists = (headers.request, headers.request_remove, headers.response, headers.response_remove)
    if max(map(len, lists)) > MOST_FIELDS:
        raise _invalid(f"there are more than {MOST_FIELDS} fields of one kind to change")
    try:
        headers.rewrite()
    except ValueError as error:
        raise _invalid(str(error)) from error


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


def check_group(terms: Terms) -> None:
    """Raises `UserError` ("terms-invalid", exit 2)."""
    group = terms.group
    if group.name and not _NAME.fullmatch(group.name):
        raise _invalid(f"'{group.name[:64]}' is no name of a group, such as web-1: letters, digits and hyphens")
    if group.balance not in get_args(Balance) or (group.balance != "least" and not group.name):
        raise _invalid("--balance is how the members of a --group share their users")
    if terms.health and not _HEALTH.fullmatch(terms.health):
        raise _invalid(f"'{terms.health[:64]}' is no way to look whether a target is well, such as tcp or http:/health")


def _check_private(private: Private) -> None:
    if not private.name:
        if private != Private():
            raise _invalid("--for-tag and --token say who may reach what is exposed with --private NAME")
        return
    if not _NAME.fullmatch(private.name):
        raise _invalid(f"'{private.name[:64]}' is no name such as db-1: letters, digits and hyphens")
    if not private.tags and not private.token:
        raise _invalid("say who may reach it, with --for-tag TAG or --token")
    tags = private.tags
    if len(tags) > MOST_TAGS or not all(0 < len(tag) <= LONGEST_TAG and tag.isprintable() for tag in tags):
        raise _invalid(f"--for-tag takes {MOST_TAGS} tags at the most, of 1 to {LONGEST_TAG} printable characters")
    if private.token and not is_digest(private.token):
        raise _invalid("its token is not a digest")


def shared(terms: Terms) -> Terms:
    """What is the same for all members of a group. Not the secrets: of a password each node has another hash, and whose
    counts is whose terms hold."""
    access = terms.access
    names = tuple(sorted(user.partition(":")[0] for user in access.users))
    kinds = msgspec.structs.replace(
        access, users=names, bearers=("",) * bool(access.bearers), link="?" * bool(access.link)
    )
    return msgspec.structs.replace(terms, health="", expires=0.0, told=NOTHING_TOLD, access=kinds)


def _invalid(why: str) -> UserError:
    return UserError("terms-invalid", f"That cannot be exposed: {why}.", "See 'overlay expose --help'.", Exit.USAGE)
