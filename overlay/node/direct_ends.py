"""Which exposures peers reach straight at this node, and what the server was told of that and made of it."""

from collections import Counter
from collections.abc import Callable

from overlay.node.direct_end import DirectEnd
from overlay.node.kept import Kept
from overlay.node.target_end import TargetEnd
from overlay.node.targets import Transport
from overlay.node.tunnel_end import TunnelEnd
from overlay.wire.control.messages import Exposure
from overlay.wire.endpoint import Endpoint


class DirectEnds:
    """Of all exposures, by their names."""

    def __init__(
        self, is_member: Callable[[str], bool], drops: Counter[str], start: Callable[[TunnelEnd, Kept], None]
    ) -> None:
        """`start` has a listener run that is wanted from now on."""
        self.address = ""
        """The overlay address; "": there is none, and nobody comes straight."""
        self._is_member = is_member
        self._drops = drops
        self._start = start
        self._ends: dict[str, DirectEnd] = {}
        self._told: dict[str, bool] = {}  # what the server was told last
        self._led: set[str] = set()  # to which the server has peers led

    def leads(self, kept: Kept, inside: TargetEnd | None) -> bool:
        """Whether peers reach it at this node, which listens for them if need be."""
        if not kept.known_as or not self.address or inside is None or kept.tunnel != "single":
            return False
        direct = self._ends.get(kept.id)
        if direct is None:
            port = int(kept.public.rpartition(":")[2])  # its host may be a name
            direct = DirectEnd(inside, self.address, port, self._is_member, self._drops, kept.terms)
            self._ends[kept.id] = direct
        end = direct.open()
        if end is not None:
            self._start(end, kept)
        return direct.leads()

    def is_news(self, kept: Kept, inside: TargetEnd | None) -> bool:
        """Whether the server was told something else than `leads` says."""
        return self.leads(kept, inside) != self._told.get(kept.id, False)

    def note(self, theirs: Exposure, told: bool) -> None:
        """The server was told so, and has answered."""
        self._told[theirs.id] = told
        (self._led.add if theirs.direct else self._led.discard)(theirs.id)

    def is_led(self, name: str) -> bool:
        return name in self._led

    def connections(self, name: str) -> int:
        return self._ends[name].connections if name in self._ends else 0

    def at(self, transport: Transport, endpoint: Endpoint) -> str:
        """Which exposure listens there; "": none."""
        return next((name for name, each in self._ends.items() if each.listens_at(transport) == endpoint), "")

    def take(self, name: str) -> DirectEnd | None:
        """It is another's to close from now on."""
        return self._ends.pop(name, None)

    def drop(self, name: str) -> None:
        """The exposure is gone."""
        self._told.pop(name, None)
        self._led.discard(name)
        if direct := self.take(name):
            direct.close()

    def close(self) -> None:
        """Until the next start; what the server knows stays."""
        for direct in self._ends.values():
            direct.close()
        self._ends.clear()
        self.address = ""
