"""The node's end of the single tunnel on loopback: 127.77.0.2 is this node, 127.77.0.1 the server."""

import socket
import ssl
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSStream

from overlay.errors import Exit, UserError
from overlay.node.kept import FILE
from overlay.node.own_tls import TlsOptions
from overlay.wire.control.messages import (
    Expose,
    Exposure,
    RequestEntry,
    TunnelKind,
    Watch,
)
from overlay.wire.control.terms import Limits, Terms
from tests.node.exposing import NODE, PEER, SERVER, STRANGER, Setup, ask, echo, serving, shout, tcp_service


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
