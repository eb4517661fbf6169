"""What all targets of this node's exposures have in common: the network's names, routes for answers to users' own
addresses, and that none of them leads back to one of the exposures.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from overlay.daemon.state import StateDir
from overlay.node.direct_ends import DirectEnds
from overlay.node.kept import Kept, places
from overlay.node.return_routes import ReturnRoutes
from overlay.node.target_end import LookUp, NotInNetworkError, TargetEnd
from overlay.node.targets import Target, TargetOptions, Transport
from overlay.node.transparent import Transparent
from overlay.wire.control.terms import Terms
from overlay.wire.endpoint import Endpoint


class TargetEnds:
    """`kept`: the exposures there are, another mapping whenever they change. `look_up`: the network's names."""

    def __init__(
        self,
        state: StateDir,
        look_up: LookUp,
        kept: Callable[[], Mapping[str, Kept]],
        direct: DirectEnds,
        drops: Counter[str],
    ) -> None:
        self.routes = ReturnRoutes(state)
        self.address = ""
        """The overlay address; "": there is none, and no peer is reached."""
        self._look_up = look_up
        self._kept = kept
        self._direct = direct
        self._drops = drops
        self._places: dict[tuple[Transport, str, int], str] = {}  # where our exposures are reached
        self._places_of: tuple[Mapping[str, Kept], str] | None = None

    def make(self, target: Target, options: TargetOptions, terms: Terms, owner: int) -> TargetEnd:
        """It is the caller's to run and to close."""
        return TargetEnd(
            target,
            options,
            owner=owner,
            told=terms.told,
            transparent=Transparent(self.routes, self._drops) if terms.told.transparent else None,
            look_up=self._look_up_inside,
            ours=lambda endpoint: self._ours(target.transport, endpoint),
        )

    def _look_up_inside(self, name: str) -> tuple[str, ...] | None:
        found = self._look_up(name)
        if found and not self.address:
            raise NotInNetworkError("it is in the network, which is reached after 'sudo overlay up' alone")
        return found

    def _ours(self, transport: Transport, endpoint: Endpoint) -> str:
        """The exposure of this node that is reached there, "" if none is."""
        kept = self._kept()
        if self._places_of is None or self._places_of[0] is not kept or self._places_of[1] != self.address:
            self._places_of = kept, self.address
            self._places = places(kept.values(), self.address)
        return self._places.get((transport, *endpoint)) or self._direct.at(transport, endpoint)
