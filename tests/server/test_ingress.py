"""Public ports over loopback: TCP and UDP, targets that are there, gone, or refuse."""

import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream

from overlay.carrier.port import UserStream
from overlay.carrier.stream import connect_now
from overlay.errors import UserError
from overlay.server import ingress
from overlay.server.ingress import PublicPort, bind_public
from overlay.server.tunnels import SingleTunnel, Visitor
from overlay.wire.control.terms import Access, Terms
from overlay.wire.endpoint import Endpoint

HOST = "127.0.0.1"


def opened(protocol: Literal["tcp", "udp"], drops: Counter[str] | None = None) -> tuple[PublicPort, int]:
    sockets = bind_public(protocol, HOST, 0)
    return PublicPort(protocol, sockets, Counter() if drops is None else drops), sockets[0].getsockname()[1]


def within(seconds: float, test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with anyio.fail_after(seconds):
            await test()

    anyio.run(main)


async def echo(stream: SocketStream) -> None:
    async with stream:
        with suppress(anyio.BrokenResourceError):  # some users are cut off
            async for chunk in stream:
                await stream.send(b"<" + chunk + b">")
            await stream.send(b"end")


class ReadyTunnel(SingleTunnel):
    """There is always a connection ready."""

    def open_now(self, visitor: Visitor) -> UserStream | None:
        where = self._where()
        return None if where is None else connect_now(where)


each_tunnel = pytest.mark.parametrize("tunnel", [SingleTunnel, ReadyTunnel])


@each_tunnel
def test_a_users_connection_reaches_the_target_with_its_half_closes(tunnel: type[SingleTunnel]) -> None:
    async def test() -> None:
        listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
        target: Endpoint = (HOST, listener.extra(anyio.abc.SocketAttribute.local_port))
        public, port = opened("tcp")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            tasks.start_soon(public.run, tunnel(lambda: target, Counter()))
            async with await anyio.connect_tcp(HOST, port) as user:
                await user.send(b"hello")
                assert await user.receive() == b"<hello>"
                assert public.connections == 1
                await user.send_eof()
                assert await user.receive() == b"end"
                with pytest.raises(anyio.EndOfStream):
                    await user.receive()
            while public.connections:
                await anyio.lowlevel.checkpoint()
            assert public.gate.meter.collect() == len(b"hello<hello>end")
            public.close()
            tasks.cancel_scope.cancel()
        await listener.aclose()

    within(10, test)


async def turned_away(port: int) -> None:
    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError, OSError)):
        async with await anyio.connect_tcp(HOST, port) as user:
            await user.receive()


def test_a_user_of_a_node_that_is_not_there_is_turned_away_at_once() -> None:
    drops: Counter[str] = Counter()

    async def test() -> None:
        gone = bind_public("tcp", HOST, 0)[0]
        nobody: Endpoint = gone.getsockname()
        gone.close()
        where: list[Endpoint | None] = [None]
        public, port = opened("tcp", drops)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(public.run, SingleTunnel(lambda: where[0], drops))
            await turned_away(port)
            where[0] = nobody  # online, but nothing listens
            await turned_away(port)
            public.close()

    within(10, test)
    assert drops == {"target_offline": 1, "target_refused": 1}


@each_tunnel
def test_more_users_than_a_port_may_have(tunnel: type[SingleTunnel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "MAX_CONNECTIONS", 1)
    drops: Counter[str] = Counter()

    async def test() -> None:
        listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
        target: Endpoint = (HOST, listener.extra(anyio.abc.SocketAttribute.local_port))
        public, port = opened("tcp", drops)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            tasks.start_soon(public.run, tunnel(lambda: target, drops))
            async with await anyio.connect_tcp(HOST, port) as first:
                await first.send(b"1")
                assert await first.receive() == b"<1>"
                await turned_away(port)
                await first.send(b"2")
                assert await first.receive() == b"<2>"
            public.close()
            tasks.cancel_scope.cancel()
        await listener.aclose()

    within(10, test)
    assert drops == {"too_many_users": 1}


@each_tunnel
@pytest.mark.parametrize("end", [PublicPort.close, PublicPort.cut_off])
def test_a_closed_port_ends_what_goes_through_it(tunnel: type[SingleTunnel], end: Callable[[PublicPort], None]) -> None:
    async def test() -> None:
        listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
        target: Endpoint = (HOST, listener.extra(anyio.abc.SocketAttribute.local_port))
        public, port = opened("tcp")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            tasks.start_soon(public.run, tunnel(lambda: target, Counter()))
            async with await anyio.connect_tcp(HOST, port) as user:
                await user.send(b"1")
                await user.receive()
                end(public)
                with pytest.raises(anyio.BrokenResourceError):
                    await user.receive()
            public.close()
            with pytest.raises(OSError):
                await anyio.connect_tcp(HOST, port)
            tasks.cancel_scope.cancel()
        await listener.aclose()
        public.close()  # twice does no harm

    within(10, test)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_port_that_is_closed_as_soon_as_it_is_open(
    protocol: Literal["tcp", "udp"], steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Also before the tasks that serve it have begun: nothing is raised into the group, and nothing is said."""

    async def test() -> None:
        public, _ = opened(protocol)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(public.run, SingleTunnel(lambda: (HOST, 1), Counter()))
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            public.close()

    within(10, test)
    assert caplog.messages == []


def test_datagrams_keep_one_flow_per_user() -> None:
    async def test() -> None:
        service = await anyio.create_udp_socket(family=socket.AF_INET, local_host=HOST)
        target: Endpoint = (HOST, service.extra(anyio.abc.SocketAttribute.local_port))
        public, port = opened("udp")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(public.run, SingleTunnel(lambda: target, Counter()))
            async with (
                await anyio.create_connected_udp_socket(HOST, port) as one,
                await anyio.create_connected_udp_socket(HOST, port) as two,
            ):
                seen = []
                for user, text in ((one, b"1"), (two, b"2"), (one, b"3")):
                    await user.send(text)
                    packet, source = await service.receive()
                    seen.append((packet, source))
                    await service.sendto(packet * 2, *source)
                    assert await user.receive() == text * 2
                assert seen[0][1] == seen[2][1] != seen[1][1]
                assert public.connections == 2
            public.close()
        await service.aclose()

    within(10, test)


def test_a_taken_port_is_said_so() -> None:
    holder = bind_public("tcp", HOST, 0)[0]
    with holder, pytest.raises(UserError) as caught:
        bind_public("tcp", HOST, holder.getsockname()[1])
    assert caught.value.code == "port-taken"
    assert "another program" in caught.value.message


def test_an_address_of_another_host() -> None:
    with pytest.raises(UserError) as caught:
        bind_public("udp", "192.0.2.77", 9000)
    assert caught.value.code == "public-not-here"


def test_all_addresses_means_both_families() -> None:
    sockets = bind_public("udp", "", 0)
    families = {bound.family for bound in sockets}
    for bound in sockets:
        bound.close()
    assert socket.AF_INET in families


@pytest.mark.parametrize("number", ["EACCES", "EPERM"])
def test_a_port_that_the_server_may_not_open(number: str) -> None:
    import errno

    error = ingress._bind_error("tcp", "", 80, OSError(getattr(errno, number), "no"))
    assert error.code == "port-permission"
    assert "1024" in error.hint


def test_lists_of_networks_hold_at_tcp_and_udp_ports() -> None:
    drops: Counter[str] = Counter()

    async def test() -> None:
        listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
        target: Endpoint = (HOST, listener.extra(anyio.abc.SocketAttribute.local_port))
        (tcp, tcp_port), (udp, udp_port) = opened("tcp", drops), opened("udp", drops)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            for public in (tcp, udp):
                public.gate.terms = Terms(access=Access(deny=("127.0.0.0/8",)))
                tasks.start_soon(public.run, SingleTunnel(lambda: target, Counter()))
            await turned_away(tcp_port)
            async with await anyio.create_connected_udp_socket(HOST, udp_port) as user:
                await user.send(b"hello")
                while drops["source_refused"] < 2:
                    await anyio.lowlevel.checkpoint()
            assert not tcp.connections and not udp.connections
            tcp.gate.terms = Terms(access=Access(allow=("127.0.0.0/8",)))
            async with await anyio.connect_tcp(HOST, tcp_port) as user:
                await user.send(b"hello")
                assert await user.receive() == b"<hello>"
            tcp.close()
            udp.close()
            tasks.cancel_scope.cancel()
        await listener.aclose()

    within(10, test)
    assert drops["source_refused"] == 2
