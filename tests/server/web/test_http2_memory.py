"""What is kept of what a user by HTTP/2 sends, however it is cut into frames."""

import tracemalloc
from collections import Counter

import anyio
import pytest
from h2.connection import H2Connection
from hyperframe.frame import DataFrame

from overlay.server.web import http2 as module
from tests.server.web.http2_user import NAME

pytestmark = pytest.mark.anyio

FRAMES = 6_000


class Talker:
    """A stream of somebody who sends a body in frames of his own, and waits then."""

    def __init__(self, frame: DataFrame) -> None:
        user = H2Connection()
        user.initiate_connection()
        fields = [(":method", "POST"), (":scheme", "https"), (":authority", NAME), (":path", "/")]
        user.send_headers(1, fields)
        self._said = user.data_to_send() + frame.serialize() * FRAMES

    async def receive(self, max_bytes: int) -> bytes:
        if not self._said:
            await anyio.sleep_forever()
        data, self._said = self._said[:max_bytes], self._said[max_bytes:]
        return data

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("frame", [DataFrame(1, data=b"x"), DataFrame(1), DataFrame(1, pad_length=1, flags=["PADDED"])])
async def test_the_smallest_frames_are_kept_in_few_pieces(frame: DataFrame) -> None:
    async def serve(stream: module.Http2Stream) -> None:
        await anyio.sleep_forever()

    talker = Talker(frame)
    tracemalloc.start()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(module.Http2Connection(talker, b"", serve, Counter[str]()).run)  # type: ignore[arg-type]
            await anyio.wait_all_tasks_blocked()
            kept, _ = tracemalloc.get_traced_memory()
            tasks.cancel_scope.cancel()
    finally:
        tracemalloc.stop()
    assert kept < module.WINDOW
