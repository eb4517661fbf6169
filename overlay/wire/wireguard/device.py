"""All peers of one private key: finds out for whom a handshake message is, and whether it is worth any work.

The order of the checks is the defence (paper §5.3, §5.4.7): size, mac1, and under load mac2 and the budget of the
source, before any curve arithmetic. What fails is a named drop, and leaves everything as it was. Knows no sockets:
`source` is only what a cookie is bound to.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.wireguard import handshake, messages, primitives
from overlay.wire.wireguard.cookie import CookieChecker
from overlay.wire.wireguard.indextable import IndexTable
from overlay.wire.wireguard.ratelimiter import LoadMeter, RateLimiter
from overlay.wire.wireguard.session import Local, Session


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """What became of a handshake message.

    `session`: the message was authentic and new, so its source is the peer's (roaming, paper §2.1); drain its events.
    `reply`: a datagram to send back to the source, and only there: a response, or a cookie reply with `drop` set.
    `drop`: the reason for which it was thrown away. All three None: a cookie was taken, which proves no source.
    """

    session: Session | None = None
    reply: bytes | None = field(default=None, repr=False)
    drop: str | None = None


class Device:
    """Peers by key and by index, cookies, load.

    `tai64n` is a `Timestamper`; `jitter` gives numbers in [0, 1).
    """

    def __init__(
        self,
        private_key: bytes,
        *,
        random_bytes: Callable[[int], bytes],
        tai64n: Callable[[], bytes],
        jitter: Callable[[], float],
    ) -> None:
        private_key = primitives.clamp(private_key)
        self.public_key = primitives.public_key(private_key)
        self._indices: IndexTable[Session] = IndexTable(random_bytes)
        self._local = Local(private_key, self.public_key, random_bytes, tai64n, jitter, self._indices)
        self._sessions: dict[bytes, Session] = {}
        self._cookies = CookieChecker(self.public_key, random_bytes)
        self._load = LoadMeter()
        self._limiter = RateLimiter()

    # Peers ----------------------------------------------------------------------------------------------------------

    def add_peer(
        self,
        public_key: bytes,
        preshared_key: bytes | None = None,
        persistent_keepalive: float = 0.0,
        *,
        now: float,
    ) -> Session:
        """The session with this peer. Adding a peer again changes its settings and keeps its session.

        A key of low order is taken, but its session never comes up. Raises `LocalProtocolError` for our own key and
        for keys that are not 32 bytes.
        """
        if len(public_key) != primitives.KEY_SIZE:
            raise LocalProtocolError(f"public key of {len(public_key)} bytes instead of {primitives.KEY_SIZE}")
        if public_key == self.public_key:
            raise LocalProtocolError("a peer with our own key")
        session = self._sessions.get(public_key) or Session(self._local, public_key)
        session.set_preshared_key(preshared_key)
        session.set_persistent_keepalive(persistent_keepalive, now)
        self._sessions[public_key] = session
        return session

    def remove_peer(self, public_key: bytes) -> None:
        """Forget the peer and all its secrets. Raises `LocalProtocolError` if there is none of this key."""
        session = self._sessions.pop(public_key, None)
        if session is None:
            raise LocalProtocolError("no peer has this key")
        session.close()

    def session(self, public_key: bytes) -> Session | None:
        """The session with this peer, if it was added."""
        return self._sessions.get(public_key)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def __len__(self) -> int:
        return len(self._sessions)

    # Messages -------------------------------------------------------------------------------------------------------

    def receive_handshake(
        self, datagram: bytes | bytearray | memoryview, source: bytes, now: float, *, under_load: bool = False
    ) -> HandshakeResult:
        """Take a type 1, 2 or 3. Never raises, whatever the bytes.

        `source` is the sender's address and port as 6 or 18 bytes (or any other bytes that stand for where an answer
        would arrive). Load is measured; `under_load` says that there is some whatever the measure says.
        """
        datagram = bytes(datagram)
        try:
            message = messages.parse(datagram)
            if isinstance(message, messages.CookieReply):
                self._owner(message.receiver_index).consume_cookie_reply(message, now)
                return HandshakeResult()

            if not self._cookies.check_mac1(datagram):
                raise RemoteProtocolError("bad_mac1")
            if self._load.observe(now) or under_load:
                if not self._cookies.check_mac2(datagram, source, now):
                    reply = self._cookies.reply(datagram, message.sender_index, source, now)
                    return HandshakeResult(reply=reply, drop="under_load")
                if not self._limiter.allow(source, now):
                    raise RemoteProtocolError("rate_limited")

            if isinstance(message, messages.Initiation):
                return self._receive_initiation(message, now)
            session = self._owner(message.receiver_index)
            session.consume_response(message, now)
            return HandshakeResult(session=session)
        except RemoteProtocolError as error:
            return HandshakeResult(drop=error.reason)

    def _receive_initiation(self, message: messages.Initiation, now: float) -> HandshakeResult:
        opened = handshake.open_initiation(
            message, static_private=self._local.private_key, static_public=self.public_key
        )
        session = self._sessions.get(opened.remote_static)
        if session is None:
            raise RemoteProtocolError("unknown_peer")
        return HandshakeResult(session=session, reply=session.consume_initiation(opened, now))

    def _owner(self, index: int) -> Session:
        session = self._indices.owner(index)
        if session is None:
            raise RemoteProtocolError("unknown_index")
        return session
