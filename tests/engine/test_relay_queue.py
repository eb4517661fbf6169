"""What the relay keeps and when it sends it, over real loopback sockets that refuse when told to. Virtual time."""

import errno
import socket
from collections.abc import Iterator
from typing import Any, Self

import pytest

from overlay.engine.drops import Drops
from overlay.engine.features import Features
from overlay.engine.outbox import Outbox
from overlay.engine.relay_queue import (
    CLIENT_LIMIT,
    RATE_BURST_TIME,
    RETRY_TIME,
    RUNS_SENT_PER_TURN,
    SEND_BUFFER,
    TOTAL_LIMIT,
)
from overlay.engine.relay_role import RelayRole
from overlay.engine.udp import UdpSocket, open_udp
from overlay.path.fair_queue import ITEM_OVERHEAD
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import RELAY_HEADER_SIZE, pack_header
from tests.engine.test_udp import reluctant

SIZE = 1000  # bytes of a datagram in these tests


class Relay:
    """A relay with a receiver (client 9), and clients 2 and 3 that send to it."""

    def __init__(self, rate: float = 0.0) -> None:
        self.error = 0  # what the kernel says to a send
        self.room: int | None = None  # sends that it takes before it says so
        self.sockets = open_udp(0, Features(), reluctant(self._refusal))
        self.drops = Drops()
        self.outbox = Outbox(self.sockets, self.drops)
        self.role = RelayRole(1, self.outbox, self.drops, lambda size: b"t" * size, rate)
        self.queues = self.role.queues
        self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver.bind(("127.0.0.1", 0))
        self.receiver.setblocking(False)
        self.endpoint: Endpoint = self.receiver.getsockname()
        self.role.set_client(9, b"r" * 32, 99)
        self.role.ping_received(9, self.endpoint, 0.0)
        for number in (2, 3):
            self.client(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sockets.close()
        self.receiver.close()

    def _refusal(self, call: str, arguments: tuple[Any, ...]) -> int:
        if call not in ("sendmsg", "sendto") or not self.error:
            return 0
        if self.room:
            self.room -= 1
            return 0
        return self.error

    @property
    def socket(self) -> UdpSocket:
        return self.sockets.ipv4

    def client(self, number: int) -> None:
        self.role.set_client(number, number.to_bytes(32, "little"), number)
        self.role.ping_received(number, ("192.0.2.1", number), 0.0)

    def send(self, number: int, *bodies: bytes, now: float = 0.0) -> str:
        """A run from that client, one datagram of `SIZE` bytes for each of `bodies`."""
        run = b"".join(pack_header(9, number) + body.ljust(SIZE - RELAY_HEADER_SIZE) for body in bodies)
        return self.role.forward(self.role.clients[number], 9, memoryview(bytearray(run)), SIZE, now)

    def alone(self, number: int, body: bytes, *, ticket: int | None = None, to: int = 9, now: float = 0.0) -> bool:
        """One datagram of that client, the short way. What is declined has to stay as it came."""
        header = pack_header(to, number if ticket is None else ticket)
        datagram = bytearray(header + body)
        done = self.role.forward_alone(memoryview(datagram), ("192.0.2.1", number), now)
        assert done or datagram == header + body
        return done

    def received(self) -> list[tuple[bytes, bytes]]:
        """(relay header, body) of all that came."""
        found = []
        try:
            while True:
                datagram = self.receiver.recv(1 << 16)
                found.append((datagram[:RELAY_HEADER_SIZE], datagram[RELAY_HEADER_SIZE:].rstrip()))
        except BlockingIOError:
            return found

    def bodies(self) -> list[bytes]:
        return [body for _, body in self.received()]

    def full(self, error: int = errno.EAGAIN, room: int | None = None) -> None:
        self.error, self.room = error, room

    def writable(self, now: float = 0.0) -> None:
        self.error = 0
        self.queues.flush(self.socket, now)


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as made:
        yield made


@pytest.fixture
def slow() -> Iterator[Relay]:
    """Each client may send 100,000 bytes per second, 65,536 at once."""
    with Relay(rate=100_000.0) as made:
        yield made


def test_when_nothing_waits_a_run_goes_out_at_once(relay: Relay) -> None:
    assert relay.send(2, b"one", b"two") == ""
    header = pack_header(2, 99)
    assert relay.received() == [(header, b"one"), (header, b"two")]
    assert relay.queues.held == 0 and relay.queues.end_turn(0.0) is None and not relay.queues.blocked


def test_a_datagram_that_comes_alone_goes_the_short_way(relay: Relay) -> None:
    assert relay.alone(2, b"\x05one")
    assert relay.received() == [(pack_header(2, 99), b"\x05one")]
    assert relay.queues.sent_bytes == RELAY_HEADER_SIZE + 4


def test_what_is_not_like_that_is_left_to_the_general_way(relay: Relay, slow: Relay) -> None:
    assert not relay.alone(4, b"\x05nobody's client")
    assert not relay.alone(2, b"\x05", ticket=3), "another's ticket"
    assert not relay.alone(2, b"\x05", to=1), "for the relay itself"
    assert not relay.alone(2, b"\x05", to=2), "back to its sender"
    assert not relay.alone(2, b"\x05", to=8), "to nobody"
    assert not relay.alone(2, b"\x05", now=1000.0), "to who was not heard for long"
    assert not slow.alone(2, b"\x05"), "there is a rate"
    for error in (errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE, errno.EPERM):
        relay.full(error)
        assert not relay.alone(2, b"\x05refused")
    relay.full()
    assert relay.send(3, b"waits") == ""
    relay.error = 0
    assert not relay.alone(2, b"\x05nobody goes past those that wait")
    assert relay.received() == slow.received() == [] and relay.queues.sent_bytes == 0
    relay.writable()
    assert relay.bodies() == [b"waits"]
    assert relay.alone(2, b"\x05now")


def test_what_a_full_socket_refuses_is_sent_when_it_is_writable(relay: Relay) -> None:
    relay.full()
    assert [relay.send(2, b"one", b"two"), relay.send(2, b"three")] == ["", ""]
    assert relay.received() == [] and relay.queues.sent_bytes == 0
    assert relay.queues.waiting(relay.socket) and relay.queues.blocked
    assert relay.queues.end_turn(0.0) is None, "the socket says when"
    relay.error = 0
    assert relay.send(3, b"later") == "", "nobody goes past those that wait"
    assert relay.received() == []
    relay.writable()
    header = pack_header(2, 99)
    assert relay.received() == [(header, b"one"), (header, b"two"), (header, b"three"), (pack_header(3, 99), b"later")]
    assert not relay.queues.waiting(relay.socket) and relay.queues.held == 0
    assert relay.queues.sent_bytes == 4 * SIZE and relay.drops.counts == {}


def test_a_socket_that_is_full_again_keeps_the_rest(relay: Relay) -> None:
    relay.full()
    for index in range(4):
        assert relay.send(2, b"%d" % index) == ""
    relay.room = 2
    relay.queues.flush(relay.socket, 0.0)
    assert relay.bodies() == [b"0", b"1"] and relay.queues.waiting(relay.socket)
    relay.writable()
    assert relay.bodies() == [b"2", b"3"]


def test_senders_take_turns(relay: Relay) -> None:
    relay.full()
    for index in range(7):
        assert relay.send(2, *[b"a%d" % index] * 60) == ""
    assert relay.send(3, b"b") == ""
    relay.writable()
    assert b"b" in relay.bodies()[:61]


def test_a_flood_fills_its_own_queue_only(relay: Relay) -> None:
    relay.full()
    outcomes = [relay.send(2, *[b"flood"] * 60) for _ in range(100)]
    assert outcomes.count("") == CLIENT_LIMIT // (60 * SIZE + ITEM_OVERHEAD)
    assert set(outcomes) == {"", "relay_queue_full"}
    assert outcomes == sorted(outcomes), "what came first is kept"
    assert relay.send(3, b"ping") == ""
    assert relay.queues.held <= CLIENT_LIMIT + SIZE + ITEM_OVERHEAD


def test_while_it_is_we_who_are_late_more_may_wait(relay: Relay) -> None:
    for _ in range(RUNS_SENT_PER_TURN):
        assert relay.send(2, b"x") == ""
    waiting = CLIENT_LIMIT // (60 * SIZE) * 4
    assert [relay.send(2, *[b"burst"] * 60) for _ in range(waiting)] == [""] * waiting
    relay.full()
    relay.queues.flush(relay.socket, 5.0)
    assert relay.send(2, b"x", now=5.0) == "relay_queue_full", "a slow line has the lower limit"
    relay.writable(5.5)
    assert relay.send(2, b"x", now=5.5) == "relay_queue_full", "for a while"
    assert relay.send(2, b"x", now=6.6) == ""


def test_a_dropped_run_is_neither_copied_nor_written_to(relay: Relay) -> None:
    relay.full()
    while relay.send(2, *[b"flood"] * 60) == "":
        pass
    run = bytearray(pack_header(9, 2) + bytes(50_000))
    before = bytes(run)
    assert relay.role.forward(relay.role.clients[2], 9, memoryview(run), len(run), 0.0) == "relay_queue_full"
    assert run == before


def test_two_thousand_that_flood_share_the_bound(relay: Relay) -> None:
    relay.full()
    for number in range(10, 2010):
        relay.client(number)
    for _ in range(8):
        for number in range(10, 2010):
            relay.send(number, b"x", b"x", b"x", b"x")
    assert TOTAL_LIMIT * 0.9 < relay.queues.held <= TOTAL_LIMIT
    assert relay.send(2, b"ping") == "", "and there is room for one more"


def test_without_memory_in_the_kernel_it_is_tried_again_soon(relay: Relay) -> None:
    relay.full(errno.ENOBUFS)
    assert relay.send(2, b"one", now=5.0) == ""
    assert not relay.queues.waiting(relay.socket), "the socket is writable all the while: it would wake us in vain"
    assert relay.queues.end_turn(5.0) == 5.0 + RETRY_TIME
    relay.queues.handle_timeout(5.0 + RETRY_TIME / 2)
    assert relay.queues.end_turn(5.0) == 5.0 + RETRY_TIME
    relay.queues.handle_timeout(5.0 + RETRY_TIME)
    assert relay.queues.end_turn(5.0) == 5.0 + 2 * RETRY_TIME
    relay.error = 0
    relay.queues.handle_timeout(5.0 + 2 * RETRY_TIME)
    assert relay.bodies() == [b"one"]
    assert relay.queues.end_turn(5.0) is None and relay.drops.counts == {}


def test_an_error_that_waiting_does_not_mend_costs_that_run(relay: Relay) -> None:
    relay.full(errno.ENETUNREACH)
    assert relay.send(2, b"one") == "send_unreachable"
    relay.full(errno.EAGAIN)
    for body in (b"two", b"three"):
        assert relay.send(2, body, body) == ""
    relay.full(errno.ENETUNREACH)
    relay.queues.flush(relay.socket, 0.0)
    assert relay.drops.counts == {"send_unreachable": 4}, "datagrams, not runs"
    assert relay.queues.held == 0 and relay.queues.sent_bytes == 0


def test_one_flush_is_bounded_and_goes_on_at_once(relay: Relay) -> None:
    relay.full()
    for _ in range(RUNS_SENT_PER_TURN + 5):
        assert relay.send(2, b"x") == ""
    relay.writable()
    assert len(relay.received()) == RUNS_SENT_PER_TURN
    assert relay.queues.end_turn(7.0) == 7.0
    assert relay.send(3, b"behind") == ""
    assert relay.received() == []
    relay.queues.handle_timeout(7.0)
    assert len(relay.received()) == 6 and relay.queues.end_turn(7.0) is None


# --- who goes ---------------------------------------------------------------------------------------------------------


def test_what_a_removed_client_has_waiting_goes_nowhere(relay: Relay) -> None:
    relay.full()
    relay.send(2, b"gone", b"gone")
    relay.send(3, b"stays")
    relay.role.remove_client(2)
    assert relay.drops.counts == {"relay_unbound": 2}
    relay.role.remove_client(2)
    relay.writable()
    assert relay.bodies() == [b"stays"]


def test_what_waits_for_a_removed_client_goes_nowhere(relay: Relay) -> None:
    relay.full()
    relay.send(2, b"gone", b"gone")
    relay.role.remove_client(9)
    relay.writable()
    assert relay.received() == [] and relay.drops.counts == {"relay_client_away": 2}
    assert relay.queues.held == 0


def test_what_waits_follows_a_client_that_moved(relay: Relay) -> None:
    relay.full()
    relay.send(2, b"one")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(5)
        txid = relay.role.ping_received(9, other.getsockname(), 1.0)
        assert txid is not None and relay.role.pong_received(9, other.getsockname(), txid, 1.0)
        relay.writable(1.0)
        assert other.recv(2000)[RELAY_HEADER_SIZE:].rstrip() == b"one"
    assert relay.received() == []


# --- our own traffic --------------------------------------------------------------------------------------------------


def test_own_and_relayed_traffic_go_by_turns(relay: Relay) -> None:
    relay.full()
    for index in range(4):
        relay.send(2, b"r%d" % index)
    relay.error = 0
    header = bytes(RELAY_HEADER_SIZE)
    for index in range(4):  # the socket has room, but others wait for it
        assert relay.outbox.send((header + b"o%d" % index,), 0, relay.endpoint) == ""
    assert relay.received() == []
    relay.writable()
    assert relay.bodies() == [b"o0", b"r0", b"o1", b"r1", b"o2", b"r2", b"o3", b"r3"]
    assert not relay.outbox.blocked
    assert relay.outbox.send((header + b"now",), 0, relay.endpoint) == ""
    assert relay.bodies() == [b"now"]


def test_relayed_traffic_does_not_go_past_our_own(relay: Relay) -> None:
    header = bytes(RELAY_HEADER_SIZE)
    relay.full()
    assert relay.outbox.send((header + b"own",), 0, relay.endpoint) == ""
    relay.error = 0
    assert relay.send(2, b"relayed") == ""
    assert relay.received() == [] and relay.queues.waiting(relay.socket)
    relay.full()
    relay.queues.flush(relay.socket, 0.0)
    assert relay.received() == [] and relay.queues.waiting(relay.socket)
    relay.writable()
    assert relay.bodies() == [b"own", b"relayed"]


# --- rates ------------------------------------------------------------------------------------------------------------


def test_a_rate_is_kept_by_waiting_and_others_do_not_notice(slow: Relay) -> None:
    assert slow.send(2, *[b"burst"] * 60, now=10.0) == ""
    assert len(slow.received()) == 60
    assert slow.send(2, *[b"late"] * 10, now=10.0) == ""
    assert slow.send(2, b"behind", now=10.0) == "", "there are tokens for it, but not before its turn"
    assert slow.received() == []
    assert slow.send(3, b"free", now=10.0) == ""
    assert slow.bodies() == [b"free"]
    assert not slow.queues.blocked
    wake = slow.queues.end_turn(10.0)
    assert wake is not None and wake == pytest.approx(10.0 + (70 * SIZE - 65536) / 100_000.0, abs=1e-3)
    slow.queues.handle_timeout(wake)
    assert slow.bodies() == [b"late"] * 10
    wake = slow.queues.end_turn(wake)
    assert wake is not None
    slow.queues.handle_timeout(wake)
    assert slow.bodies() == [b"behind"]
    assert slow.queues.end_turn(wake) is None


def test_far_above_the_rate_drops_are_named(slow: Relay) -> None:
    outcomes = [slow.send(2, *[b"flood"] * 60) for _ in range(10)]
    assert outcomes == ["", "", "", *["relay_rate"] * 7]  # one sent, two runs wait
    assert slow.send(3, *[b"other"] * 60) == ""


def test_the_rate_is_to_blame_where_the_socket_takes_more(slow: Relay) -> None:
    for number in range(10, 10 + RUNS_SENT_PER_TURN):
        slow.client(number)
        assert slow.send(number, b"x") == ""  # a turn's share for this socket
    outcomes = [slow.send(2, *[b"flood"] * 60) for _ in range(4)]
    assert outcomes == ["", "", "relay_rate", "relay_rate"]
    slow.full()
    slow.queues.flush(slow.socket, 0.0)
    assert slow.send(2, b"x", now=1.0) == ""
    assert slow.send(2, *[b"flood"] * 60, now=1.0) == "relay_queue_full", "there are tokens for it"


@pytest.mark.parametrize("rate", [8_000.0, 1.25e6, 125e6])
def test_in_the_long_run_the_rate_is_what_goes_through(rate: float) -> None:
    with Relay(rate=rate) as relay:
        now = 0.0
        for _ in range(300):  # two attempts in the time that one run has
            relay.role.ping_received(9, relay.endpoint, now)
            relay.send(2, *[b"x"] * 60, now=now)
            now += 30 * SIZE / rate
            while (wake := relay.queues.end_turn(now)) is not None and wake <= now:
                relay.queues.handle_timeout(now)
            relay.received()
        burst = max(65536, rate * RATE_BURST_TIME)
        assert rate * now * 0.95 < relay.queues.sent_bytes <= burst + rate * now


def test_a_full_socket_costs_no_tokens(slow: Relay) -> None:
    slow.full()
    for _ in range(3):
        slow.send(2, *[b"x"] * 20)
    slow.writable()
    assert len(slow.received()) == 60


# --- the kernel -------------------------------------------------------------------------------------------------------


def test_the_kernel_holds_little(relay: Relay) -> None:
    size = relay.socket._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert size <= 2 * SEND_BUFFER
