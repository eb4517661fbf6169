"""The server's STUN service: what it answers from where, to whom it does not, and that it amplifies nothing."""

import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.engine.api import Foreign, SendDatagrams
from overlay.errors import UserError
from overlay.server.stun import (
    ADDRESS_BURST,
    BURST,
    Places,
    Rates,
    StunService,
    open_second_port,
    reply_to,
)
from overlay.wire.endpoint import Endpoint
from overlay.wire.stun import MAX_GAIN, ErrorResponse, Request, Response, decode, encode
from tests.server.running import Running, running

ID = bytes(range(12))
CLIENT: Endpoint = ("203.0.113.7", 40_000)
ONE, TWO = "198.51.100.1", "198.51.100.2"
PATIENCE = 5.0  # s

BOTH = Places(443, 3478, (ONE, TWO, "2001:db8::1"))
SINGLE = Places(443, 3478, (ONE,))
BARE = Places(443, None, (ONE,))


def asked(**request: object) -> Request:
    made = decode(encode(Request(ID, **request)))  # type: ignore[arg-type]
    assert isinstance(made, Request)
    return made


def test_a_plain_request_is_answered_from_where_it_came_to() -> None:
    reply = reply_to(asked(), CLIENT, BOTH, ONE, second=False)
    assert (reply.destination, reply.second, reply.host) == (CLIENT, False, None)
    # With two addresses the engine's socket does not tell which one an answer leaves from.
    assert decode(reply.datagram) == Response(ID, CLIENT, None, (TWO, 3478))
    reply = reply_to(asked(), CLIENT, SINGLE, ONE, second=False)
    assert decode(reply.datagram) == Response(ID, CLIENT, (ONE, 443), None)
    reply = reply_to(asked(), CLIENT, BOTH, TWO, second=True)
    assert (reply.second, reply.host) == (True, TWO)
    assert decode(reply.datagram) == Response(ID, CLIENT, (TWO, 3478), (ONE, 3478))


def test_answers_from_elsewhere() -> None:
    reply = reply_to(asked(change_port=True), CLIENT, SINGLE, ONE, second=False)
    assert (reply.destination, reply.second, reply.host) == (CLIENT, True, None)
    reply = reply_to(asked(change_port=True, change_address=True), CLIENT, BOTH, ONE, second=False)
    assert (reply.destination, reply.second, reply.host) == (CLIENT, True, TWO)
    assert decode(reply.datagram) == Response(ID, CLIENT, (TWO, 3478), (TWO, 3478))


@pytest.mark.parametrize(
    ("places", "change_address", "change_port", "second"),
    [
        (BARE, False, True, False),
        (BARE, True, True, False),
        (SINGLE, True, True, False),
        (BOTH, True, False, False),
        (BOTH, False, True, True),
    ],
)
def test_what_cannot_be_changed_is_said_to_be_unknown(
    places: Places, change_address: bool, change_port: bool, second: bool
) -> None:
    request = asked(change_address=change_address, change_port=change_port)
    reply = reply_to(request, CLIENT, places, ONE, second=second)
    assert decode(reply.datagram) == ErrorResponse(ID, 420, (3,))
    assert (reply.destination, reply.second) == (CLIENT, second)


def test_response_port() -> None:
    reply = reply_to(asked(response_port=5000), CLIENT, SINGLE, ONE, second=False)
    assert reply.destination == (CLIENT[0], 5000)
    reply = reply_to(asked(response_port=53), CLIENT, SINGLE, ONE, second=False)
    assert (decode(reply.datagram), reply.destination) == (ErrorResponse(ID, 420, (0x27,)), CLIENT)


def test_unknown_attributes_are_named() -> None:
    request = Request(ID, unknown=(0x24, 0x06), size=60)
    assert decode(reply_to(request, CLIENT, SINGLE, ONE, second=False).datagram) == ErrorResponse(ID, 420, (0x24, 0x06))


requests = st.builds(
    Request,
    st.just(ID),
    change_address=st.booleans(),
    change_port=st.booleans(),
    response_port=st.none() | st.integers(1, 65535),
    unknown=st.lists(st.integers(0, 0x7FFF), max_size=32).map(tuple),
    size=st.integers(20, 548),
)


@given(requests, st.sampled_from([BOTH, SINGLE, BARE]), st.booleans(), st.sampled_from([CLIENT, ("2001:db8::7", 9)]))
def test_nothing_is_amplified_and_nobody_else_is_reached(
    request: Request, places: Places, second: bool, client: Endpoint
) -> None:
    own = "2001:db8::1" if ":" in client[0] else ONE
    reply = reply_to(request, client, places, own, second=second and places.second_port is not None)
    assert len(reply.datagram) <= MAX_GAIN * request.size
    assert reply.destination[0] == client[0]
    assert reply.destination[1] in (client[1], request.response_port)
    assert not isinstance(decode(reply.datagram), Request)  # what answers us cannot be made to go on for ever


def test_rates() -> None:
    rates = Rates()
    assert [rates.take(ONE, 0.0) for _ in range(int(ADDRESS_BURST))] == [""] * int(ADDRESS_BURST)
    assert rates.take(ONE, 0.0) == "stun_rate_of_address"
    assert rates.take(TWO, 0.0) == ""
    assert rates.take(ONE, 0.1) == ""
    assert rates.take("2001:db8:0:1::1", 0.1) == ""
    crowd = Rates()
    outcomes = Counter(crowd.take(f"10.{number >> 8}.{number & 255}.1", 0.0) for number in range(int(BURST) + 10))
    assert outcomes == {"": int(BURST), "stun_rate": 10}
    for number in range(10_000):
        crowd.take(f"10.{number >> 8}.{number & 255}.1", 10.0)
    assert len(crowd._of_address) == 4096


# over sockets ---------------------------------------------------------------------------------------------------------


@contextmanager
def client(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.setblocking(False)
        yield sock


async def heard(sock: socket.socket) -> tuple[object, Endpoint]:
    with anyio.fail_after(PATIENCE):
        await anyio.wait_readable(sock)
    data, source = sock.recvfrom(2048)
    return decode(data), source


@asynccontextmanager
async def serving(hosts: tuple[str, ...]) -> AsyncIterator[tuple[StunService, list[tuple[bytes, Endpoint]], int]]:
    sockets = open_second_port([("0.0.0.0", 0)], _free_port())
    sent: list[tuple[bytes, Endpoint]] = []
    service = StunService(lambda *each: sent.append(each), sockets, 443, hosts, Counter())
    assert service.places.second_port is not None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.run)
            yield service, sent, service.places.second_port
            tasks.cancel_scope.cancel()
    finally:
        for each in sockets:
            each.close()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


@pytest.mark.anyio
async def test_the_second_port_answers_from_the_address_that_was_asked() -> None:
    async with serving(("127.0.0.1", "127.0.0.2")) as (_, _, port):
        with client("127.0.0.9") as sock:
            for host in ("127.0.0.1", "127.0.0.2"):
                sock.sendto(encode(Request(ID)), (host, port))
                message, source = await heard(sock)
                assert source == (host, port)
                assert isinstance(message, Response)
                assert (message.mapped, message.origin) == (sock.getsockname(), (host, port))


@pytest.mark.anyio
async def test_what_is_asked_at_the_main_port_is_answered_there_or_by_the_second() -> None:
    async with serving(("127.0.0.1", "127.0.0.2")) as (service, sent, port):
        with client("127.0.0.1") as sock:
            service.received(encode(Request(ID)), sock.getsockname())
            assert [(decode(data), to) for data, to in sent] == [
                (Response(ID, sock.getsockname(), None, ("127.0.0.2", port)), sock.getsockname())
            ]
            service.received(encode(Request(ID, change_port=True)), sock.getsockname())
            assert (await heard(sock))[1] == ("127.0.0.1", port)
            service.received(encode(Request(ID, change_address=True, change_port=True)), sock.getsockname())
            assert (await heard(sock))[1] == ("127.0.0.2", port)
            assert len(sent) == 1


@pytest.mark.anyio
async def test_what_is_no_request_is_counted_and_not_answered() -> None:
    async with serving(("127.0.0.1",)) as (service, sent, port):
        for datagram in (b"", encode(Response(ID, CLIENT)), encode(Request(ID))[:-1], b"\0" * 600):
            service.received(datagram, CLIENT)
        assert sent == []
        assert service._drops == {
            "stun_short_header": 1,
            "stun_unasked": 1,
            "stun_bad_length": 1,
            "stun_bad_type": 1,
        }
        with client() as sock:
            sock.sendto(b"\0\1 whatever", ("127.0.0.1", port))
            sock.sendto(encode(Request(ID)), ("127.0.0.1", port))
            assert isinstance((await heard(sock))[0], Response)


def test_a_port_that_is_taken_is_an_error_only_if_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_second_port([], 0) == []
    taken = open_second_port([("127.0.0.1", 443)], _free_port())
    port = taken[0].getsockname()[1]
    with pytest.raises(UserError) as caught:
        open_second_port([("127.0.0.1", 443)], port)
    assert (caught.value.code, "--stun-port" in caught.value.hint) == ("stun-port", True)
    monkeypatch.setattr("overlay.server.stun.DEFAULT_PORT", port)
    assert open_second_port([("127.0.0.1", 443)], None) == []
    taken[0].close()


# in a whole server ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_server_answers_at_its_ports_and_tells_its_nodes_of_the_second(tmp_path: Path) -> None:
    stun_port = _free_port()
    async with running(tmp_path, stun_port=stun_port) as server:
        status = await server.request("GET", "/v1/status")
        assert status["stun_port"] == stun_port
        node = await server.node().connect(await server.invite())
        assert node.welcome is not None
        assert node.welcome.stun == (f"127.0.0.1:{stun_port}",)
        with client() as sock:
            sock.sendto(encode(Request(ID)), ("127.0.0.1", stun_port))
            message, _ = await heard(sock)
            assert isinstance(message, Response) and message.mapped == sock.getsockname()
        assert server.engine is not None
        server.engine.on_event(Foreign((encode(Request(ID)),), CLIENT))
        with anyio.fail_after(PATIENCE):
            while not any(isinstance(each, SendDatagrams) for each in server.commands):
                await anyio.lowlevel.checkpoint()
        (sent,) = [each for each in server.commands if isinstance(each, SendDatagrams)]
        assert sent.endpoint == CLIENT and isinstance(decode(sent.datagrams[0]), Response)
        await _check_tcp(server, int(status["port"]))


async def _check_tcp(server: Running, port: int) -> None:
    stream = await anyio.connect_tcp("127.0.0.1", port)
    async with stream:
        for _ in range(3):  # the connection stays
            await stream.send(encode(Request(ID)))
            message = decode(await stream.receive())
            assert isinstance(message, Response) and message.mapped[0] == "127.0.0.1"
        await stream.send(encode(Request(ID, change_port=True)))
        assert decode(await stream.receive()) == ErrorResponse(ID, 420, (3,))
        await stream.send(b"\0\3" + encode(Request(ID))[2:])
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):  # a reset, as it does not read on
            await stream.receive()
    assert (await server.request("GET", "/v1/status"))["drops"]["stun_bad_type"] == 1


@pytest.mark.anyio
async def test_a_server_without_a_second_port(tmp_path: Path) -> None:
    async with running(tmp_path, stun_port=0) as server:
        node = await server.node().connect(await server.invite())
        assert node.welcome is not None and node.welcome.stun == ()
        assert (await server.request("GET", "/v1/status"))["stun_port"] is None
