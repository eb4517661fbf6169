"""What users of an exposure will have to show: read from files or made here, and hashed before it goes anywhere.

Secrets are in no argument, as every list of processes shows those. What is made is shown once; nobody has it later.
"""

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from overlay.errors import Exit, UserError

NEW: Final = "new"
"""In a file's place: one is made."""
USER: Final = "user"  # whose password is made
_SIZE: Final = 16  # random bytes of a secret
_LARGEST: Final = 64 * 1024  # bytes of a file
LINK: Final = "overlay-link"


@dataclass(frozen=True, slots=True)
class Made:
    """`access`: of the terms; `shown`: what was made, for the person to keep."""

    access: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    private: str = ""  # digest of the token of a private exposure; "": there is none


def make_credentials(
    *,
    users: str,
    bearer: str,
    link: bool,
    private: bool = False,
    known: Mapping[str, Any] | None = None,
    known_private: str = "",
) -> Made:
    """`users`, `bearer`: a file, "-", or `NEW`; "": none. `private`: a token for peers. `known`: `access` as it is
    already, `known_private`: the token's digest; what was made then stays, and a password that is the same keeps its
    hash. Raises `UserError` ("credentials-…", exit 2)."""
    made, known = Made(), known or {}
    if users == NEW and _names(known) == [USER]:
        made.access["users"] = known["users"]
    elif users == NEW:
        made.shown.update(user=USER, password=secrets.token_urlsafe(_SIZE))
        made.access["users"] = [_user(1, f"{USER}:{made.shown['password']}", {})]
    elif users:
        made.access["users"] = [_user(number, line, known) for number, line in _lines(users, "--users")]
    if bearer == NEW and len(known.get("bearers", ())) == 1:
        made.access["bearers"] = known["bearers"]
    elif bearer == NEW:
        made.shown["bearer"] = secrets.token_urlsafe(_SIZE)
        made.access["bearers"] = [_token(made.shown["bearer"])]
    elif bearer:
        made.access["bearers"] = [_token(line) for _, line in _lines(bearer, "--bearer")]
    if link and known.get("link"):
        made.access["link"] = known["link"]
    elif link:
        made.shown["link"] = secrets.token_urlsafe(_SIZE)
        made.access["link"] = _token(made.shown["link"])
    if private and not known_private:
        made.shown["token"] = secrets.token_urlsafe(_SIZE)
    return replace(made, private=_token(made.shown["token"]) if "token" in made.shown else known_private * private)


def with_link(url: str, secret: str) -> str:
    """What a user opens once."""
    return f"{url}?{LINK}={secret}"


def _lines(name: str, option: str) -> list[tuple[int, str]]:
    """Those that say something, with their numbers."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_LARGEST + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(_LARGEST + 1)
        text = data.decode("utf-8-sig")  # what some editors put before the first name is no part of it
    except (OSError, UnicodeDecodeError) as error:
        hint = f"Name a file that you can read, '-' for standard input, or write '{option} {NEW}' to have one made."
        raise UserError("credentials-unreadable", f"Cannot read {name}: {error}.", hint, Exit.USAGE) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines or len(data) > _LARGEST:
        why = "says nothing" if not lines else "is too large"
        raise UserError("credentials-empty", f"The file {name} of {option} {why}.", "One a line.", Exit.USAGE)
    return lines


def _names(known: Mapping[str, Any]) -> list[str]:
    return [each.partition(":")[0] for each in known.get("users", ())]


def _user(number: int, line: str, known: Mapping[str, Any]) -> str:
    from overlay.node.credentials import hashed_user, is_user

    for each in known.get("users", ()):
        if is_user(line, each):
            return str(each)
    try:
        return hashed_user(line)
    except ValueError as error:  # the line itself is a secret
        hint = "One user a line, as in anna:secret; the password may also be a hash that this program has made."
        message = f"Line {number} of the users is no user: {error}."
        raise UserError("credentials-invalid", message, hint, Exit.USAGE) from error


def _token(token: str) -> str:
    from overlay.node.credentials import hashed_token

    return hashed_token(token)
