"""The relay inside the engine's loop, turned by hand: what the sockets bring and take, timers, what is hostile."""

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from overlay.engine import api
from overlay.engine.features import Features
from overlay.engine.loop import Loop, clock
from overlay.engine.msghdr import SOL_UDP, UDP_SEGMENT
from overlay.engine.relay_queue import BURST_LIMIT, RUNS_TAKEN_PER_TURN
from overlay.engine.udp import open_udp
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import RELAY_HEADER_SIZE, pack_header
from tests.engine.test_udp import reluctant

SEGMENT, COUNT = 1400, 40  # of a large run


class Node:
    """A client as the relay sees it: an address that its ping came from."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ticket = number + 70
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.setblocking(False)
        self.endpoint: Endpoint = self.socket.getsockname()

    def received(self) -> list[bytes]:
        found = []
        try:
            while True:
                found.append(self.socket.recv(1 << 16)[RELAY_HEADER_SIZE:])
        except BlockingIOError:
            return found


class Relay:
    def __init__(self, rate: float = 0.0) -> None:
        self.error = 0  # what the kernel says to a send
        self.sockets = open_udp(0, Features(), reluctant(self._refusal))
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        config = api.EngineConfig(os.urandom(32), 1, None, relay_clients=True, relay_rate=rate)
        self.loop = Loop(config, None, self.sockets, self.wakeup, deque(), lambda event: None)
        self.nodes = {number: Node(number) for number in (2, 3, 4)}
        role = self.loop._routes.role
        assert role is not None
        self.role, self.drops = role, self.loop._drops.counts
        for node in self.nodes.values():
            self.role.set_client(node.number, node.number.to_bytes(32, "little"), node.ticket)
            self.role.ping_received(node.number, node.endpoint, clock())

    def _refusal(self, call: str, arguments: tuple[Any, ...]) -> int:
        return self.error if call == "sendmsg" else 0

    def send(self, sender: int, receiver: int, body: bytes, *, ticket: int | None = None) -> None:
        """One datagram from a node's socket to the relay's."""
        node = self.nodes[sender]
        header = pack_header(receiver, node.ticket if ticket is None else ticket)
        node.socket.sendto(header + body, ("127.0.0.1", self.sockets.port))

    def send_run(self, sender: int, receiver: int) -> None:
        """One large run, as one superpacket where the kernel can."""
        node = self.nodes[sender]
        datagram = (pack_header(receiver, node.ticket) + b"\x05").ljust(SEGMENT, b"x")
        ancillary = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", SEGMENT))]
        node.socket.sendmsg([datagram * COUNT], ancillary, 0, ("127.0.0.1", self.sockets.port))

    def waits_for_the_socket(self) -> bool:
        return self.loop._was_blocked

    def turn_until(self, done: Callable[[], bool]) -> None:
        deadline = clock() + 10
        while not done():
            assert clock() < deadline
            self.loop.turn(0.01)

    def close(self) -> None:
        self.loop.close()
        self.sockets.close()
        os.close(self.wakeup)
        for node in self.nodes.values():
            node.socket.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Relay]]:
    made: list[Relay] = []

    def build(rate: float = 0.0) -> Relay:
        made.append(Relay(rate))
        return made[-1]

    yield build
    for relay in made:
        relay.close()


Make = Callable[..., Relay]


def test_who_sends_more_than_a_turn_takes_leaves_the_others_theirs(make: Make) -> None:
    """As a socket's receive buffer is one for all, the relay must empty it faster than it can send, or all lose."""
    relay = make()
    features = relay.sockets.features
    if not (features.udp_gro and features.udp_gso and features.udp_buffers):
        pytest.skip("needs UDP offloads, and the right to large socket buffers")
    sent, received = [], []
    for index in range(100):
        for _ in range(RUNS_TAKEN_PER_TURN - 2):
            relay.send_run(2, 4)
        body = b"\x05 modest %d" % index
        relay.send(3, 4, body)
        sent.append(body)
        relay.loop.turn(1.0)
        received += [each for each in relay.nodes[4].received() if each.startswith(b"\x05 modest")]
        assert len(received) >= index, "it waits for a turn at most"
        assert relay.role.queues.held <= BURST_LIMIT + 2000
    relay.turn_until(lambda: relay.role.queues.held == 0)
    received += [each for each in relay.nodes[4].received() if each.startswith(b"\x05 modest")]
    assert received == sent
    assert relay.drops.keys() == {"relay_queue_full"}


def test_a_burst_that_the_socket_took_is_not_lost(make: Make) -> None:
    """One that sends alone, while we were late."""
    relay = make()
    features = relay.sockets.features
    if not (features.udp_gro and features.udp_gso and features.udp_buffers):
        pytest.skip("needs UDP offloads, and the right to large socket buffers")
    for _ in range(4 * RUNS_TAKEN_PER_TURN):
        relay.send_run(2, 4)
    relay.turn_until(lambda: relay.role.queues.sent_bytes == 4 * RUNS_TAKEN_PER_TURN * SEGMENT * COUNT)
    assert relay.drops == {}


def test_a_full_socket_is_waited_for_and_no_longer_than_that(make: Make) -> None:
    relay = make()
    relay.error = errno.EAGAIN
    for index in range(3):
        relay.send(2, 4, b"\x05 %d" % index)
    relay.turn_until(lambda: relay.role.queues.held > 0)
    relay.loop.turn(0.01)
    assert relay.waits_for_the_socket()
    relay.error = 0
    received: list[bytes] = []

    def arrived() -> bool:
        received.extend(relay.nodes[4].received())
        return len(received) == 3

    relay.turn_until(arrived)
    assert received == [b"\x05 0", b"\x05 1", b"\x05 2"]
    assert not relay.waits_for_the_socket() and relay.loop._timers.next() is None
    assert relay.drops == {}


def test_without_memory_the_loop_tries_again(make: Make) -> None:
    relay = make()
    relay.error = errno.ENOBUFS
    relay.send(2, 4, b"\x05 later")
    relay.turn_until(lambda: relay.role.queues.held > 0)
    assert not relay.waits_for_the_socket(), "the socket is writable all the while"
    relay.error = 0
    relay.turn_until(lambda: relay.role.queues.held == 0)
    relay.turn_until(lambda: relay.nodes[4].received() == [b"\x05 later"])
    assert relay.drops == {}


def test_what_is_over_a_rate_goes_out_in_time(make: Make) -> None:
    relay = make(rate=2_000_000.0)
    received: list[bytes] = []
    bodies = [b"\x05%d" % index + bytes(1200) for index in range(100)]
    for body in bodies:
        relay.send(2, 4, body)

    def arrived() -> bool:
        received.extend(relay.nodes[4].received())
        return len(received) == len(bodies)

    relay.turn_until(arrived)
    assert received == bodies
    assert relay.drops == {} and relay.loop._timers.next() is None


def test_who_may_not_send_costs_a_counter_and_nothing_else(make: Make) -> None:
    relay = make()
    body = b"\x05 from nobody"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(20):
            stranger.sendto(pack_header(4, relay.nodes[2].ticket) + body, ("127.0.0.1", relay.sockets.port))
    for _ in range(20):
        relay.send(2, 4, body, ticket=1)
        relay.send(2, 2, body)
        relay.send(2, 99, body)
        relay.send(2, 4, b"")
        relay.send(2, 4, b"\x06 a relay in a relay")
    relay.turn_until(lambda: sum(relay.drops.values()) == 120)
    assert relay.drops == {
        "relay_unbound": 20,
        "relay_bad_ticket": 20,
        "relay_reflected": 20,
        "relay_no_client": 20,
        "relay_short_header": 20,
        "relay_bad_message": 20,
    }
    assert relay.role.queues.held == relay.role.queues.sent_bytes == 0
    assert all(node.received() == [] for node in relay.nodes.values())


def test_a_batch_of_several_headers_goes_to_each_of_them(make: Make) -> None:
    """Runs of one sender whose headers change inside, with a stranger's type in between."""
    relay = make()
    node = relay.nodes[2]
    to_3, to_4 = (pack_header(number, node.ticket) + b"\x05" + bytes(83) for number in (3, 4))
    batch = memoryview(bytearray(to_3 * 3 + to_4 + bytes(100) + to_4 * 2 + to_3[:50]))
    relay.loop._inbound.run(batch, 100, node.endpoint, clock())
    assert [len(each) for each in relay.nodes[3].received()] == [84, 84, 84, 34]
    assert [len(each) for each in relay.nodes[4].received()] == [84, 84, 84]
    assert relay.drops == {"unknown_type": 1}
