"""One byte from the node, before all that the target says: it has reached the target.

A connection to a node tells nothing of the target behind it. Who has another node to go to, or can ask to be let in
again, waits for this byte before the user's first one goes: then nothing was said that could not be said once more.
"""

from typing import Final

import anyio

from overlay.carrier.port import Stream

REACHED: Final = b"\x01"


async def wait_reached(stream: Stream) -> bool:
    """→ whether the target is reached: not, where the node closes the stream, or says something else."""
    try:
        return await stream.receive(1) == REACHED
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return False
