"""The choice of the path to one peer. Sans-I/O: it hears what was sent and received and says whom to ping.

It knows no packet, key or socket: whoever calls it has authenticated what it reports, and sends the pings. The relay,
where there is one, carries from the first packet on. While data flows, the peer's candidates are asked; one that
answers a ping with a fresh transaction id is proven, and the best proven one is used. On the path in use a ping goes
out four times a second while data is sent (`pace`: more rarely where very many peers talk): data that comes in cannot
prove the way out. A path that leaves those
unanswered is left before a second is over, and rests. Pairs without data for 45 s send nothing and need no timer;
what they knew is proven anew with the next packet, which meanwhile goes over the relay. Without a relay and without a
better way the last path is kept.

While data flows and no direct path by UDP carries it, the peer is called through the relay, so that both sides ask each
other's endpoints at once and their NATs let the answers in; and TCP is asked for, besides.

Calls and their order: report (`data_sent`, `…_received`, `set_…`, `link_changed`, `handle_timeout`), then drain
`pings_to_send`, `call_due` and `events`, then ask `next_timeout`. Datagrams that already arrived come before
`handle_timeout`, lest a late wake-up looks like a silent path.
"""

from collections.abc import Callable, Iterable
from itertools import islice

from overlay.path import timing
from overlay.path.budget import Budget
from overlay.path.candidate import Candidate
from overlay.path.pace import Pace
from overlay.path.strangers import Strangers
from overlay.path.types import RELAY_PATH, CandidateState, Origin, Path, PathChanged, PathEvent, PathKind, WantTcp
from overlay.wire.endpoint import Endpoint

NEVER = float("inf")


class Selector:
    """The paths to one peer. Times in s, monotonic, never going back; `random_bytes(n)` gives n unguessable bytes."""

    def __init__(
        self,
        *,
        relay: bool,
        random_bytes: Callable[[int], bytes],
        node_budget: Budget | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`node_budget`: of pings to candidates of all peers; None: this one's own is bound enough. `pace`: of pings on
        the paths in use, those of all peers; None: this one has its own."""
        self.path: Path | None = RELAY_PATH if relay else None
        """Where data goes now; None: nowhere yet (report `data_sent` all the same, it starts the search)."""
        self.doubtful = False
        """Does the path in use owe an answer for longer than it should? What goes by it may be lost."""
        self.observed: Endpoint | None = None
        """Our own endpoint as the peer last saw it."""
        self._relay = relay
        self._random_bytes = random_bytes
        self._candidates: dict[Endpoint, Candidate] = {}
        self._current: Candidate | None = None  # that of `path`; None for the relay
        self._chosen_at = 0.0
        self._last_data = float("-inf")  # either way
        self._last_sent = float("-inf")
        self._liveness_due = NEVER  # when data_sent has to ping; NEVER if no live direct path is in use
        self._timeout = NEVER
        self._budget = Budget(timing.PROBE_RATE, timing.PROBE_BURST)
        self._pace = pace if pace is not None else Pace()
        self._node_budget = node_budget or Budget(timing.NODE_RATE, timing.NODE_BURST)
        self._strangers = Strangers()
        self._from_map: dict[Endpoint, PathKind] = {}
        self._offered: dict[Endpoint, tuple[PathKind, Origin]] = {}
        self._links: dict[Endpoint, Path] = {}
        self._link_worked = float("-inf")  # when one that is gone answered last
        self._looking_until = float("-inf")  # the peer called: its endpoints are asked though no data flows here
        self._crowded_until = float("-inf")  # the node's budget has no room
        self._call_due = NEVER
        self._call_now = False
        self._calls = 0  # since somebody had a reason to begin anew
        self._tcp_due = NEVER
        self._pings: list[tuple[Endpoint, bytes]] = []
        self._events: list[PathEvent] = []

    @property
    def rtt(self) -> float | None:
        """Smoothed round trip of the direct path in use, s; None on the relay, or before the first answer."""
        return self._current.rtt if self._current is not None else None

    @property
    def last_data(self) -> float:
        """When data went last, either way, s."""
        return self._last_data

    def proven(self, source: Endpoint) -> bool:
        """Has this endpoint answered one of our pings, or carried what the session authenticated?"""
        candidate = self._candidates.get(source)
        return candidate is not None and candidate.proven

    def trusts(self, endpoint: Endpoint, now: float) -> bool:
        """Has it answered a moment ago?"""
        candidate = self._candidates.get(endpoint)
        return candidate is not None and candidate.trusted(now)

    # --- what the caller reports --------------------------------------------------------------------------------------

    def data_sent(self, now: float) -> None:
        """A packet (or a batch) of data was sent to the peer, or would have been if `path` were not None."""
        woken = now >= self._last_data + timing.ACTIVE
        self._last_data = self._last_sent = now
        if woken:
            self._wake(now)
        elif now >= self._liveness_due:
            self._work(now)
        elif self._liveness_due < self._timeout:
            self._timeout = self._liveness_due

    def data_received(self, source: Endpoint | None, now: float, *, empty: bool = False) -> None:
        """The session authenticated a message that came from `source` (None: through the relay).

        `empty`: it carried no packet (keepalive, handshake); that proves the source but makes no pair active.
        """
        if source is not None:
            candidate = self._candidates.get(source)
            if candidate is None:
                candidate = self._learn(source, now)
                self._work(now)
            candidate.proven = True
            candidate.heard = now
        if not empty:
            woken = not self.active(now)
            self._last_data = now
            if woken:
                self._wake(now)

    def ping_received(self, source: Endpoint, now: float) -> None:
        """An authentic disco ping came directly from `source` (it may be a replay): a candidate from now on."""
        candidate = self._candidates.get(source)
        if candidate is None:
            candidate = self._learn(source, now)
        candidate.heard = now
        if not candidate.trusted(now) and now >= candidate.resting_until:
            # Its way in is open: now is the best time to ask, also for a pair that is quiet on our side, so that the
            # source is proven before the peer's data comes from there.
            spaced = now - candidate.last_ping >= timing.MIN_INTERVAL
            if spaced and self._may_ping(candidate, now, at_once=True) and self._budget.take(now):
                candidate.silent_pings = 0
                self._ping(candidate, now)
            self._schedule(now)

    def pong_received(self, source: Endpoint, txid: bytes, observed: Endpoint, now: float) -> bool:
        """An authentic pong came directly from `source`. False, and nothing changed, if no ping of ours asked for
        it."""
        candidate = self._candidates.get(source)
        if candidate is None or not candidate.pong(txid, now):
            return False
        if source not in self._links:
            self.observed = observed
        self._choose(now)
        self._schedule(now)
        return True

    def set_relay(self, available: bool, now: float) -> None:
        """A relay that answers is there, or is not."""
        self._relay = available
        self._choose(now)
        self._schedule(now)

    def set_candidates(self, endpoints: Iterable[Endpoint], lan: Iterable[Endpoint], now: float) -> None:
        """What the network map says of the peer; replaces what it said before. `lan`: those on the peer's
        interfaces."""
        kinds: dict[Endpoint, PathKind] = dict.fromkeys(lan, "lan")
        for endpoint in endpoints:
            kinds.setdefault(endpoint, "udp")
        self._from_map = dict(islice(kinds.items(), timing.MAX_ADVERTISED))
        self._advertise(now)
        self._work(now)

    def add_link(self, endpoint: Endpoint, shown: Endpoint, now: float) -> None:
        """A connection that may lead to the peer is there: a candidate like others, until `remove_link`. `shown`: its
        other end."""
        self._links[endpoint] = path = Path("tcp", endpoint, shown)
        candidate = self._candidates[endpoint] = Candidate(endpoint, "tcp", "punched", now)
        candidate.path = path
        self._ping(candidate, now)  # also for a pair that is quiet on our side: the peer's data may come by it
        self._work(now)

    def remove_link(self, endpoint: Endpoint, now: float) -> None:
        """The connection is gone."""
        self._links.pop(endpoint, None)
        candidate = self._candidates.pop(endpoint, None)
        if candidate is None:
            return
        if candidate.last_answer is not None:
            self._link_worked = max(self._link_worked, candidate.last_answer)
        if candidate is self._current:
            self._current = None
            for other in self._candidates.values():
                if not other.trusted(now):
                    other.ask_anew(now)
            self._choose(now)
        if candidate.proven:
            self._calls = 0
            self._call_due = now
            self._tcp_due = NEVER
        self._work(now)

    def has_link(self, endpoint: Endpoint) -> bool:
        """Is this one of the peer's links?"""
        return endpoint in self._links

    def called(self, offers: Iterable[tuple[Endpoint, Origin]], start: float, now: float) -> None:
        """The peer called, or answered our call: these are its endpoints now, and it asks ours from `start` on (s, same
        clock as `now`). They replace those that it offered before."""
        listed: dict[Endpoint, tuple[PathKind, Origin]] = {}
        for endpoint, origin in offers:
            listed.setdefault(endpoint, ("lan" if origin == "interface" else "udp", origin))
        self._offered = dict(islice(listed.items(), timing.MAX_OFFERED))
        self._looking_until = max(self._looking_until, start + timing.CALLED)
        self._advertise(now)
        for candidate in self._candidates.values():
            if candidate.endpoint in self._offered and not candidate.trusted(now):
                candidate.ask_anew(max(start, now))
        self._work(now)

    def punched(self, source: Endpoint, asked_at: float, now: float) -> None:
        """A probe that was sent to one of many endpoints was answered from there: take it as a candidate that has
        answered."""
        candidate = self._candidates.get(source) or self._learn(source, now)
        txid = candidate.ping(asked_at, self._random_bytes)
        candidate.pong(txid, now)
        self._choose(now)
        self._schedule(now)

    def call_anew(self, now: float) -> None:
        """Our own endpoints are others now: the peer should hear of it soon, if it matters."""
        self._calls = 0
        self._call_due = now if self.wants_call(now) else NEVER
        self._work(now)

    def _advertise(self, now: float) -> None:
        """Have the candidates that the map and the peer name, and no others that never were of use."""
        advertised: dict[Endpoint, tuple[PathKind, Origin]] = dict(self._offered)
        for endpoint, kind in self._from_map.items():
            if endpoint not in advertised or kind == "lan":
                advertised[endpoint] = (kind, "map")
        for link in self._links:
            advertised[link] = ("tcp", "punched")
        for candidate in self._candidates.values():
            candidate.advertised = candidate.endpoint in advertised
        for endpoint, (kind, origin) in advertised.items():
            known = self._candidates.get(endpoint)
            if known is None:
                self._candidates[endpoint] = Candidate(endpoint, kind, origin, now)
                continue
            known.origin = origin
            if known.path.kind != kind:
                known.path = Path(kind, endpoint)
                if known is self._current:
                    self._use(known, known.path, now)
        for candidate in list(self._candidates.values()):
            if not candidate.advertised and not candidate.proven and candidate is not self._current:
                del self._candidates[candidate.endpoint]
        self._forget(now)
        self._make_room(timing.MAX_LEARNED)
        self._choose(now)

    def link_changed(self, now: float) -> None:
        """Our addresses or routes changed: every path is proven anew. Who is behind an endpoint stays known."""
        for candidate in self._candidates.values():
            candidate.doubt()
            candidate.rtt = None
            candidate.falls = 0
            candidate.resting_until = float("-inf")
            candidate.ask_anew(now)
        self._calls = 0
        self._call_due = now
        self._choose(now)
        self._work(now)

    def handle_timeout(self, now: float) -> None:
        """To be called at `next_timeout`; earlier or later does no harm."""
        self._work(now)

    # --- what the caller drains ---------------------------------------------------------------------------------------

    def pings_to_send(self) -> list[tuple[Endpoint, bytes]]:
        """Endpoints to ping now, each with the transaction id to use."""
        pings, self._pings = self._pings, []
        return pings

    def call_due(self) -> bool:
        """Is the peer to be called now? Asking counts as doing it."""
        due, self._call_now = self._call_now, False
        return due

    def events(self) -> list[PathEvent]:
        events, self._events = self._events, []
        return events

    def next_timeout(self) -> float | None:
        """When `handle_timeout` is to be called; None: not before something else happens."""
        return None if self._timeout == NEVER else self._timeout

    def wants_call(self, now: float) -> bool:
        """Does data flow that no direct path by UDP carries, or only one that the map knew of? There may be a LAN, of
        which only the peer itself tells. Calls go through the relay."""
        known = self._direct(now) and (bool(self._offered) or self.path is None or self.path.kind == "lan")
        return self._relay and self.active(now) and not known

    # --- the work -----------------------------------------------------------------------------------------------------

    def active(self, now: float) -> bool:
        """Does data flow, or did it a moment ago?"""
        return now < self._last_data + timing.ACTIVE

    def _wake(self, now: float) -> None:
        """First data after a silence: what was known is old, ask everybody."""
        self._forget(now)
        for candidate in self._candidates.values():
            if not candidate.trusted(now):
                candidate.ask_anew(now)
        self._calls = 0
        self._call_due = now
        self._work(now)

    def _work(self, now: float) -> None:
        """Leave what is dead, ask whom it is time to ask, and note when to look again."""
        current = self._current
        if current is not None and current.last_pong is not None:
            if self._dead(current, now):
                self._leave(current, now)
            elif not current.trusted(now):
                current.doubt()
                current.ask_anew(now)
                self._choose(now)
            elif now >= self._path_ping_due(current, now):
                if self._last_sent > current.last_ping:
                    self._pace.pinged(now)
                self._ping(current, now)
        if self._asks(now):
            for candidate in self._due(now):
                if not self._may_ping(candidate, now):
                    if now < self._crowded_until:
                        break  # one wake-up for all of them
                    continue
                if not self._budget.take(now):
                    break
                self._ping(candidate, now)
        self._call(now)
        self._schedule(now)

    def _asks(self, now: float) -> bool:
        """Are candidates asked now: because data flows, or because the peer called?"""
        return self.active(now) or now < self._looking_until

    def _may_ping(self, candidate: Candidate, now: float, *, at_once: bool = False) -> bool:
        """Within what an endpoint without any answer gets, and all candidates of this node together? If not, the
        candidate's turn comes later. `at_once`: it does not wait with the peer's others until there is room."""
        if not candidate.proven:
            later = self._strangers.next_ping(candidate.endpoint, now)
            if later > now:
                candidate.next_ping = max(candidate.next_ping, later)
                return False
        if now < self._crowded_until and not at_once:
            return False
        if not self._node_budget.take(now):
            first, last = timing.CROWDED
            self._crowded_until = now + first + (last - first) * int.from_bytes(self._random_bytes(2)) / 65536
            return False
        if not candidate.proven:
            self._strangers.pinged(candidate.endpoint, now)
        return True

    def _direct(self, now: float) -> bool:
        """Does UDP carry data to the peer itself?"""
        current = self._current
        return current is not None and current.trusted(now) and current.path.kind in ("lan", "udp")

    def _call(self, now: float) -> None:
        """Call the peer when it is time, and ask for TCP when UDP had its time."""
        if not self.wants_call(now):
            self._call_due = self._tcp_due = NEVER
            return
        if now >= self._call_due or self._call_due == NEVER:
            worked = any(candidate.worked(now) for candidate in self._candidates.values())
            worked = worked or now < self._link_worked + timing.RECENTLY
            pause = timing.CUE_PAUSES[min(self._calls, len(timing.CUE_PAUSES) - 1)]
            self._call_due = now + (min(pause, timing.CUE_AGAIN) if worked else pause)
            self._calls += 1
            self._call_now = True
            if self._tcp_due == NEVER:
                self._tcp_due = now + timing.UDP_PATIENCE
        if self._direct(now):
            self._tcp_due = NEVER
        if now >= self._tcp_due:
            self._tcp_due = self._call_due + timing.UDP_PATIENCE
            if self._current is None or not self._current.trusted(now):
                self._events.append(WantTcp(now))  # else it is TCP that carries

    def _due(self, now: float) -> list[Candidate]:
        due = [candidate for candidate in self._candidates.values() if self._probe_due(candidate, now) <= now]
        # Who was never asked first: there may be more to ask than the budget has room for, and who did not answer may
        # go on not to. Of them predicted ones first, in their order: each new destination takes the next port of a NAT
        # that counts. So the first that we ask is asked from the first where the peer expects us.
        return sorted(due, key=lambda each: (each.pings > 0, each.origin != "predicted", timing.RANK[each.path.kind]))

    def _probe_due(self, candidate: Candidate, now: float) -> float:
        """When to ask this one, as a candidate, while the pair is active."""
        current = self._current
        if current is not None and current.trusted(now):
            good = current.path.kind == "lan" and current.rtt is not None and current.rtt <= timing.GOOD_ENOUGH
            if candidate is current or good:
                return NEVER
        return candidate.next_ping

    def _ping(self, candidate: Candidate, now: float) -> None:
        self._pings.append((candidate.endpoint, candidate.ping(now, self._random_bytes)))

    # --- the path in use ----------------------------------------------------------------------------------------------

    def _path_ping_due(self, current: Candidate, now: float) -> float:
        due = NEVER
        if self._last_sent > current.last_ping:
            due = current.last_ping + self._pace.interval
        elif self.active(now):
            due = current.last_ping + timing.HEARTBEAT
        return min(due, max(self._overdue(current), current.last_ping + timing.RETRY))

    def _overdue(self, current: Candidate) -> float:
        """From when on an answer should have come."""
        oldest = current.oldest_unanswered
        return NEVER if oldest is None else oldest + max(timing.LIVENESS, 1.5 * (current.rtt or 0.0) + 0.05)

    def _patience(self, current: Candidate) -> float:
        return max(timing.PATIENCE, 2.0 * (current.rtt or 0.0))

    def _dead(self, current: Candidate, now: float) -> bool:
        oldest = current.oldest_unanswered
        return (
            oldest is not None
            and now >= oldest + self._patience(current)
            and len(current.outstanding) >= timing.MIN_UNANSWERED
        )

    def _leave(self, dead: Candidate, now: float) -> None:
        dead.rest(now - self._chosen_at, now)
        for candidate in self._candidates.values():
            if candidate is not dead and not candidate.trusted(now):
                candidate.ask_anew(now)
        self._choose(now)

    def _choose(self, now: float) -> None:
        """Take the best proven path; else the relay; else keep what there is; else what last worked."""
        current = self._current
        best = min(
            (candidate for candidate in self._candidates.values() if candidate.trusted(now)),
            key=lambda candidate: (timing.RANK[candidate.path.kind], candidate.rtt or 0.0),
            default=None,
        )
        if best is not None:
            if current is None or not current.trusted(now) or self._better(best, current):
                self._use(best, best.path, now)
        elif self._relay:
            self._use(None, RELAY_PATH, now)
        elif current is None:
            last = max((c for c in self._candidates.values() if c.proven), key=lambda c: c.heard, default=None)
            self._use(last, last.path if last is not None else None, now)

    @staticmethod
    def _better(new: Candidate, old: Candidate) -> bool:
        new_rank, old_rank = timing.RANK[new.path.kind], timing.RANK[old.path.kind]
        if new is old or new_rank != old_rank or new.rtt is None or old.rtt is None:
            return new_rank < old_rank
        return new.rtt < old.rtt * timing.BETTER_RATIO and old.rtt - new.rtt >= timing.BETTER_BY

    def _use(self, candidate: Candidate | None, path: Path | None, now: float) -> None:
        if candidate is not self._current:
            self._current = candidate
            self._chosen_at = now
        if path != self.path:
            self.path = path
            self._events.append(PathChanged(path, now))

    # --- what is kept -------------------------------------------------------------------------------------------------

    def _learn(self, source: Endpoint, now: float) -> Candidate:
        self._make_room(timing.MAX_LEARNED - 1)
        candidate = Candidate(source, "udp", "seen", now)
        self._candidates[source] = candidate
        return candidate

    def _make_room(self, learned: int) -> None:
        """Keep at most so many learnt candidates."""
        kept = [candidate for candidate in self._candidates.values() if not candidate.advertised]
        # Who is unproven goes first: replayed pings from made-up sources must not push the peer's real ones out.
        kept.sort(key=lambda candidate: (candidate is self._current, candidate.proven, candidate.heard))
        for victim in kept[: max(0, len(kept) - learned)]:
            del self._candidates[victim.endpoint]

    def _forget(self, now: float) -> None:
        for candidate in list(self._candidates.values()):
            kept = candidate.advertised or candidate is self._current or candidate.trusted(now)
            if not kept and now - candidate.heard >= timing.LEARNED_LIFE:
                del self._candidates[candidate.endpoint]

    def _schedule(self, now: float) -> None:
        """Note when the next thing is due. Runs after every change, so that asking for the timeout costs nothing."""
        timeout = NEVER
        self._liveness_due = NEVER
        current = self._current
        self.doubtful = current is not None and now >= self._overdue(current)
        if current is not None and current.trusted(now):
            self._liveness_due = current.last_ping + self._pace.interval
            timeout = self._path_ping_due(current, now)
            oldest = current.oldest_unanswered
            if oldest is not None and len(current.outstanding) >= timing.MIN_UNANSWERED:
                timeout = min(timeout, oldest + self._patience(current))
            if self._relay and current.last_pong is not None:
                timeout = min(timeout, current.last_pong + timing.TRUST)
        if self._asks(now):
            probe = min((self._probe_due(c, now) for c in self._candidates.values()), default=NEVER)
            if probe != NEVER and (self.active(now) or probe < self._looking_until):
                timeout = min(timeout, max(probe, self._budget.available_at(now), self._crowded_until))
        self._timeout = min(timeout, self._call_due, self._tcp_due)

    # --- for who asks why ---------------------------------------------------------------------------------------------

    def candidates(self, now: float) -> tuple[CandidateState, ...]:
        """All that are known of the peer, best kind first."""
        found = sorted(self._candidates.values(), key=lambda each: timing.RANK[each.path.kind])
        return tuple(self._state(candidate, now) for candidate in found)

    @property
    def next_call(self) -> float | None:
        """When the peer is called next, s; None: it is not."""
        return None if self._call_due == NEVER else self._call_due

    def _state(self, candidate: Candidate, now: float) -> CandidateState:
        next_try = self._probe_due(candidate, now) if self._asks(now) else NEVER
        return CandidateState(
            endpoint=candidate.path.shown or candidate.endpoint,
            kind=candidate.path.kind,
            origin=candidate.origin,
            state="in use"
            if candidate is self._current and candidate.trusted(now)
            else "proven"
            if candidate.trusted(now)
            else "resting"
            if now < candidate.resting_until
            else "waiting"
            if not candidate.pings
            else "asked"
            if candidate.outstanding and now - candidate.last_ping < timing.PING_LIFE
            else "silent",
            pings=candidate.pings,
            pinged=None if not candidate.pings else now - candidate.last_ping,
            answered=None if candidate.last_answer is None else now - candidate.last_answer,
            rtt=candidate.rtt,
            next_try=None if next_try == NEVER else max(0.0, next_try - now),
        )
