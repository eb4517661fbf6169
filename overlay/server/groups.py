"""Several nodes behind one public place, and which of them serves a user.

A member is passed over while its node is offline or silent, while its node says that the target is not well, and for a
while after it has failed a user. Where none is left, those are tried all the same: what is known may be wrong. A user
goes on to the next member as long as nothing of his has been said to the one before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2s
from typing import Final

import anyio

from overlay.carrier.limits import network_of
from overlay.carrier.outlets import Deliver, Outlet
from overlay.carrier.port import Stream, UserStream
from overlay.carrier.reached import wait_reached
from overlay.server.claims import Claims, Surroundings
from overlay.server.pulse import INTERVAL, Pulse
from overlay.server.schema import ExposureRecord, exposure_id
from overlay.server.tunnels import Tunnel, TunnelError, Visitor
from overlay.wire.control.messages import GroupMember, Members, MemberState
from overlay.wire.control.terms import Balance

MOST_TRIES: Final = 4  # members that one user is led to
TRY: Final = 1.5  # s that a member may take while there is another: one SYN may be lost
LAST_TRY: Final = 10.0  # s for the last one: as long as a user waits elsewhere
REST: Final = 1.0  # s that a member is passed over after a failure; twice as long after each more
REST_MOST: Final = 16.0  # s

_LONGEST_PROBLEM: Final = 200  # characters
_ORDER: Final[tuple[MemberState, ...]] = ("up", "resting", "unwell", "silent")
"""In which they are tried; who is offline is not."""
_WELL: Final = ("up", "resting")


@dataclass(eq=False)
class Member:
    number: int  # the exposure's
    tunnel: Tunnel
    is_silent: Callable[[], bool] = lambda: False
    node: int = 0  # whose it is, of which a group has one; 0: by `number` all the same
    problem: str = ""  # why the target is not well, as the node has told last; "": it is
    trying: int = 0
    streams: set[Stream] = field(default_factory=set)
    flows: int = 0  # of datagrams
    failures: int = 0  # since a user was served
    rests_until: float = 0.0
    turn: int = 0  # when it was chosen last

    @property
    def connections(self) -> int:
        """Users, by streams and by datagrams."""
        return self.trying + len(self.streams) + self.flows

    def state(self) -> MemberState:
        if not self.tunnel.online():
            return "offline"
        if self.is_silent():
            return "silent"
        if self.problem:
            return "unwell"
        return "resting" if anyio.current_time() < self.rests_until else "up"


class _MemberOutlet:
    """A flow's, to one member. It is stale when the member is out, as long as another one is well."""

    def __init__(self, inside: Outlet, member: Member, is_left: Callable[[], bool]) -> None:
        self._inside = inside
        self._member = member
        self._is_left = is_left
        self._closed = False
        member.flows += 1

    @property
    def stale(self) -> bool:
        return self._inside.stale or self._is_left()

    def send(self, datagram: memoryview) -> bool:
        return self._inside.send(datagram)

    async def run(self, deliver: Deliver) -> None:
        await self._inside.run(deliver)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._member.flows -= 1
        self._inside.close()


class Group:
    """`overlay.server.tunnels.Tunnel`. `drops` counts failures of members that others made good."""

    def __init__(self, drops: Counter[str]) -> None:
        self.balance: Balance = "least"
        self._drops = drops
        self._members: dict[int, Member] = {}
        self._serving: dict[object, Member] = {}  # by stream
        self._turn = 0

    @property
    def members(self) -> Iterable[Member]:
        return self._members.values()

    def add(self, member: Member) -> None:
        self._members[member.number] = member

    def remove(self, number: int) -> None:
        """Its node cuts those off whom it serves; where the node itself has gone, they notice soon."""
        for stream in self._members.pop(number).streams:
            stream.watch(closely=True)

    def get(self, number: int) -> Member | None:
        return self._members.get(number)

    def online(self) -> bool:
        return any(member.tunnel.online() for member in self._members.values())

    def serves_well(self, stream: object) -> bool:
        """Whether the member that this stream goes to would be chosen again."""
        member = self._serving.get(stream)
        return member is not None and self._members.get(member.number) is member and member.state() in _WELL

    def is_left(self, stream: object) -> bool:
        """Whether who waits for an answer there is better off with another."""
        member = self._serving.get(stream)
        return member is None or self._leaves(member)

    async def open(self, visitor: Visitor) -> Stream:
        return await self.open_another(visitor, set())

    def open_now(self, visitor: Visitor) -> UserStream | None:
        return None  # whoever is chosen has to reach its target first

    async def open_another(self, visitor: Visitor, tried: set[int]) -> Stream:
        """A connection to a member that is not in `tried`; those tried now are added to it. Raises `TunnelError`."""
        problem = TunnelError(502, "target_offline")
        order = self._order(visitor, tried)[:MOST_TRIES]
        for member in order:
            tried.add(member.number)
            try:
                stream = await self._try(member, visitor, LAST_TRY if member is order[-1] else TRY)
            except TunnelError as error:
                problem = error
                self._drops["member_failed"] += 1
                member.rests_until = anyio.current_time() + min(REST_MOST, REST * 2**member.failures)
                member.failures = min(member.failures + 1, 16)
                continue
            member.failures = 0
            return stream
        raise problem

    def outlet(self, visitor: Visitor) -> Outlet | None:
        for member in self._order(visitor, ()):
            self._turn += 1
            member.turn = self._turn
            inside = member.tunnel.outlet(visitor)
            if inside is not None:
                return _MemberOutlet(inside, member, partial(self._leaves, member))
        self._drops["target_offline"] += 1
        return None

    # inside ----------------------------------------------------------------------------------------------------------

    async def _try(self, member: Member, visitor: Visitor, patience: float) -> Stream:
        self._turn += 1
        member.turn = self._turn
        member.trying += 1
        stream: Stream | None = None
        reached = False
        try:
            with anyio.fail_after(patience):
                stream = await member.tunnel.open(visitor)
                reached = await wait_reached(stream)
            if not reached:
                raise TunnelError(502, "target_refused")
            if self._members.get(member.number) is not member:
                reached = False
                raise TunnelError(502, "target_offline")  # given back meanwhile
        except TimeoutError as error:
            raise TunnelError(504, "target_failed") from error
        finally:
            member.trying -= 1
            if stream is not None and not reached:
                stream.close()
        self._take(member, stream)
        return stream

    def _take(self, member: Member, stream: Stream) -> None:
        def closed() -> None:
            member.streams.discard(stream)
            self._serving.pop(stream, None)

        member.streams.add(stream)
        self._serving[stream] = member
        stream.when_closed(closed)

    def _leaves(self, member: Member) -> bool:
        """Whether its users are better off with another."""
        if self._members.get(member.number) is not member:
            return True
        if member.state() in _WELL:
            return False
        return any(each.state() in _WELL for each in self._members.values())

    def _order(self, visitor: Visitor, without: Iterable[int]) -> list[Member]:
        """Whom to try, the best first."""
        by_state: dict[MemberState, list[Member]] = {}
        for member in self._members.values():
            if member.number not in without:
                by_state.setdefault(member.state(), []).append(member)
        return [each for state in _ORDER for each in self._ranked(by_state.get(state, []), visitor)]

    def _ranked(self, members: list[Member], visitor: Visitor) -> list[Member]:
        match self.balance:
            case "least":
                return sorted(members, key=lambda member: (member.connections, member.turn))
            case "round-robin":
                return sorted(members, key=lambda member: member.turn)
            case "sticky":
                user = network_of(visitor.source[0])
                return sorted(members, key=lambda member: weight(member.node or member.number, user), reverse=True)


def weight(number: int, user: str) -> bytes:
    """Of a member for a user: the highest one serves him (rendezvous hashing). So a member that comes takes users from
    the others evenly, and one that goes leaves all others where they are. `number`: of its node, so that one that gives
    its place back and comes again has the users that it had."""
    return blake2s(f"{number} {user}".encode(), digest_size=8, person=b"sticky").digest()


class Groups:
    """All groups, by what the leases say. Asks nodes that are members whether they are there, and tells them how it is
    with the others."""

    def __init__(
        self, around: Surroundings, claims: Claims, records: Mapping[int, ExposureRecord], drops: Counter[str]
    ) -> None:
        """`records`: the leases there are, by number; theirs who grants them."""
        self._around = around
        self._claims = claims
        self._records = records
        self._drops = drops
        self._pulse = Pulse(around.tell)
        self._groups: dict[int, Group] = {}  # by each member's number
        self._told: dict[int, tuple[GroupMember, ...]] = {}

    def join(self, lease: ExposureRecord, tunnel: Tunnel) -> Group:
        """The group, which is made if nobody else is in it."""
        mate = next((each for each in self._claims.mates(lease) if each.id in self._groups), None)
        group = self._groups[lease.id] = Group(self._drops) if mate is None else self._groups[mate.id]
        group.add(Member(lease.id, tunnel, lambda: self._pulse.is_silent(lease.node), lease.node))
        return group

    def leave(self, number: int) -> None:
        self._told.pop(number, None)
        group = self._groups.pop(number, None)
        if group is not None:
            group.remove(number)

    def opener(self, lease: ExposureRecord) -> ExposureRecord:
        """Whose terms hold for all in its group: whoever has been in it for longest. The lease itself, if it is in
        none."""
        return min((lease, *self._claims.mates(lease)), key=lambda each: each.id)

    def apply(self, lease: ExposureRecord) -> None:
        """Its terms are those of the group."""
        if lease.id in self._groups:
            self._groups[lease.id].balance = lease.terms.group.balance

    def connections(self, number: int) -> int | None:
        """Those that a member serves; None: it is in no group."""
        member = self._member(number)
        return member.connections if member is not None else None

    def members(self, number: int) -> tuple[GroupMember, ...]:
        """Of the group that this exposure is in."""
        group = self._groups.get(number)
        return tuple(map(self._show, group.members)) if group is not None else ()

    def heard(self, node: int) -> None:
        """A node has answered a ping."""
        self._pulse.heard(node)

    def set_health(self, node: int, name: str, problem: str) -> None:
        """What a node says of the target of its exposure `name`."""
        number = exposure_id(name)
        record = self._records.get(number) if number is not None else None
        member = self._member(record.id) if record is not None and record.node == node else None
        if member is not None:
            member.problem = "".join(each for each in problem[:_LONGEST_PROBLEM] if each.isprintable())

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._pulse.ask({self._records[number].node for number in self._groups if number in self._records})
            for number in tuple(self._groups):
                await self._tell(number)
            await anyio.sleep(INTERVAL)

    # inside ----------------------------------------------------------------------------------------------------------

    async def _tell(self, number: int) -> None:
        record = self._records.get(number)
        if record is None or self._around.address_of(record.node) is None:
            self._told.pop(number, None)  # when it is back it hears all anew
            return
        members = self.members(number)
        if self._told.get(number) != members:
            self._told[number] = members
            await self._around.tell(record.node, Members(id=record.name, members=members))

    def _member(self, number: int) -> Member | None:
        group = self._groups.get(number)
        return group.get(number) if group is not None else None

    def _show(self, member: Member) -> GroupMember:
        node = self._records[member.number].node if member.number in self._records else 0
        return GroupMember(node=self._around.name_of(node), state=member.state(), problem=member.problem)
