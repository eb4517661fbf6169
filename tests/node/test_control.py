"""The control client against a server over loopback: real carrier, real channel, real signatures."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from overlay.carrier.tcp import ControlConnection, dial
from overlay.errors import Exit, UserError
from overlay.node.control import ControlClient
from overlay.wire.control.messages import (
    Endpoints,
    Expose,
    Exposed,
    Exposure,
    Exposures,
    Failed,
    GroupMember,
    Hello,
    Leave,
    Message,
    NetworkMap,
    Ping,
    Pong,
    Refused,
    RequestEntry,
    SignedMap,
    Supply,
    Welcome,
)
from overlay.wire.control.netmap import sign
from tests.node.stub_server import StubServer, map_node

KEY = bytes(range(32))


class Recorder:
    """A `Listener` that keeps what it hears."""

    def __init__(self) -> None:
        self.welcomes: list[Welcome] = []
        self.maps: list[NetworkMap] = []
        self.exposures: list[tuple[Exposure, ...]] = []
        self.requests: list[RequestEntry] = []
        self.supplies: list[Supply] = []
        self.members: dict[str, tuple[GroupMember, ...]] = {}
        self.guests: list[tuple[str, str, float]] = []
        self.lost = 0
        self._changed = anyio.Event()

    def welcomed(self, welcome: Welcome) -> None:
        self.welcomes.append(welcome)
        self._tell()

    def mapped(self, network_map: NetworkMap) -> None:
        self.maps.append(network_map)
        self._tell()

    def withdrawn(self, name: str, why: str) -> None: ...

    def exposures_changed(self, exposures: tuple[Exposure, ...]) -> None:
        self.exposures.append(exposures)
        self._tell()

    def requested(self, name: str, entries: tuple[RequestEntry, ...]) -> None:
        self.requests.extend(entries)

    def supply(self, wish: Supply) -> None:
        self.supplies.append(wish)

    def group_changed(self, name: str, members: tuple[GroupMember, ...]) -> None:
        self.members[name] = members
        self._tell()

    def let_in(self, name: str, address: str, seconds: float) -> None:
        self.guests.append((name, address, seconds))
        self._tell()

    def disconnected(self) -> None:
        self.lost += 1
        self._tell()

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not condition():
                await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class Setup:
    def __init__(self) -> None:
        self.server = StubServer()
        self.recorder = Recorder()
        self.delays: list[float] = []
        self.client = self.make_client(None)

    def make_client(self, network_map: NetworkMap | None) -> ControlClient:
        return ControlClient(self._dial, self._hello, self.recorder, network_map, uniform=self._uniform)

    async def _dial(self) -> ControlConnection:
        return await dial((self.server.address,), self.server.public_key, KEY, 5.0)

    def _hello(self, map_version: int, map_mark: bytes) -> Hello:
        return Hello(name="a", map_version=map_version, map_mark=map_mark)

    def _uniform(self, _low: float, high: float) -> float:
        self.delays.append(high)
        return 0.0


@asynccontextmanager
async def running(setup: Setup, *, patient: bool = False) -> AsyncIterator[Setup]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(setup.server.run)

        async def run() -> None:
            await setup.client.run(patient=patient)

        tasks.start_soon(run)
        yield setup
        tasks.cancel_scope.cancel()


def test_welcome_map_and_deltas() -> None:
    async def main() -> None:
        async with running(Setup()) as setup:
            await setup.recorder.until(lambda: len(setup.recorder.maps) == 1)
            assert setup.client.state == "connected"
            assert setup.client.address == setup.server.address
            assert setup.recorder.maps[0] == setup.server.map
            await setup.server.set_map(nodes=(*setup.server.map.nodes, map_node(3, "b")))
            await setup.recorder.until(lambda: len(setup.recorder.maps) == 2)
            assert [node.name for node in setup.recorder.maps[1].nodes] == ["server", "b"]
            await setup.server.set_map(nodes=setup.server.map.nodes[:1])
            await setup.recorder.until(lambda: len(setup.recorder.maps) == 3)
            assert [node.name for node in setup.recorder.maps[2].nodes] == ["server"]

    anyio.run(main)


def test_pings_at_once_and_measures_the_round_trip() -> None:
    async def main() -> None:
        async with running(Setup()) as setup:
            await setup.server.until(lambda: any(isinstance(each, Ping) for each in setup.server.received))
            with anyio.fail_after(5):
                while setup.client.rtt is None:
                    await anyio.lowlevel.checkpoint()
            assert 0 < setup.client.rtt < 5

    anyio.run(main)


def test_a_known_map_is_not_asked_for_again_and_deltas_apply_to_it() -> None:
    async def main() -> None:
        setup = Setup()
        setup.client = setup.make_client(setup.server.map)
        async with running(setup):
            await setup.recorder.until(lambda: bool(setup.recorder.welcomes))
            assert setup.server.hellos[0].map_version == 5
            await setup.server.until(lambda: bool(setup.server.connections))
            await setup.server.set_map(nodes=(map_node(4, "c"),))
            await setup.recorder.until(lambda: bool(setup.recorder.maps))
            assert setup.recorder.maps[0].version == 6

    anyio.run(main)


def test_a_delta_that_does_not_fit_brings_a_whole_map() -> None:
    async def main() -> None:
        async with running(Setup()) as setup:
            await setup.recorder.until(lambda: len(setup.recorder.maps) == 1)
            setup.server.map = msgspec.structs.replace(setup.server.map, version=8)
            await setup.server.set_map(nodes=(map_node(4, "c"),))
            await setup.recorder.until(lambda: len(setup.recorder.maps) == 2)
            assert setup.server.hellos[1].map_version == 0
            assert setup.recorder.maps[1] == setup.server.map

    anyio.run(main)


@pytest.mark.parametrize("what", ["signature", "body"])
def test_a_map_that_the_server_did_not_sign_is_not_applied(what: str) -> None:
    async def main() -> None:
        async with running(Setup()) as setup:
            await setup.recorder.until(lambda: len(setup.recorder.maps) == 1)
            forged = msgspec.structs.replace(setup.server.map, version=9, nodes=())
            signed = sign(forged, bytes(32))
            if what == "body":
                genuine = sign(setup.server.map, setup.server.seed)
                signed = SignedMap(body=signed.body, signature=genuine.signature)
            await setup.server.connections[0].send(signed)
            await setup.recorder.until(lambda: len(setup.recorder.welcomes) == 2)  # it dropped that connection
            assert all(network_map.nodes for network_map in setup.recorder.maps)

    anyio.run(main)


def test_reconnects_when_the_server_comes_back() -> None:
    async def main() -> None:
        setup = Setup()
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as first:
                await first.start(setup.server.run)
                port = setup.server.port

                async def run() -> None:
                    await setup.client.run(patient=False)

                tasks.start_soon(run)
                await setup.recorder.until(lambda: bool(setup.recorder.maps))
                first.cancel_scope.cancel()
            await setup.recorder.until(lambda: setup.recorder.lost == 1)
            assert setup.client.rtt is None

            async def again() -> None:
                await setup.server.run(port=port)

            tasks.start_soon(again)
            await setup.recorder.until(lambda: len(setup.recorder.welcomes) == 2)
            assert setup.client.state == "connected"
            assert len(setup.recorder.maps) == 1  # it was up to date
            tasks.cancel_scope.cancel()
        assert max(setup.delays) <= 5.0

    anyio.run(main)


def test_a_server_that_falls_silent_is_dialled_again() -> None:
    async def main() -> None:
        setup = Setup()
        setup.server.heartbeat = 0.05
        setup.server.silent = True
        async with running(setup):
            await setup.recorder.until(lambda: len(setup.recorder.welcomes) == 2)
            assert setup.recorder.lost == 1

    anyio.run(main)


def test_a_doubt_is_a_question_at_once_and_its_answer_ends_it() -> None:
    async def main() -> None:
        async with running(Setup()) as setup:
            await setup.server.until(lambda: len(pings(setup)) == 1)
            setup.client.doubt()
            await setup.server.until(lambda: len(pings(setup)) == 2)
            assert setup.client.state == "connected" and setup.recorder.lost == 0

    anyio.run(main)


def test_a_doubt_that_is_not_answered_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.node.backoff.SUSPICION", 0.05)

    async def main() -> None:
        setup = Setup()
        setup.server.silent = True
        async with running(setup):
            await setup.recorder.until(lambda: bool(setup.recorder.maps))
            setup.client.doubt()
            await setup.recorder.until(lambda: len(setup.recorder.welcomes) == 2)
            assert setup.recorder.lost == 1

    anyio.run(main)


def pings(setup: Setup) -> list[Ping]:
    return [message for message in setup.server.received if isinstance(message, Ping)]


def test_answers_the_servers_ping() -> None:
    async def main() -> None:
        async with running(Setup()) as setup:
            await setup.recorder.until(lambda: bool(setup.recorder.maps))
            await setup.server.connections[0].send(Ping(seq=77))
            await setup.server.until(lambda: Pong(seq=77) in setup.server.received)

    anyio.run(main)


def test_endpoints_are_told_after_each_connection() -> None:
    async def main() -> None:
        setup = Setup()
        setup.client.set_endpoints(("192.0.2.5:1",), ())
        async with running(setup):
            told = Endpoints(lan=("192.0.2.5:1",))
            await setup.server.until(lambda: told in setup.server.received)
            setup.client.set_endpoints(("192.0.2.5:1",), ("203.0.113.9:4",))
            told = Endpoints(lan=("192.0.2.5:1",), observed=("203.0.113.9:4",))
            await setup.server.until(lambda: told in setup.server.received)
            setup.server.received.clear()
            await setup.server.connections[0].aclose()
            await setup.server.until(lambda: told in setup.server.received)

    anyio.run(main)


def test_requests_and_their_answers() -> None:
    async def main() -> None:
        async with running(Setup()) as setup:
            await setup.recorder.until(lambda: bool(setup.recorder.maps))

            def make(seq: int) -> Message:
                return Expose(seq=seq, protocol="tcp", target="tcp://127.0.0.1:80", port=9)

            answer = await setup.client.request(make)
            assert isinstance(answer, Exposed)
            assert answer.exposure.port == 9

            await setup.server.connections[0].send(Exposures(exposures=(answer.exposure,)))
            await setup.recorder.until(lambda: setup.recorder.exposures == [(answer.exposure,)])

    anyio.run(main)


def test_a_request_that_the_server_refuses_or_that_loses_its_connection() -> None:
    async def main() -> None:
        async with running(Setup()) as setup:
            await setup.recorder.until(lambda: bool(setup.recorder.maps))
            connection = setup.server.connections[0]

            async def fail(make_answer: Callable[[int], Awaitable[None]]) -> UserError:
                caught: list[UserError] = []

                async def ask() -> None:
                    with pytest.raises(UserError) as error:
                        await setup.client.request(lambda seq: Hello(name=str(seq)))
                    caught.append(error.value)

                async with anyio.create_task_group() as tasks:
                    setup.server.received.clear()
                    tasks.start_soon(ask)
                    await setup.server.until(lambda: any(isinstance(m, Hello) for m in setup.server.received))
                    hello = next(m for m in setup.server.received if isinstance(m, Hello))
                    await make_answer(int(hello.name))
                return caught[0]

            async def refuse(seq: int) -> None:
                await connection.send(Failed(seq=seq, code="port-taken", message="Taken.", hint="Choose another."))

            error = await fail(refuse)
            assert (error.code, error.hint) == ("port-taken", "Choose another.")

            async def hang_up(_seq: int) -> None:
                await connection.aclose()

            assert (await fail(hang_up)).exit_code is Exit.UNREACHABLE

    anyio.run(main)


def test_a_request_without_a_connection() -> None:
    async def main() -> None:
        with pytest.raises(UserError) as caught:
            await Setup().client.request(lambda seq: Ping(seq=seq))
        assert caught.value.code == "server-unreachable"

    anyio.run(main)


@pytest.mark.parametrize("patient", [False, True])
def test_a_final_refusal_ends_the_client(patient: bool) -> None:
    async def main() -> None:
        setup = Setup()
        setup.server.answer = lambda _: Refused(code="invite-expired", message="Too late.", hint="Ask for another.")
        async with anyio.create_task_group() as tasks:
            await tasks.start(setup.server.run)
            with pytest.raises(UserError) as caught:
                await setup.client.run(patient=patient)
            assert (caught.value.code, caught.value.exit_code) == ("invite-expired", Exit.REFUSED)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_refusal_in_the_middle_ends_the_client() -> None:
    async def main() -> None:
        setup = Setup()
        async with anyio.create_task_group() as tasks:
            await tasks.start(setup.server.run)

            async def remove() -> None:
                await setup.recorder.until(lambda: bool(setup.recorder.maps))
                await setup.server.connections[0].send(Refused(code="removed", message="This node was removed."))

            tasks.start_soon(remove)
            with pytest.raises(UserError) as caught:
                await setup.client.run(patient=True)
            assert caught.value.code == "removed"
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_a_refusal_for_now_is_tried_again_by_a_node_that_knows_its_network() -> None:
    async def main() -> None:
        setup = Setup()
        answers: list[Callable[[Hello], Message]] = [
            setup.server.welcome,
            lambda _: Refused(code="busy", message="Later.", final=False),
        ]
        setup.server.answer = lambda hello: answers.pop()(hello)
        async with running(setup, patient=True):
            await setup.recorder.until(lambda: bool(setup.recorder.welcomes))
            assert len(setup.server.hellos) == 2

    anyio.run(main)


def test_a_first_start_that_is_refused_for_now_or_without_a_welcome() -> None:
    async def main() -> None:
        for answer in (Refused(code="busy", message="Later.", final=False), Ping(seq=1)):
            setup = Setup()
            setup.server.answer = lambda _, answer=answer: answer  # type: ignore[misc]  # bound as it is now
            async with anyio.create_task_group() as tasks:
                await tasks.start(setup.server.run)
                with pytest.raises(UserError) as caught:
                    await setup.client.run(patient=False)
                assert (caught.value.code, caught.value.exit_code) == ("not-welcomed", Exit.UNREACHABLE)
                tasks.cancel_scope.cancel()

    anyio.run(main)


def test_the_first_start_does_not_wait_for_a_server_that_is_away() -> None:
    async def main() -> None:
        setup = Setup()
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            setup.server.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with pytest.raises(UserError) as caught:
            await setup.client.run(patient=False)
        assert (caught.value.code, caught.value.exit_code) == ("server-unreachable", Exit.UNREACHABLE)

    anyio.run(main)


def test_a_patient_client_survives_a_strange_server_and_connects_when_the_right_one_is_back() -> None:
    async def main() -> None:
        setup, stranger = Setup(), StubServer()
        async with anyio.create_task_group() as tasks:
            await tasks.start(stranger.run)
            setup.server.port = stranger.port

            async def run() -> None:
                await setup.client.run(patient=True)

            tasks.start_soon(run)
            with anyio.fail_after(5):
                while setup.client.last_error is None:
                    await anyio.lowlevel.checkpoint()
            assert not setup.recorder.welcomes
            await tasks.start(setup.server.run)
            await setup.recorder.until(lambda: bool(setup.recorder.welcomes))
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_link_change_makes_a_waiting_client_dial_now() -> None:
    async def main() -> None:
        setup = Setup()
        client = ControlClient(setup._dial, setup._hello, setup.recorder, None, uniform=lambda _low, high: high * 1000)
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            setup.server.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await client.run(patient=True)

            tasks.start_soon(run)
            with anyio.fail_after(5):
                while client.state != "offline":
                    await anyio.lowlevel.checkpoint()
            await tasks.start(setup.server.run)
            client.link_changed()
            await setup.recorder.until(lambda: bool(setup.recorder.welcomes))
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_link_change_begins_a_dial_anew_that_hangs() -> None:
    async def main() -> None:
        setup = Setup()
        dials: list[float] = []

        async def dial() -> ControlConnection:
            dials.append(anyio.current_time())
            if len(dials) == 1:
                await anyio.sleep_forever()  # from an address that is gone
            return await setup._dial()

        client = ControlClient(dial, setup._hello, setup.recorder, None, uniform=setup._uniform)
        async with anyio.create_task_group() as tasks:
            await tasks.start(setup.server.run)

            async def run() -> None:
                await client.run(patient=False)

            tasks.start_soon(run)
            with anyio.fail_after(5):
                while not dials:
                    await anyio.lowlevel.checkpoint()
            client.link_changed()
            await setup.recorder.until(lambda: bool(setup.recorder.welcomes))
            assert len(dials) == 2 and not setup.delays
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_leaving_is_said() -> None:
    async def main() -> None:
        async with running(Setup()) as setup:
            await setup.recorder.until(lambda: bool(setup.recorder.maps))
            await setup.client.leave()
            await setup.server.until(lambda: Leave() in setup.server.received)

    anyio.run(main)
