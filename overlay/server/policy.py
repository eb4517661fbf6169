"""Which node may claim which names and ports, and how much may go through: the file `policy.toml`. Pure.

    [default]                       # nodes that no rule fits; without this they may have everything
    exposures = 16

    [[rule]]                        # the first rule that fits a node counts, and it alone
    nodes = ["shop", "build-*"]     # by name, or
    tags = ["web"]                  # by a tag of the invite that let it in
    protocols = ["http", "tcp"]
    hosts = ["*.shop.example.com"]  # names, with * for any part
    ports = [443, "9000-9099"]
    exposures = 4                   # at once
    quota = "100GB"                 # in a month, of all its exposures together
    bandwidth = "50Mbit"            # each way, of all its exposures together

What a rule leaves out is not limited; an empty list allows nothing.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from overlay.daemon.quantities import parse_rate, parse_size
from overlay.errors import Exit, UserError
from overlay.wire.control.hostnames import ascii_name, shown_name

FILE: Final = "policy.toml"
MAX_FILE: Final = 1024 * 1024  # bytes
_REMEMBERED: Final = 16384  # nodes
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_PROTOCOLS: Final = frozenset(("tcp", "udp", "http", "tls"))


@dataclass(frozen=True, slots=True)
class Rights:
    """What a node may have; None: anything."""

    protocols: frozenset[str] | None = None
    hosts: tuple[str, ...] | None = None  # in ASCII and small letters, as the names that are claimed
    ports: tuple[range, ...] | None = None
    exposures: int | None = None
    quota: int = 0  # bytes a month; 0: any
    bandwidth: float = 0.0  # bytes per second; 0: any

    def check_protocol(self, node: str, protocol: str) -> None:
        """This and the next two raise `UserError` ("policy-forbids", exit 4). `node`: its name."""
        if self.protocols is not None and protocol not in self.protocols:
            raise _forbidden(f"expose by {protocol}", node, sorted(self.protocols))

    def check_host(self, node: str, host: str) -> None:
        if self.hosts is not None and not any(_matches(pattern, host) for pattern in self.hosts):
            raise _forbidden(f"have the name {shown_name(host)}", node, map(shown_name, self.hosts))

    def check_port(self, node: str, port: int) -> None:
        if not self.allows_port(port):
            raise _forbidden(f"have the public port {port}", node, map(_show_ports, self.ports or ()))

    def allows_port(self, port: int) -> bool:
        return self.ports is None or any(port in each for each in self.ports)


EVERYTHING: Final = Rights()


@dataclass(frozen=True, slots=True)
class Rule:
    nodes: tuple[str, ...]
    tags: frozenset[str]
    rights: Rights

    def fits(self, name: str, tags: Iterable[str]) -> bool:
        return not self.tags.isdisjoint(tags) or any(_matches(pattern, name) for pattern in self.nodes)


class Policy:
    def __init__(self, rules: tuple[Rule, ...] = (), default: Rights = EVERYTHING) -> None:
        self.rules = rules
        self.default = default
        self.rights = lru_cache(_REMEMBERED)(self._rights)
        """Of a node, by its name and tags."""

    def _rights(self, name: str, tags: tuple[str, ...]) -> Rights:
        return next((rule.rights for rule in self.rules if rule.fits(name, tags)), self.default)


class _Default(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    protocols: tuple[str, ...] | None = None
    hosts: tuple[str, ...] | None = None
    ports: tuple[int | str, ...] | None = None
    exposures: int | None = None
    quota: str = ""
    bandwidth: str = ""


class _Rule(_Default, frozen=True, forbid_unknown_fields=True):
    nodes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    default: _Default = _Default()
    rule: tuple[_Rule, ...] = ()


def parse_policy(data: bytes, name: str) -> Policy:
    """`name`: of the file, for the error. Raises `UserError` ("policy-invalid", exit 2)."""
    try:
        if len(data) > MAX_FILE:
            raise ValueError(f"it has more than {MAX_FILE} bytes")
        file = msgspec.convert(tomllib.loads(data.decode()), _File)
        return Policy(tuple(map(_parse_rule, file.rule)), _parse_rights(file.default))
    except UserError as error:
        raise _invalid(name, error.message.rstrip(".")) from error
    except ValueError as error:  # also of TOML, UTF-8 and msgspec
        raise _invalid(name, str(error)) from error


def _parse_rule(rule: _Rule) -> Rule:
    if not rule.nodes and not rule.tags:
        raise ValueError("a rule names neither nodes nor tags: what is for all others is [default]")
    return Rule(tuple(map(_parse_name, rule.nodes)), frozenset(rule.tags), _parse_rights(rule))


def _parse_rights(given: _Default) -> Rights:
    if given.protocols is not None and not _PROTOCOLS.issuperset(given.protocols):
        raise ValueError(f"the protocols are {', '.join(sorted(_PROTOCOLS))}")
    if given.exposures is not None and given.exposures < 0:
        raise ValueError("the number of exposures is less than none")
    return Rights(
        protocols=None if given.protocols is None else frozenset(given.protocols),
        hosts=None if given.hosts is None else tuple(map(_parse_name, given.hosts)),
        ports=None if given.ports is None else tuple(map(_parse_ports, given.ports)),
        exposures=given.exposures,
        quota=parse_size(given.quota) if given.quota else 0,
        bandwidth=parse_rate(given.bandwidth) if given.bandwidth else 0.0,
    )


def _parse_name(text: str) -> str:
    """With * for any part; written as names are that come in. Raises `ValueError`."""
    if text.isascii():
        return text.lower().removesuffix(".")
    try:
        return ascii_name(text)[0]
    except ValueError as error:
        raise ValueError(f"'{text[:64]}' is no name, as {str(error).rstrip('.')}") from error


def _parse_ports(text: int | str) -> range:
    found = _PORTS.fullmatch(str(text).replace(" ", ""))
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 < first <= last < 65536:
        raise ValueError(f"'{text}' is neither a port nor a range such as 9000-9099")
    return range(first, last + 1)


@lru_cache(4096)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


def _matches(pattern: str, text: str) -> bool:
    return _pattern(pattern).fullmatch(text) is not None


def _show_ports(ports: range) -> str:
    return str(ports.start) if len(ports) == 1 else f"{ports.start}-{ports.stop - 1}"


def _forbidden(what: str, node: str, allowed: Iterable[str]) -> UserError:
    listed = ", ".join(allowed)
    return UserError(
        "policy-forbids",
        f"The server's policy does not let node '{node}' {what}.",
        f"It may have: {listed}." if listed else "Ask whoever runs the server.",
        Exit.REFUSED,
    )


def _invalid(name: str, why: str) -> UserError:
    return UserError(
        "policy-invalid", f"The policy {name} cannot be used: {why}.", "See 'overlay server --help'.", Exit.USAGE
    )
