"""Exposures of several kinds at the node: of groups, private, for a time, ranges; and what targets may not be."""

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from overlay.carrier.reached import REACHED
from overlay.errors import Exit, UserError
from overlay.node import target_end
from overlay.node.control import Answer
from overlay.node.kept import FILE, UNFINISHED
from overlay.node.status import ExposeWish
from overlay.wire.control.messages import (
    Expose,
    GroupMember,
    Health,
    Message,
)
from overlay.wire.control.terms import Membership, Private, Terms
from tests.node.exposing import NODE, PEER, SERVER, STRANGER, Setup, ask, serving, shout, tcp_service


def test_a_member_of_a_group_says_that_it_reached_its_target_and_how_that_is(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    terms = Terms(group=Membership(name="web"), health="tcp")

    async def main() -> None:
        async with serving(setup.exposures):
            async with tcp_service(shout) as port:
                shown = await setup.add(f"tcp://127.0.0.1:{port}", "9000", terms=terms)
                inner = setup.server.exposures[shown.id].port
                assert await ask(inner, SERVER, b"hello") == REACHED + b"HELLO"
                while not setup.said:  # noqa: ASYNC110 - a list tells nobody
                    await anyio.sleep(0.005)
                assert setup.said == [Health(id=shown.id)]
            with pytest.raises((anyio.BrokenResourceError, OSError)):
                await ask(inner, SERVER, b"hello")
            members = (GroupMember(node="a", state="up"), GroupMember(node="b", state="offline"))
            setup.exposures.set_members(shown.id, members)
            setup.exposures.set_members("x99", members)
            assert setup.exposures.status()[0].members == members
            await setup.exposures.reconcile(setup.server.list())
            assert setup.said == [Health(id=shown.id)] * 2, "the server may have started anew"
            await setup.exposures.remove(shown.id)
            await setup.exposures.reconcile(())
            assert len(setup.said) == 2

    anyio.run(main)


def test_a_private_exposure_takes_those_whom_the_server_has_named(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    terms = Terms(private=Private(name="db", tags=("team",)))

    async def main() -> None:
        async with serving(setup.exposures), tcp_service(shout) as port:
            shown = await setup.add(f"127.0.0.1:{port}", "", terms=terms)
            assert shown.target == f"tcp://127.0.0.1:{port}" and shown.service == ""
            inner = setup.server.exposures[shown.id].port
            setup.exposures.let_in(shown.id, PEER, 600)
            setup.exposures.let_in("x99", SERVER, 600)
            assert await ask(inner, PEER, b"hello") == REACHED + b"HELLO"
            for other in (SERVER, STRANGER):
                with pytest.raises((anyio.BrokenResourceError, OSError)):
                    await ask(inner, other, b"hello")
            setup.exposures.let_in(shown.id, PEER, 0)
            with pytest.raises((anyio.BrokenResourceError, OSError)):
                await ask(inner, PEER, b"hello")
        async with serving(setup.make(), ""):
            pass

    anyio.run(main)


def test_a_peer_that_is_put_out_is_cut_off_and_others_are_not(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    terms = Terms(private=Private(name="db", tags=("team",)))

    async def repeat(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError):
                async for chunk in stream:
                    await stream.send(chunk)

    async def main() -> None:
        async with serving(setup.exposures), tcp_service(repeat) as port:
            shown = await setup.add(f"127.0.0.1:{port}", "", terms=terms)
            inner = setup.server.exposures[shown.id].port
            users = []
            for address in (PEER, STRANGER):
                setup.exposures.let_in(shown.id, address, 600)
                users.append(await anyio.connect_tcp(NODE, inner, local_host=address))
                await users[-1].send(b"hello")
                assert await users[-1].receive() == REACHED
                assert await users[-1].receive() == b"hello"
            setup.exposures.let_in(shown.id, PEER, 0)
            with pytest.raises(anyio.BrokenResourceError):
                await users[0].receive()
            await users[1].send(b"more")
            assert await users[1].receive() == b"more"
            assert setup.exposures.drops["exposure_revoked"] == 1
            for user in users:
                await user.aclose()

    anyio.run(main)


def test_one_whose_time_is_over_ends_here_and_at_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port:
            await setup.add(str(port), "9000", terms=Terms(expires=100.0))
            await setup.add(str(port), "9001", terms=Terms(expires=200.0))
            setup.now = 100.0
            await setup.add(str(port), "9002")  # has the clock looked at
            while "x1" in setup.server.exposures:
                await anyio.lowlevel.checkpoint()
            assert [each.public for each in setup.exposures.status()] == ["192.0.2.1:9001", "192.0.2.1:9002"]
        setup.now = 200.0
        again = setup.make()  # it was over while nothing ran
        async with serving(again):
            while len(again.status()) > 1:
                await anyio.lowlevel.checkpoint()
            while "x2" in setup.server.exposures:
                await anyio.lowlevel.checkpoint()
        assert [each.public for each in again.status()] == ["192.0.2.1:9002"]

    anyio.run(main)
    assert caplog.text.count("is gone: its time is over") == 2


def test_an_end_that_is_changed_is_kept_to(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port:
            made = await setup.add(str(port), "9000", terms=Terms(expires=1000.0))
            sooner = ExposeWish(target=str(port), public="9000", terms=Terms(expires=4.0))
            await setup.exposures.change(made.id, sooner)
            with anyio.fail_after(5):
                while setup.server.exposures:
                    await anyio.lowlevel.checkpoint()

    anyio.run(main)


def test_the_server_says_why_it_has_ended_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port:
            await setup.add(str(port), "9000")
            setup.exposures.withdrawn("x1", "its policy changed")
            setup.exposures.withdrawn("x7", "it never was")
            while setup.exposures.status():
                await anyio.lowlevel.checkpoint()

    anyio.run(main)
    assert "x1 at 192.0.2.1:9000 is gone: the server has ended it, as its policy changed" in caplog.text


def test_a_range_is_made_and_given_back_as_one(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port:
            shown = await setup.exposures.add(
                ExposeWish(target=f"tcp://127.0.0.1:{port}-{port + 2}", public="192.0.2.1:9000-9002")
            )
            assert (shown.id, shown.public, shown.target, shown.range) == (
                "x1-x3",
                "192.0.2.1:9000-9002",
                f"tcp://127.0.0.1:{port}-{port + 2}",
                "x1-x3",
            )
            each = setup.exposures.status()
            assert [one.public for one in each] == [f"192.0.2.1:{9000 + number}" for number in range(3)]
            assert {one.range for one in each} == {"x1-x3"}
            assert await ask(setup.server.exposures["x1"].port, SERVER, b"hi") == b"HI"
            await setup.exposures.remove("x2")
            assert [one.id for one in setup.exposures.status()] == ["x1", "x3"]
            again = setup.make()
            assert [one.range for one in again.status()] == ["x1-x3"] * 2
            await setup.exposures.remove("x1-x3")
            assert setup.exposures.status() == () and not setup.server.exposures

    anyio.run(main)


def test_a_private_exposure_needs_an_overlay_address(tmp_path: Path) -> None:
    setup = Setup(tmp_path)

    async def main() -> None:
        async with serving(setup.exposures, ""):
            with pytest.raises(UserError) as caught:
                await setup.add("22", "", terms=Terms(private=Private(name="ssh", tags=("team",))))
            assert caught.value.code == "no-tunnel" and "overlay up" in caught.value.hint
            assert not setup.server.requests

    anyio.run(main)


def test_a_range_that_cannot_be_whole_is_not_made(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        request = setup.server.request

        async def refuse_the_third(make: Callable[[int], Message]) -> Answer:
            message = make(0)
            if isinstance(message, Expose) and message.public == "9002":
                raise UserError("port-taken", "Held by node 'b'.")
            return await request(make)

        setup.server.request = refuse_the_third  # type: ignore[method-assign]
        setup.exposures = setup.make()
        async with serving(setup.exposures):
            with pytest.raises(UserError) as caught:
                await setup.exposures.add(ExposeWish(target="udp://127.0.0.1:8000-8003", public="9000-9003"))
            assert caught.value.code == "port-taken"
            assert setup.exposures.status() == () and not setup.server.exposures

    anyio.run(main)


def test_a_range_cut_short_by_a_crash_is_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            await setup.exposures.add(ExposeWish(target="tcp://127.0.0.1:8000-8001", public="9000-9001"))
        kept = (tmp_path / FILE).read_text()
        (tmp_path / FILE).write_text(kept.replace('"x1-x2"', json.dumps(UNFINISHED)))
        again = setup.make()
        async with serving(again):
            assert again.status() == ()
            await again.reconcile(setup.server.list())
            assert not setup.server.exposures

    anyio.run(main)


def test_a_peers_service_is_found_by_the_networks_names(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port:
            setup.names["b.nowhere.invalid"] = ()
            await setup.add(f"tcp://b.nowhere.invalid:{port}", "")
            with pytest.raises((anyio.BrokenResourceError, OSError)):
                await ask(setup.server.exposures["x1"].port, SERVER, b"hello")
            assert setup.exposures.status()[0].trouble == "the network has no b.nowhere.invalid"
            setup.names["b.nowhere.invalid"] = ("127.0.0.1", "fd12::3")
            assert await ask(setup.server.exposures["x1"].port, SERVER, b"hello") == b"HELLO"

    anyio.run(main)


def test_a_peers_service_needs_the_network(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        setup.names["b.nowhere.invalid"] = ("127.0.0.1",)
        async with anyio.create_task_group() as tasks:
            await tasks.start(setup.exposures.run, "")
            with pytest.raises(UserError, match="reached after 'sudo overlay up' alone"):
                await setup.add("tcp://b.nowhere.invalid:1", "")
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_target_that_is_one_of_our_own_places_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port:
            shown = await setup.add(f"tcp://127.0.0.1:{port}", "9000", ("app.example.org",))
            ours = setup.server.exposures["x1"].port
            setup.names["me.nowhere.invalid"] = (NODE,)
            for target in (f"tcp://{NODE}:{ours}", f"http://me.nowhere.invalid:{ours}", shown.public, f"{NODE}:9000"):
                with pytest.raises(UserError, match="is where exposure x1 of this machine itself is reached") as caught:
                    await setup.add(target, "")
                assert (caught.value.code, caught.value.exit_code) == ("target-loop", Exit.USAGE)
            await setup.add(f"udp://{NODE}:{ours}", "")  # another transport is another place
            for target, public, host in (("192.0.2.1:9009", "9009", ""), ("https://app.test", "", "app.test")):
                with pytest.raises(UserError, match="users would reach this exposure itself") as caught:
                    await setup.add(target, public, host=host)
                assert caught.value.code == "target-loop"
            assert len(setup.exposures.status()) == len(setup.server.exposures) == 2

    anyio.run(main)


def test_a_target_that_becomes_one_of_our_own_places_is_not_reached(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        setup.names["b.nowhere.invalid"] = ("127.0.0.1",)
        async with serving(setup.exposures), tcp_service(shout) as port:
            await setup.add(f"tcp://127.0.0.1:{port}", "")
            ours = setup.server.exposures["x1"].port
            shown = await setup.add(f"tcp://b.nowhere.invalid:{ours}", "")
            setup.names["b.nowhere.invalid"] = (NODE,)
            with pytest.raises((anyio.BrokenResourceError, OSError)):
                await ask(setup.server.exposures[shown.id].port, SERVER, b"hello")
            assert setup.exposures.status()[1].trouble == "it is where exposure x1 of this machine itself is reached"

    anyio.run(main)


def test_who_speaks_http_is_told_that_the_target_is_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_end, "CONNECT_TIMEOUT", 0.2)
    get, head = (f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode() for method in ("GET", "HEAD"))

    async def main() -> None:
        setup = Setup(tmp_path)
        async with tcp_service(shout) as nobody:
            pass  # nobody listens there any more
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
            async with serving(setup.exposures):
                shown = await setup.add(f"http://127.0.0.1:{nobody}", "", ("app.example.org",))
                port = setup.server.exposures["x1"].port
                answer = await ask(port, SERVER, get)
                refused = f"http://127.0.0.1:{nobody} is not reachable: connection refused"
                assert answer.startswith(b"HTTP/1.1 502 ") and f"Overlay-Trouble: {refused}\r\n".encode() in answer
                assert answer.endswith(b"\r\n\r\nBad Gateway\n")
                assert (await ask(port, SERVER, head)).endswith(b"\r\n\r\n")
                at_node = int(shown.public.rpartition(":")[2])
                answer = await ask(at_node, PEER, get)
                assert f"{refused}.".encode() in answer and b"Overlay-Trouble" not in answer
                with pytest.raises((anyio.BrokenResourceError, OSError)):
                    await ask(port, SERVER, b"no http\n")
                assert setup.exposures.status()[0].trouble == "connection refused"
                slow = await setup.add(f"https://127.0.0.1:{full.getsockname()[1]}", "")
                answer = await ask(setup.server.exposures[slow.id].port, SERVER, get)
                assert answer.startswith(b"HTTP/1.1 504 ") and b"no answer within 0.2 s" in answer

    anyio.run(main)
