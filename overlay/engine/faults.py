"""What must not end the engine thread: an unexpected exception while one datagram, packet or command is worked on.

It is a bug of ours. It costs that one item, is counted, and is logged with its traceback once per place in the code, so
that who finds a way to provoke it cannot fill the log.
"""

import logging
from types import TracebackType

from overlay.engine import drops
from overlay.engine.drops import Drops
from overlay.errors import RemoteProtocolError

logger = logging.getLogger(__name__)


class Faults:
    """A context manager around the work on one item; reusable, not reentrant by need."""

    def __init__(self, counted: Drops) -> None:
        self._drops = counted
        self._seen: set[tuple[type[BaseException], str, int]] = set()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, Exception) and self.caught(error)

    def caught(self, error: Exception) -> bool:
        """The same for who has a `try` of their own, where entering a context for each item costs too much. True."""
        if isinstance(error, RemoteProtocolError):
            self._drops.count(error.reason)
            return True
        self._drops.count(drops.INTERNAL_ERROR)
        place = (type(error), *_place(error.__traceback__))
        if place not in self._seen:
            self._seen.add(place)
            logger.error("unexpected error in the engine; going on without this item", exc_info=error)
        return True


def _place(trace: TracebackType | None) -> tuple[str, int]:
    """File and line where the exception was raised."""
    if trace is None:
        return "", 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno
