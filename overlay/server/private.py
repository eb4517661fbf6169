"""Private exposures: at no public place. Peers reach one at its node's overlay address, by whatever path there is, and
those alone whom its node was told to let in: peers with one of its tags, or who have shown its token.

Who asks for one that he may not reach is told the same as if there were none. A peer that is let in asks again now and
then, as long as it wants to; the node lets it in for as long again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from overlay.errors import Exit, UserError
from overlay.server.claims import Surroundings
from overlay.server.schema import ExposureRecord
from overlay.wire.control.messages import Admit, Connect, Connected, Expose
from overlay.wire.control.terms import Private as Circle
from overlay.wire.credentials import is_token

LET_IN: Final = 600.0  # s; a server that is away for less is not missed
LONGEST_TOKEN: Final = 256  # characters


def check_private(request: Expose) -> None:
    """Raises `UserError` ("private-invalid", exit 2) for what does not go together."""
    terms = request.terms
    if not terms.private.name:
        return
    if request.tunnel != "single":
        raise UserError(
            "no-tunnel",
            "Peers reach a private exposure at the overlay address of its node, which this machine does not have.",
            "Run 'sudo overlay up', and leave out --tunnel.",
        )
    elsewhere = request.public or request.host or request.known_as or terms.group.name
    if elsewhere or terms.access.is_secret or terms.access.allow or terms.access.deny:
        raise UserError(
            "private-invalid",
            "A private exposure is at no public place, and peers alone reach it.",
            "Leave out --public, --host, --known-as, --group and what says who of the public may come.",
            Exit.USAGE,
        )


@dataclass(frozen=True, slots=True)
class _Inside:
    """A node that was let in."""

    address: str
    token: str  # the digest of the one that it has shown; "": it came by a tag

    def stays(self, tags: tuple[str, ...], circle: Circle) -> bool:
        """Whether what it was let in for is still good. `tags`: the node's."""
        return self.token == circle.token if self.token else _by_tag(tags, circle)


def _by_tag(tags: tuple[str, ...], circle: Circle) -> bool:
    return not set(circle.tags).isdisjoint(tags)


class Private:
    def __init__(self, around: Surroundings, records: Mapping[int, ExposureRecord]) -> None:
        """`records`: the leases there are, by number; theirs who grants them."""
        self._around = around
        self._records = records
        self._inside: dict[int, dict[int, _Inside]] = {}  # by exposure, by node

    def check_name(self, wanted: ExposureRecord) -> None:
        """Raises `UserError` ("private-taken")."""
        held = self._named(wanted.private)
        if held is not None:
            raise UserError(
                "private-taken",
                f"'{wanted.private}' is a private exposure of node '{self._around.name_of(held.node)}' ({held.name}).",
                "Choose another name, or have that one given back: 'overlay expose rm' on that node.",
            )

    async def connect(self, node: int, request: Connect) -> Connected:
        """Have a peer let in. Raises `UserError`: "private-unknown", "private-offline"."""
        record = self._named(request.name.lower())
        by_tag = record is not None and _by_tag(self._around.tags_of(node), record.terms.private)
        if record is None or not (by_tag or _shows(request.token, record.terms.private)):
            raise UserError(
                "private-unknown",
                f"There is no private exposure '{request.name[:64]}' that this node may reach.",
                "Ask who exposes it for its name, and for a token or a tag of your node's.",
                Exit.REFUSED,
            )
        own, target = self._around.address_of(node), self._around.address_of(record.node)
        if target is None or own is None:
            raise UserError(
                "private-offline",
                f"Node '{self._around.name_of(record.node)}', which exposes '{record.private}', is offline.",
                "Try again when it is back.",
                Exit.UNREACHABLE,
            )
        shown = "" if by_tag else record.terms.private.token
        self._inside.setdefault(record.id, {})[node] = _Inside(own, shown)
        await self._around.tell(record.node, Admit(id=record.name, address=own, seconds=LET_IN))
        return Connected(
            seq=request.seq,
            node=self._around.name_of(record.node),
            address=target,
            port=record.port,
            datagrams=record.transport == "udp",
            seconds=LET_IN,
        )

    async def renewed(self, before: ExposureRecord, now: ExposureRecord) -> None:
        """Who may reach it may be others now: those who may not any more are put out, with what goes through."""
        circle = now.terms.private
        if before.terms.private == circle:
            return
        inside = self._inside.get(now.id, {})
        for node in [node for node, each in inside.items() if not each.stays(self._around.tags_of(node), circle)]:
            await self._put_out(now, inside.pop(node).address)

    async def forget_node(self, node: int) -> None:
        """It was removed: its address may be another's one day."""
        for number, inside in self._inside.items():
            gone, record = inside.pop(node, None), self._records.get(number)
            if gone is not None and record is not None:
                await self._put_out(record, gone.address)

    def forget(self, number: int) -> None:
        """It is given back: its node closes it."""
        self._inside.pop(number, None)

    def _named(self, name: str) -> ExposureRecord | None:
        return next((each for each in self._records.values() if each.private == name), None) if name else None

    async def _put_out(self, record: ExposureRecord, address: str) -> None:
        await self._around.tell(record.node, Admit(id=record.name, address=address, seconds=0))


def _shows(token: str, circle: Circle) -> bool:
    return bool(circle.token) and len(token) <= LONGEST_TOKEN and is_token(token, circle.token)
