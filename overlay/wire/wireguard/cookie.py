"""mac1, mac2 and cookies: the cheap checks before any curve arithmetic (paper §5.3, §5.4.4, §5.4.7).

    mac1 = MAC(HASH("mac1----" ‖ receiver's public key), message up to mac1)      who knows whom it speaks to
    mac2 = MAC(cookie, message up to mac2), or zeros                              who can receive at its source

`CookieChecker` is the receiving side, one per device; `CookieJar` the sending side, one per peer.
"""

from collections.abc import Callable
from typing import Final

from overlay.wire.wireguard.constants import COOKIE_SECRET_TIME, COOKIE_TIME
from overlay.wire.wireguard.messages import MAC_SIZE, MACS_SIZE, CookieReply
from overlay.wire.wireguard.primitives import XNONCE_SIZE, equal, hash_, mac, xaead_open, xaead_seal

_LABEL_MAC1: Final = b"mac1----"
_LABEL_COOKIE: Final = b"cookie--"
_NO_MAC2: Final = bytes(MAC_SIZE)
_SECRET_SIZE: Final = 32


class CookieChecker:
    """Judges the macs of what we receive, and makes cookie replies."""

    def __init__(self, own_public: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._mac1_key = hash_(_LABEL_MAC1, own_public)
        self._cookie_key = hash_(_LABEL_COOKIE, own_public)
        self._secret = b""
        self._secret_until = float("-inf")

    def check_mac1(self, datagram: bytes) -> bool:
        """Is mac1 of a type 1 or 2 right?"""
        return equal(mac(self._mac1_key, datagram[:-MACS_SIZE]), datagram[-MACS_SIZE:-MAC_SIZE])

    def check_mac2(self, datagram: bytes, source: bytes, now: float) -> bool:
        """Does mac2 show that the sender got the cookie of this `source`?"""
        return equal(mac(self._cookie(source, now), datagram[:-MAC_SIZE]), datagram[-MAC_SIZE:])

    def reply(self, datagram: bytes, sender_index: int, source: bytes, now: float) -> bytes:
        """The cookie reply, type 3, to a type 1 or 2 with a right mac1. Smaller than what it answers."""
        nonce = self._random_bytes(XNONCE_SIZE)
        mac1 = datagram[-MACS_SIZE:-MAC_SIZE]
        box = xaead_seal(self._cookie_key, nonce, self._cookie(source, now), mac1)
        return CookieReply(sender_index, nonce, box).pack()

    def _cookie(self, source: bytes, now: float) -> bytes:
        if now >= self._secret_until:
            self._secret = self._random_bytes(_SECRET_SIZE)
            self._secret_until = now + COOKIE_SECRET_TIME
        return mac(self._secret, source)


class CookieJar:
    """Puts macs on what we send to one peer, and keeps the cookie that the peer gave us."""

    def __init__(self, remote_public: bytes) -> None:
        self._mac1_key = hash_(_LABEL_MAC1, remote_public)
        self._cookie_key = hash_(_LABEL_COOKIE, remote_public)
        self._last_mac1: bytes | None = None
        self._cookie = b""
        self._cookie_until = float("-inf")

    def add_macs(self, message: bytes, now: float) -> bytes:
        """The whole datagram of a packed `Initiation` or `Response`."""
        mac1 = mac(self._mac1_key, message)
        self._last_mac1 = mac1
        message += mac1
        return message + (mac(self._cookie, message) if now < self._cookie_until else _NO_MAC2)

    def consume(self, reply: CookieReply, now: float) -> bool:
        """Keep the cookie for the next message. False if we sent nothing that this could answer.

        Raises `RemoteProtocolError("bad_tag")`. Nothing is sent at once: the retry timer does that (paper §6.6).
        """
        if self._last_mac1 is None:
            return False
        self._cookie = xaead_open(self._cookie_key, reply.nonce, reply.cookie_box, self._last_mac1)
        self._cookie_until = now + COOKIE_TIME
        # One answer for one message: a replayed reply cannot bring an old cookie back.
        self._last_mac1 = None
        return True
