"""Records that people put into the network's zone: their form, and which names are a node's own. Pure functions.

Names are absolute, in lower case, without the last dot, and ASCII: what is beyond ASCII has become A-labels (RFC 5890
section 2.3.2.1) before. A value is text as zone files have it (RFC 1035 section 5.1), but for TXT, which has no quotes:

    A      192.0.2.1                    AAAA   2001:db8::1
    CNAME  b.local.test                 TXT    any printable text, 255 bytes at the most
    SRV    10 5 22 b.local.test         (priority, weight, port, host: RFC 2782)
"""

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from overlay.wire.control.hostnames import MAX_LABEL, MAX_NAME, is_host_label
from overlay.wire.control.messages import MapRecord

RECORD_TYPES: Final = ("A", "AAAA", "CNAME", "TXT", "SRV")
MAX_RECORDS: Final = 512
"""In a network: all stand in the first part of a map, of which they take 0.5 MB at the longest."""
MAX_TEXT: Final = 255  # bytes of a character-string, RFC 1035 section 3.3
_UNDERSCORED: Final = re.compile(r"_[a-z0-9]([a-z0-9_-]{0,60}[a-z0-9])?")  # of services, RFC 8552
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,4}")


def check_name(name: str, *, underscores: bool = False, wildcard: bool = False) -> None:
    """Raises `ValueError` with a reason unless `name` may stand in a record."""
    if len(name) > MAX_NAME:
        raise ValueError(f"a name has {MAX_NAME} characters at the most")
    labels = name.split(".")
    if wildcard and labels[0] == "*" and len(labels) > 1:
        del labels[0]
    for label in labels:
        if not is_host_label(label) and not (underscores and _UNDERSCORED.fullmatch(label)):
            allowed = "letters, digits and hyphens, with no hyphen at either end"
            hint = "; underscores are for SRV and TXT" if "_" in label and not underscores else ""
            raise ValueError(f"'{label[:MAX_LABEL]}' cannot be a part of it: that is 1 to {MAX_LABEL} {allowed}{hint}")


def check_owner(name: str, rtype: str) -> None:
    """Raises `ValueError` with a reason unless a record of this type may have this name."""
    check_name(name, underscores=rtype in ("SRV", "TXT"), wildcard=True)


def canonical_value(rtype: str, value: str) -> str:
    """The one way to write a value. Raises `ValueError` with a reason."""
    match rtype:
        case "A":
            return str(IPv4Address(value))
        case "AAAA":
            if "%" in value:
                raise ValueError("an address in a record has no zone")
            return str(IPv6Address(value))
        case "CNAME":
            check_name(value, underscores=True)
            return value
        case "TXT":
            if not value.isprintable() or not 0 < len(value.encode()) <= MAX_TEXT:
                raise ValueError(f"a text is printable and has 1 to {MAX_TEXT} bytes")
            return value
        case "SRV":
            return _canonical_service(value)
    raise ValueError(f"there are records of the types {', '.join(RECORD_TYPES)}")


def service(value: str) -> tuple[int, int, int, str]:
    """Priority, weight, port and host of a canonical SRV value."""
    priority, weight, port, host = value.split(" ")
    return int(priority), int(weight), int(port), host


def _canonical_service(value: str) -> str:
    words = value.split()
    if len(words) != 4 or not all(_NUMBER.fullmatch(word) and int(word) < 65536 for word in words[:3]):
        raise ValueError("a service is written PRIORITY WEIGHT PORT HOST, as in '10 5 22 b'")
    check_name(words[3])
    return " ".join(words)


def check_record(record: MapRecord) -> None:
    """Raises `ValueError` with a reason unless the record is as the server makes them. Types of later versions pass:
    who does not know them leaves them out."""
    if record.rtype not in RECORD_TYPES:
        return
    check_owner(record.name, record.rtype)
    if canonical_value(record.rtype, record.value) != record.value:
        raise ValueError(f"'{record.value}' is not how this value is written")


def is_within(name: str, domain: str) -> bool:
    """Whether a name is the domain itself or below it."""
    return name == domain or name.endswith("." + domain)


def domain_of(name: str, domains: Sequence[str]) -> str | None:
    """The domain that a name is in; None: none of these, of which none is within another."""
    return next((domain for domain in domains if is_within(name, domain)), None)


def holder(name: str, domain: str, nodes: Mapping[str, int]) -> int | None:
    """The number of the node whose name this is, or is below. `nodes`: names (one label) to numbers."""
    return nodes.get(name.removesuffix(domain).removesuffix(".").rpartition(".")[2])


def is_shadowed(record: MapRecord, domains: Sequence[str], nodes: Mapping[str, int]) -> bool:
    """Whether the names of nodes leave no room for this record: at and below a node's name only that node has any, and
    of the name itself the addresses are the network's."""
    domain = domain_of(record.name, domains)
    number = holder(record.name, domain, nodes) if domain is not None else None
    if domain is None or number is None:
        return False
    at_node = record.name.count(".") == domain.count(".") + 1
    return number != record.node or (at_node and record.rtype in ("A", "AAAA", "CNAME"))
