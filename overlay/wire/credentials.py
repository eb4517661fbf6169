"""What is kept of passwords and tokens: their hashes, in the one form in which they travel.

A password's hash is Argon2id's encoded form (RFC 9106 §4), and its cost is always the same: who sends hashes must not
choose what it costs to check them, and an unknown user must cost as much as a known one. Tokens are random; of them
SHA-256 is enough.
"""

import hashlib
import hmac
import re
from typing import Final

TIME_COST: Final = 2  # with the next two: OWASP's first choice for Argon2id, 20 to 40 ms
MEMORY_COST: Final = 19 * 1024  # KiB
PARALLELISM: Final = 1
SALT_SIZE: Final = 16  # bytes
HASH_SIZE: Final = 32
MOST_PASSWORD: Final = 256  # characters
_HASH: Final = re.compile(
    rf"\$argon2id\$v=19\$m={MEMORY_COST},t={TIME_COST},p={PARALLELISM}\$[A-Za-z0-9+/]{{22}}\$[A-Za-z0-9+/]{{43}}"
)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[^\x00-\x20\x7f:]{1,64}")


def is_password_hash(text: str) -> bool:
    return _HASH.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def is_user_name(text: str) -> bool:
    """As basic authentication can send it (RFC 7617 §2)."""
    return _NAME.fullmatch(text) is not None


def digest_of(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def is_token(token: str, digest: str) -> bool:
    """Whether it is the one with this digest; takes as long whether or not."""
    return hmac.compare_digest(digest_of(token.encode("utf-8", "surrogatepass")), digest)


def hash_password(password: bytes, salt: bytes) -> str:
    """`salt`: `SALT_SIZE` random bytes."""
    from argon2.low_level import Type, hash_secret  # late: nearly nothing that imports this hashes passwords

    return hash_secret(password, salt, TIME_COST, MEMORY_COST, PARALLELISM, HASH_SIZE, Type.ID).decode("ascii")


def fits_password(encoded: str, password: bytes) -> bool:
    """`encoded`: as `is_password_hash` takes it."""
    from argon2.exceptions import VerificationError
    from argon2.low_level import Type, verify_secret

    try:
        return verify_secret(encoded.encode("ascii"), password, Type.ID)
    except VerificationError:
        return False
