"""Server name and protocols in a TLS ClientHello (RFC 8446 §4.1.2, RFC 6066 §3, RFC 7301), read without taking part.

record      16 | version 2 | length 2 | part of a handshake message, which may go on in the next record
handshake   01 | length 3 | version 2 | random 32 | session id u8… | ciphers u16… | compressions u8… | extensions u16…
extension   type 2 | length 2 | …; 0: list u16, of (type u8 = 0, name u16…); 16: list u16, of protocols u8…
"""

import re
from dataclasses import dataclass
from typing import Final

from overlay.errors import RemoteProtocolError

MAX_HELLO: Final = 16 * 1024  # bytes with record headers; hellos with post-quantum keys have some 1,800
RECORD_HEADER: Final = 5
_HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 0x01
_SERVER_NAME: Final = 0
_ALPN: Final = 16
_NAME: Final = re.compile(r"[0-9a-z_](?:[0-9a-z_.-]{0,251}[0-9a-z_])?")


@dataclass(frozen=True, slots=True)
class ClientHello:
    name: str  # in lower case, without a final dot; "" if there is none
    protocols: tuple[bytes, ...]


NO_HELLO: Final = ClientHello("", ())
"""One that says nothing, or cannot be read."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise RemoteProtocolError("bad_client_hello", "a length beyond its end")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> "_Reader":
        return _Reader(self.take(self.number(size)))


def parse_client_hello(data: bytes) -> ClientHello | int:
    """`data`: the stream's beginning. → the hello; or how many bytes of the stream are needed at least to go on.

    Raises `RemoteProtocolError("bad_client_hello")`.
    """
    message, at = b"", 0
    while True:
        if len(data) < at + RECORD_HEADER:
            return at + RECORD_HEADER
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at] != _HANDSHAKE or data[at + 1] != 3 or not length or at + RECORD_HEADER + length > MAX_HELLO:
            raise RemoteProtocolError("bad_client_hello", "no handshake record")
        if len(data) < at + RECORD_HEADER + length:
            return at + RECORD_HEADER + length
        message += data[at + RECORD_HEADER : at + RECORD_HEADER + length]
        at += RECORD_HEADER + length
        if message[0] != _CLIENT_HELLO:
            raise RemoteProtocolError("bad_client_hello", "another message")
        if len(message) >= 4:
            size = 4 + int.from_bytes(message[1:4], "big")
            if size > MAX_HELLO:
                raise RemoteProtocolError("bad_client_hello", "too long")
            if len(message) >= size:
                return _parse_body(_Reader(message[4:size]))


def _parse_body(body: _Reader) -> ClientHello:
    body.take(2 + 32)
    for size in (1, 2, 1):
        body.vector(size)
    name = ""
    protocols: tuple[bytes, ...] = ()
    seen = set()
    extensions = body.vector(2) if body.left else _Reader(b"")
    while extensions.left:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise RemoteProtocolError("bad_client_hello", "an extension twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _parse_names(content.vector(2))
        elif kind == _ALPN:
            protocols = _parse_protocols(content.vector(2))
    return ClientHello(name, protocols)


def _parse_names(names: _Reader) -> str:
    kind, name = names.number(1), names.vector(2)
    text = name.take(name.left).decode("latin-1").lower().removesuffix(".")
    if kind != 0 or names.left or not _NAME.fullmatch(text):
        raise RemoteProtocolError("bad_client_hello", "a server name that is none")
    return text


def _parse_protocols(protocols: _Reader) -> tuple[bytes, ...]:
    found = []
    while protocols.left:
        protocol = protocols.vector(1)
        found.append(protocol.take(protocol.left))
    return tuple(found)
