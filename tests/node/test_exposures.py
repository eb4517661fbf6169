"""The node's end of the single tunnel on loopback: 127.77.0.2 is this node, 127.77.0.1 the server."""

import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from overlay.carrier.reached import REACHED
from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.node import target_end
from overlay.node.control import Answer
from overlay.node.exposures import Exposures
from overlay.node.kept import FILE, UNFINISHED
from overlay.node.own_tls import TlsOptions
from overlay.node.status import ExposeWish, ExposureStatus
from overlay.wire.control.messages import (
    Done,
    Expose,
    Exposed,
    Exposure,
    GroupMember,
    Health,
    Message,
    RequestEntry,
    TunnelKind,
    Unexpose,
    Watch,
)
from overlay.wire.control.terms import Limits, Membership, Private, Terms

SERVER, NODE, STRANGER, PEER = "127.77.0.1", "127.77.0.2", "127.77.0.3", "127.77.0.4"


class Server:
    """Answers requests as the real one does, or fails them."""

    def __init__(self) -> None:
        self.exposures: dict[str, Exposure] = {}
        self.requests: list[Message] = []
        self.failure: UserError | None = None
        self.is_old = False  # it does not know terms
        self.has_tun = True

    async def request(self, make: Callable[[int], Message]) -> Answer:
        message = make(len(self.requests) + 1)
        self.requests.append(message)
        await anyio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        match message:
            case Expose():
                if message.tunnel == "single" and not self.has_tun:
                    raise UserError("no-tunnel", "No.")
                if message.id and message.id not in self.exposures:
                    raise UserError("exposure-unknown", "Gone.")
                name = message.id or f"x{len(self.requests)}"
                tls = message.protocol == "tls"
                self.exposures[name] = Exposure(
                    id=name,
                    protocol=message.protocol,
                    public=f"{message.host}:443"
                    if tls
                    else message.host or f"192.0.2.1:{message.public.rpartition(':')[2] or 20000}",
                    url=f"https://{message.host}/" if message.host and not tls else "",
                    target=message.target,
                    port=message.port,
                    tunnel=message.tunnel,
                    known_as=message.known_as,
                    service=message.service,
                    direct=message.direct,
                    terms=Terms() if self.is_old else message.terms,
                )
                return Exposed(seq=message.seq, exposure=self.exposures[name])
            case Unexpose():
                self.exposures.pop(message.id, None)
                return Done(seq=message.seq)
            case Watch():
                return Done(seq=message.seq)
            case _:
                raise AssertionError(message)

    def list(self) -> tuple[Exposure, ...]:
        return tuple(self.exposures.values())


class Setup:
    def __init__(self, folder: Path) -> None:
        self.server = Server()
        self.said: list[Message] = []
        self.state = StateDir(folder).open()
        self.now = 5.0
        self.names: dict[str, tuple[str, ...]] = {}
        self.exposures = self.make()

    async def add(
        self, target: str, public: str, known_as: tuple[str, ...] = (), service: str = "", **wish: Any
    ) -> ExposureStatus:
        return await self.exposures.add(
            ExposeWish(target=target, public=public, known_as=known_as, service=service, **wish)
        )

    def make(self) -> Exposures:
        return Exposures(
            self.state,
            self.server.request,
            lambda address: address == SERVER,
            lambda address: address == PEER,
            self._say,
            look_up=self.names.get,
            wall=lambda: self.now,
        )

    async def _say(self, message: Message) -> None:
        self.said.append(message)


@asynccontextmanager
async def serving(exposures: Exposures, address: str = NODE) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(exposures.run, address)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def tcp_service(handle: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def echo(stream: SocketStream) -> None:
    async with stream:
        await stream.send((await stream.receive()).upper())


async def shout(stream: SocketStream) -> None:
    """Reads to the end, answers in capitals: both directions and both half-closes are needed."""
    async with stream:
        data = b""
        async for chunk in stream:
            data += chunk
        await stream.send(data.upper())


async def ask(port: int, source: str, data: bytes) -> bytes:
    with anyio.fail_after(5):
        async with await anyio.connect_tcp(NODE, port, local_host=source) as stream:
            await stream.send(data)
            await stream.send_eof()
            answer = b""
            async for chunk in stream:
                answer += chunk
            return answer


def test_a_users_connection_reaches_the_target_whole(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port:
            shown = await setup.add(str(port), "9000")
            assert msgspec.to_builtins(shown) == {
                "id": "x1",
                "public": "192.0.2.1:9000",
                "url": None,
                "target": f"tcp://127.0.0.1:{port}",
                "tunnel": "single",
                "connections": 0,
                "known_as": (),
                "service": "",
                "direct": False,
                "range": "",
                "trouble": "",
                "certificate": None,
                "terms": {},
                "problem": None,
                "members": (),
                "entry": None,
                "inspect": 0,
            }
            listening = setup.server.exposures["x1"].port
            assert await ask(listening, SERVER, b"hello" * 100_000) == b"HELLO" * 100_000
            assert setup.exposures.status() == (shown,)

    anyio.run(main)


def test_only_the_server_may_connect(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port:
            await setup.add(f"tcp://127.0.0.1:{port}", "")
            with pytest.raises((anyio.BrokenResourceError, OSError)):
                await ask(setup.server.exposures["x1"].port, STRANGER, b"hello")
            assert setup.exposures.drops == {"exposure_not_the_server": 1}

    anyio.run(main)


def test_udp_by_name_and_only_from_the_server(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with (
            serving(setup.exposures),
            await anyio.create_udp_socket(socket.AF_INET, local_host="127.0.0.1") as service,
        ):
            port = service.extra(SocketAttribute.local_port)
            await setup.add(f"udp://127.0.0.1:{port}", "")
            listening = setup.server.exposures["x1"].port
            async with await anyio.create_connected_udp_socket(NODE, listening, local_host=STRANGER) as stranger:
                await stranger.send(b"let me in")
                async with await anyio.create_connected_udp_socket(NODE, listening, local_host=SERVER) as user:
                    with anyio.fail_after(5):
                        await user.send(b"question")
                        data, (host, source) = await service.receive()
                        assert data == b"question"
                        await service.sendto(b"answer", host, source)
                        assert await user.receive() == b"answer"
            assert setup.exposures.status()[0].connections == 1
            assert setup.exposures.drops.total() == 1

    anyio.run(main)


def test_a_target_that_does_not_answer_resets_the_user(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with tcp_service(shout) as port:
            pass  # nobody listens there any more
        async with serving(setup.exposures):
            await setup.add(str(port), "")
            with pytest.raises((anyio.BrokenResourceError, OSError)):
                await ask(setup.server.exposures["x1"].port, SERVER, b"hello")
            assert setup.exposures.drops == {"exposure_target_unreachable": 1}

    anyio.run(main)


def test_what_the_server_refuses_is_not_kept_and_does_not_listen(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        setup.server.failure = UserError("port-taken", "Held by node 'b'.")
        async with serving(setup.exposures):
            with pytest.raises(UserError) as caught:
                await setup.add("8080", "9000")
            assert caught.value.code == "port-taken"
            assert setup.exposures.status() == ()
            request = setup.server.requests[0]
            assert isinstance(request, Expose)
            with pytest.raises(OSError):
                await anyio.connect_tcp(NODE, request.port)

    anyio.run(main)


def test_by_name_and_who_watches_hears_of_requests(tmp_path: Path) -> None:
    entry = RequestEntry(number=1, at=1.0, method="GET", path="/", status=200, took_ms=1.0, sent=5, source="192.0.2.7")
    lines: list[bytes] = []

    async def write(data: bytes | bytearray) -> None:
        lines.append(bytes(data))
        told.set()

    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            for public, target in (("9000", "3000"), ("", "tcp://127.0.0.1:1"), ("", "udp://127.0.0.1:1")):
                with pytest.raises(UserError) as caught:
                    await setup.add(target, public, host="app.test")
                assert caught.value.exit_code == Exit.USAGE
            shown = await setup.add("3000", "", host="app.test")
            assert (shown.target, shown.url) == ("http://127.0.0.1:3000", "https://app.test/")
            ports = await setup.add("22", "9022")
            for name, code in ((ports.id, "exposure-not-http"), ("x99", "exposure-unknown")):
                with pytest.raises(UserError) as caught:
                    setup.exposures.watch(name)
                assert caught.value.code == code
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(setup.exposures.watch(shown.id), write)
                await told.wait()
                setup.exposures.requested(shown.id, (entry,))
                await setup.exposures.reconcile(setup.server.list())
                await setup.exposures.remove(shown.id)  # ends the watching
            assert lines == [b"\n", msgspec.json.encode(entry) + b"\n"]
            watches = [each for each in setup.server.requests if isinstance(each, Watch)]
            assert [each.wanted for each in watches] == [True, True]

    told = anyio.Event()
    anyio.run(main)


def test_tls_by_name_and_tls_that_ends_here(tmp_path: Path) -> None:
    here = Terms(tls_end="node")

    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(echo) as port:
            for public, target, wish in (
                ("9000", "tls://127.0.0.1:1", {}),
                ("9000", "3000", {"terms": here}),
                ("", "tcp://127.0.0.1:1", {"terms": here}),
                ("", "3000", {"host": "a.test", "tls": TlsOptions(acme_email="a@b.c")}),
                ("", "3000", {"host": "a.test", "terms": here, "tunnel": "udp"}),
                ("", "3000", {"host": "a.test", "terms": here, "tls": TlsOptions(acme_email="nobody")}),
            ):
                with pytest.raises(UserError):
                    await setup.add(target, public, **wish)
            assert setup.server.requests == []
            passed = await setup.add("tls://127.0.0.1:1", "", host="db.test")
            assert (passed.public, passed.url, passed.certificate) == ("db.test:443", None, None)
            ended = await setup.add(str(port), "", host="app.test", terms=here)
            assert (ended.url, ended.certificate) == ("https://app.test/", "self-signed")
            asked = setup.server.requests[-1]
            assert isinstance(asked, Expose) and asked.protocol == "tls"
            with pytest.raises(UserError) as caught:
                setup.exposures.watch(ended.id)
            assert "ends at this machine" in caught.value.message
            await setup.exposures.reconcile(setup.server.list())
            assert len(setup.server.requests) == 2, "both agree"
            assert await in_tls(setup.server.exposures[ended.id].port, "app.test", b"hello") == b"HELLO"
            await setup.exposures.remove(ended.id)
        again = setup.make()
        async with serving(again):
            assert [each.certificate for each in again.status()] == [None]

    anyio.run(main)


async def in_tls(port: int, name: str, data: bytes) -> bytes:
    """As the server connects, for a user who speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = await anyio.connect_tcp(NODE, port, local_host=SERVER)
    async with await TLSStream.wrap(plain, hostname=name, ssl_context=context, standard_compatible=False) as stream:
        await stream.send(data)
        return await stream.receive()


def test_before_the_network_is_up(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(UserError) as caught:
            await Setup(tmp_path).add("8080", "")
        assert (caught.value.code, caught.value.exit_code) == ("not-up", Exit.NOT_RUNNING)

    anyio.run(main)


def test_giving_back(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            await setup.add("8080", "")
            port = setup.server.exposures["x1"].port
            with pytest.raises(UserError) as caught:
                await setup.exposures.remove("x9")
            assert caught.value.code == "exposure-unknown"

            setup.server.failure = UserError("server-unreachable", "Away.", "", Exit.UNREACHABLE)
            with pytest.raises(UserError):
                await setup.exposures.remove("x1")
            assert setup.exposures.status()

            setup.server.failure = None
            await setup.exposures.remove("x1")
            assert setup.exposures.status() == ()
            assert setup.server.exposures == {}
            with pytest.raises(OSError):
                await anyio.connect_tcp(NODE, port)

    anyio.run(main)


def test_restart_keeps_the_port_and_asks_for_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with tcp_service(shout) as port:
            async with serving(setup.exposures):
                shown = await setup.add(str(port), "9000")
            again = setup.make()
            setup.server.requests.clear()
            async with serving(again):
                await again.reconcile(setup.server.list())
                assert setup.server.requests == []
                assert again.status() == (shown,)
                assert await ask(setup.server.exposures["x1"].port, SERVER, b"hi") == b"HI"

    anyio.run(main)


@pytest.mark.parametrize("tunnel", ["single", "tls"])
def test_restart_with_the_port_taken_renews_with_another(tmp_path: Path, tunnel: TunnelKind) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            await setup.add("8080", "", tunnel=tunnel)
        before = setup.server.exposures["x1"].port
        again = setup.make()
        async with await anyio.create_tcp_listener(local_host=NODE, local_port=before):
            async with serving(again):
                await again.reconcile(setup.server.list())
                after = setup.server.exposures["x1"].port
                assert after != before
                assert setup.server.exposures["x1"].tunnel == tunnel, "a server without an interface refuses another"
                assert f'"port": {after}' in (tmp_path / FILE).read_text()

    anyio.run(main)


def test_what_the_server_has_forgotten_is_dropped_and_what_we_have_is_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            await setup.add("8080", "")
            del setup.server.exposures["x1"]
            theirs = Exposure(id="x7", protocol="tcp", public="192.0.2.1:1", target="tcp://127.0.0.1:22", port=1)
            setup.server.exposures["x7"] = theirs
            await setup.exposures.reconcile(setup.server.list())
            assert setup.exposures.status() == ()
            assert setup.server.exposures == {}  # the server cannot make one

    anyio.run(main)


def test_an_exposure_survives_a_server_that_is_away_while_it_is_renewed(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            await setup.add("8080", "")
            setup.server.failure = UserError("server-unreachable", "Away.", "", Exit.UNREACHABLE)
            await setup.exposures.reconcile(())
            assert len(setup.exposures.status()) == 1

    anyio.run(main)


def test_what_an_administrator_takes_away_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            await setup.add("8080", "")
            await setup.add("8081", "")
            await setup.exposures.retain(setup.server.list()[1:])
            assert [each.target for each in setup.exposures.status()] == ["http://127.0.0.1:8081"]

    anyio.run(main)


def test_peers_reach_one_with_a_name_at_its_public_port(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures), tcp_service(shout) as port, tcp_service(shout) as free:
            public = await setup.add(f"127.0.0.1:{port}", "", ("app.example.org",))
            assert (public.known_as, public.direct) == (("app.example.org",), True)
            assert setup.server.exposures["x1"].direct
            number = int(public.public.rpartition(":")[2])
            assert await ask(number, PEER, b"hello") == b"HELLO"
            with pytest.raises((OSError, anyio.BrokenResourceError)):
                await ask(number, STRANGER, b"hello")
            own = await setup.add(f"127.0.0.1:{free}", str(free), ("app.example.org",))
            assert not own.direct  # the service listens at loopback alone, and its port is left to it
            with pytest.raises(OSError):
                await ask(free, PEER, b"hello")
        again = setup.make()
        async with serving(again):
            await again.reconcile(setup.server.list())
            assert [each.direct for each in again.status()] == [True, False]
            await again.remove("x1")
            with pytest.raises(OSError):
                await ask(number, PEER, b"hello")

    anyio.run(main)


def test_what_it_is_follows_from_the_targets_port_or_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            assert (await setup.add("22", "")).service == "ssh"
            assert (await setup.add("2222", "", service="SSH")).service == "ssh"
            assert (await setup.add("2222", "")).service == ""

    anyio.run(main)


def test_a_server_that_does_not_know_the_terms_gets_no_exposure(tmp_path: Path) -> None:
    terms = Terms(limits=Limits(connections=3))

    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            assert (await setup.add("8080", "", terms=terms)).terms == terms
            setup.server.is_old = True
            with pytest.raises(UserError) as caught:
                await setup.add("8081", "", terms=terms)
            assert caught.value.code == "server-older" and len(setup.server.exposures) == 1
            await setup.exposures.reconcile(())
            assert setup.exposures.status() == ()  # what an older server would open to everybody

    anyio.run(main)


def test_without_a_tun_at_either_end_users_come_by_tls(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        async with serving(setup.exposures):
            assert (await setup.add("8080", "")).tunnel == "single"
            setup.server.has_tun = False
            assert (await setup.add("8081", "")).tunnel == "tls"
            with pytest.raises(UserError):
                await setup.add("8082", "", tunnel="single")
        setup.exposures = setup.make()
        async with serving(setup.exposures, ""):
            shown = await setup.add("8083", "")
            assert shown.tunnel == "tls" and setup.server.exposures[shown.id].port == 0
            with pytest.raises(UserError) as caught:
                await setup.add("8084", "", tunnel="single")
            assert caught.value.code == "no-tunnel" and "overlay up" in caught.value.hint
            before = len(setup.server.requests)
            await setup.exposures.reconcile(setup.server.list())
            assert setup.server.requests[before:] == [], "what goes by the overlay rests, and is not lost"
        setup.exposures = setup.make()
        async with serving(setup.exposures):
            assert [each.tunnel for each in setup.exposures.status()] == ["single", "tls", "tls"]

    anyio.run(main)


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
