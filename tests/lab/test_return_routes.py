"""Ways back to users' addresses, in a real kernel: made when they are needed, and gone when nobody needs them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from overlay.daemon.state import StateDir
from overlay.node import return_routes
from overlay.node.return_routes import FILE, ReturnRoutes, UnusableAddress
from tests.lab.conftest import inside
from tests.lab.netns import Namespace, wait_for

pytestmark = pytest.mark.lab

TARGET, TARGET_6 = ("127.0.0.1", 3000), ("::1", 53)
USER, OTHER, USER_6 = "198.51.100.90", "198.51.100.91", "2001:db8:90::1"


@asynccontextmanager
async def running(state: StateDir) -> AsyncIterator[ReturnRoutes]:
    routes = ReturnRoutes(state)
    async with anyio.create_task_group() as tasks:
        await tasks.start(routes.run)
        yield routes
        tasks.cancel_scope.cancel()


async def until(outcome: Callable[[], bool]) -> None:
    await anyio.to_thread.run_sync(partial(wait_for, outcome, "the routes are swept"))


def rules(host: Namespace) -> list[str]:
    shown = [host.run(["ip", family, "rule"]).stdout.splitlines() for family in ("-4", "-6")]
    return [line.partition(":\t")[2].partition(" lookup")[0] for each in shown for line in each if "5100:" in line]


def led_back(host: Namespace) -> set[str]:
    """The addresses that tables of ours make this machine's."""
    shown = [host.run(["ip", family, "route", "show", "table", "all"]).stdout for family in ("-4", "-6")]
    lines = [line.split() for each in shown for line in each.splitlines() if "table 1" in line or "table 2" in line]
    return {line[1] for line in lines if len(line[line.index("table") + 1]) > 3}


def test_ways_are_made_shared_and_taken_away(host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(return_routes, "MOST_USERS", 2)
    state = StateDir(tmp_path)

    async def main() -> None:
        async with running(state) as routes:
            first, second = [await routes.hold(TARGET, "tcp", USER) for _ in range(2)]
            await routes.hold(TARGET_6, "udp", USER_6)
            await routes.hold(("127.0.0.1", 53), "udp", USER)
            assert rules(host) == [
                "from 127.0.0.1 ipproto tcp sport 3000",
                "from 127.0.0.1 ipproto udp sport 53",
                "from 0.0.0.0 ipproto udp sport 53",
                "from all ipproto udp sport 53",
            ]
            assert led_back(host) == {USER, USER_6} and state.read(FILE)
            first.release()
            first.release()  # counts once
            await routes.hold(TARGET, "tcp", OTHER)
            with pytest.raises(UnusableAddress) as full:
                await routes.hold(TARGET, "tcp", "198.51.100.92")
            assert full.value.reason == "transparent_too_many_users"
            second.release()  # the one who has gone makes room
            await routes.hold(TARGET, "tcp", "198.51.100.92")
            assert led_back(host) == {OTHER, "198.51.100.92", USER, USER_6}
        assert not rules(host) and not led_back(host) and state.read(FILE) is None

    inside(host, main)


def test_who_is_gone_for_long_is_led_back_no_more(
    host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(return_routes, "LINGER", 0.0)
    monkeypatch.setattr(return_routes, "_SWEEP_INTERVAL", 0.01)

    async def main() -> None:
        async with running(StateDir(tmp_path)) as routes:
            stays, goes = await routes.hold(TARGET, "tcp", USER), await routes.hold(TARGET, "tcp", OTHER)
            goes.release()
            await until(lambda: led_back(host) == {USER})
            stays.release()
            await until(lambda: not rules(host))
            again = await routes.hold(TARGET, "tcp", USER)
            assert led_back(host) == {USER}
            again.release()

    inside(host, main)


def test_what_a_killed_daemon_left_is_taken_away(host: Namespace, tmp_path: Path) -> None:
    state = StateDir(tmp_path)

    async def main() -> None:
        async with running(state) as routes:
            await routes.hold(TARGET, "tcp", USER)
            await routes.hold(TARGET_6, "udp", USER_6)
            left = state.read(FILE)
            assert left is not None
            routes._ways.clear()  # as if it were killed: nothing is taken away
        assert led_back(host) == {USER, USER_6}
        state.write(FILE, left)
        async with running(state):
            assert not rules(host) and not led_back(host) and state.read(FILE) is None
        state.write(FILE, b"{")
        async with running(state) as routes:  # what cannot be read is said, and in nobody's way
            await routes.hold(TARGET, "tcp", USER)

    inside(host, main)


def test_the_machines_own_addresses_are_nobodys(host: Namespace, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(StateDir(tmp_path)) as routes:
            assert await routes.is_local("192.0.2.2") and not await routes.is_local(USER)
            for own in ("192.0.2.2", "127.9.9.9", "192.0.2.255"):
                with pytest.raises(UnusableAddress) as refused:
                    await routes.hold(TARGET, "tcp", own)
                assert refused.value.reason == "transparent_own_address"
            with pytest.raises(UnusableAddress):
                await routes.hold(TARGET_6, "tcp", "2001:db8::2")
        with pytest.raises(OSError, match="not up"):
            await routes.hold(TARGET, "tcp", USER)

    inside(host, main)
