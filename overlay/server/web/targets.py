"""Connections to targets that one user's streams leave behind for his next ones to the same exposure; nobody else's."""

from collections import deque
from typing import Final

from overlay.server.web.incoming import Incoming
from overlay.server.web.sites import Site

KEPT: Final = 4  # of one user at once


class KeptTargets:
    def __init__(self) -> None:
        self._kept: deque[tuple[Site, Incoming]] = deque()

    def take(self, site: Site) -> Incoming | None:
        """The one that was left last: it is the least likely to have been closed by its target."""
        for at in range(len(self._kept) - 1, -1, -1):
            if self._kept[at][0] is site:
                target = self._kept[at][1]
                del self._kept[at]
                return target
        return None

    def put(self, site: Site, target: Incoming) -> None:
        self._kept.append((site, target))
        if len(self._kept) > KEPT:
            self._kept.popleft()[1].stream.close()

    def close(self) -> None:
        while self._kept:
            self._kept.pop()[1].stream.close()
