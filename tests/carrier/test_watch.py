"""Many sockets behind one descriptor of the loop, and the loop's behind the one of many sockets."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from overlay.carrier.watch import Watch, new_event_loop, watch

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[asyncio.new_event_loop, new_event_loop], ids=["any loop", "a loop of ours"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": request.param}


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Ten, more than which nobody needs here."""
    with ExitStack() as stack:
        made = [socket.socketpair() for _ in range(10)]
        for each in made:
            for end in each:
                end.setblocking(False)
                stack.enter_context(end)
        yield made


async def test_each_is_called_while_there_is_something_and_no_longer(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    heard: list[int] = []
    done = asyncio.Event()

    def reads(number: int) -> None:
        heard.append(number)
        if heard.count(number) == 2:  # the first time it is left there
            pairs[number][0].recv(100)
        if len(heard) == 20:
            done.set()

    one = watch()
    assert watch() is one
    for number, (near, far) in enumerate(pairs):
        one.add_reader(near.fileno(), lambda number=number: reads(number))  # type: ignore[misc]
        far.send(b"x")
    with anyio.fail_after(5):
        await done.wait()
    assert sorted(heard) == sorted(2 * list(range(10)))
    pairs[3][1].send(b"y")
    one.remove_reader(pairs[3][0].fileno())
    one.remove_reader(pairs[3][0].fileno())
    pairs[4][1].send(b"y")
    heard.append(4)
    with anyio.fail_after(5):
        while heard.count(4) < 4:
            await anyio.lowlevel.checkpoint()
    assert heard.count(3) == 2
    for near, _ in pairs:
        one.remove_reader(near.fileno())


async def test_one_who_reads_and_writes_is_two(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    (near, far), *_ = pairs
    one, heard = watch(), set[str]()
    one.add_reader(near.fileno(), lambda: heard.add("read, as it was before"))
    one.add_reader(near.fileno(), lambda: heard.add("read"))
    one.add_writer(near.fileno(), lambda: heard.add("write"))
    await _until(lambda: heard == {"write"})
    far.send(b"x")
    await _until(lambda: heard == {"read", "write"})
    one.remove_writer(near.fileno())
    heard.clear()
    await _until(lambda: heard == {"read"})
    one.remove_reader(near.fileno())
    one.add_writer(near.fileno(), lambda: heard.add("write"))
    await _until(lambda: heard == {"read", "write"})
    one.remove_writer(near.fileno())


async def test_one_that_fails_does_not_keep_the_others_from_being_called(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    one: Watch = watch()
    said: list[object] = []
    heard: set[str] = set()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["exception"]))

    def fail() -> None:
        one.remove_reader(pairs[0][0].fileno())
        raise LookupError("ours")

    one.add_reader(pairs[0][0].fileno(), fail)
    one.add_reader(pairs[1][0].fileno(), lambda: heard.add("other"))
    for _, far in pairs[:2]:
        far.send(b"x")
    await _until(lambda: heard == {"other"} and len(said) == 1)
    assert isinstance(said[0], LookupError)
    one.remove_reader(pairs[1][0].fileno())


async def test_what_is_called_finds_the_library_and_may_begin_tasks(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    (near, far), *_ = pairs
    one = watch()
    heard = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def task() -> None:
            heard.set()

        def call() -> None:
            assert anyio.current_time() and watch() is one
            near.recv(100)
            tasks.start_soon(task)

        one.add_reader(near.fileno(), call)
        far.send(b"x")
        with anyio.fail_after(5):
            await heard.wait()
    one.remove_reader(near.fileno())


async def test_all_else_that_a_loop_does_goes_on_beside(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Its own sockets, timers and threads, while a watched socket has something all the time."""
    (near, far), (other, speaks), *_ = pairs
    watch().add_reader(near.fileno(), lambda: None)
    far.send(b"x")
    with anyio.fail_after(5):
        assert await anyio.to_thread.run_sync(speaks.send, b"x") == 1
        await anyio.wait_readable(other)
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
    watch().remove_reader(near.fileno())
    with anyio.fail_after(5):
        speaks.send(b"y")
        await anyio.wait_readable(other)


async def _until(outcome: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not outcome():
            await anyio.lowlevel.checkpoint()


async def test_a_socket_that_was_closed_without_a_word_does_not_deafen_the_next_of_its_number() -> None:
    one, heard = watch(), asyncio.Event()
    first, second = socket.socketpair()
    number = first.fileno()
    one.add_reader(number, lambda: None)
    first.close()
    again, far = socket.socketpair()
    with second, far, again:
        assert again.fileno() == number
        one.add_writer(number, heard.set)
        with anyio.fail_after(5):
            await heard.wait()
        one.remove_writer(number)
        heard = asyncio.Event()
        one.add_reader(number, lambda: heard.set())
        far.send(b"x")
        with anyio.fail_after(5):
            await heard.wait()
        again.close()
        one.remove_reader(number)
