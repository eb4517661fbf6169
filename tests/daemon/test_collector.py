"""Full collections: while the process rests, or when very much waits for one. The interpreter's real collector."""

import gc
import weakref

import anyio
import pytest

from overlay.daemon import collector
from overlay.daemon.collector import AT_ONCE, REST, SOON, collect_while_at_rest, is_due


class Circle:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize(
    ("middle", "load", "due"),
    [
        (0, 0.0, False),
        (SOON - 1, 0.0, False),
        (SOON, REST, True),
        (SOON, REST * 1.1, False),
        (AT_ONCE - 1, 1.0, False),
        (AT_ONCE, 2.0, True),
    ],
)
def test_when(middle: int, load: float, due: bool) -> None:
    assert is_due(middle, load) is due


def make_garbage(middle: int) -> weakref.ref[Circle]:
    """A circle that only a full collection finds, and so many middle collections."""
    circle = Circle()
    for _ in range(middle):
        gc.collect(1)
    return weakref.ref(circle)


@pytest.mark.parametrize(("rest", "middle"), [(9.0, SOON), (-1.0, AT_ONCE)])
def test_garbage_goes(rest: float, middle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "INTERVAL", 0.01)
    monkeypatch.setattr(collector, "REST", rest)  # all is rest, or nothing

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect_while_at_rest)
            await anyio.wait_all_tasks_blocked()
            gc.collect()
            circle = make_garbage(middle)
            with anyio.fail_after(10):
                while circle() is not None:  # noqa: ASYNC110 - the collector tells nobody
                    await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_the_interpreter_leaves_full_collections_to_it_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "REST", -1.0)
    before = gc.get_threshold()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect_while_at_rest)
            await anyio.wait_all_tasks_blocked()
            assert gc.get_threshold()[:2] == before[:2]
            gc.collect()
            full = gc.get_stats()[2]["collections"]
            kept = [[index] for index in range(200_000)]  # the interpreter would have looked at all, several times
            assert gc.get_stats()[2]["collections"] == full and kept
            tasks.cancel_scope.cancel()

    anyio.run(main)
    assert gc.get_threshold() == before
