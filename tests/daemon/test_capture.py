"""The stream of a capture: messages through any cut of the bytes, hostile bytes, the local API over a real socket."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from overlay.daemon.capture import (
    LARGEST_SNAPLEN,
    CaptureMessage,
    CaptureReader,
    CaptureWish,
    Counts,
    Inner,
    Outer,
    Started,
    capture_routes,
    encode,
)
from overlay.daemon.client import LocalClient
from overlay.daemon.localapi import Write, on_user_error, serve_local_api
from overlay.errors import Exit, UserError
from tests.daemon.capture_source import Source

STARTED = Started("id", "overlay0", 41641, {"10.77.0.3": "b"}, {3: "b"})
COUNTS = Counts(2**40, 1, 2, 3)

numbers = st.integers(0, 2**63)
hosts = st.tuples(st.text(max_size=40), st.integers(0, 65535))
messages = st.one_of(
    st.builds(Inner, numbers, st.booleans(), numbers, st.binary(max_size=300)),
    st.builds(Outer, numbers, st.booleans(), hosts, hosts, st.integers(1, 65535), st.binary(max_size=300)),
    st.builds(Counts, numbers, numbers, numbers, numbers),
    st.just(STARTED),
)


@settings(deadline=None)
@given(st.lists(messages, max_size=8), st.lists(st.integers(0, 400), max_size=20))
def test_messages_survive_any_cut(sent: list[CaptureMessage], cuts: list[int]) -> None:
    data = bytes(encode(sent))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = CaptureReader()
    got = [message for start, end in zip(places, places[1:], strict=False) for message in reader.feed(data[start:end])]
    assert got == sent


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_fuzz_what_is_no_capture_is_one_sentence(chunks: list[bytes]) -> None:
    reader = CaptureReader()
    for chunk in chunks:
        try:
            for _ in reader.feed(chunk):
                pass
        except UserError as error:
            assert error.code == "bad-answer"
            return


def test_a_message_without_end_is_refused() -> None:
    with pytest.raises(UserError, match="too long"):
        list(CaptureReader().feed(b"\xff\xff\xff\x7f"))


def serve(folder: Path, source: Source, main: Callable[[LocalClient], Awaitable[None]]) -> None:
    async def serving() -> None:
        app = Starlette(routes=capture_routes(source), exception_handlers={UserError: on_user_error})
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_local_api, app, folder)
            with anyio.fail_after(20):
                await main(LocalClient(folder))
            tasks.cancel_scope.cancel()

    anyio.run(serving)


def test_a_capture_is_read_until_it_is_stopped(tmp_path: Path) -> None:
    async def produce(write: Write) -> None:
        await write(encode([STARTED]))
        await source.stopping.wait()
        await write(encode([Inner(1, True, 3, b"abc"), COUNTS]))

    source = Source(produce)

    def read(client: LocalClient) -> list[CaptureMessage]:
        got: list[CaptureMessage] = []
        reader = CaptureReader()
        with client.stream("POST", "/v1/captures", {"peer": 3, "outer": True, "snaplen": 96}) as chunks:
            for chunk in chunks:
                for message in reader.feed(chunk):
                    got.append(message)
                    if isinstance(message, Started):
                        client.request("DELETE", f"/v1/captures/{message.id}")
        return got

    async def main(client: LocalClient) -> None:
        got = await to_thread.run_sync(read, client)
        assert got == [STARTED, Inner(1, True, 3, b"abc"), COUNTS]
        assert source.wishes == [CaptureWish(peer=3, outer=True, snaplen=96)] and source.stopped == ["id"]

    serve(tmp_path, source, main)


def test_a_reader_that_goes_away_ends_the_capture(tmp_path: Path) -> None:
    ended = anyio.Event()

    async def produce(write: Write) -> None:
        try:
            await write(encode([STARTED]))
            await anyio.sleep_forever()
        finally:
            ended.set()

    def look(client: LocalClient) -> None:
        with client.stream("POST", "/v1/captures", {}) as chunks:
            next(chunks)

    async def main(client: LocalClient) -> None:
        await to_thread.run_sync(look, client)
        await ended.wait()

    serve(tmp_path, Source(produce), main)


def test_a_slow_reader_holds_the_writer_up(tmp_path: Path) -> None:
    """What is not read is neither kept here without bound nor lost on the way."""
    chunk, blocked = bytes(1 << 16), anyio.Event()
    written = 0

    async def produce(write: Write) -> None:
        nonlocal written
        for _ in range(200):
            with anyio.move_on_after(0.2) as patience:
                await write(chunk)
                written += len(chunk)
            if patience.cancelled_caught:
                blocked.set()
                await anyio.sleep_forever()

    async def main(client: LocalClient) -> None:
        stream = client.stream("POST", "/v1/captures", {})
        await to_thread.run_sync(stream.__enter__)
        await blocked.wait()
        assert written < 4 << 20
        stream.__exit__(None, None, None)

    serve(tmp_path, Source(produce), main)


def test_a_daemon_that_ends_first_is_told_from_a_capture_that_ended(tmp_path: Path) -> None:
    async def produce(write: Write) -> None:
        await write(encode([STARTED]))
        raise OSError("lost")

    def read(client: LocalClient) -> None:
        with client.stream("POST", "/v1/captures", {}) as chunks:
            for _ in chunks:
                pass

    async def main(client: LocalClient) -> None:
        with pytest.raises(UserError) as caught:
            await to_thread.run_sync(read, client)
        assert caught.value.code == "no-answer" and "has ended" in caught.value.message

    serve(tmp_path, Source(produce), main)


@pytest.mark.parametrize(
    "wish", [{"peer": "b"}, {"outer": 1}, {"snaplen": 0}, {"snaplen": LARGEST_SNAPLEN + 1}, {"snaplen": "all"}]
)
def test_a_wrong_wish_is_refused(tmp_path: Path, wish: dict[str, Any]) -> None:
    async def produce(_write: Write) -> None:
        raise AssertionError("never started")

    source = Source(produce)

    async def main(client: LocalClient) -> None:
        with pytest.raises(UserError) as caught:
            await to_thread.run_sync(client.request, "POST", "/v1/captures", wish)
        assert caught.value.exit_code is Exit.USAGE and source.wishes == []

    serve(tmp_path, source, main)


def test_peers_are_found(tmp_path: Path) -> None:
    async def main(client: LocalClient) -> None:
        found = await to_thread.run_sync(client.request, "GET", "/v1/peers/b")
        assert found["number"] == 3
        with pytest.raises(UserError, match="no peer 'c'"):
            await to_thread.run_sync(client.request, "GET", "/v1/peers/c")

    async def produce(_write: Write) -> None:
        raise AssertionError("never started")

    serve(tmp_path, Source(produce), main)
