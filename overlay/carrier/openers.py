"""The openers of all carriers that this build has."""

from typing import Final

from overlay.carrier.carriers import CarrierName, CarrierStream, DialOptions, Opener
from overlay.carrier.stream import connect
from overlay.wire.endpoint import Endpoint


async def open_tcp(endpoint: Endpoint, options: DialOptions) -> CarrierStream:
    """As `Opener`."""
    return await connect(endpoint)


OPENERS: Final[dict[CarrierName, Opener]] = {"tcp": open_tcp}
