"""What users show by http: a password, a bearer token, or the cookie of a secret link. Any that is set suffices.

What was good is remembered for a while, so that the next request costs nothing; a try costs the address that makes it
one of few, before anything is computed, and what many requests show at the same time is one try. What was shown to us
is not passed on to the target; nor is the cookie of another exposure's link, which browsers send along to all that is
below its path, whoever serves that.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import anyio

from overlay.server.access.passwords import Passwords, TooBusy
from overlay.server.access.rates import Rates
from overlay.wire.control.terms import Access
from overlay.wire.credentials import MOST_PASSWORD, digest_of
from overlay.wire.ingress.http1 import Fields, RequestHead

TRIES: Final = 10  # of one address at once
TRIES_PERIOD: Final = 60.0  # s for so many more
REMEMBERED_FOR: Final = 600.0  # s that what was good is not looked at again
MOST_REMEMBERED: Final = 1024
LINK: Final = b"overlay-link"  # the parameter in a secret link's query
_COOKIE: Final = b"overlay-x"  # how the names of links' cookies begin, before the number of the exposure
_SECRET: Final = re.compile(rf"([?&]{LINK.decode()}=)[^&]*")
COOKIE_AGE: Final = 30 * 24 * 3600  # s

Kind = Literal["basic", "bearer"]


@dataclass(frozen=True, eq=False, slots=True)
class Asker:
    """Who comes by one connection, with however many requests: from where, and whether nobody could read along."""

    source: str  # address
    secure: bool
    begun: set[str] = field(default_factory=set)  # the exposures that they were for, by id


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request is answered instead of reaching the target. `reason` names the drop counter; "": it is none."""

    status: int
    reason: str
    fields: tuple[str, ...] = ()  # of the answer


class Desk:
    """What all exposures of a server have in common here."""

    def __init__(self) -> None:
        self.passwords = Passwords()
        self.tries = Rates(TRIES, TRIES_PERIOD)


@dataclass(frozen=True, slots=True)
class _Shown:
    kind: Kind
    value: bytes


@dataclass(eq=False)
class _Look:
    """At what somebody shows, for all who show the same meanwhile."""

    over: anyio.Event = field(default_factory=anyio.Event)
    outcome: tuple[Reply | None] | None = None  # None: who looked was cut off


class Credentials:
    """Of one exposure, which `access` has some for."""

    def __init__(self, access: Access, name: str, path: str, desk: Desk) -> None:
        """`path`: below which the cookie counts."""
        self._users = dict(user.split(":", 1) for user in access.users)
        self._bearers = access.bearers
        self._link = access.link
        self._cookie = f"overlay-{name}".encode()
        self._path = path.rstrip("/") or "/"
        self._desk = desk
        self._key = secrets.token_bytes(32)
        self._good: OrderedDict[bytes, float] = OrderedDict()  # keyed hash of what was shown → until when
        self._looks: dict[bytes, _Look] = {}  # under way, by the same
        self._challenges = (
            *([f'WWW-Authenticate: Basic realm="{name}", charset="UTF-8"'] if self._users else ()),
            *([f'WWW-Authenticate: Bearer realm="{name}"'] if self._bearers else ()),
        )

    async def admit(self, request: RequestHead, asker: Asker, now: float) -> RequestHead | Reply:
        """→ the request without what was shown, or what it is answered."""
        stripped = without_link_cookies(request)
        opened = self._opened(request) if self._link else None
        if opened is not None and self._is_link(opened[0]):
            if request.method in (b"GET", b"HEAD"):
                return self._welcome(*opened, asker)
            return replace(stripped, target=opened[1])
        if self._link and any(map(self._is_link, self._cookies(request))):
            return stripped
        authorization = self._authorization(request)
        if authorization is None:
            return self._refusal("no_credentials")
        if reply := await self._check(authorization, asker, now):
            return reply
        return replace(stripped, fields=_without(stripped.fields, b"authorization"))

    async def _check(self, shown: _Shown, asker: Asker, now: float) -> Reply | None:
        """→ None: it is good."""
        mark = hashlib.blake2s(shown.value, key=self._key, person=shown.kind.encode()).digest()
        while True:
            if self._good.get(mark, 0.0) > now:
                return None
            look = self._looks.get(mark)
            if look is None:
                break
            await look.over.wait()
            if look.outcome is not None:
                return look.outcome[0]
        wait = self._desk.tries.take(asker.source, now)
        if wait:
            return Reply(429, "too_many_tries", (f"Retry-After: {int(wait) + 1}",))
        look = self._looks[mark] = _Look()
        try:
            reply = await self._look(shown, asker)
            if reply is None:
                self._remember(mark, now + REMEMBERED_FOR)
            look.outcome = (reply,)
            return reply
        finally:
            del self._looks[mark]
            look.over.set()

    async def _look(self, shown: _Shown, asker: Asker) -> Reply | None:
        """→ None: it is good, and no try."""
        try:
            good = await self._fits(shown)
        except TooBusy:
            self._desk.tries.put_back(asker.source)
            return Reply(503, "passwords_busy", ("Retry-After: 5",))
        if not good:
            return self._refusal("bad_credentials")
        self._desk.tries.put_back(asker.source)
        return None

    def _remember(self, mark: bytes, until: float) -> None:
        self._good[mark] = until
        self._good.move_to_end(mark)
        if len(self._good) > MOST_REMEMBERED:
            self._good.popitem(last=False)

    async def _fits(self, shown: _Shown) -> bool:
        if shown.kind == "basic":
            try:
                name, _, password = base64.b64decode(shown.value, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                return False
            if len(password) > MOST_PASSWORD:
                return False
            return await self._desk.passwords.fits(self._users.get(name), password)
        digest = digest_of(shown.value)
        return sum(hmac.compare_digest(digest, each) for each in self._bearers) > 0  # all are compared

    def _authorization(self, request: RequestHead) -> _Shown | None:
        found = [value for name, value in request.fields if name.lower() == b"authorization"]
        if len(found) != 1:
            return None
        scheme, _, value = found[0].partition(b" ")
        value = value.strip(b" ")
        match scheme.lower():
            case b"basic" if self._users and value:
                return _Shown("basic", value)
            case b"bearer" if self._bearers and value:
                return _Shown("bearer", value)
        return None

    # the secret link

    def _is_link(self, secret: bytes) -> bool:
        """Tries are not counted: what we have made at random is not found by trying."""
        return hmac.compare_digest(digest_of(secret), self._link)

    def _opened(self, request: RequestHead) -> tuple[bytes, bytes] | None:
        """What the link has in it, and the target without that."""
        path, _, query = request.target.partition(b"?")
        parameters = query.split(b"&") if query else []
        values = [each.partition(b"=")[2] for each in parameters if each.partition(b"=")[0] == LINK]
        if not values:
            return None
        left = b"&".join(each for each in parameters if each.partition(b"=")[0] != LINK)
        return values[0], path + (b"?" + left if left else b"")

    def _welcome(self, secret: bytes, target: bytes, asker: Asker) -> Reply:
        place = "/" + target.decode("ascii").lstrip("/\\")  # browsers take two slashes for the start of a host
        cookie = f"{self._cookie.decode()}={secret.decode('ascii')}; Path={self._path}; Max-Age={COOKIE_AGE}"
        fields = (
            f"Location: {place}",
            f"Set-Cookie: {cookie}; HttpOnly; SameSite=Lax{'; Secure' if asker.secure else ''}",
            "Referrer-Policy: no-referrer",
            "Cache-Control: no-store",
        )
        return Reply(303, "", fields)

    def _cookies(self, request: RequestHead) -> list[bytes]:
        """What the link's cookie says: one value, unless somebody tries."""
        found = [
            value
            for name, field in request.fields
            if name.lower() == b"cookie"
            for cookie, _, value in (each.strip(b" ").partition(b"=") for each in field.split(b";"))
            if cookie == self._cookie
        ]
        return found[:1]

    def _refusal(self, reason: str) -> Reply:
        """401 needs a challenge (RFC 9110 §15.5.2), and a link has none."""
        return Reply(401 if self._challenges else 403, reason, self._challenges)


def without_link_cookies(request: RequestHead) -> RequestHead:
    """Of all exposures: those of the same host are sent here, too, and whoever is behind this one must not get them."""
    if not any(_COOKIE in value and name.lower() == b"cookie" for name, value in request.fields):
        return request
    fields = []
    for name, value in request.fields:
        if name.lower() == b"cookie":
            kept = [each.strip(b" ") for each in value.split(b";") if not _is_links(each)]
            if not kept:
                continue
            value = b"; ".join(kept)
        fields.append((name, value))
    return replace(request, fields=tuple(fields))


def _is_links(pair: bytes) -> bool:
    name = pair.strip(b" ").partition(b"=")[0]
    return name.startswith(_COOKIE) and name[len(_COOKIE) :].isdigit()


def without_secret(target: str) -> str:
    """A request's target for a log."""
    return _SECRET.sub(r"\1…", target)


def _without(fields: Fields, name: bytes) -> Fields:
    return tuple(field for field in fields if field[0].lower() != name)
