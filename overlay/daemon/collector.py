"""When Python's collector looks at everything: while the process rests, or when there is much that nobody looked at.

A full collection goes through all objects in one go, and meanwhile no other thread runs, the data plane's neither: that
is 85 ms for a map of 10,000 nodes and what is made of it. The collections of young objects, a millisecond at the most,
stay as they are. Reference counts free nearly all of a daemon's objects anyway; what is left holds itself in a circle.
"""

import gc
import time
from typing import Final

import anyio

INTERVAL: Final = 1.0  # s between two looks
REST: Final = 0.02  # of one processor's time, used by the whole process since the last look
SOON: Final = 10
"""Middle collections since the last full one, after which a full one is wanted: as many as Python waits for."""
AT_ONCE: Final = 100
"""And so many make it due on a busy process, too. Each follows some 7,000 more objects that were made than freed."""
_NEVER: Final = 2**31 - 1  # middle collections


def is_due(middle: int, load: float) -> bool:
    """After `middle` middle collections since the last full one, with a process under `load` (1: one processor)."""
    return middle >= AT_ONCE or (middle >= SOON and load <= REST)


async def collect_while_at_rest() -> None:
    """Take full collections over from the interpreter, until cancelled."""
    before = gc.get_threshold()
    gc.set_threshold(before[0], before[1], _NEVER)
    try:
        wall, used = time.monotonic(), time.process_time()
        while True:
            await anyio.sleep(INTERVAL)
            wall_now, used_now = time.monotonic(), time.process_time()
            if is_due(gc.get_count()[2], (used_now - used) / (wall_now - wall)):
                gc.collect()
                used_now = time.process_time()
            wall, used = wall_now, used_now
    finally:
        gc.set_threshold(*before)
