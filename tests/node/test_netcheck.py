"""What `overlay netcheck` finds out, with a server on loopback and networks that block."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.carriers import CarrierName, CarrierStream, DialOptions, Opener
from overlay.errors import Exit, UserError
from overlay.node.interface import Assigned, Machine, Route
from overlay.node.memory import Joined
from overlay.node.netcheck import NetReport, check, choose_server
from overlay.node.ways import Target
from overlay.wire.control.invite import Invite
from overlay.wire.endpoint import Endpoint
from tests.carrier.openers import blocked, through
from tests.node.stub_server import StubServer

MACHINE = Machine(
    (Assigned("192.0.2.10", "eth0"), Assigned("2001:db8::1", "eth1")),
    (Route("0.0.0.0/0", "eth0", gateway="192.0.2.1"),),
)
JOINED = Joined(addresses=("192.0.2.1:443",), server_key=bytes(32), domain="local.test", pin=b"p" * 32)


async def reset(endpoint: Endpoint, options: DialOptions) -> CarrierStream:
    raise OSError("connection reset by peer")


async def checked(
    server: StubServer,
    openers: Mapping[CarrierName, Opener],
    *addresses: str,
    carriers: tuple[CarrierName, ...] = ("udp", "tls", "tcp", "ws"),
    proxy: str | None = None,
) -> NetReport:
    target = Target(
        addresses or (server.address,), server.public_key, b"", carriers=carriers, options=DialOptions(proxy=proxy)
    )
    return await check(target, MACHINE, openers=openers, seconds=1.0)


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    async def handle(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handle)
            yield f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
            tasks.cancel_scope.cancel()


def test_each_carrier_is_tried_and_told() -> None:
    async def main() -> None:
        server = StubServer()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.run)
            openers: dict[CarrierName, Opener] = {"udp": blocked, "tls": reset, "tcp": through}
            report = await checked(server, openers, proxy="http://me:secret@proxy:1")
            by_name = {each.carrier: each for each in report.carriers}
            assert [each.carrier for each in report.carriers] == ["udp", "tls", "tcp", "ws"]
            assert by_name["udp"].why == "no answer within 1 s"
            assert by_name["tls"].why == "connection reset by peer"
            assert by_name["ws"].why == "this release does not have it"
            assert by_name["tcp"].works and by_name["tcp"].address == server.address
            latency = by_name["tcp"].latency_ms
            assert latency is not None and latency > 0
            assert (report.best, report.udp, report.captive_portal) == ("tcp", "blocked", None)
            assert (report.ipv4, report.ipv6) == (True, False)
            assert report.network == "192.0.2.1 192.0.2.10"
            assert report.proxy == "http://proxy:1"
            assert not server.hellos  # nobody was told who we are
            tasks.cancel_scope.cancel()

    anyio.run(main)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/\r\n\r\n", "HTTP/1.1 302 Found"),
        (
            b"HTTP/1.0 511 Network Authentication\x1b[31m Required\r\n",
            "HTTP/1.0 511 Network Authentication[31m Required",
        ),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", None),
        (b"SSH-2.0-OpenSSH\r\n", None),
        (b"", None),
    ],
)
def test_a_login_page_in_the_servers_place_is_told(answer: bytes, found: str | None) -> None:
    async def main() -> None:
        async with answering(answer) as address:
            report = await checked(StubServer(), {"udp": reset, "tcp": through}, address)
            assert report.captive_portal == found
            assert (report.best, report.udp) == (None, "unknown")

    anyio.run(main)


def test_an_address_for_one_carrier() -> None:
    async def main() -> None:
        server = StubServer()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.run)
            address = f"ws://127.0.0.1:{server.port}/prefix"
            report = await checked(server, {"tcp": through, "ws": through}, address, carriers=("tcp", "ws"))
            assert report.carriers[0].why == "the server's address is for another carrier"
            assert report.best == "ws"
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_which_server_is_meant() -> None:
    invite = Invite(("vpn.example.org:443",), bytes([7]) * 32, bytes(16), "other.test")
    assert choose_server("", JOINED) == JOINED
    assert choose_server("wss://vpn.example.org/x", JOINED).addresses == ("wss://vpn.example.org:443/x",)
    assert choose_server("wss://vpn.example.org/x", JOINED).server_key == JOINED.server_key
    for remembered in (None, JOINED):  # an invite to another network is as good
        assert choose_server(invite.encode(), remembered).server_key == invite.server_key


@pytest.mark.parametrize(
    ("given", "code", "exit_code"),
    [
        ("", "not-joined", Exit.USAGE),
        ("vpn.example.org:443", "not-joined", Exit.USAGE),
        ("vpn.example.org", "bad-address", Exit.USAGE),
        ("ov1_garbage", "invite-malformed", Exit.REFUSED),
    ],
)
def test_no_server_is_told(given: str, code: str, exit_code: Exit) -> None:
    with pytest.raises(UserError) as caught:
        choose_server(given, None)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
