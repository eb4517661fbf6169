"""The token for HTTP CONNECT: all that a machine outside the network needs to be let through the server, in one string.

    "ovp1_" base64url without padding of a msgpack array: addresses, secret, pin

To the server it is a secret as it is, which any HTTP client can show; our own reads from it where the server is, and by
which key it knows it.
"""

import base64
import binascii
from typing import Final

import msgspec

from overlay.errors import Exit, UserError
from overlay.wire.control.address import parse_server_address

PREFIX: Final = "ovp1_"
SECRET_SIZE: Final = 16  # bytes
PIN_SIZE: Final = 32  # SHA-256
LONGEST: Final = 2048  # characters


class ProxyToken(msgspec.Struct, frozen=True, array_like=True):
    addresses: tuple[str, ...]  # of the server, best first
    secret: bytes
    pin: bytes = b""  # SHA-256 of the server certificate's public key; empty: not pinned

    def __repr__(self) -> str:
        return f"ProxyToken(addresses={self.addresses!r})"

    def encode(self) -> str:
        return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).rstrip(b"=").decode("ascii")

    @classmethod
    def parse(cls, text: str) -> "ProxyToken":
        """Raises `UserError` ("token-malformed", exit 4), which does not repeat the text."""
        encoded = text.strip().removeprefix(PREFIX)
        try:
            if not text.strip().startswith(PREFIX) or len(text) > LONGEST:
                raise ValueError
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            token = msgspec.msgpack.decode(data, type=cls)
            for address in token.addresses:
                parse_server_address(address)
            if not token.addresses or len(token.secret) < SECRET_SIZE or len(token.pin) not in (0, PIN_SIZE):
                raise ValueError
        except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise UserError(
                "token-malformed",
                f"That is not a token: one starts with '{PREFIX}'.",
                "Copy it again; 'overlay token add' on the server makes one.",
                Exit.REFUSED,
            ) from error
        return token
