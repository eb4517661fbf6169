"""The node's end of the single tunnel: what arrives from the server on the overlay address goes to the targets.

For each exposure this node listens at a port of its overlay address. Only the server may connect: the engine vouches
for inner source addresses, so the source decides. One with names of its own is open to peers, too, at its public port.
A target is what a person on this machine asked for and is kept here: the server can take an exposure away, but can
neither make one nor lead one elsewhere.
"""

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from overlay.carrier.port import Stream
from overlay.carrier.secured import secure_from
from overlay.carrier.streams import OverTcp
from overlay.daemon.localapi import Produce
from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.node import ranges
from overlay.node.control import Answer
from overlay.node.direct_end import DirectEnd
from overlay.node.direct_ends import DirectEnds
from overlay.node.guests import Guests
from overlay.node.health import Checks, say_nothing
from overlay.node.inspector.inspector import Inspector
from overlay.node.kept import (
    FILE,
    UNFINISHED,
    Kept,
    KeptFile,
    agree,
    asked,
    check_circle,
    granted,
    host_of,
    not_up,
    status_of,
    unknown_exposure,
    url_of,
)
from overlay.node.own_tls import OwnTls
from overlay.node.request_log import RequestLog
from overlay.node.status import Entry, ExposeWish, ExposureStatus
from overlay.node.target_end import LookUp, TargetEnd, TargetStream
from overlay.node.target_ends import TargetEnds
from overlay.node.targets import Target, TargetOptions
from overlay.node.transparent import check_told
from overlay.node.tunnel_end import TunnelEnd
from overlay.node.wishes import (
    check_heard,
    check_private,
    checked_inspect,
    checked_target,
    service_of,
    tunnel_of,
    wanted_of,
)
from overlay.wire.control.messages import Exposed, Exposure, GroupMember, Message, RequestEntry, Unexpose
from overlay.wire.control.terms import Terms

TAKING_BACK = 5.0  # s that giving back a range that did not become whole may take
CLOCK_INTERVAL = 10.0  # s between looks at the clock, where an exposure ends in time
DIRECT_INTERVAL = 5.0  # s between looks whether peers reach exposures with names at this node
_log = logging.getLogger(__name__)

Request = Callable[[Callable[[int], Message]], Awaitable[Answer]]


class Exposures:
    """This node's exposures. Requests are served one after another."""

    def __init__(
        self,
        state: StateDir,
        request: Request,
        is_server: Callable[[str], bool],
        is_member: Callable[[str], bool] = lambda address: False,
        say: Callable[[Message], Coroutine[Any, Any, None]] = say_nothing,
        server_is_there: Callable[[], bool] = lambda: True,
        tls: OwnTls | None = None,
        wall: Callable[[], float] = time.time,
        look_up: LookUp = lambda name: None,
        private_key: bytes = b"",
    ) -> None:
        """`request` asks the server, `say` tells it something if it is there. `is_server` says whether an overlay
        address is the server's, `is_member` whether it is of this network; `look_up`: the network's names;
        `private_key`: this node's, which peers know it by who come through the server.

        Raises `UserError` ("state-corrupt").
        """
        stored = state.read_struct(FILE, KeptFile) or KeptFile()
        self.drops: Counter[str] = Counter()
        self.inspector = Inspector(self._connect_to_target)
        self._kept = {kept.id: kept for kept in stored.exposures if kept.range != UNFINISHED}
        self._state = state
        self._request = request
        self._is_server = is_server
        self._private_key = private_key
        self._server_is_there = server_is_there
        self._checks = Checks(say)
        self._members: dict[str, tuple[GroupMember, ...]] = {}
        self._wall = wall
        self._news = anyio.Event()  # one may end sooner than all others
        self._lock = anyio.Lock()
        self._ends: dict[str, TunnelEnd] = {}
        self._inside: dict[str, TargetEnd] = {}
        self._requests = RequestLog(request)
        self._direct = DirectEnds(is_member, self.drops, self._start_direct)
        self._tls = OwnTls(state) if tls is None else tls
        self._targets = TargetEnds(state, look_up, lambda: self._kept, self._direct, self.drops)
        self._tasks: TaskGroup | None = None
        self._address = ""

    async def run(self, address: str, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve on this overlay address ("": by dynamic tunnels alone) until cancelled. Signals `started` once all
        exposures are listened for."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks, self._address = tasks, address
                self._direct.address = self._targets.address = address
                if address:
                    await tasks.start(self._targets.routes.run)
                tasks.start_soon(self._tls.run)
                tasks.start_soon(self._expire)
                for kept in tuple(self._kept.values()):
                    if kept.is_over(self._wall()):
                        continue  # ended at once
                    if self._rests(kept):
                        _log.warning("exposure %s rests until the network is up on this machine", kept.id)
                        continue
                    await self._open_kept(kept)
                task_status.started()
                while True:
                    await anyio.sleep(DIRECT_INTERVAL)
                    await self._look_again()
        finally:
            for end in self._ends.values():
                end.close()
            self._direct.close()
            for inside in self._inside.values():
                inside.close()
            self._inside.clear()
            self._ends.clear()
            self._checks.clear()
            self._tasks = None

    def status(self) -> tuple[ExposureStatus, ...]:
        return tuple(self._show(kept) for kept in self._kept.values())

    def declared(self, file: str) -> dict[str, tuple[Kept, ...]]:
        """What the entries of a file have asked for, by their names; several are a range of ports, in order."""
        found: dict[str, tuple[Kept, ...]] = {}
        for kept in self._kept.values():
            if kept.entry is not None and kept.entry.file == file:
                found[kept.entry.name] = (*found.get(kept.entry.name, ()), kept)
        return found

    async def add(self, wish: ExposeWish, owner: int = 0, entry: Entry | None = None) -> ExposureStatus:
        """Expose a target, or a range of ports: all of them or none. `owner`: uid of who asks, with whose rights files
        are opened.

        Raises `UserError`: "bad-target", "range-invalid", "target-forbidden", "target-missing", "ca-invalid", "not-up",
        "server-unreachable", "server-older", what `check_told` and `TargetEnd.check` raise, what the server answers.
        """
        return await self.add_all(ranges.spread(wish), owner, entry)

    async def add_all(self, wishes: Sequence[ExposeWish], owner: int = 0, entry: Entry | None = None) -> ExposureStatus:
        """As `add`, for the ports of a range; as one, if there are several."""
        if len(wishes) == 1:
            return await self._add(wishes[0], owner, entry)
        made: list[ExposureStatus] = []
        try:
            for one in wishes:
                exposure = await self._add(one, owner, entry, UNFINISHED)
                made.append(exposure)
            name = ranges.name_of(made)
            async with self._lock:
                ours = {each.id for each in made}
                whole = {id: msgspec.structs.replace(self._kept[id], range=name) for id in ours if id in self._kept}
                await self._save({**self._kept, **whole})
        except BaseException:
            with anyio.move_on_after(TAKING_BACK, shield=True):
                async with self._lock:
                    for each in made:
                        await self._drop(each.id)
                    for each in made:  # what is left by then is given back after the next welcome
                        await self._give_back(each.id)
            raise
        return ranges.whole([msgspec.structs.replace(each, range=name) for each in made])

    async def _add(self, wish: ExposeWish, owner: int, entry: Entry | None, range: str = "") -> ExposureStatus:
        target = checked_target(wish)
        check_private(wish)
        check_told(wish.terms, target, wish.options, up=bool(self._address))
        inside = self._target_end(target, wish.options, wish.terms, owner)
        try:
            await inside.check()
            async with self._lock:
                if wish.terms.tls_end == "node":
                    self._tls.prepare(wish.tls)
                end = self._open(inside, 0, wish.terms)
                try:
                    tunnel = tunnel_of(wish, up=bool(self._address))
                    wanted = wanted_of(wish, target, end.port, tunnel, owner=owner, range=range, entry=entry)
                    kept = await self._get(wanted, wish)
                except BaseException:
                    end.close()
                    raise
                self._serve(kept, end, inside)
                self._news.set()
                await self._tell_direct(kept)
                return self._show(kept)
        except BaseException:
            if inside not in self._inside.values():
                inside.close()
            raise

    async def _get(self, wanted: Kept, wish: ExposeWish) -> Kept:
        """What the server grants, which is kept then."""
        exposure = await self._ask(wanted, wish)
        kept = granted(wanted, exposure)
        try:
            check_heard(exposure, wish)
            check_circle(kept)
            await self._save({**self._kept, kept.id: kept})
        except UserError:
            await self._give_back(kept.id)
            raise
        return kept

    async def change(self, name: str, wish: ExposeWish, owner: int = 0) -> ExposureStatus:
        """Have an exposure lead elsewhere, or on other terms, in its place (`wishes.is_renewable`). Users stay
        connected where the target is the same. Raises as `add` does; it is as it was then."""
        target = checked_target(wish)
        check_told(wish.terms, target, wish.options, up=bool(self._address))
        async with self._lock:
            kept = self._kept.get(name)
            if kept is None:
                raise unknown_exposure(name)
            wanted = msgspec.structs.replace(
                kept,
                target=target.text,
                known_as=wish.known_as,
                service=service_of(wish),
                terms=wish.terms,
                inspect=checked_inspect(wish, target),
                wish=wish,
            )
            inside = end = None
            try:
                told = wish.terms.told
                if (target.text, wish.options, told) != (kept.target, kept.options, kept.terms.told):
                    inside = self._target_end(target, wish.options, wish.terms, owner)
                    await inside.check()
                    end = self._open(inside, 0, wish.terms)
                    wanted = msgspec.structs.replace(wanted, port=end.port, owner=owner, options=wish.options)
                await self._renew_as(wanted, kept, wish)
            except BaseException:
                for each in (end, inside):
                    if each is not None:
                        each.close()
                raise
            before, kept = kept, self._kept[name]
            gone: list[TunnelEnd | DirectEnd | TargetEnd | None] = []
            if end is not None or kept.terms != before.terms:
                gone.append(self._direct.take(name))
            if end is not None and inside is not None:
                gone += [self._ends.pop(name, None), self._inside.pop(name, None)]
                self._serve(kept, end, inside)
            elif kept.terms.health != before.terms.health:
                self._checks.look_after(self._tasks, kept, self._inside.get(name))
            for old in gone:
                if old is not None:
                    old.close()
            self._news.set()
            self._inspect(self._ends.get(name), kept)
            if not kept.inspect:
                self.inspector.forget(name)
            await self._tell_direct(kept)
            return self._show(kept)

    async def _renew_as(self, wanted: Kept, kept: Kept, wish: ExposeWish) -> None:
        """Have the server and the state folder know it as it is wanted, or as it was."""
        exposure = await self._ask(wanted, wish)
        try:
            check_heard(exposure, wish)
            renewed = msgspec.structs.replace(wanted, known_as=exposure.known_as, service=exposure.service)
            check_circle(renewed)
            await self._save({**self._kept, kept.id: renewed})
        except UserError:
            await self._renew(kept)
            raise
        self._direct.note(exposure, False)

    async def remove(self, name: str) -> None:
        """Give an exposure back, or a whole range. Raises `UserError`: "exposure-unknown", "server-unreachable"."""
        async with self._lock:
            names = [each.id for each in self._kept.values() if name in (each.id, each.range)]
            if not names or name == UNFINISHED:
                raise unknown_exposure(name)
            for each in names:
                await self._remove(each)

    async def _remove(self, name: str) -> None:
        try:
            await self._request(lambda seq: Unexpose(seq=seq, id=name))
        except UserError as error:
            if error.exit_code == Exit.UNREACHABLE:
                raise
            _log.info("the server does not know exposure %s any more: %s", name, error)
        await self._drop(name)

    async def reconcile(self, exposures: tuple[Exposure, ...]) -> None:
        """After a welcome: make both lists agree; what fails for want of a server waits for the next welcome."""
        await self._requests.ask_again()
        await self._checks.tell_all()
        async with self._lock:
            theirs = {exposure.id: exposure for exposure in exposures}
            for name, kept in tuple(self._kept.items()):
                known = theirs.pop(name, None)
                if self._rests(kept):
                    continue
                if known is not None and agree(known, kept):
                    self._direct.note(known, known.direct)
                    await self._tell_direct(kept)
                    url = url_of(known, kept)
                    if (known.public, url) != (kept.public, kept.url):
                        changed = msgspec.structs.replace(kept, public=known.public, url=url)
                        await self._save({**self._kept, name: changed})
                    continue
                await self._renew(kept)
            for name in theirs:
                _log.warning("the server has an exposure %s of this node, which does not know it: given back", name)
                await self._give_back(name)

    async def retain(self, exposures: tuple[Exposure, ...]) -> None:
        """The server's list while connected: what is not in it was taken away."""
        names = {exposure.id for exposure in exposures}
        async with self._lock:
            for name in [name for name in self._kept if name not in names]:
                _log.warning("the server has taken exposure %s away", name)
                await self._drop(name)

    def withdrawn(self, name: str, why: str) -> None:
        """The server has ended an exposure."""
        if self._tasks is not None and name in self._kept:  # else the next welcome says that it is gone
            self._tasks.start_soon(self._end, name, f"the server has ended it, as {why}")

    def watch(self, name: str) -> Produce:
        """What writes users' requests to an exposure by http as they come, a JSON document a line, until it is given
        back: the last ones, where they come faster than they are taken. Raises `UserError` ("exposure-unknown",
        "exposure-not-http")."""
        kept = self._kept.get(name)
        if kept is None:
            raise unknown_exposure(name)
        if kept.terms.tls_end == "node":
            raise UserError(
                "exposure-not-http", f"The TLS of {name} ends at this machine: the server sees no requests to tell of."
            )
        if Target.parse(kept.target).protocol != "http":
            raise UserError("exposure-not-http", f"{name} is not exposed by http: there are no requests to tell of.")

        return self._requests.watch(name)

    async def serve(self, name: str, stream: Stream) -> None:
        """A user of this exposure, whom the server sends by a dynamic tunnel; closes the stream."""
        end = self._ends.get(name)
        # What goes by the overlay alone is not to be had in another way. What is private is sealed in any.
        if end is None or (self._kept[name].tunnel == "single" and end.seal is None):
            self.drops["exposure_unknown"] += 1
            stream.cut()
            stream.close()
            return
        await end.serve(stream)

    def serve_now(self, name: str, stream: OverTcp, ended: Callable[[], object]) -> bool:
        """The same, as `TunnelEnd.serve_now` has it."""
        end = self._ends.get(name)
        return end is not None and self._kept[name].tunnel != "single" and end.serve_now(stream, ended)

    def requested(self, name: str, entries: tuple[RequestEntry, ...]) -> None:
        """The server tells of requests."""
        self._requests.requested(name, entries)

    def let_in(self, name: str, address: str, seconds: float) -> None:
        """The server says which peer may come to a private exposure."""
        end = self._ends.get(name)
        if end is not None and isinstance(end.accepts, Guests):
            end.accepts.let_in(address, seconds)
            end.end_refused()

    def set_members(self, name: str, members: tuple[GroupMember, ...]) -> None:
        """The server tells of the group that an exposure is in."""
        if name in self._kept:
            self._members[name] = members

    # inside ----------------------------------------------------------------------------------------------------------

    def _rests(self, kept: Kept) -> bool:
        """What was exposed while there was a TUN, and goes by it."""
        return (kept.tunnel == "single" or kept.terms.told.transparent) and not self._address

    async def _ask(self, wanted: Kept, wish: ExposeWish) -> Exposure:
        try:
            answer = await self._request(lambda seq: asked(wanted, seq, host=wish.host))
        except UserError as error:
            if (error.code, wish.tunnel, wanted.tunnel) != ("no-tunnel", "auto", "single"):
                raise
            return await self._ask(msgspec.structs.replace(wanted, tunnel="tls"), wish)  # the server has no TUN
        if not isinstance(answer, Exposed):
            raise UserError("bad-answer", "The server answered something that does not fit the request.")
        return answer.exposure

    async def _expire(self) -> None:
        while True:
            ends = min((kept.terms.expires for kept in self._kept.values() if kept.terms.expires), default=0.0)
            self._news = anyio.Event()
            # The wall's clock may go on while ours stands, as it does when the machine sleeps.
            with anyio.move_on_after(min(max(0.0, ends - self._wall()), CLOCK_INTERVAL) if ends else None):
                await self._news.wait()
            for kept in [kept for kept in self._kept.values() if kept.is_over(self._wall())]:
                await self._end(kept.id, "its time is over")
                await self._give_back(kept.id)  # without a server it ends there all the same

    async def _end(self, name: str, why: str) -> None:
        async with self._lock:
            if name in self._kept:
                _log.warning("exposure %s at %s is gone: %s", name, self._kept[name].public, why)
                await self._drop(name)

    async def _open_kept(self, kept: Kept) -> None:
        inside = self._target_end(Target.parse(kept.target), kept.options, kept.terms, kept.owner)
        try:
            end = self._open(inside, kept.port, kept.terms)
        except UserError as error:
            # Another program took the port while we were away: any other does, once the server knows (`reconcile`).
            _log.info("exposure %s gets another port: %s", kept.id, error)
            try:
                end = self._open(inside, 0, kept.terms)
            except UserError as failure:
                inside.close()
                _log.warning("exposure %s does not work: %s", kept.id, failure)
                return
            self._kept = {**self._kept, kept.id: msgspec.structs.replace(kept, port=end.port)}
        self._serve(kept, end, inside)
        self._direct.leads(kept, inside)

    def _target_end(self, target: Target, options: TargetOptions, terms: Terms, owner: int) -> TargetEnd:
        """It runs from now on, until it is closed."""
        if self._tasks is None:
            raise not_up()
        inside = self._targets.make(target, options, terms, owner)
        self._tasks.start_soon(inside.run)
        return inside

    def _open(self, inside: TargetEnd, port: int, terms: Terms) -> TunnelEnd:
        accepts = Guests(self._server_is_there) if terms.private.name else self._is_server
        reached = bool(terms.group.name or terms.private.name)
        return TunnelEnd(
            inside, self._address, port, accepts, self.drops, says_reached=reached, peers=bool(terms.private.name)
        )

    def _serve(self, kept: Kept, end: TunnelEnd, inside: TargetEnd) -> None:
        if self._tasks is None:  # taken down while the server was asked: opened at the next start
            end.close()
            inside.close()
            return
        inside.prefix = urlsplit(kept.url).path or "/"
        if kept.terms.tls_end == "node":
            self._tls.add(kept.id, host_of(kept.public), kept.tls)
            end.tls = partial(self._tls.end, kept.id)
        if kept.terms.private.name:
            end.seal = partial(secure_from, private_key=self._private_key)
        self._ends[kept.id], self._inside[kept.id] = end, inside
        self._inspect(end, kept)
        self._tasks.start_soon(end.run)
        self._checks.look_after(self._tasks, kept, inside)

    def _inspect(self, end: TunnelEnd | None, kept: Kept) -> None:
        """The inspector looks at users who come from now on, if it is to."""
        if end is not None:
            end.tap = partial(self.inspector.tapped, exposure=kept.id, limit=kept.inspect) if kept.inspect else None

    async def _connect_to_target(self, name: str) -> TargetStream | None:
        end = self._ends.get(name)
        return await end.connect() if end is not None else None

    async def _look_again(self) -> None:
        async with self._lock:
            try:
                for kept in tuple(self._kept.values()):
                    await self._tell_direct(kept)
            except UserError as error:
                _log.warning("%s %s", error, error.hint)

    def _start_direct(self, end: TunnelEnd, kept: Kept) -> None:
        self._inspect(end, kept)
        if self._tasks is not None:
            self._tasks.start_soon(end.run)

    async def _tell_direct(self, kept: Kept) -> None:
        if self._direct.is_news(kept, self._inside.get(kept.id)):
            await self._renew(kept)

    async def _renew(self, kept: Kept) -> None:
        direct = self._direct.leads(kept, self._inside.get(kept.id))
        try:
            answer = await self._request(lambda seq: asked(kept, seq, direct=direct))
        except UserError as error:
            if error.exit_code == Exit.UNREACHABLE:
                return  # the next welcome is the next try
            _log.warning("exposure %s (%s at %s) is gone: %s", kept.id, kept.target, kept.public, error)
            await self._drop(kept.id)
            return
        if isinstance(answer, Exposed):
            if answer.exposure.terms != kept.terms:  # what is not held to must not be open
                _log.warning("exposure %s is given back: the server is older, and does not know all its terms", kept.id)
                await self._give_back(kept.id)
                await self._drop(kept.id)
                return
            self._direct.note(answer.exposure, direct)
            renewed = msgspec.structs.replace(kept, public=answer.exposure.public, url=url_of(answer.exposure, kept))
            await self._save({**self._kept, kept.id: renewed})

    async def _give_back(self, name: str) -> None:
        try:
            await self._request(lambda seq: Unexpose(seq=seq, id=name))
        except UserError as error:
            _log.info("exposure %s could not be given back: %s", name, error)

    async def _drop(self, name: str) -> None:
        self._members.pop(name, None)
        self._checks.stop(name)
        self._direct.drop(name)
        self.inspector.forget(name)
        self._tls.remove(name)
        for end in (self._ends.pop(name, None), self._inside.pop(name, None)):
            if end is not None:
                end.close()
        self._requests.end(name)
        remaining = {key: kept for key, kept in self._kept.items() if key != name}
        try:
            await self._save(remaining)
        except UserError as error:
            # It is gone all the same; at the next start the server's list says so again.
            _log.warning("%s %s", error, error.hint)
            self._kept = remaining

    async def _save(self, kept: dict[str, Kept]) -> None:
        file = KeptFile(exposures=tuple(kept.values()))
        await anyio.to_thread.run_sync(self._state.write_struct, FILE, file)
        self._kept = kept

    def _show(self, kept: Kept) -> ExposureStatus:
        end, inside = self._ends.get(kept.id), self._inside.get(kept.id)
        return status_of(
            kept,
            connections=(end.connections if end is not None else 0) + self._direct.connections(kept.id),
            direct=self._direct.is_led(kept.id),
            trouble=(inside.trouble if inside is not None else "") or self._tls.trouble(kept.id),
            certificate=self._tls.source(kept.id),
            problem=self._checks.problem(kept.id),
            members=self._members.get(kept.id, ()),
        )
