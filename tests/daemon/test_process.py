"""A daemon's event loop: its errors come out as they are, and full collections have little to look at."""

import asyncio
import gc
from collections.abc import Iterator

import anyio
import pytest

from overlay.daemon.process import run_loop
from overlay.errors import UserError


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_imported_is_out_of_the_collectors_sight() -> None:
    left: list[int] = []

    async def main() -> None:
        left.append(len(gc.get_objects()))

    before = len(gc.get_objects())
    run_loop(main, asyncio.new_event_loop)
    assert left[0] < before / 10


def test_a_users_error_inside_a_group_comes_out_alone() -> None:
    async def fail() -> None:
        raise UserError("wrong", "Something is wrong.")

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)

    with pytest.raises(UserError, match="Something"):
        run_loop(main, asyncio.new_event_loop)
