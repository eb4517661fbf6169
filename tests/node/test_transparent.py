"""Who may be seen by a target as himself, and datagrams that say whose they are."""

import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from overlay.carrier.outlets import Outlet, SocketOutlet
from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.node import transparent
from overlay.node.return_routes import Hold, ReturnRoutes, Rule, UnusableAddress, _Way
from overlay.node.target_end import TargetEnd
from overlay.node.targets import Target, TargetOptions
from overlay.node.transparent import Transparent, TransparentOutlet, check_told, host_endpoints
from overlay.node.tunnel_end import TunnelEnd
from overlay.wire.control.terms import Terms, Told
from overlay.wire.endpoint import Endpoint
from overlay.wire.ingress.proxy_protocol import ProxyHeader, encode, encode_v2

SERVER = ("203.0.113.1", 53)
USER = ProxyHeader(("198.51.100.90", 40000), SERVER, "udp")
OTHER = ProxyHeader(("198.51.100.91", 40000), SERVER, "udp")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("127.0.0.1", "transparent_own_address"),
        ("127.9.9.9", "transparent_own_address"),
        ("0.0.0.0", "transparent_own_address"),
        ("0.1.2.3", "transparent_own_address"),
        ("255.255.255.255", "transparent_own_address"),
        ("224.0.0.1", "transparent_own_address"),
        ("169.254.1.1", "transparent_own_address"),
        ("::1", "transparent_own_address"),
        ("::", "transparent_own_address"),
        ("fe80::1", "transparent_own_address"),
        ("ff02::1", "transparent_own_address"),
        ("2001:db8::1", "transparent_other_family"),
    ],
)
def test_nobody_comes_as_this_machine_itself(host: str, reason: str, tmp_path: Path) -> None:
    async def main() -> None:
        ways = Transparent(ReturnRoutes(StateDir(tmp_path)), Counter())  # which are never asked
        for get in (ways.connect, ways.open_outlet):
            with pytest.raises(UnusableAddress) as refused:
                await get(Target.parse("tcp://127.0.0.1:1"), (host, 40000))
            assert refused.value.reason == reason
            with pytest.raises(UnusableAddress, match="the target's own"):
                await get(Target.parse("tcp://192.168.5.9:1"), ("192.168.5.9", 40000))

    anyio.run(main)


@pytest.mark.parametrize(
    ("target", "told", "up", "code"),
    [
        ("/srv/www", Told(proxy_protocol="v2"), True, "told-nobody"),
        ("/srv/www", Told(transparent=True), True, "transparent-target"),
        ("unix:/run/app.sock", Told(transparent=True), True, "transparent-target"),
        ("tcp://db.lan:5432", Told(transparent=True), True, "transparent-target"),
        ("tcp://127.0.0.1:22", Told(transparent=True), False, "transparent-not-up"),
    ],
)
def test_what_cannot_be_is_said(target: str, told: Told, up: bool, code: str) -> None:
    with pytest.raises(UserError) as refused:
        check_told(Terms(told=told), Target.parse(target), up=up)
    assert refused.value.code == code


def test_a_proxy_would_be_seen_instead_of_users() -> None:
    options = TargetOptions(proxy="socks5://127.0.0.1:1080")
    with pytest.raises(UserError, match="that one's address"):
        check_told(Terms(told=Told(transparent=True)), Target.parse("tcp://192.168.1.1:22"), options, up=True)


def test_what_can_be() -> None:
    for target in ("tcp://localhost:22", "udp://[::1]:53", "https://192.168.1.1:443"):
        check_told(Terms(told=Told(transparent=True, proxy_protocol="v2")), Target.parse(target), up=True)
    check_told(Terms(told=Told(proxy_protocol="v1")), Target.parse("unix:/run/app.sock"), up=False)


@pytest.mark.parametrize(
    ("target", "endpoints"),
    [
        ("tcp://localhost:22", [("127.0.0.1", 22), ("::1", 22)]),
        ("tcp://0.0.0.0:22", [("127.0.0.1", 22)]),
        ("tcp://[::]:22", [("::1", 22)]),
        ("tcp://[::ffff:192.168.1.1]:22", [("192.168.1.1", 22)]),
    ],
)
def test_where_users_are_taken_to(target: str, endpoints: list[Endpoint]) -> None:
    assert host_endpoints(Target.parse(target)) == endpoints


class Bench:
    """A target on loopback, and an outlet to it for one user."""

    def __init__(self, target: socket.socket, begin: str = "", known: ProxyHeader | None = None) -> None:
        self.target = target
        self.drops: Counter[str] = Counter()
        self.asked: list[Endpoint] = []
        self.refused: UnusableAddress | None = None
        self.outlet = TransparentOutlet(self.open, lambda user: encode(user, "v2") if begin else b"", self.drops, known)

    async def open(self, user: Endpoint) -> tuple[Outlet, Hold]:
        self.asked.append(user)
        if self.refused is not None:
            raise self.refused
        where = self.target.getsockname()
        outlet = SocketOutlet.open(lambda: where, self.drops)
        assert outlet is not None
        way = _Way(Rule(table=1, protocol=17, port=1, address="127.0.0.1"), True, {user[0]: 1})
        return outlet, Hold(way, user[0])

    def send(self, data: bytes) -> bool:
        return self.outlet.send(memoryview(data))

    async def received(self) -> bytes:
        await anyio.wait_readable(self.target)
        return self.target.recv(65535)


@asynccontextmanager
async def bench(begin: str = "", known: ProxyHeader | None = None) -> AsyncIterator[Bench]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as target:
        target.bind(("127.0.0.1", 0))
        it = Bench(target, begin, known)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.outlet.run, lambda datagram: None)
                yield it
                it.outlet.close()


def test_datagrams_reach_the_target_without_what_tells_of_the_user() -> None:
    async def main() -> None:
        async with bench() as it:
            assert not it.send(b"no header") and not it.send(encode_v2(USER)[:20])
            assert it.send(encode_v2(USER) + b"one")  # waits for the way back
            assert await it.received() == b"one"
            assert it.send(encode_v2(USER) + b"two")
            assert await it.received() == b"two" and it.asked == [USER.source]
            before = it.outlet.stale
            assert not it.send(encode_v2(OTHER) + b"three")
            assert (before, it.outlet.stale) == (False, True)
            assert it.drops == {"bad_proxy_header": 2, "flow_changed_hands": 1}

    anyio.run(main)


def test_a_target_may_be_told_as_well_and_peers_are_known_already() -> None:
    async def main() -> None:
        async with bench(begin="v2") as it:
            it.send(encode_v2(USER) + b"one")
            assert await it.received() == encode_v2(USER) + b"one"
        async with bench(known=USER) as it:
            it.send(b"one")
            assert await it.received() == b"one"

    anyio.run(main)


def test_a_user_who_is_refused_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transparent, "MOST_WAITING", 2)

    async def main() -> None:
        async with bench() as it:
            it.refused = UnusableAddress("transparent_own_address", "no")
            assert [it.send(encode_v2(USER) + b"x") for _ in range(3)] == [True, True, False]
            while not it.drops["transparent_own_address"]:
                await anyio.lowlevel.checkpoint()
            assert not it.send(encode_v2(USER) + b"x")
            assert it.asked == [USER.source]
            assert it.drops == {"target_full": 1, "transparent_own_address": 3}

    anyio.run(main)


def test_what_is_one_users_trouble_is_not_the_targets(tmp_path: Path) -> None:
    six = encode_v2(ProxyHeader(("2001:db8::90", 40000), ("2001:db8::1", 443)))

    async def main() -> None:
        drops: Counter[str] = Counter()
        ways = Transparent(ReturnRoutes(StateDir(tmp_path)), drops)  # which are never asked
        inside = TargetEnd(Target.parse("http://127.0.0.1:1"), told=Told(transparent=True), transparent=ways)
        end = TunnelEnd(inside, "127.0.0.1", 0, lambda address: True, drops)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(end.run)
                async with await anyio.connect_tcp("127.0.0.1", end.port) as user:
                    await user.send(six + b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
                    answer = await user.receive()
                assert answer.startswith(b"HTTP/1.1 502 ") and b"the target has no address of IPv6" in answer
                assert drops == {"transparent_other_family": 1} and not inside.trouble
                end.close()

    anyio.run(main)
