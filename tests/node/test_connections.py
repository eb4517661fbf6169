"""What stays connected in the background, over loopback: through restarts, refusals, and ports that others take."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.node import connections as module
from overlay.node.connecting import bind_local
from overlay.node.connections import Connections, check_port
from overlay.wire.control.messages import Connected
from overlay.wire.endpoint import parse_endpoint
from tests.node.test_connecting import HOST, Peer, answer, connecting

pytestmark = pytest.mark.anyio


class Setup:
    def __init__(self, folder: Path, peer: Peer) -> None:
        self.state = StateDir(folder).open()
        self.peer = peer
        self.asked_for: list[tuple[str, str]] = []

    async def connect(self, name: str, token: str) -> Connected:
        self.asked_for.append((name, token))
        return await self.peer.ask()

    def make(self) -> Connections:
        return Connections(self.state, self.connect)


async def running(it: Connections, tasks: anyio.abc.TaskGroup) -> anyio.CancelScope:
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await it.run()

    tasks.start_soon(run)
    await anyio.wait_all_tasks_blocked()
    return scope


async def until_problem(it: Connections, words: str) -> None:
    while not (it.status() and words in it.status()[0].problem):
        await anyio.lowlevel.checkpoint()


async def until_answered(port: int) -> bytes:
    while True:
        with suppress(OSError):
            if data := await answer(port):
                return data


async def test_it_leads_there_until_it_is_ended_and_after_a_restart(tmp_path: Path) -> None:
    peer = Peer()
    async with connecting(peer), anyio.create_task_group() as tasks:
        setup = Setup(tmp_path, peer)
        it = setup.make()
        with pytest.raises(UserError, match="not up"):
            await it.add("db", "", "", 0)
        scope = await running(it, tasks)
        made = await it.add("db", "", "s3cret", 0)
        port = parse_endpoint(made.listen)[1]
        assert (made.id, made.name, made.node, made.protocol, made.problem) == ("c1", "db", "a", "tcp", "")
        assert setup.asked_for == [("db", "s3cret")] and "s3cret" not in str(it.status())
        assert (tmp_path / module.FILE).stat().st_mode & 0o077 == 0
        assert await answer(port) == b"HELLOend"
        with pytest.raises(UserError, match="Cannot listen"):
            await it.add("db", made.listen, "", 0)
        scope.cancel()

        again = setup.make()
        scope = await running(again, tasks)
        assert await until_answered(port) == b"HELLOend" and setup.asked_for[-1] == ("db", "s3cret")
        assert again.status() == (made,)
        await again.remove("c1")
        bind_local((HOST, port), datagrams=False).close()  # it is free at once
        with pytest.raises(UserError, match="Nothing called 'c1'"):
            await again.remove("c1")
        assert again.status() == () == setup.make().status()
        await again.add("other", "", "", 0)
        scope.cancel()
    kept = await anyio.to_thread.run_sync(setup.make)  # as the daemon does, before anything runs
    (resting,) = kept.status()
    assert (resting.name, resting.node) == ("other", "") and "not up" in resting.problem


async def test_what_does_not_work_says_why_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY", 0.001)
    monkeypatch.setattr(module, "REFUSED_RETRY", 0.001)
    peer = Peer()
    async with connecting(peer), anyio.create_task_group() as tasks:
        setup = Setup(tmp_path, peer)
        it = setup.make()
        peer.refusal = UserError("private-unknown", "No such thing.", exit_code=Exit.REFUSED)
        scope = await running(it, tasks)
        with pytest.raises(UserError, match="No such thing"):
            await it.add("db", "", "", 0)
        assert it.status() == (), "what never worked is not kept"
        peer.refusal = None
        port = parse_endpoint((await it.add("db", "", "", 0)).listen)[1]
        scope.cancel()
        await anyio.wait_all_tasks_blocked()

        again = setup.make()
        peer.refusal = UserError("private-unknown", "No such thing.", exit_code=Exit.REFUSED)
        scope = await running(again, tasks)
        await until_problem(again, "No such thing")
        with pytest.raises(OSError):
            await answer(port)
        with socket.create_server((HOST, port)):
            peer.refusal = None
            await until_problem(again, "Cannot listen")
        assert await until_answered(port) == b"HELLOend" and again.status()[0].problem == ""
        scope.cancel()


async def test_their_number_is_bounded_and_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    peer = Peer()
    async with connecting(peer), anyio.create_task_group() as tasks:
        it = Setup(tmp_path, peer).make()
        scope = await running(it, tasks)
        for name, listen in (("", ""), ("x" * 65, ""), ("db", "nowhere")):
            with pytest.raises(UserError) as caught:
                await it.add(name, listen, "", 0)
            assert caught.value.exit_code == Exit.USAGE
        for _ in range(module.MOST):
            await it.add("db", "", "", 0)
        with pytest.raises(UserError, match="in the background already"):
            await it.add("db", "", "", 0)
        scope.cancel()


def test_a_port_that_its_owner_may_not_take_is_not_taken_for_him() -> None:
    check_port((HOST, 80), 0, 1024)
    check_port((HOST, 1024), 1000, 1024)
    check_port((HOST, 0), 1000, 1024)
    with pytest.raises(UserError, match="may not listen at 127.0.0.1:80") as caught:
        check_port((HOST, 80), 1000, 1024)
    assert caught.value.exit_code == Exit.REFUSED
    check_port((HOST, 65535), os.getuid())
