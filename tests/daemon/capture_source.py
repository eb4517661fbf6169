"""A daemon's captures for tests: who asks for what, and what the test has it produce."""

from typing import Any

import anyio

from overlay.daemon.capture import CaptureWish
from overlay.daemon.localapi import Produce
from overlay.errors import UserError


class Source:
    """Knows one peer, b. `stopping` is set by a stop; `stopped` says of what."""

    def __init__(self, produce: Produce) -> None:
        self.wishes: list[CaptureWish] = []
        self.stopped: list[str] = []
        self.stopping = anyio.Event()
        self._produce = produce

    def find_peer(self, text: str) -> dict[str, Any]:
        if text != "b":
            raise UserError("peer-unknown", f"There is no peer '{text}'.")
        return {"number": 3, "name": "b", "addresses": ["10.77.0.3"]}

    def capture(self, wish: CaptureWish) -> Produce:
        self.wishes.append(wish)
        return self._produce

    def stop_capture(self, id: str) -> None:
        self.stopped.append(id)
        self.stopping.set()
