"""How a node reaches its server: what it remembers of networks, and how a better carrier takes over."""

from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from overlay.carrier.carriers import CarrierName, CarrierStream, DialOptions, Opener
from overlay.carrier.stream import connect
from overlay.daemon.state import StateDir
from overlay.errors import UserError
from overlay.node.control import ControlClient
from overlay.node.interface import Assigned, Machine, Route
from overlay.node.settings import check_ways
from overlay.node.ways import FAVOURITES_FILE, Target, Ways
from overlay.wire.control.messages import Hello, Message, Pong, Unexpose
from overlay.wire.endpoint import Endpoint
from tests.dns.test_server import upstream
from tests.node.stub_server import StubServer
from tests.node.test_control import Recorder

KEY = bytes(range(32))
HOME = Machine((Assigned("192.0.2.10", "eth0"),), (Route("0.0.0.0/0", "eth0", gateway="192.0.2.1"),))
CAFE = Machine((Assigned("198.51.100.7", "eth0"),), (Route("0.0.0.0/0", "eth0", gateway="198.51.100.1"),))


class Firewall:
    """Lets some carriers through; all of them are TCP here."""

    def __init__(self, *open_carriers: CarrierName) -> None:
        self.open = set(open_carriers)
        self.silent: set[CarrierName] = set()
        self.tried: list[CarrierName] = []
        self.options: list[DialOptions] = []

    def openers(self) -> Mapping[CarrierName, Opener]:
        def opener(name: CarrierName) -> Opener:
            async def dial(endpoint: Endpoint, options: DialOptions) -> CarrierStream:
                self.tried.append(name)
                self.options.append(options)
                if name in self.silent:
                    await anyio.sleep_forever()
                if name not in self.open:
                    raise OSError("blocked")
                return await connect(endpoint)

            return dial

        carriers: tuple[CarrierName, ...] = ("udp", "tls", "ws")
        return {name: opener(name) for name in carriers}


class Rig:
    def __init__(self, folder: Path, server: StubServer, firewall: Firewall, *, pause: float = 0.001) -> None:
        self.machine = HOME
        self.wall = 1e9
        self.state = StateDir(folder).open()
        self.server = server
        self.firewall = firewall
        self.pause = pause

    def ways(self, *addresses: str, options: DialOptions | None = None, no_proxy: str = "") -> Ways:
        async def read_host() -> Machine:
            return self.machine

        target = Target(
            addresses or (self.server.address,),
            self.server.public_key,
            KEY,
            options=options or DialOptions(),
            no_proxy=no_proxy,
        )
        return Ways(
            target,
            self.state,
            openers=self.firewall.openers(),
            read_host=read_host,
            wall=lambda: self.wall,
            uniform=lambda low, high: self.pause,
        )

    async def dial(self, ways: Ways) -> CarrierName:
        self.firewall.tried.clear()
        connection = await ways.dial()
        connection.lose("closed")
        return connection.carrier


def test_the_servers_name_is_asked_of_the_systems_name_servers_not_of_our_resolver(tmp_path: Path) -> None:
    async def main() -> None:
        target = Target(("tcp://server.example:443",), KEY, KEY)
        with upstream() as server:
            ways = Ways(target, StateDir(tmp_path).open(), lambda: [server])
            assert await ways.look_up("a.example", 443) == [("192.0.2.80", 443)]
            with pytest.raises(OSError, match="it has no address"):
                await ways.look_up("server.local.test", 443)

    anyio.run(main)


def test_what_worked_on_a_network_is_tried_first_there(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.run)
            rig = Rig(tmp_path, server, Firewall("ws"))
            ways = rig.ways()
            assert await rig.dial(ways) == "ws"
            assert rig.firewall.tried == ["udp", "tls", "ws"]
            assert ways.why == "udp: blocked; tls: blocked"
            assert await rig.dial(rig.ways()) == "ws"  # after a restart
            assert rig.firewall.tried == ["ws"]
            rig.machine = CAFE
            assert await rig.dial(rig.ways()) == "ws"
            assert rig.firewall.tried == ["udp", "tls", "ws"]
            rig.wall += 8 * 24 * 3600
            rig.firewall.tried.clear()
            await rig.dial(rig.ways())
            assert rig.firewall.tried[0] == "udp"
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_carrier_that_is_cut_off_again_and_again_does_not_hold_the_node(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.run)
            rig = Rig(tmp_path, server, Firewall("udp", "tls", "ws"))
            ways = rig.ways()
            assert await rig.dial(ways) == "udp"
            ways.lost()
            assert await rig.dial(ways) == "tls"
            assert ways.why == "udp: worked, and did not last"
            ways.lost()
            assert await rig.dial(ways) == "ws"
            assert ways.why == "udp and tls: worked, and did not last"
            ways.lost()
            assert await rig.dial(ways) == "udp"  # none is better than the others
            ways.link_changed()
            assert await rig.dial(ways) == "udp"
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_server_that_refuses_for_a_moment_is_not_waited_for_by_a_carrier_that_is_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlay.node.ways.FIRST_LINGER", 0.05)

    async def main() -> None:
        server = StubServer()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.run)
            rig = Rig(tmp_path, server, Firewall("tls"))
            rig.firewall.silent.add("udp")
            ways = rig.ways()
            assert await rig.dial(ways) == "tls"
            rig.firewall.open.clear()
            with anyio.fail_after(5), pytest.raises(UserError) as caught:
                await rig.dial(ways)
            assert "by udp (no answer so far)" in caught.value.message
            rig.firewall.open.add("tls")
            assert await rig.dial(ways) == "tls"
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_damaged_memory_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.run)
            (tmp_path / FAVOURITES_FILE).write_text("{")
            rig = Rig(tmp_path, server, Firewall("udp"))
            ways = rig.ways()
            assert await rig.dial(ways) == "udp"
            assert ways.why == "first choice"
            assert ways.stream_carriers == ("tls", "ws")
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_better_carrier_takes_over_without_a_break(tmp_path: Path) -> None:
    async def main() -> None:
        server, recorder = StubServer(), Recorder()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.run)
            rig = Rig(tmp_path, server, Firewall("ws"))
            ways = rig.ways()
            client = ControlClient(
                ways.dial, lambda version, _: Hello(name="a", map_version=version), recorder, None, better=ways
            )

            async def run() -> None:
                await client.run(patient=False)

            tasks.start_soon(run)
            await recorder.until(lambda: bool(recorder.maps))
            rig.firewall.open.add("udp")
            await recorder.until(lambda: len(recorder.welcomes) == 2)
            assert (ways.carrier, ways.why, client.state) == ("udp", "first choice", "connected")
            await client.request(lambda seq: Unexpose(seq=seq, id="x"))
            assert recorder.lost == 0
            assert len(recorder.maps) == 1  # it had it already
            await server.until(lambda: len(server.connections) == 1)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_better_carrier_on_which_nobody_answers_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlay.node.control.WELCOME_TIMEOUT", 0.3)

    async def main() -> None:
        server, recorder = StubServer(), Recorder()
        answers = [server.welcome]

        def answer(hello: Hello) -> Message:
            return answers.pop()(hello) if answers else Pong(seq=1)

        server.answer = answer
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.run)
            rig = Rig(tmp_path, server, Firewall("ws"))
            ways = rig.ways()
            client = ControlClient(ways.dial, lambda version, _mark: Hello(name="a"), recorder, None, better=ways)

            async def run() -> None:
                await client.run(patient=False)

            tasks.start_soon(run)
            await recorder.until(lambda: bool(recorder.maps))
            rig.firewall.open.add("udp")
            await server.until(lambda: len(server.hellos) >= 2)
            await client.request(lambda seq: Unexpose(seq=seq, id="x"))
            assert (ways.carrier, client.state, recorder.lost) == ("ws", "connected", 0)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_the_pin_is_for_the_server_itself_and_authorities_for_a_url(tmp_path: Path) -> None:
    async def main() -> None:
        server = StubServer()
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.run)
            rig = Rig(tmp_path, server, Firewall())
            options = DialOptions(pin=b"p" * 32, proxy="http://proxy:3128")
            ways = rig.ways(
                server.address, f"wss://127.0.0.1:{server.port}/x", f"ws://localhost:{server.port}/x",
                options=options, no_proxy="localhost",
            )  # fmt: skip
            with pytest.raises(UserError):
                await ways.dial()
            seen = {(each.host, each.path): each for each in rig.firewall.options}
            assert seen["", "/"].pin == b"p" * 32 and not seen["", "/"].authorities
            assert seen["", "/"].proxy == "http://proxy:3128"
            url = seen["localhost", "/x"]
            assert (url.pin, url.authorities, url.proxy) == (b"", True, None)
            tasks.cancel_scope.cancel()

    anyio.run(main)


# settings ------------------------------------------------------------------------------------------------------------


def test_a_proxy_is_read() -> None:
    assert check_ways("tls,ws", "a:b@proxy:3128") == (("tls", "ws"), "a:b@proxy:3128")


@pytest.mark.parametrize("given", ["http://", "https://proxy", "http://proxy:x", "http://pro xy", "http://[::1", "a/b"])
def test_a_wrong_proxy_is_refused(given: str) -> None:
    with pytest.raises(UserError) as caught:
        check_ways("auto", given)
    assert caught.value.code == "proxy-invalid"
