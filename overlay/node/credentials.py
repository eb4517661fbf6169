"""What a person gives for users of an exposure to show, in the form in which it leaves this machine: hashed."""

import secrets

from overlay.wire.credentials import (
    MOST_PASSWORD,
    SALT_SIZE,
    digest_of,
    fits_password,
    hash_password,
    is_password_hash,
    is_user_name,
)


def hashed_user(line: str) -> str:
    """`name:password`, or `name:hash` as this has made it. Raises `ValueError` with the rest of a sentence, in which
    nothing of the line is."""
    name, colon, password = line.partition(":")
    if not colon or not is_user_name(name) or not 0 < len(password) <= MOST_PASSWORD:
        raise ValueError("it is not NAME:PASSWORD")
    if is_password_hash(password):
        return line
    if password.startswith("$") and password.count("$") > 2:
        raise ValueError("the password is hashed in a way that is not known here")
    return f"{name}:{hash_password(password.encode(), secrets.token_bytes(SALT_SIZE))}"


def is_user(line: str, hashed: str) -> bool:
    """Whether `hashed` is what `hashed_user` makes of this line, or has made of it with another salt."""
    name, _, password = line.partition(":")
    known, _, encoded = hashed.partition(":")
    return name == known and (password == encoded or fits_password(encoded, password.encode()))


def hashed_token(token: str) -> str:
    return digest_of(token.encode())
