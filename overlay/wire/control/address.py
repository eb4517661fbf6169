"""A server's address as a person writes it: a name or a numeric address, and a port. Nothing is looked up here."""

import re
from typing import Final

from overlay.wire.endpoint import parse_endpoint

_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_MAX_NAME: Final = 253  # RFC 1035 §2.3.4, in text


def parse_address(text: str) -> tuple[str, int]:
    """`server.example.org:443`, `192.0.2.1:443` or `[2001:db8::1]:443` → host and port.

    A numeric host comes back in canonical form. Raises `ValueError` with a sentence for a person.
    """
    host, _, port_text = text.rpartition(":")
    name = host.removesuffix(".")
    labels = name.split(".")
    if len(name) > _MAX_NAME or labels[-1].isdigit() or not all(_LABEL.fullmatch(label) for label in labels):
        return parse_endpoint(text)  # not a name: numeric, or it knows best what to say
    if not port_text.isascii() or not port_text.isdigit() or not 0 < int(port_text[:6]) < 65536:
        raise ValueError(f"'{text}': the port must be a number from 1 to 65535")
    return name.lower(), int(port_text)
