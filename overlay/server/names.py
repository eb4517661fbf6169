"""What a node may be called: one DNS label (RFC 1035 §2.3.1 as RFC 1123 §2.1 widens it). Pure."""

import re
from collections.abc import Sequence, Set

from overlay.errors import Exit, UserError
from overlay.wire.control.hostnames import MAX_LABEL, MAX_NAME, ascii_label, ascii_name, check_host_name, is_host_label

MAX_DOMAINS = 6
"""Of a network: as many as glibc before 2.26 searches (resolv.conf(5))."""
_FALLBACK = "node"
_RESERVED = frozenset({"localhost"})  # RFC 6761 §6.3: resolvers answer it by themselves


def check_name(name: str, taken: Set[str]) -> str:
    """The name that a person chose, as it is written (ASCII, small letters). Raises `UserError` (exit 4):
    "name-invalid", "name-taken"."""
    try:
        label = ascii_label(name)
    except ValueError:
        label = ""
    if not is_host_label(label) or label in _RESERVED:
        raise UserError(
            "name-invalid",
            f"'{name[:MAX_LABEL]}' cannot be a node's name.",
            "Use 1 to 63 letters, digits and hyphens, with no hyphen at either end, and none both third and fourth.",
            Exit.REFUSED,
        )
    if label in taken:
        raise UserError(
            "name-taken",
            f"The name '{label}' is taken by another node.",
            "Choose another with --name, or free it with 'overlay node rm' or 'overlay node rename' on the server.",
            Exit.REFUSED,
        )
    return label


def derive_name(wish: str, taken: Set[str]) -> str:
    """A free name that is near to `wish` (a host name, say): its first label made valid, with -2, -3, … if taken."""
    first = wish.partition(".")[0]
    try:
        label = ascii_label(first)
    except ValueError:
        label = ""
    if not is_host_label(label):
        label = re.sub(r"[^a-z0-9]+", "-", first.lower()).strip("-")[:MAX_LABEL].strip("-")
    if not label or label in _RESERVED:
        label = _FALLBACK
    if label not in taken:
        return label
    number = 2
    while True:
        suffix = f"-{number}"
        name = label[: MAX_LABEL - len(suffix)].rstrip("-") + suffix
        if name not in taken:
            return name
        number += 1


def check_domains(domains: Sequence[str]) -> tuple[str, ...]:
    """The network's domains as they are written. Raises `UserError` ("domain-invalid", exit 2)."""
    found = tuple(dict.fromkeys(map(_check_domain, domains)))
    if len(found) > MAX_DOMAINS:
        raise UserError("domain-invalid", f"A network has {MAX_DOMAINS} domains at the most.", exit_code=Exit.USAGE)
    for one in found:
        for other in found:
            if one.endswith("." + other):
                raise UserError(
                    "domain-invalid",
                    f"The domain {one} is within {other}, where its names would be those of a node.",
                    "Choose domains that are beside each other.",
                    Exit.USAGE,
                )
    return found


def _check_domain(domain: str) -> str:
    try:
        text, _ = ascii_name(domain)
        check_host_name(text)
        # A node's label and its dot must fit in front.
        if len(text) > MAX_NAME - MAX_LABEL - 1 or text.replace(".", "").isdigit():
            raise ValueError("it is too long, or an address")
    except ValueError as error:
        raise UserError(
            "domain-invalid",
            f"'{domain[:100]}' is not a domain name: {str(error).rstrip('.')}.",
            "Write one like local.test.",
            Exit.USAGE,
        ) from error
    if text.rpartition(".")[2] == "local":
        raise UserError(
            "domain-invalid",
            f"The domain cannot be '{text}': names that end in .local are found by multicast (RFC 6762), not by DNS.",
            "Write one like local.test or home.arpa.",
            Exit.USAGE,
        )
    return text
