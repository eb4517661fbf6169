"""The data links of nodes: streams that carry relayed packets for those whom UDP does not reach.

Which node a link belongs to, its Noise handshake has proven; here only numbers are kept, so that a node has no more
links than it needs and none outlives its node.
"""

from collections.abc import Callable
from itertools import count
from typing import Final

from overlay.carrier.carriers import CarrierName, Detached
from overlay.engine.api import AddLink, Command, RemoveLink

LINKS_PER_NODE: Final = 2
"""The one in use, and the one that takes its place before it is known to be dead. The oldest goes for a third."""


class RelayLinks:
    """All methods are for the event loop."""

    def __init__(self, post: Callable[[Command], None]) -> None:
        """`post` hands a command to this machine's engine."""
        self._post = post
        self._numbers = count(1)
        self._links: dict[int, dict[int, CarrierName]] = {}  # node → its links, oldest first

    def add(self, node: int, detached: Detached, carrier: CarrierName) -> int:
        """A node's new link, which the engine serves from now on. → its number"""
        links = self._links.setdefault(node, {})
        while len(links) >= LINKS_PER_NODE:
            oldest = next(iter(links))
            del links[oldest]
            self._post(RemoveLink(oldest))
        number = next(self._numbers)
        links[number] = carrier
        self._post(AddLink(number=number, handed=detached, client=node, carrier=carrier))
        return number

    def lost(self, number: int) -> None:
        """The engine has lost it."""
        for node, links in self._links.items():
            if links.pop(number, None) is not None:
                if not links:
                    del self._links[node]
                return

    def remove_node(self, node: int) -> None:
        """The node is out of the network."""
        for number in self._links.pop(node, {}):
            self._post(RemoveLink(number))

    def of_node(self, node: int) -> tuple[CarrierName, ...]:
        """The carriers of its links, oldest first."""
        return tuple(self._links.get(node, {}).values())
