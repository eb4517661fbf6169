"""What a node may be called: one DNS label (RFC 1035 §2.3.1 as RFC 1123 §2.1 widens it). Pure."""

import re
from collections.abc import Set

from overlay.errors import Exit, UserError

MAX_LABEL = 63  # bytes, RFC 1035 §2.3.4
_FALLBACK = "node"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_RESERVED = frozenset({"localhost"})  # RFC 6761 §6.3: resolvers answer it by themselves


def check_name(name: str, taken: Set[str]) -> str:
    """The name that a person chose, in lower case. Raises `UserError` (exit 4): "name-invalid", "name-taken"."""
    label = name.lower()
    if not _LABEL.fullmatch(label) or label in _RESERVED:
        raise UserError(
            "name-invalid",
            f"'{name[:MAX_LABEL]}' cannot be a node's name.",
            "Use 1 to 63 letters, digits and hyphens, with no hyphen at either end.",
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
    label = re.sub(r"[^a-z0-9]+", "-", wish.lower().partition(".")[0])[:MAX_LABEL].strip("-")
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


def check_domain(domain: str) -> str:
    """The network's domain, in lower case, without a dot at the end. Raises `UserError` ("domain-invalid", exit 2)."""
    text = domain.lower().rstrip(".")
    # 253 bytes is a whole name (RFC 1035 §3.1); a node's label and its dot must fit in front.
    if not text or len(text) > 253 - MAX_LABEL - 1 or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise UserError("domain-invalid", f"'{domain}' is not a domain name.", "Write one like local.test.", Exit.USAGE)
    if text.rpartition(".")[2] == "local":
        raise UserError(
            "domain-invalid",
            f"The domain cannot be '{text}': names that end in .local are found by multicast (RFC 6762), not by DNS.",
            "Write one like local.test or home.arpa.",
            Exit.USAGE,
        )
    return text
