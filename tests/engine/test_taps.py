"""Taps in running engines: what they see, whose it is, and that nothing of them is left in a packet's way after."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from overlay.engine import Features, api
from overlay.engine.loop import Loop
from overlay.engine.tap import InnerPacket, OuterRun, Tap
from overlay.wire.disco import DISCO_TYPE
from overlay.wire.packet.virtio import VIRTIO_HEADER_SIZE
from overlay.wire.relay import RELAY_TYPE
from overlay.wire.stream.codec import Plain
from tests.engine.rig import PATIENCE, Machine, acquaint, udp4, udp6
from tests.engine.test_links import Handed, tcp_pair

FRAGMENT = 5


class Watcher:
    """A tap and who takes of it."""

    def __init__(self, machine: Machine, **wish: object) -> None:
        self._waiting = threading.Event()
        self.tap = Tap(self._waiting.set, **wish)  # type: ignore[arg-type]
        self._machine = machine

    def next(self) -> InnerPacket | OuterRun:
        while not (taken := self.tap.take(1)):
            assert self._waiting.wait(PATIENCE), "nothing was tapped"
            self._waiting.clear()
        return taken[0]

    def next_inner(self) -> InnerPacket:
        while not isinstance(item := self.next(), InnerPacket):
            pass
        return item

    def next_message(self, kind: int, *, outbound: bool) -> OuterRun:
        while not (isinstance(item := self.next(), OuterRun) and item.data[0] == kind and item.outbound is outbound):
            pass
        return item

    def rest(self) -> list[InnerPacket | OuterRun]:
        """Stop, and take what there is."""
        stopped = threading.Event()
        self._machine.engine.post(api.StopTap(self.tap, stopped.set))
        assert stopped.wait(PATIENCE)
        return self.tap.take(1 << 30)


@contextmanager
def watching(machine: Machine, **wish: object) -> Iterator[Watcher]:
    watcher = Watcher(machine, **wish)
    machine.engine.post(api.StartTap(watcher.tap))
    yield watcher
    watcher.rest()


def packet(size: int = 10) -> bytes:
    return udp4("10.0.0.1", "10.0.0.2", bytes(size))


def methods_of(machine: Machine) -> set[str]:
    """Attributes that stand before methods of the TUN or the sockets."""
    loop = machine.engine._loop
    assert isinstance(loop, Loop) and loop._tun is not None
    targets = [loop._tun, *loop._sockets.all()]
    return {name for target in targets for name in vars(target) if callable(getattr(type(target), name, None))}


def test_while_no_tap_is_on_the_methods_are_those_of_the_classes() -> None:
    with Machine(1) as one:
        assert methods_of(one) == set()
        with watching(one) as first:
            first_on = one.snapshot(), methods_of(one)
            assert first_on[1] == {"read", "write"}, "sockets are left alone without `outer`"
            with watching(one, outer=True):
                one.snapshot()
                assert {"read", "write", "receive", "send"} <= methods_of(one)
            assert methods_of(one) == {"read", "write"}
        assert methods_of(one) == set()
        one.engine.post(api.StopTap(first.tap))
        one.snapshot()
        assert methods_of(one) == set(), "stopping twice is harmless"


def test_inner_packets_both_ways() -> None:
    with Machine(1) as one, Machine(2) as two:
        acquaint(one, two)
        with watching(one) as watcher:
            one.send(packet())
            two.receive()
            answer = udp4("10.0.0.2", "10.0.0.1", b"answer")
            two.send(answer)
            one.receive()
            out, back = watcher.next_inner(), watcher.next_inner()
            assert (out.outbound, out.data[VIRTIO_HEADER_SIZE:], out.size) == (True, packet(), len(packet()))
            assert (back.outbound, back.data[VIRTIO_HEADER_SIZE:]) == (False, answer)
            assert watcher.rest() == [], "no messages of ours without `outer`"
        assert watcher.tap.counts == (2, 0, 0, 0)


@pytest.mark.parametrize("without", [(), ("udp_msghdr",), ("udp_gso", "udp_gro")], ids=str)
def test_our_messages_both_ways(without: tuple[str, ...]) -> None:
    """Whichever way they go out and come in."""
    wanted = Features().without(without)
    with Machine(1, wanted=wanted) as one, Machine(2, wanted=wanted) as two:
        acquaint(one, two)
        one.send(packet())
        two.receive()  # from now on each knows where the other is: records of several datagrams are taken
        with watching(one, inner=False, outer=True) as watcher:
            one.send(packet(4000))
            two.receive()
            two.send(udp4("10.0.0.2", "10.0.0.1", b"answer"))
            one.receive()
            out = watcher.next_message(FRAGMENT, outbound=True)
            assert out.endpoint[1] == two.engine.port and 0 < out.segment <= len(out.data)
            back = watcher.next_message(FRAGMENT, outbound=False)
            assert back.endpoint[1] == two.engine.port
            assert not any(isinstance(item, InnerPacket) for item in watcher.rest())


def test_only_what_concerns_a_peer() -> None:
    with Machine(1) as one, Machine(2) as two, Machine(3) as three:
        acquaint(one, two)
        acquaint(one, three)
        with watching(one, number=3, outer=True) as watcher, watching(one, outer=True) as everything:
            for each in (two, three):
                one.send(udp4("10.0.0.1", each.address, b"there"))
                one.send(udp6("fd00::1", each.address6, b"there"))
                for _ in range(2):
                    each.receive()
                each.send(udp4(each.address, "10.0.0.1", b"back"))
                one.receive()
            seen = watcher.rest()
            inner = [item for item in seen if isinstance(item, InnerPacket)]
            assert len(inner) == 3 and [item.outbound for item in inner].count(True) == 2
            ports = {item.endpoint[1] for item in seen if isinstance(item, OuterRun)}
            assert ports == {three.engine.port}
            all_ports = {item.endpoint[1] for item in everything.rest() if isinstance(item, OuterRun)}
            assert all_ports == {two.engine.port, three.engine.port}


def test_a_relays_view_and_its_clients() -> None:
    """Relayed messages concern the node that they name; on the relay, the one they come from, too."""
    with Machine(9, relay_clients=True) as relay, Machine(1) as one, Machine(2) as two, Machine(3) as three:
        for each in (one, two, three):
            each.set_relay(relay)
        for each in (one, two, three):
            each.wait_for(api.Observed)
        acquaint(one, two, direct=False)
        acquaint(one, three, direct=False)
        wish = {"inner": False, "outer": True}
        with (
            watching(relay, number=3, **wish) as at_relay,
            watching(one, number=3, **wish) as at_one,
        ):
            for each in (two, three):
                one.send(udp4("10.0.0.1", each.address, b"there"))
                each.receive()
            numbers = [numbers_of(watcher.rest()) for watcher in (at_one, at_relay)]
        assert numbers[0] == {3}, "what goes to 2 through the same relay is not shown"
        assert numbers[1] == {1, 3}, "from 1 to 3, and as 3 gets it: from 1"


def numbers_of(items: list[InnerPacket | OuterRun]) -> set[int]:
    relayed = [item for item in items if isinstance(item, OuterRun) and item.data[0] == RELAY_TYPE]
    return {int.from_bytes(item.data[4:8], "little") for item in relayed}


def test_a_run_of_several_nodes_messages_is_told_apart() -> None:
    with Machine(1) as one, watching(one, number=3, inner=False, outer=True) as watcher:
        one.snapshot()
        loop = one.engine._loop
        assert isinstance(loop, Loop)
        header = bytes([RELAY_TYPE, 0, 0, 0])
        run = b"".join(header + number.to_bytes(4, "little") + bytes(12) for number in (2, 3, 2, 3))
        loop._taps._outer_passed((run[:40], run[40:]), 20, 1, ("192.0.2.1", 443), False)
        assert [item.data[4] for item in watcher.rest()] == [3, 3]


def test_a_consumer_that_takes_nothing_costs_nobody_a_packet() -> None:
    with Machine(1) as one, Machine(2) as two:
        acquaint(one, two)
        with watching(one, outer=True, max_packets=3) as watcher:
            for _ in range(50):
                one.send(packet())
                assert two.receive() == packet()
            counts = watcher.tap.counts
            assert len(watcher.rest()) == 3
        assert counts.inner_seen == 50 and counts.inner_dropped >= 47 and counts.outer_dropped > 0


@pytest.mark.parametrize("data", [b"", b"\x06", b"\x05" * 7, b"\x07" * 8, b"\x04" * 16, bytes(40)])
def test_hostile_bytes_concern_nobody_and_raise_nothing(data: bytes) -> None:
    with Machine(1) as one:
        loop = one.engine._loop
        assert isinstance(loop, Loop)
        tap = Tap(lambda: None, number=3, outer=True)
        loop._taps._inner, loop._taps._outer = [tap], [tap]
        for outbound in (True, False):
            loop._taps._outer_passed((data,), 0, 1, ("192.0.2.1", 443), outbound)
            loop._taps._inner_passed(data, outbound)
        assert tap.take(1) == []


def test_disco_concerns_its_sender() -> None:
    with Machine(1) as one:
        loop = one.engine._loop
        assert isinstance(loop, Loop)
        tap = Tap(lambda: None, number=3, outer=True)
        loop._taps._outer = [tap]
        for sender in (2, 3):
            message = bytes([DISCO_TYPE, 1, 0, 0]) + sender.to_bytes(4, "little") + bytes(50)
            loop._taps._outer_passed((message,), 0, 1, ("192.0.2.1", 443), False)
        assert len(tap.take(1 << 20)) == 1


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("number", [None, 3])
def test_what_goes_by_a_link_is_shown_with_the_connections_ends(
    number: int | None, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the link or the tap is there first, and by which way through the engine it goes."""
    if alone:
        monkeypatch.setattr("overlay.engine.loop.IDLE", -1.0)
    with Machine(1) as one, Machine(3) as three:
        acquaint(one, three, direct=False)
        with watching(one, inner=False, outer=True, number=number) as early:
            ours, theirs = tcp_pair()
            ends = ours.getsockname()[1], ours.getpeername()[:2]
            for machine, peer, end in ((one, three, ours), (three, one, theirs)):
                machine.engine.post(
                    api.AddLink(7, Handed(end, Plain()), None, "tcp", peer=peer.number, shown=("203.0.113.7", 9))
                )
            early.next_message(DISCO_TYPE, outbound=True)
            one.wait_for(api.PathChanged)
            with watching(one, inner=False, outer=True, number=number) as late:
                for _ in range(5):
                    one.send(udp4("10.0.0.1", three.address, b"there"))
                    three.receive()
                    three.send(udp4(three.address, "10.0.0.1", b"back"))
                    one.receive()
                for watcher in (early, late):
                    for outbound in (True, False) * 5:
                        seen = watcher.next_message(FRAGMENT, outbound=outbound)
                        assert (seen.port, seen.endpoint) == ends


def test_an_engine_without_an_interface_is_tapped_on_its_sockets() -> None:
    events: queue.Queue[api.Event] = queue.Queue()
    from overlay.engine import Engine

    engine = Engine(api.EngineConfig(private_key=bytes(range(32)), number=1, interface=None), events.put)
    engine.start()
    try:
        started, stopped = threading.Event(), threading.Event()
        tap = Tap(started.set, inner=False, outer=True)
        engine.post(api.StartTap(tap), api.StopTap(tap, stopped.set))
        assert stopped.wait(PATIENCE)
    finally:
        engine.stop()
