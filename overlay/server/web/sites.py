"""Which exposure a request is for, by host and path prefix, and what became of the last ones."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import anyio

from overlay.server.access.gate import Gate
from overlay.server.tunnels import Tunnel
from overlay.wire.control.messages import RequestEntry

LOG_SIZE: Final = 200  # requests of one exposure that are remembered


@dataclass(eq=False)
class Site:
    """One exposure as the web sees it."""

    name: str
    tunnel: Tunnel
    log: deque[RequestEntry] = field(default_factory=lambda: deque(maxlen=LOG_SIZE))
    count: int = 0  # requests so far
    gate: Gate = field(default_factory=Gate)
    watchers: dict[str, Callable[[RequestEntry], None]] = field(default_factory=dict)  # by exposure's name
    users: set[anyio.CancelScope] = field(default_factory=set)

    @property
    def connections(self) -> int:
        """Users who are being served."""
        return len(self.users)

    def close(self) -> None:
        """It is given back: those who are being served are cut off."""
        for scope in tuple(self.users):
            scope.cancel()

    def note(self, entry: RequestEntry) -> None:
        self.count = entry.number
        self.log.append(entry)
        for tell in self.watchers.values():
            tell(entry)

    def watch(self, name: str, tell: Callable[[RequestEntry], None] | None) -> None:
        """Have `tell` hear of requests for `name`, one of the exposures here; None: no longer."""
        if tell is None:
            self.watchers.pop(name, None)
        else:
            self.watchers[name] = tell


class Sites:
    """By host, and the path prefix that is longest. A host `*.example.com` stands for every one label before it."""

    def __init__(self) -> None:
        self._hosts: dict[str, list[tuple[str, Site]]] = {}

    def add(self, host: str, prefix: str, site: Site) -> None:
        """`prefix` begins and ends with "/"."""
        sites = [*self._hosts.get(host, ()), (prefix, site)]
        self._hosts[host] = sorted(sites, key=lambda each: -len(each[0]))

    def remove(self, site: Site) -> None:
        for host, sites in tuple(self._hosts.items()):
            left = [each for each in sites if each[1] is not site]
            if left:
                self._hosts[host] = left
            else:
                del self._hosts[host]

    def exposes(self, host: str) -> bool:
        return host in self._hosts or _wildcard(host) in self._hosts

    def find(self, host: str, path: str) -> Site | None:
        for name in (host, _wildcard(host)):
            for prefix, site in self._hosts.get(name, ()):
                if path.startswith(prefix) or path == prefix[:-1]:
                    return site
        return None


def _wildcard(host: str) -> str:
    return f"*.{host.partition('.')[2]}"
