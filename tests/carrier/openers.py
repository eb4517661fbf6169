"""Openers for tests: a way to the server that works, by TCP whatever the carrier is called, and one that does not."""

import anyio

from overlay.carrier.carriers import CarrierStream, DialOptions
from overlay.carrier.stream import connect
from overlay.wire.endpoint import Endpoint


async def through(endpoint: Endpoint, options: DialOptions) -> CarrierStream:
    return await connect(endpoint)


async def blocked(endpoint: Endpoint, options: DialOptions) -> CarrierStream:
    await anyio.sleep_forever()
    raise AssertionError
