"""What is known of one endpoint of a peer: which pings are out, which came back, when to ask again. Decides nothing."""

from collections.abc import Callable

from overlay.path import timing
from overlay.path.types import TXID_SIZE, Origin, Path, PathKind
from overlay.wire.endpoint import Endpoint


class Candidate:
    """All times in s, monotonic."""

    __slots__ = (
        "advertised",
        "endpoint",
        "falls",
        "heard",
        "last_answer",
        "last_ping",
        "last_pong",
        "next_ping",
        "origin",
        "outstanding",
        "path",
        "pings",
        "proven",
        "resting_until",
        "rtt",
        "silent_pings",
    )

    def __init__(self, endpoint: Endpoint, kind: PathKind, origin: Origin, now: float) -> None:
        self.endpoint = endpoint
        self.path = Path(kind, endpoint)
        self.origin: Origin = origin
        self.advertised = origin != "seen"  # by the network map or the peer; else learnt from its datagrams
        self.pings = 0
        self.heard = now  # last sign of the peer from here
        self.proven = False  # has answered a ping, or carried what the session authenticated
        self.rtt: float | None = None  # smoothed, s
        self.outstanding: dict[bytes, float] = {}  # txid → sent, oldest first
        self.last_ping = float("-inf")
        self.last_pong: float | None = None  # None as well after it was left: only a new pong counts
        self.last_answer: float | None = None  # the same, left or not
        self.next_ping = now  # as a candidate; not for the path in use
        self.silent_pings = 0  # in a row
        self.falls = 0
        self.resting_until = float("-inf")

    def trusted(self, now: float) -> bool:
        return self.last_pong is not None and now < self.last_pong + timing.TRUST

    def worked(self, now: float) -> bool:
        """Has it answered lately, whatever became of it since?"""
        return self.last_answer is not None and now < self.last_answer + timing.RECENTLY

    @property
    def oldest_unanswered(self) -> float | None:
        """When the oldest ping that still waits for its pong was sent."""
        return next(iter(self.outstanding.values()), None)

    def ping(self, now: float, random_bytes: Callable[[int], bytes]) -> bytes:
        """Note a ping that goes out now; returns its txid."""
        for txid, sent in list(self.outstanding.items()):
            if now - sent <= timing.PING_LIFE:
                break
            del self.outstanding[txid]
        txid = random_bytes(TXID_SIZE)
        self.outstanding[txid] = now
        self.last_ping = now
        self.pings += 1
        pauses = timing.PROBE_PAUSES
        pause = pauses[min(self.silent_pings, len(pauses) - 1)]
        self.next_ping = now + (min(pause, timing.RETRY_WORKED) if self.worked(now) else pause)
        self.silent_pings += 1
        return txid

    def pong(self, txid: bytes, now: float) -> bool:
        """Take an answer in. False, and nothing changed, if no ping of ours from the last seconds asked for it."""
        sent = self.outstanding.get(txid)
        if sent is None or now - sent > timing.PING_LIFE:
            return False
        # Pings before this one are lost or overtaken; either way the path has answered since.
        self.outstanding = {other: when for other, when in self.outstanding.items() if when > sent}
        sample = now - sent
        if self.rtt is None or not self.trusted(now):
            self.rtt = sample  # the first, or the first for long: nothing to smooth it with
        else:
            self.rtt += (sample - self.rtt) / 8  # RFC 6298 §2, alpha
        self.last_pong = self.last_answer = self.heard = now
        self.proven = True
        self.silent_pings = 0
        self.next_ping = now + timing.LOOK_AGAIN
        return True

    def ask_anew(self, now: float) -> None:
        """Forget the pauses grown so far: ask at once, or when the rest is over."""
        self.silent_pings = 0
        self.next_ping = max(now, self.resting_until)

    def doubt(self) -> None:
        """No proof counts any more, nor do answers still under way."""
        self.last_pong = None
        self.outstanding.clear()

    def rest(self, served: float, now: float) -> None:
        """It fell after `served` seconds in use: leave it alone, the longer the oftener that happened."""
        if served >= timing.STABLE:
            self.falls = 0
        pause = timing.REST[min(self.falls, len(timing.REST) - 1)]
        self.falls += 1
        self.doubt()
        self.resting_until = now + pause
        self.ask_anew(now)
