"""The invite: all that a new machine needs to join, in one string that a person can paste.

    "ov1_" base64url without padding ( body | checksum 4 )
    body       msgpack array: addresses, server key 32, secret, domain [, pin 32]
    checksum   first 4 bytes of the BLAKE2s of the body

The checksum is against copying mistakes, not against people: whoever has an invite may use it. Its addresses say where
to look for the server and its key whom to believe; the secret goes to the holder of that key alone, inside the
established channel. The pin, if there is one, is of the server's TLS certificate: it lets a node tell the server from a
middlebox that opens TLS before anything is sent inside.
"""

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final

import msgspec

from overlay.errors import Exit, UserError
from overlay.wire.control.address import parse_server_address
from overlay.wire.wireguard.primitives import hash_

PREFIX: Final = "ov1_"
KEY_SIZE: Final = 32
PIN_SIZE: Final = 32  # SHA-256
SECRET_SIZE: Final = 16  # bytes at least: not to be guessed
CHECKSUM_SIZE: Final = 4
MAX_TEXT: Final = 4096  # characters; a QR code ends at 4,296
_HINT_COPY: Final = "Copy the whole invite again, from 'ov1_' to its last character."
_HINT_NEW: Final = "Ask for a new one: 'overlay invite' on the server prints it."


class _Body(msgspec.Struct, frozen=True, array_like=True):
    addresses: tuple[str, ...]
    server_key: bytes
    secret: bytes
    domain: str
    pin: bytes = b""


class _OldBody(msgspec.Struct, frozen=True, array_like=True):
    """How it is written without a pin: no byte longer than before there were pins."""

    addresses: tuple[str, ...]
    server_key: bytes
    secret: bytes
    domain: str


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Body)


@dataclass(frozen=True, slots=True)
class Invite:
    """What `overlay invite` hands out. Raises `ValueError` if a part of it cannot be right."""

    addresses: tuple[str, ...]  # of the server, best first: "203.0.113.1:443", "vpn.example.org:443"
    server_key: bytes  # X25519 public, 32 bytes
    secret: bytes = field(repr=False)
    domain: str  # of the network, for show before anything is believed
    pin: bytes = b""  # SHA-256 of the server certificate's public key; empty: not pinned

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ValueError("an invite without a server address")
        for address in self.addresses:
            parse_server_address(address)
        if len(self.server_key) != KEY_SIZE:
            raise ValueError(f"a server key of {len(self.server_key)} bytes")
        if len(self.secret) < SECRET_SIZE:
            raise ValueError(f"a secret of {len(self.secret)} bytes")
        if self.pin and len(self.pin) != PIN_SIZE:
            raise ValueError(f"a pin of {len(self.pin)} bytes")
        if len(self.encode()) > MAX_TEXT:
            raise ValueError(f"an invite of more than {MAX_TEXT} characters")

    def encode(self) -> str:
        """The one string that carries it."""
        parts = (self.addresses, self.server_key, self.secret, self.domain)
        body = _encoder.encode(_Body(*parts, self.pin) if self.pin else _OldBody(*parts))
        return PREFIX + _to_base64(body + hash_(body)[:CHECKSUM_SIZE])

    @classmethod
    def parse(cls, text: str) -> "Invite":
        """The inverse of `encode`; white space, also inside (a line that was wrapped), does not matter.

        Raises `UserError` with exit code 4: `invite-truncated`, `invite-malformed`, `invite-version`.
        """
        text = "".join(text[: 2 * MAX_TEXT].split())
        if not text.startswith(PREFIX):
            raise _not_an_invite(text)
        encoded = text.removeprefix(PREFIX)
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise _damaged(encoded) from error
        body, checksum = data[:-CHECKSUM_SIZE], data[-CHECKSUM_SIZE:]
        # Bits that base64 leaves over would let two texts mean one invite.
        if _to_base64(data) != encoded or hash_(body)[:CHECKSUM_SIZE] != checksum or len(text) > MAX_TEXT:
            raise _damaged(encoded)
        try:
            return cls(**msgspec.structs.asdict(_decoder.decode(body)))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise UserError(
                "invite-malformed", "This invite does not hold what an invite must hold.", _HINT_NEW, Exit.REFUSED
            ) from error


def _to_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _not_an_invite(text: str) -> UserError:
    if not text:
        return UserError("invite-truncated", "The invite is empty.", _HINT_COPY, Exit.REFUSED)
    if PREFIX.startswith(text):
        return UserError("invite-truncated", "This invite ends too early.", _HINT_COPY, Exit.REFUSED)
    if re.match(r"ov[0-9]{1,3}_", text):
        return UserError(
            "invite-version",
            f"This program reads invites that start with '{PREFIX}'; this one is of another kind.",
            "Install the version of overlay that the server has.",
            Exit.REFUSED,
        )
    return UserError(
        "invite-malformed", f"That is not an invite: an invite starts with '{PREFIX}'.", _HINT_COPY, Exit.REFUSED
    )


def _damaged(encoded: str) -> UserError:
    """Say that the end is missing where the body itself says that it goes on; else that something was changed."""
    whole_bytes = encoded[: len(encoded) // 4 * 4]
    try:
        msgspec.msgpack.decode(base64.b64decode(whole_bytes, altchars=b"-_", validate=True), type=_Body)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError) as error:
        if "truncated" in str(error):
            return UserError("invite-truncated", "This invite ends too early.", _HINT_COPY, Exit.REFUSED)
    return UserError(
        "invite-malformed", "This invite is damaged: characters of it were changed or lost.", _HINT_COPY, Exit.REFUSED
    )
