"""Leases that share a place: who may join, whose terms hold, and what becomes of the place when members go."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.reached import REACHED
from overlay.server import pulse
from overlay.wire.control.messages import GroupMember, Members, MemberState, Message, Ping, RequestEntry
from overlay.wire.control.terms import Limits, Membership, Terms

from .leases import HOST, WEB, Bench, on_bench, web

GROUP = Terms(group=Membership(name="web"))


@asynccontextmanager
async def targets(*answers: bytes) -> AsyncIterator[list[int]]:
    """Nodes' ends of members whose targets say this at once. → their ports"""
    async with AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(await anyio.create_tcp_listener(local_host=HOST)) for _ in answers]
        async with anyio.create_task_group() as tasks:
            for listener, answer in zip(listeners, answers, strict=True):

                async def serve(stream: SocketStream, answer: bytes = answer) -> None:
                    async with stream:
                        with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                            await stream.send(REACHED + answer)
                            while True:
                                await stream.receive()

                tasks.start_soon(listener.serve, serve)
            yield [listener.extra(SocketAttribute.local_port) for listener in listeners]
            tasks.cancel_scope.cancel()


async def first_bytes(port: int, size: int = 1) -> bytes:
    async with await anyio.connect_tcp(HOST, port) as user:
        return await user.receive(size)


def test_members_share_a_port_which_outlives_all_but_the_last(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        port = await it.free_port()
        place = f"{HOST}:{port}"
        async with targets(b"a", b"b", b"c") as ports:
            one = await it.expose(2, public=place, port=ports[0], terms=GROUP)
            two = await it.expose(3, public=place, port=ports[1], terms=GROUP)
            assert one.public == two.public == place
            three = await it.expose(3, port=ports[2], target="tcp://127.0.0.1:81", terms=GROUP)
            assert three.public == place, "who names no place joins where the group is"
            assert {await first_bytes(port) for _ in range(3)} == {b"a", b"b", b"c"}
            assert (await it.refusal(3, public=place)).code == "port-taken"
            other = Terms(group=Membership(name="other"))
            assert (await it.refusal(3, public=place, terms=other)).code == "port-taken"
            assert (await it.refusal(2, public=place, terms=GROUP)).code == "group-twice"
            assert (await it.refusal(3, id=three.id, terms=GROUP)).code == "group-twice"
            assert (await it.refusal(3, id=three.id)).code == "group-fixed"
            await it.exposures.unexpose(2, one.id)
            await it.exposures.unexpose(3, three.id)
            assert [await first_bytes(port) for _ in range(2)] == [b"b", b"b"]
            await it.exposures.unexpose(3, two.id)
            with pytest.raises(OSError):
                await first_bytes(port)

    on_bench(tmp_path, test)


def test_a_group_is_whole_after_a_restart(tmp_path: Path) -> None:
    places: list[int] = []

    async def grant(it: Bench) -> None:
        places.append(await it.free_port())
        for node in (2, 3):
            await it.expose(node, public=f"{HOST}:{places[0]}", terms=GROUP)

    async def back(it: Bench) -> None:
        async with targets(b"a", b"b") as ports:
            for node, port in zip((2, 3), ports, strict=True):
                await it.expose(node, id=f"x{node - 1}", port=port, terms=GROUP)
            assert {await first_bytes(places[0]) for _ in range(2)} == {b"a", b"b"}
            await it.exposures.forget_node(2)
            assert {await first_bytes(places[0]) for _ in range(2)} == {b"b"}

    on_bench(tmp_path, grant, back)


def test_who_opens_a_group_sets_its_terms(tmp_path: Path) -> None:
    async def test(it: Bench) -> None:
        place = f"{HOST}:{await it.free_port()}"
        terms = Terms(group=Membership(name="web", balance="sticky"), limits=Limits(connections=1), health="tcp")
        async with targets(b"a", b"b") as ports:
            one = await it.expose(2, public=place, port=ports[0], terms=terms)
            error = await it.refusal(3, public=place, terms=GROUP)
            assert error.code == "group-terms" and "'a'" in error.message and "--balance" in error.hint
            more = Terms(group=terms.group, limits=Limits(connections=2))
            await it.expose(3, public=place, port=ports[1], terms=Terms(group=terms.group, limits=terms.limits))
            port = int(place.rpartition(":")[2])

            async def has_room() -> bool:
                async with await anyio.connect_tcp(HOST, port) as user, await anyio.connect_tcp(HOST, port) as second:
                    await user.receive()
                    try:
                        await second.receive()
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        return False
                    return True

            assert not await has_room()
            await it.expose(3, id="x2", port=ports[1], terms=more)
            assert not await has_room()
            await it.exposures.unexpose(2, one.id)
            assert await has_room(), "whoever has been in it for longest has the say"

    on_bench(tmp_path, test)


def test_a_name_is_shared_and_its_log_is_for_all(tmp_path: Path) -> None:
    heard: list[str] = []

    def note(name: str, entry: RequestEntry) -> None:
        heard.append(f"{name} {entry.status}")

    async def test(it: Bench) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
        async with targets(answer + b"a", answer + b"b") as ports:
            for node, port in zip((2, 3), ports, strict=True):
                site = await it.expose(node, **WEB, host="docs.test", port=port, terms=GROUP)
                it.exposures.watch(node, site.id, note)
            assert (await it.refusal(3, **WEB, host="docs.test")).code == "host-taken"
            lonely = await it.expose(2, **WEB, host="other.test", terms=GROUP)
            assert (await it.refusal(3, **WEB, terms=GROUP)).code == "group-ambiguous"
            await it.exposures.unexpose(2, lonely.id)
            port = await it.free_port()
            at_port = [
                await it.expose(node, **WEB, public=f"{HOST}:{port}", port=inner, terms=GROUP)
                for node, inner in zip((2, 3), ports, strict=True)
            ]
            for node, each in zip((2, 3), at_port, strict=True):
                it.exposures.watch(node, each.id, note)
            assert {(await web(port))[-1:] for _ in range(2)} == {b"a", b"b"}
            assert sorted(heard) == ["x4 200", "x4 200", "x5 200", "x5 200"]
            await it.exposures.unexpose(2, at_port[0].id)
            assert (await web(port))[-1:] == b"b"
            assert len(heard) == 5 and it.exposures.guests.exposes("docs.test")

    on_bench(tmp_path, test)


def test_members_hear_how_it_is_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.server.groups.INTERVAL", 0.005)
    monkeypatch.setattr(pulse, "PATIENCE", 0.05)
    told: dict[str, tuple[GroupMember, ...]] = {}
    mute: set[int] = set()

    async def tell(node: int, message: Message) -> bool:
        if isinstance(message, Members):
            told[message.id] = message.members
        if isinstance(message, Ping) and node not in mute:
            tests[0].exposures.groups.heard(node)
        return node in tests[0].online

    tests: list[Bench] = []

    async def test(it: Bench) -> None:
        tests.append(it)
        for node in (2, 3):
            await it.expose(node, **WEB, host="docs.test", terms=GROUP)

        async def are(*states: MemberState) -> None:
            wanted = tuple(GroupMember(node=node, state=state) for node, state in zip("ab", states, strict=True))
            while told.get("x2") != wanted:  # noqa: ASYNC110 - nobody tells when
                await anyio.sleep(0.005)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.exposures.run)
            await are("up", "up")
            assert told["x1"] == told["x2"]
            it.online.discard(2)
            await are("offline", "up")
            it.online.add(2)
            await are("up", "up")
            mute.add(2)
            await are("silent", "up")
            mute.clear()
            await are("up", "up")
            it.exposures.groups.set_health(3, "x1", "not its own")
            it.exposures.groups.set_health(3, "x2", "it answers 500\n")
            while told["x1"][1].state != "unwell":  # noqa: ASYNC110 - nobody tells when
                await anyio.sleep(0.005)
            shown: list[dict[str, Any]] = it.exposures.status()[0]["members"]
            assert shown == [
                {"node": "a", "state": "up"},
                {"node": "b", "state": "unwell", "problem": "it answers 500"},
            ]
            it.exposures.groups.set_health(3, "x2", "")
            await are("up", "up")
            tasks.cancel_scope.cancel()

    on_bench(tmp_path, test, tell=tell)
