"""Loops without a thread: turned by hand, in front of kernels that refuse things."""

import contextlib
import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from overlay.engine import api
from overlay.engine.features import Features
from overlay.engine.inbound import HANDSHAKE_BURST, RUNS_PER_TURN
from overlay.engine.loop import Loop, clock
from overlay.engine.outbound import EARLY, PACKETS_PER_TURN, RAPID, RATE_WINDOW
from overlay.engine.udp import UdpSockets, open_udp
from overlay.path.budget import Budget
from overlay.path.pmtu import GRANULARITY, MAX_PLPMTU
from overlay.wire.packet.virtio import GSO_UDP_L4, NEEDS_CSUM, NO_OFFLOAD, VIRTIO_HEADER, VIRTIO_HEADER_SIZE
from tests.engine.rig import Machine, acknowledgement, fake_tun, udp4
from tests.engine.test_udp import Refusal, reluctant


class Driven:
    """One engine's loop, with keys and addresses as `Machine` has them."""

    def __init__(self, number: int, refusal: Refusal | None = None, *, copy_dscp: bool = False) -> None:
        self.machine = Machine(number)
        self.tun, self.kernel = fake_tun(Features())
        self.kernel.setblocking(False)
        if refusal is None:
            self.sockets: UdpSockets = open_udp(0, Features())
        else:  # a kernel that refuses is asked through the socket's own methods
            self.sockets = open_udp(0, Features(udp_msghdr=False), reluctant(refusal))
        self.commands: deque[api.Command] = deque()
        self.events: list[api.Event] = []
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        config = api.EngineConfig(
            private_key=self.machine.private_key, number=number, interface="fake0", copy_dscp=copy_dscp
        )
        self.loop = Loop(config, self.tun, self.sockets, self.wakeup, self.commands, self.events.append)

    def post(self, *commands: api.Command) -> None:
        self.commands.extend(commands)
        os.eventfd_write(self.wakeup, 1)

    def know(self, other: "Driven") -> None:
        endpoints = (("127.0.0.1", other.sockets.port),)
        self.post(api.SetPeer(other.machine.config(endpoints=endpoints)))

    def received(self) -> list[bytes]:
        found: list[bytes] = []
        try:
            while True:
                found.append(self.kernel.recv(1 << 17)[VIRTIO_HEADER_SIZE:])
        except BlockingIOError:
            return found

    def snapshot(self) -> api.EngineSnapshot:
        found: list[api.EngineSnapshot] = []
        self.post(api.Inspect(found.append))
        while not found:
            self.loop.turn(0.0)
        return found[0]

    def close(self) -> None:
        self.loop.close()
        self.sockets.close()
        self.tun.close()
        self.kernel.close()
        os.close(self.wakeup)


Make = Callable[..., Driven]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Driven] = []

    def build(number: int, refusal: Refusal | None = None) -> Driven:
        made.append(Driven(number, refusal))
        return made[-1]

    yield build
    for driven in made:
        driven.close()


def turn_until(done: Callable[[], bool], *loops: Driven) -> None:
    """Give all loops turns until that holds; 10 s at most."""
    deadline = clock() + 10
    while not done():
        assert clock() < deadline
        for driven in loops:
            driven.loop.turn(0.001)


def introduce(one: Driven, other: Driven) -> None:
    """Make them peers, with a session and a proven path."""
    one.know(other)
    other.know(one)
    hello = udp4(one.machine.address, other.machine.address, b"hello")
    one.kernel.send(NO_OFFLOAD + hello)
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(other.received())
        return hello in found

    turn_until(arrived, one, other)
    for _ in range(20):
        one.loop.turn(0.001)
        other.loop.turn(0.001)


def superpacket(one: Driven, other: Driven, size: int) -> bytes:
    packet = udp4(one.machine.address, other.machine.address, os.urandom(size))
    return VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 1000, 20, 6) + packet


def path_mtu_of(limit: list[int]) -> Refusal:
    """A kernel that knows a path MTU: larger datagrams are refused."""

    def refusal(call: str, arguments: tuple[Any, ...]) -> int:
        if call != "sendmsg":
            return 0
        buffers, ancillary = arguments[0], arguments[1]
        size = int.from_bytes(ancillary[0][2], "little") if ancillary else sum(map(len, buffers))
        return errno.EMSGSIZE if size > limit[0] else 0

    return refusal


@pytest.mark.parametrize("limit", [1300, 1200, 600])
def test_a_path_that_refuses_a_size_gets_smaller_datagrams_and_loses_nothing(make: Make, limit: int) -> None:
    current = [1 << 16]
    one, other = make(2, path_mtu_of(current)), make(3)
    introduce(one, other)
    current[0] = limit
    sent = [superpacket(one, other, 20_000), NO_OFFLOAD + udp4(one.machine.address, other.machine.address, bytes(1352))]
    for frame in sent:
        one.kernel.send(frame)
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(other.received())
        return len(found) == len(sent)

    turn_until(arrived, one, other)
    assert found == [frame[VIRTIO_HEADER_SIZE:] for frame in sent]
    turn_until(lambda: limit - GRANULARITY <= mtu(one) <= limit, one, other)
    assert "send_too_long" not in one.snapshot().drops
    current[0] = 1 << 16
    one.post(api.LinkChanged())
    one.kernel.send(sent[0])
    turn_until(lambda: mtu(one) == MAX_PLPMTU, one, other)


def mtu(driven: Driven) -> int:
    path = driven.snapshot().peers[0].path
    assert path is not None
    return path.mtu


def test_below_the_least_size_ip_fragments(make: Make) -> None:
    current = [1 << 16]
    one, other = make(2, path_mtu_of(current)), make(3)
    introduce(one, other)
    current[0] = 300
    packet = udp4(one.machine.address, other.machine.address, bytes(1000))
    one.kernel.send(NO_OFFLOAD + packet)
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(other.received())
        return packet in found

    turn_until(arrived, one, other)


def test_while_the_socket_is_full_the_tun_is_left_alone_and_nothing_is_lost(make: Make) -> None:
    full = [False]
    one = make(2, lambda call, arguments: errno.EAGAIN if call == "sendmsg" and full[0] else 0)
    other = make(3)
    introduce(one, other)
    full[0] = True
    sent = [superpacket(one, other, 30_000) for _ in range(4)]
    one.kernel.send(sent[0])
    one.loop.turn(0.01)
    for frame in sent[1:]:
        one.kernel.send(frame)
    for _ in range(5):
        one.loop.turn(0.0)
    waiting = one.tun.read(memoryview(bytearray(1 << 17)))  # was not taken; this takes it
    assert waiting == 4 + len(sent[1])
    full[0] = False
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(other.received())
        return len(found) == 3

    turn_until(arrived, one, other)
    assert found == [frame[VIRTIO_HEADER_SIZE:] for frame in [sent[0], *sent[2:]]]
    assert "send_blocked" not in one.snapshot().drops


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENETUNREACH, errno.EPERM])
def test_errors_of_a_send_cost_that_datagram_alone(make: Make, number: int) -> None:
    failing = [False]
    one = make(2, lambda call, arguments: number if call == "sendmsg" and failing[0] else 0)
    other = make(3)
    introduce(one, other)
    failing[0] = True
    one.kernel.send(superpacket(one, other, 3000))
    one.loop.turn(0.01)
    failing[0] = False
    last = superpacket(one, other, 3000)
    one.kernel.send(last)
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(other.received())
        return last[VIRTIO_HEADER_SIZE:] in found

    turn_until(arrived, one, other)
    assert one.snapshot().drops["send_no_buffers" if number == errno.ENOBUFS else "send_unreachable"] >= 1


def test_small_packets_that_wait_share_a_record(make: Make) -> None:
    one, other = make(2), make(3)
    introduce(one, other)
    ends = one.machine.address, other.machine.address
    packets = [udp4(*ends, bytes([index]) * 50, ports=(index + 1, 2000)) for index in range(30)]
    for packet in packets:
        one.kernel.send(NO_OFFLOAD + packet)
    one.loop.turn(0.01)
    (receiver,) = [r for r in other.loop._peers.receivers.values() if r.record is not None and r.record.completed]
    assert receiver.record is not None
    before = receiver.record.completed
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(other.received())
        return len(found) == len(packets)

    turn_until(arrived, other)
    assert found == packets
    assert receiver.record.completed - before == 1  # 92 bytes a frame, 8192 bytes a record


def test_of_acknowledgements_that_wait_only_the_last_is_sent(make: Make) -> None:
    one, other = make(2), make(3)
    introduce(one, other)

    def packets(*numbers: int) -> list[bytes]:
        ends = one.machine.address, other.machine.address
        return [acknowledgement(*ends, port, number) for number in numbers for port in (1, 2)]

    for packet in packets(1000, 2000, 2000, 3000):
        one.kernel.send(NO_OFFLOAD + packet)
    one.loop.turn(0.01)
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(other.received())
        return len(found) >= 4

    turn_until(arrived, one, other)
    # 2000 takes the place of 1000; its duplicate stays, and 3000 takes the duplicate's.
    assert found == packets(2000, 3000)
    assert one.snapshot().drops["ack_superseded"] == 4


def test_rapid_packets_are_waited_for_and_slow_ones_not(make: Make) -> None:
    outbound = make(2).loop._outbound
    assert outbound is not None
    now = clock()
    for _ in range(4):
        now += RATE_WINDOW
        outbound._measure(int(2 * RAPID * RATE_WINDOW), now)
    assert outbound._rapid_until > now
    for _ in range(4):
        now += RATE_WINDOW
        outbound._measure(int(RAPID * RATE_WINDOW / 2), now)
    assert outbound._rapid_until <= now


def test_a_busy_tun_leaves_the_sockets_their_turn(make: Make) -> None:
    one = make(2)
    packet = NO_OFFLOAD + udp4("10.0.0.2", "10.0.0.3", b"")
    one.kernel.setblocking(True)
    for _ in range(PACKETS_PER_TURN + 10):
        one.kernel.send(packet)
    one.loop.turn(0.0)
    assert one.loop._drops.counts["no_peer"] == PACKETS_PER_TURN


def test_a_busy_socket_leaves_the_others_their_turn(make: Make) -> None:
    one = make(2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for index in range(2 * RUNS_PER_TURN):
            stranger.sendto(bytes(10 + index), ("127.0.0.1", one.sockets.port))
        one.loop.turn(1.0)
        assert 0 < one.loop._drops.counts["unknown_type"] <= RUNS_PER_TURN


def test_handshakes_looked_at_per_second_are_bounded(make: Make) -> None:
    one = make(2)
    flood = memoryview(b"\x01\0\0\0" + bytes(144))
    now = clock()
    for _ in range(int(HANDSHAKE_BURST) + 100):
        one.loop._inbound.run(flood, len(flood), ("127.0.0.1", 9), now)
    assert one.loop._drops.counts == {"bad_mac1": int(HANDSHAKE_BURST), "handshake_rate": 100}


def test_disco_looked_at_per_second_is_bounded(make: Make) -> None:
    one = make(2)
    one.loop._disco._budget = Budget(1.0, 2.0)
    datagram = memoryview(b"\x07\x01\0\0\x09\0\0\0" + bytes(100))
    now = clock()
    for _ in range(5):
        one.loop._inbound.run(datagram, len(datagram), ("127.0.0.1", 9), now)
    assert one.loop._drops.counts == {"disco_stranger": 2, "disco_rate": 3}


def test_a_bug_in_the_work_on_one_packet_does_not_end_the_loop(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = make(2), make(3)
    introduce(one, other)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("overlay.wire.packet.virtio.validate", broken)
        for _ in range(2):
            one.kernel.send(superpacket(one, other, 2000))
            one.loop.turn(0.01)
            turn_until(lambda: True, other)
            other.loop.turn(0.05)
    assert other.loop._drops.counts["internal_error"] == 2
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    last = superpacket(one, other, 2000)
    one.kernel.send(last)
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(other.received())
        return last[VIRTIO_HEADER_SIZE:] in found

    turn_until(arrived, one, other)


def test_many_commands_do_not_hold_up_a_turn(make: Make) -> None:
    one = make(2)
    done: list[int] = []
    for index in range(5000):
        one.post(api.Inspect(lambda snapshot, index=index: done.append(index)))  # type: ignore[misc]
    one.loop.turn(0.0)
    assert 0 < len(done) < 5000
    turn_until(lambda: len(done) == 5000, one)
    assert done == list(range(5000))


def test_a_packet_that_is_read_before_the_peer_that_was_posted_is_the_peers(make: Make) -> None:
    """The other thread posts and sends while a turn is under way: the turn reads the packet, and knows no peer yet."""
    one, two = make(1), make(2)
    two.know(one)
    early = udp4("10.0.0.1", "10.0.0.2", b"early")
    one.commands.append(api.SetPeer(two.machine.config(endpoints=(("127.0.0.1", two.sockets.port),))))
    one.kernel.send(NO_OFFLOAD + early)
    one.loop.turn(0.0)  # that the wakeup is not written yet stands for a poll that returned before it was
    one.post()
    turn_until(lambda: early in two.received(), one, two)
    assert one.snapshot().drops == {}


def test_packets_for_nobody_wait_for_commands_in_bounded_number(make: Make) -> None:
    one = make(1)
    one.commands.append(api.LinkChanged())
    for _ in range(EARLY + 5):
        one.kernel.send(NO_OFFLOAD + udp4("10.0.0.1", "10.0.0.2", b""))
    one.loop.turn(0.0)
    assert one.received() != [], "the last five were refused at once"
    one.post()
    one.loop.turn(0.0)
    assert one.snapshot().drops["no_peer"] == EARLY + 5


def test_what_wakes_an_engine_is_answered_in_the_same_turn(make: Make) -> None:
    """The kernel answers a ping while it is written: the answer goes out before anything else is looked after."""
    one, other = make(2), make(3)
    introduce(one, other)
    answer = udp4(other.machine.address, one.machine.address, b"answer")
    write = other.tun.write
    answered = threading.Event()

    def write_and_answer(packet: memoryview | bytes | bytearray) -> str:
        outcome = write(packet)
        other.kernel.send(NO_OFFLOAD + answer)
        answered.set()
        return outcome

    other.tun.write = write_and_answer  # type: ignore[method-assign]

    def ask() -> None:
        one.kernel.send(NO_OFFLOAD + udp4(one.machine.address, other.machine.address, b"question"))
        one.loop.turn(1.0)

    other.loop.turn(0.0)
    asking = threading.Timer(0.05, ask)
    asking.start()
    while not answered.is_set():
        other.loop.turn(10.0)
    asking.join()
    turn_until(lambda: answer in one.received(), one)


def test_a_relay_that_is_named_again_is_asked_at_once(make: Make) -> None:
    """A server that started anew does not know where its clients are until they ping it."""
    node = make(2)
    relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with relay:
        relay.bind(("127.0.0.1", 0))
        relay.setblocking(False)

        def pings() -> int:
            count = 0
            with contextlib.suppress(BlockingIOError):
                while relay.recv(2048):
                    count += 1
            return count

        key = Machine(9).public_key

        def name_it(ticket: int) -> int:
            answers: list[api.EngineSnapshot] = []
            node.post(api.SetRelay((relay.getsockname(),), 1, key, ticket), api.Inspect(answers.append))
            turn_until(lambda: bool(answers), node)
            return pings()

        assert name_it(5) == 1
        home = node.loop._routes.home
        assert home is not None
        (txid,) = home._outstanding
        assert home.pong(relay.getsockname(), txid, ("192.0.2.1", 1), clock())
        assert home.next_timeout() > clock() + 20.0
        assert name_it(6) == 1


def test_a_machine_that_wakes_has_all_paths_proven_anew(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one thing that cannot be had for real is a machine's sleep: the clock jumps while epoll waits."""
    a, b = make(1), make(2)
    a.know(b)
    a.loop.turn(0.0)
    slept: list[str] = []
    monkeypatch.setattr(a.loop, "_link_changed", lambda now: slept.append("woke"))
    times = iter([1e6, 1e6 + 0.01, 2e6, 2e6 + 3600.0])
    monkeypatch.setattr("overlay.engine.loop.clock", lambda: next(times))
    a.loop.turn(0.0)
    assert slept == []
    a.loop.turn(0.0)
    assert slept == ["woke"]
