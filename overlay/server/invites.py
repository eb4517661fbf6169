"""Invites: made, and redeemed by a node that registers. The secret itself is kept nowhere, only its hash.

Expiry is by the wall clock, as people mean it: a clock that jumps moves it, and nothing else depends on it.
"""

import hashlib
from collections.abc import Callable, Sequence

from overlay.errors import Exit, UserError
from overlay.server.schema import InviteRecord
from overlay.server.transaction import Transaction

DEFAULT_USES = 1
DEFAULT_EXPIRY = 24 * 3600.0  # s
MAX_USES = 100_000
MAX_EXPIRY = 10 * 365 * 24 * 3600.0  # s
MAX_TAGS = 16
MAX_TAG = 64  # characters
_SECRET_SIZE = 16  # bytes: 128 bits cannot be guessed, and the invite stays short enough to be read out
_MEMORY = 30 * 24 * 3600.0  # s; so long after its expiry an invite is still called expired, not unknown
_NEW_INVITE = "Ask for a new invite: 'overlay invite' on the server makes one."


async def make_invite(
    transaction: Transaction,
    *,
    uses: int,
    expires_in: float,
    tags: Sequence[str],
    wall: float,
    random_bytes: Callable[[int], bytes],
) -> tuple[bytes, float]:
    """Keep a new invite; returns its secret and when it expires (Unix s). Raises `UserError` ("invite-invalid")."""
    if not 1 <= uses <= MAX_USES:
        raise _invalid(f"An invite is good for 1 to {MAX_USES} nodes, not for {uses}.")
    if not 0 < expires_in <= MAX_EXPIRY:  # false for NaN too
        raise _invalid("An invite's time must be more than nothing and at most ten years.")
    if len(tags) > MAX_TAGS or not all(0 < len(tag) <= MAX_TAG and tag.isprintable() for tag in tags):
        raise _invalid(f"An invite has at most {MAX_TAGS} tags of 1 to {MAX_TAG} printable characters.")
    secret = random_bytes(_SECRET_SIZE)
    expires = wall + expires_in
    await transaction.forget_invites(wall - _MEMORY)
    await transaction.add_invite(
        InviteRecord(
            secret_hash=secret_hash(secret), uses=uses, left=uses, tags=tuple(tags), created=wall, expires=expires
        )
    )
    return secret, expires


def check_invite(invite: InviteRecord | None, used: int, wall: float) -> InviteRecord:
    """The invite, if it is good once more after `used` more uses than the registry knows of.

    Raises `UserError` (exit 4): "invite-unknown", "invite-expired", "invite-used-up".
    """
    if invite is None:
        raise UserError(
            "invite-unknown",
            "This server does not know the invite.",
            f"Was the server set up anew, or is the invite another network's? {_NEW_INVITE}",
            Exit.REFUSED,
        )
    if invite.left <= used:
        times = "once" if invite.uses == 1 else f"{invite.uses} times"
        raise UserError("invite-used-up", f"The invite was good {times} and has been used.", _NEW_INVITE, Exit.REFUSED)
    if wall >= invite.expires:
        raise UserError("invite-expired", "The invite has expired.", _NEW_INVITE, Exit.REFUSED)
    return invite


def secret_hash(secret: bytes) -> bytes:
    """BLAKE2s of a secret with 128 random bits: no salt or stretching is needed against guessing."""
    return hashlib.blake2s(secret, person=b"invite").digest()


def _invalid(message: str) -> UserError:
    return UserError("invite-invalid", message, exit_code=Exit.USAGE)
