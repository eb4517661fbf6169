"""A node's end of an exposure, over loopback: users who are served at once, and those who are not."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute, SocketStream

from overlay.carrier.stream import TcpStream, connect
from overlay.node import tunnel_end
from overlay.node.target_end import TargetEnd
from overlay.node.targets import Target
from overlay.node.tunnel_end import TunnelEnd
from overlay.wire.control.terms import NOTHING_TOLD, Told
from overlay.wire.endpoint import Endpoint

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"


async def echo(stream: SocketStream) -> None:
    async with stream:
        with suppress(anyio.BrokenResourceError):
            async for chunk in stream:
                await stream.send(b"<" + chunk + b">")
            await stream.send(b"end")


@asynccontextmanager
async def ending(told: Told = NOTHING_TOLD) -> AsyncIterator[tuple[TunnelEnd, Endpoint, Counter[str]]]:
    """The end, where it listens, and what it has dropped."""
    drops: Counter[str] = Counter()
    async with await anyio.create_tcp_listener(local_host=HOST) as listening, anyio.create_task_group() as tasks:
        tasks.start_soon(listening.serve, echo)
        target = Target.parse(f"tcp://{HOST}:{listening.extra(SocketAttribute.local_port)}")
        end = TunnelEnd(TargetEnd(target, told=told), HOST, 0, lambda host: True, drops)
        tasks.start_soon(end.run)
        yield end, (HOST, end.port), drops
        end.close()
        assert end.connections == 0
        tasks.cancel_scope.cancel()


async def is_cut_off(user: TcpStream) -> bool:
    with anyio.fail_after(5):
        try:
            await user.receive()
        except anyio.BrokenResourceError:
            return True
        except anyio.EndOfStream:
            return False
    return False


@pytest.mark.parametrize("told", [NOTHING_TOLD, Told(proxy_protocol="v1")], ids=["nothing told", "header"])
async def test_a_user_and_his_half_closes(told: Told) -> None:
    async with ending(told) as (end, where, drops):
        user = await connect(where)
        with anyio.fail_after(5):
            await user.send(b"hello")
            assert await user.receive() == b"<hello>"
            assert end.connections == 1
            await user.send_eof()
            assert await user.receive() == b"end"
            with pytest.raises(anyio.EndOfStream):
                await user.receive()
            user.close()
            while end.connections:
                await anyio.lowlevel.checkpoint()
        assert not drops


async def test_users_beyond_the_limit_are_turned_away_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_end, "CONNECTION_LIMIT", 1)
    async with ending() as (end, where, drops):
        first = await connect(where)
        with anyio.fail_after(5):
            await first.send(b"1")
            assert await first.receive() == b"<1>"
            second = await connect(where)
            assert await is_cut_off(second)
            await first.send(b"2")
            assert await first.receive() == b"<2>"
        assert end.connections == 1 and drops == {"exposure_limit": 1}
        end.close()
        assert await is_cut_off(first)
        first.close()
        second.close()


async def test_a_target_that_is_gone_resets_the_user() -> None:
    async with await anyio.create_tcp_listener(local_host=HOST) as listening:
        gone = f"tcp://{HOST}:{listening.extra(SocketAttribute.local_port)}"
    drops: Counter[str] = Counter()
    end = TunnelEnd(TargetEnd(Target.parse(gone)), HOST, 0, lambda host: True, drops)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end.run)
        user = await connect((HOST, end.port))
        assert await is_cut_off(user)
        user.close()
        end.close()
        tasks.cancel_scope.cancel()
    assert drops == {"exposure_target_unreachable": 1}


async def test_a_target_that_is_an_exposure_of_ours_is_not_reached() -> None:
    """What would lead in a circle is refused, also where a connection would be made at once."""
    async with await anyio.create_tcp_listener(local_host=HOST) as listening:
        target = Target.parse(f"tcp://{HOST}:{listening.extra(SocketAttribute.local_port)}")
        inside = TargetEnd(target, ours=lambda endpoint: "x7")
        assert inside.open_now() is None
        with pytest.raises(OSError, match="exposure x7"):
            await inside.open()
        straight = TargetEnd(target)
        straight.trouble = "as before"
        stream = straight.open_now()
        assert stream is not None and not straight.trouble
        stream.close()
