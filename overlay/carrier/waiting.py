"""Those whom the door cannot take now, in the order in which they came. No I/O; time is an argument.

QUIC nodes that are not answered ask again after ever longer pauses: without a queue, whoever comes last could wait for
ever behind those that come anew.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from overlay.carrier.limits import Visit, network_of
from overlay.wire.endpoint import Endpoint

ROOM: Final = 1024  # with two datagrams each, 3 MiB at most
ROOM_PER_ADDRESS: Final = 128  # per IPv4 address or IPv6 /64
PATIENCE: Final = 8.0  # s after it was heard last; a node gives up after ten


@dataclass(slots=True)
class Waiting:
    """One that has proven its address. `first` and `latest`: its datagrams, the same one if it came once."""

    endpoint: Endpoint
    first: bytes
    latest: bytes
    original_id: bytes
    heard: float


class WaitingRoom:
    """By the connection id that a node was given, in order of arrival."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[bytes, Waiting] = OrderedDict()
        self._networks: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, connection_id: bytes, endpoint: Endpoint, datagram: bytes, original_id: bytes, now: float) -> bool:
        """→ whether there was room. Whoever waits already keeps its place."""
        known = self._waiting.get(connection_id)
        if known is not None:
            known.latest, known.heard = datagram, now
            return True
        network = network_of(endpoint[0])
        if len(self._waiting) >= ROOM or self._networks[network] >= ROOM_PER_ADDRESS:
            return False
        self._waiting[connection_id] = Waiting(endpoint, datagram, datagram, original_id, now)
        self._networks[network] += 1
        return True

    def admit(self, ask: Callable[[str], Visit | str], now: float) -> Iterator[tuple[bytes, Waiting, Visit]]:
        """Those whom the door takes now. One that it refuses does not keep those from elsewhere waiting.

        `ask` (host) → a visit, or why not, as `Door.enter`.
        """
        refused: set[str] = set()
        for connection_id, waiting in list(self._waiting.items()):
            network = network_of(waiting.endpoint[0])
            if now - waiting.heard > PATIENCE:
                self._remove(connection_id, network)
                continue
            if network in refused:
                continue
            visit = ask(waiting.endpoint[0])
            if not isinstance(visit, str):
                self._remove(connection_id, network)
                yield connection_id, waiting, visit
            elif visit.endswith("address"):
                refused.add(network)
            else:
                return

    def _remove(self, connection_id: bytes, network: str) -> None:
        del self._waiting[connection_id]
        self._networks[network] -= 1
        if not self._networks[network]:
            del self._networks[network]
