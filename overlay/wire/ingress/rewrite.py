"""What a person wants changed of heads on their way, beyond what every gateway changes. Pure.

Nothing can be asked for by which a message would end elsewhere, or two: values have no line ends, and the fields that
frame a message or belong to one connection are not to be touched.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from overlay.wire.ingress.http1 import Fields, HttpError, parse_host, plain

Forwarding = Literal["set", "append", "remove"]
"""Of the fields that say who asked: ours alone, ours behind those that came, or none."""

HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authorization te transfer-encoding content-length upgrade "
    b"http2-settings".split()
)
FORWARDED: Final = frozenset(
    b"x-forwarded-for x-forwarded-host x-forwarded-proto x-forwarded-port x-forwarded-server x-real-ip "
    b"x-client-ip true-client-ip forwarded".split()
)
_TELLS: Final = b"x-forwarded-"
APPENDED: Final = frozenset((b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"forwarded"))
_UNTOUCHED: Final = HOP | {b"trailer", b"expect", b"proxy-authenticate"}
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}"  # RFC 9110 §5.6.2
_FIELD: Final = re.compile(rf"({_TOKEN}):([\t\x20-\x7e]{{0,1024}})")
_NAME: Final = re.compile(_TOKEN)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Names are in lower case and with hyphens, as `plain` makes them."""

    forwarding: Forwarding = "set"
    host: bytes = b""  # in the place of what the user asked for
    never: frozenset[bytes] = HOP | FORWARDED | {b"host"}  # of a request's fields, what is not passed on
    to_target: Fields = ()  # added
    drop: frozenset[bytes] = frozenset()  # of an answer's fields
    to_user: Fields = ()

    def passes(self, name: bytes) -> bool:
        """Whether a field of this name, of a request's head, is passed on."""
        return name not in self.never and (self.forwarding == "append" or not name.startswith(_TELLS))

    def passes_trailer(self, name: bytes) -> bool:
        """Of a trailer, which some servers put among the head's: nothing there tells who asked."""
        return not (name in self.never or name in FORWARDED or name.startswith(_TELLS))


NO_REWRITE: Final = Rewrite()


def make_rewrite(
    *,
    forwarding: Forwarding,
    host: str,
    request: Iterable[str],
    request_remove: Iterable[str],
    response: Iterable[str],
    response_remove: Iterable[str],
) -> Rewrite:
    """`request`, `response`: as "Name: value", set in the place of all that came; the others are names. Raises
    `ValueError` with the rest of a sentence."""
    try:
        parse_host(host.encode("ascii"))
    except (HttpError, UnicodeEncodeError) as error:
        raise ValueError(f"'{host[:64]}' is not a host, with a port or without") from error
    to_target = tuple(_parse_field(text, FORWARDED | {b"host"}) for text in request)
    to_user = tuple(_parse_field(text, frozenset()) for text in response)
    removed = {_parse_name(text, FORWARDED | {b"host"}) for text in request_remove}
    passed_on = FORWARDED if forwarding == "append" else frozenset()
    return Rewrite(
        forwarding=forwarding,
        host=host.encode("ascii"),
        never=(NO_REWRITE.never - passed_on) | removed | {plain(name) for name, _ in to_target},
        to_target=to_target,
        drop=frozenset(
            {_parse_name(text, frozenset()) for text in response_remove}
            | {plain(name) for name, _ in to_user if plain(name) != b"set-cookie"}  # which is one for each cookie
        ),
        to_user=to_user,
    )


def _parse_field(text: str, untouched: frozenset[bytes]) -> tuple[bytes, bytes]:
    found = _FIELD.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:64]!r} is not a field such as 'X-Name: value'")
    return _allowed(found[1], untouched), found[2].strip(" \t").encode("ascii")


def _parse_name(text: str, untouched: frozenset[bytes]) -> bytes:
    if _NAME.fullmatch(text) is None:
        raise ValueError(f"{text[:64]!r} is not the name of a field")
    return plain(_allowed(text, untouched))


def _allowed(name: str, untouched: frozenset[bytes]) -> bytes:
    encoded = name.encode("ascii")
    if plain(encoded) in untouched:
        raise ValueError(f"the field {name} has an option of its own: --forwarded, or --host-header")
    if plain(encoded) in _UNTOUCHED:
        raise ValueError(f"the field {name} says where a message ends, or is of one connection alone")
    return encoded
