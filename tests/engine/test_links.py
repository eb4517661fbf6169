"""Links inside the engine's loop, turned by hand: relaying to and from streams, what is slow, and what is hostile."""

import os
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from overlay.engine import api
from overlay.engine.features import Features
from overlay.engine.inbound import EXPECTED_BURST, FOREIGN_BURST
from overlay.engine.link import ALIVE_INTERVAL, MAX_AGE, MAX_HELD, SILENCE, Link, link_endpoint
from overlay.engine.loop import Loop, clock
from overlay.engine.udp import open_udp
from overlay.wire.disco import DiscoKey, Ping, Pong
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import RELAY_HEADER_SIZE, pack_header
from overlay.wire.stream.codec import Codec, Plain
from overlay.wire.stream.framing import ALIVE, FRAME_HEADER, FrameReader, frames
from overlay.wire.wireguard.primitives import clamp, public_key

SMALL = b"\x05".ljust(1000, b"s")


@dataclass(frozen=True)
class Handed:
    socket: socket.socket
    codec: Codec
    received: bytes = b""


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    one.setblocking(False)
    return one, other


def way_to(relay: "Relay", number: int) -> Endpoint | None:
    """Where the relay reaches a client now."""
    return relay.role.clients[number].address


def standby(relay: "Relay", number: int) -> Endpoint | None:
    bound = relay.role.clients[number].standby
    return None if bound is None else bound[0]


class Node:
    """A client: what it has of the relay, by UDP and by link, is in its hands."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ticket = number + 70
        self.private_key = clamp(os.urandom(32))
        self.public_key = public_key(self.private_key)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.setblocking(False)
        self.stream: socket.socket | None = None
        self.reader = FrameReader()

    def from_udp(self) -> list[bytes]:
        found = []
        try:
            while True:
                found.append(self.udp.recv(1 << 16))
        except BlockingIOError:
            return found

    def from_link(self) -> list[bytes]:
        """Datagrams that came by the link."""
        assert self.stream is not None
        found: list[bytes] = []
        try:
            while data := self.stream.recv(1 << 16):
                for run, segment in self.reader.receive(data):
                    found += [bytes(run[at : at + segment]) for at in range(0, len(run), segment)]
        except BlockingIOError:
            pass
        return found

    def ended(self) -> bool:
        """Did the other end close the link?"""
        assert self.stream is not None
        try:
            while self.stream.recv(1 << 16):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True


class Relay:
    def __init__(self) -> None:
        self.sockets = open_udp(0, Features())
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
        self.commands: deque[api.Command] = deque()
        self.events: list[api.Event] = []
        self.private_key = clamp(os.urandom(32))
        config = api.EngineConfig(self.private_key, 1, None, relay_clients=True)
        self.loop = Loop(config, None, self.sockets, self.wakeup, self.commands, self.events.append)
        role = self.loop._routes.role
        assert role is not None
        self.role, self.drops = role, self.loop._drops.counts
        self.nodes = {number: Node(number) for number in (2, 3, 4)}
        for node in self.nodes.values():
            self.do(api.SetClient(node.number, node.public_key, node.ticket))

    @property
    def endpoint(self) -> tuple[str, int]:
        return ("127.0.0.1", self.sockets.port)

    def do(self, *commands: api.Command) -> None:
        self.commands.extend(commands)
        os.eventfd_write(self.wakeup, 1)
        self.loop.turn(0.0)

    def by_udp(self, node: Node) -> None:
        self.role.ping_received(node.number, node.udp.getsockname(), clock())

    def by_link(self, node: Node, number: int, received: bytes = b"", *, send_buffer: int = 0) -> Link:
        ours, node.stream = tcp_pair()
        node.stream.setblocking(False)
        if send_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            node.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, send_buffer)
        self.do(api.AddLink(number, Handed(ours, Plain(), received), node.number, "tcp"))
        return self.sockets.links[link_endpoint(number)]

    def lost(self) -> list[api.LinkLost]:
        return [event for event in self.events if isinstance(event, api.LinkLost)]

    def turn_until(self, done: Callable[[], bool]) -> None:
        deadline = clock() + 10
        while not done():
            assert clock() < deadline, (self.drops, self.events)
            self.loop.turn(0.01)

    def arrive(self, take: Callable[[], list[bytes]], expected: list[bytes]) -> None:
        found: list[bytes] = []

        def arrived() -> bool:
            found.extend(take())
            return len(found) >= len(expected)

        self.turn_until(arrived)
        assert found == expected

    def close(self) -> None:
        self.loop.close()
        self.sockets.close()
        os.close(self.wakeup)
        for node in self.nodes.values():
            node.udp.close()
            if node.stream is not None:
                node.stream.close()


@pytest.fixture
def relay() -> Iterator[Relay]:
    made = Relay()
    yield made
    made.close()


def framed(node: Node, receiver: int, *bodies: bytes) -> bytes:
    """A run as one frame."""
    header = pack_header(receiver, node.ticket)
    run = b"".join(header + body for body in bodies)
    return b"".join(frames(run, RELAY_HEADER_SIZE + len(bodies[0])))


def as_received(sender: Node, receiver: Node, *bodies: bytes) -> list[bytes]:
    return [pack_header(sender.number, receiver.ticket) + body for body in bodies]


BODIES = (SMALL, SMALL[:-1] + b"t", b"\x05 the last is shorter")


# --- relaying ---------------------------------------------------------------------------------------------------------


def test_from_a_link_to_a_link(relay: Relay) -> None:
    one, other = relay.nodes[2], relay.nodes[3]
    relay.by_link(one, 1)
    relay.by_link(other, 2)
    assert one.stream is not None and other.stream is not None
    one.stream.send(framed(one, 3, *BODIES))
    relay.arrive(other.from_link, as_received(one, other, *BODIES))
    other.stream.send(framed(other, 2, SMALL))
    relay.arrive(one.from_link, as_received(other, one, SMALL))
    assert relay.drops == {}


def test_somebodys_round_trip_is_written_before_the_turn_ends(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes alone goes on before timers and peers are looked after, and before the device is asked for more."""
    monkeypatch.setattr("overlay.engine.loop.IDLE", -1.0)
    one, other = relay.nodes[2], relay.nodes[3]
    relay.by_link(one, 1)
    relay.by_link(other, 2)
    assert one.stream is not None
    early: list[bytes] = []
    for name in ("_tun_ready", "_wake_waiters"):
        monkeypatch.setattr(relay.loop, name, lambda *_: early.extend(other.from_link()))
    one.stream.send(framed(one, 3, SMALL))
    relay.turn_until(lambda: bool(early))
    assert early == as_received(one, other, SMALL)


@pytest.mark.parametrize("size", [8, 4096, 5000])
def test_a_read_that_shows_the_end_is_the_last(relay: Relay, size: int) -> None:
    one = relay.nodes[2]
    link = relay.by_link(one, 1)
    assert one.stream is not None
    one.stream.setblocking(True)
    one.stream.sendall(ALIVE * (size // len(ALIVE) + 1))
    sizes: list[int] = []
    while link.receive(clock()) is not None:
        sizes.append(1)
        if link.drained:
            with pytest.raises(BlockingIOError):
                link._socket.recv(1, socket.MSG_PEEK)
    assert sizes and not link.lost


def test_between_a_link_and_udp(relay: Relay) -> None:
    one, other = relay.nodes[2], relay.nodes[3]
    relay.by_link(one, 1)
    relay.by_udp(other)
    assert one.stream is not None
    one.stream.send(framed(one, 3, *BODIES))
    relay.arrive(other.from_udp, as_received(one, other, *BODIES))
    header = pack_header(2, other.ticket)
    for body in BODIES:
        other.udp.sendto(header + body, relay.endpoint)
    relay.arrive(one.from_link, as_received(other, one, *BODIES))
    assert relay.drops == {}


def test_what_came_before_the_hand_over_is_not_lost_nor_a_frame_cut_by_it(relay: Relay) -> None:
    one, other = relay.nodes[2], relay.nodes[3]
    relay.by_udp(other)
    stream = framed(one, 3, SMALL) + framed(one, 3, BODIES[1])
    relay.by_link(one, 1, stream[:1500])
    assert one.stream is not None
    one.stream.send(stream[1500:])
    relay.arrive(other.from_udp, as_received(one, other, SMALL, BODIES[1]))


def test_a_datagram_larger_than_udp_takes_goes_from_link_to_link(relay: Relay) -> None:
    one, other = relay.nodes[2], relay.nodes[3]
    relay.by_link(one, 1)
    relay.by_link(other, 2)
    assert one.stream is not None
    large = b"\x05".ljust(65000, b"l")
    one.stream.setblocking(True)
    one.stream.sendall(framed(one, 3, large))
    relay.arrive(other.from_link, as_received(one, other, large))


def test_frames_come_in_halves(relay: Relay) -> None:
    one, other = relay.nodes[2], relay.nodes[3]
    relay.by_link(one, 1)
    relay.by_udp(other)
    assert one.stream is not None
    stream = framed(one, 3, SMALL) * 3
    for at in range(0, len(stream), 100):
        one.stream.send(stream[at : at + 100])
        relay.loop.turn(0.01)
    relay.arrive(other.from_udp, as_received(one, other, SMALL, SMALL, SMALL))


# --- whose it is ------------------------------------------------------------------------------------------------------


def test_a_client_is_answered_where_its_traffic_comes_from(relay: Relay) -> None:
    node, other = relay.nodes[2], relay.nodes[3]
    relay.by_udp(node)
    relay.by_udp(other)
    relay.by_link(node, 1)
    assert node.stream is not None
    udp = node.udp.getsockname()
    assert way_to(relay, 2) == udp, "a link that is not used changes nothing"
    node.stream.send(framed(node, 3, SMALL))
    relay.arrive(other.from_udp, as_received(node, other, SMALL))
    assert way_to(relay, 2) == link_endpoint(1)
    other.udp.sendto(pack_header(2, other.ticket) + SMALL, relay.endpoint)
    relay.arrive(node.from_link, as_received(other, node, SMALL))
    node.udp.sendto(pack_header(3, node.ticket) + SMALL, relay.endpoint)
    relay.arrive(other.from_udp, as_received(node, other, SMALL))
    assert way_to(relay, 2) == udp
    relay.role.ping_received(2, link_endpoint(1), clock())  # a client pings the link that it goes over to
    assert way_to(relay, 2) == link_endpoint(1)
    relay.do(api.RemoveLink(1))
    assert (way_to(relay, 2), standby(relay, 2)) == (udp, None)
    assert relay.lost() == [] and node.ended()


def test_udp_is_bound_behind_a_link_only_after_it_answered(relay: Relay) -> None:
    node = relay.nodes[2]
    relay.by_link(node, 1)
    udp = node.udp.getsockname()
    txid = relay.role.ping_received(2, udp, clock())
    assert txid is not None and (way_to(relay, 2), standby(relay, 2)) == (link_endpoint(1), None)
    assert relay.role.pong_received(2, udp, txid, clock())
    assert (way_to(relay, 2), standby(relay, 2)) == (link_endpoint(1), udp)


def test_another_node_on_a_link_is_refused(relay: Relay) -> None:
    one, other = relay.nodes[2], relay.nodes[3]
    relay.by_link(one, 1)
    relay.by_udp(other)
    assert one.stream is not None
    one.stream.send(framed(other, 4, SMALL))  # the other's ticket
    ping = DiscoKey(other.private_key, public_key(relay.private_key)).seal(Ping(os.urandom(12)), 3, os.urandom(24))
    one.stream.send(b"".join(frames(ping, 0)))
    one.stream.send(b"".join(frames(SMALL, 0)))  # not relayed
    relay.turn_until(lambda: sum(relay.drops.values()) == 3)
    assert relay.drops == {"relay_bad_ticket": 1, "link_stranger": 1, "link_bad_type": 1}
    assert relay.role.clients[3].address == other.udp.getsockname()
    assert one.from_link() == []


def test_a_ping_on_a_link_is_answered_there_with_nobodys_address(relay: Relay) -> None:
    node = relay.nodes[2]
    relay.by_link(node, 1)
    assert node.stream is not None
    key = DiscoKey(node.private_key, public_key(relay.private_key))
    txid = os.urandom(12)
    node.stream.send(b"".join(frames(key.seal(Ping(txid), 2, os.urandom(24)), 0)))
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(node.from_link())
        return bool(found)

    relay.turn_until(arrived)
    assert [key.open(each) for each in found] == [Pong(txid, ("192.0.0.8", 1))]


def test_who_is_no_client_any_more_has_no_link(relay: Relay) -> None:
    node, again = relay.nodes[2], relay.nodes[3]
    relay.by_link(node, 1)
    relay.by_link(again, 2)
    relay.do(api.RemoveClient(2), api.SetClient(3, os.urandom(32), 1))
    assert relay.lost() == [api.LinkLost(1, "link_client_removed"), api.LinkLost(2, "link_client_removed")]
    assert node.ended() and again.ended()
    assert relay.sockets.links == {} and relay.loop._links.by_descriptor == {}


def test_a_link_that_comes_before_its_client_is_known(relay: Relay) -> None:
    node = relay.nodes[4]
    relay.do(api.RemoveClient(4))
    relay.by_link(node, 1)
    assert node.stream is not None
    node.stream.send(framed(node, 3, SMALL))
    relay.turn_until(lambda: relay.drops["relay_unbound"] == 1)
    relay.do(api.SetClient(4, node.public_key, node.ticket))
    assert relay.role.clients[4].address == link_endpoint(1)


# --- what is slow or gone ---------------------------------------------------------------------------------------------


def test_a_reader_that_stalls_costs_its_own_traffic_and_a_bound_of_memory(relay: Relay) -> None:
    flooder, stalled, well = relay.nodes[2], relay.nodes[3], relay.nodes[4]
    relay.by_udp(flooder)
    relay.by_udp(well)
    link = relay.by_link(stalled, 1, send_buffer=4096)
    body = b"\x05".ljust(1400, b"f")
    received: list[bytes] = []
    sent = 0
    while relay.drops["relay_queue_full"] < 50:
        for _ in range(20):
            flooder.udp.sendto(pack_header(3, flooder.ticket) + body, relay.endpoint)
            sent += 1
        flooder.udp.sendto(pack_header(4, flooder.ticket) + SMALL, relay.endpoint)
        relay.loop.turn(0.01)
        received += well.from_udp()
        assert relay.role.queues.held <= MAX_HELD
        assert sent < 10_000
    assert received and set(received) == set(as_received(flooder, well, SMALL))
    assert not relay.loop._was_blocked, "no UDP socket waits for it"
    assert link.blocked and link.watched_out
    # It reads again: what is too old by now is dropped, the newest goes on, and the stream is whole.
    late = clock() + 2 * MAX_AGE
    relay.turn_until(lambda: clock() > late)
    found: list[bytes] = []

    def drained() -> bool:
        found.extend(stalled.from_link())
        return relay.role.queues.held == 0 and not link.blocked

    relay.turn_until(drained)
    assert relay.drops["link_late"] > 0
    assert set(found) == set(as_received(flooder, stalled, body))
    assert relay.drops.keys() == {"relay_queue_full", "link_late"}
    assert relay.lost() == [] and not link.watched_out


def test_a_peer_that_takes_nothing_is_given_up(relay: Relay) -> None:
    link = relay.by_link(relay.nodes[3], 1, send_buffer=4096)
    while not link.blocked:
        assert link.send([bytes(60000)], 0, link.endpoint) == ""
        link.write()
    assert link.send([SMALL], 0, link.endpoint) == "send_blocked"
    link.handle_timeout(link.next_timeout() - 0.001)
    assert not link.lost
    link.handle_timeout(link.next_timeout())
    relay.loop.turn(0.0)
    assert relay.lost() == [api.LinkLost(1, "link_stalled")]
    assert relay.nodes[3].ended()


def test_a_silent_peer_is_told_that_we_are_there_and_given_up_in_the_end(relay: Relay) -> None:
    node = relay.nodes[3]
    link = relay.by_link(node, 1)
    start = clock()
    assert start + ALIVE_INTERVAL - 1 < link.next_timeout() <= start + ALIVE_INTERVAL
    link.handle_timeout(link.next_timeout())
    relay.loop.turn(0.0)
    assert node.stream is not None and node.stream.recv(100) == ALIVE
    link.handle_timeout(start + SILENCE - 1)
    assert not link.lost
    node.stream.send(ALIVE)
    relay.turn_until(lambda: link._heard > start)
    heard = link._heard
    link.handle_timeout(heard + SILENCE - 0.1)
    assert not link.lost
    link.handle_timeout(heard + SILENCE)
    relay.loop.turn(0.0)
    assert relay.lost() == [api.LinkLost(1, "link_silent")]


def test_a_link_that_ends_is_told_once_and_its_client_is_away(relay: Relay) -> None:
    one, other = relay.nodes[2], relay.nodes[3]
    relay.by_link(one, 1)
    relay.by_udp(other)
    assert one.stream is not None
    one.stream.close()
    relay.turn_until(lambda: bool(relay.lost()))
    other.udp.sendto(pack_header(2, other.ticket) + SMALL, relay.endpoint)
    relay.turn_until(lambda: relay.drops["relay_client_away"] == 1)
    relay.do(api.RemoveLink(1))
    assert relay.lost() == [api.LinkLost(1, "link_closed")]
    assert relay.sockets.links == {}


def test_a_reset_is_one_end_among_others(relay: Relay) -> None:
    one = relay.nodes[2]
    relay.by_link(one, 1)
    assert one.stream is not None
    one.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.stream.close()
    relay.turn_until(lambda: bool(relay.lost()))
    assert relay.lost() == [api.LinkLost(1, "link_reset")]


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "frame_too_long"),
        (FRAME_HEADER.pack(100, 0, 7), "frame_bad_reserved"),
        (FRAME_HEADER.pack(6500, 100, 0), "frame_too_many"),
    ],
)
def test_garbage_ends_the_link_and_no_other(relay: Relay, garbage: bytes, reason: str) -> None:
    one, other = relay.nodes[2], relay.nodes[3]
    relay.by_link(one, 1)
    relay.by_link(other, 2)
    assert one.stream is not None
    one.stream.send(garbage)
    relay.turn_until(lambda: bool(relay.lost()))
    assert relay.lost() == [api.LinkLost(1, reason)]
    assert relay.drops == {"link_lost": 1, reason: 1}
    assert one.ended() and list(relay.sockets.links) == [link_endpoint(2)]


def test_small_frames_of_a_turn_are_one_write(relay: Relay) -> None:
    link = relay.by_link(relay.nodes[3], 1)
    writes: list[int] = []

    class Counting(Plain):
        def encode(self, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
            writes.append(len(data))
            return data

    link._codec = Counting()
    for _ in range(5):
        link.send([SMALL], 0, link.endpoint)
    assert writes == []
    relay.loop.turn(0.0)
    assert writes == [5 * (8 + len(SMALL))]
    assert relay.nodes[3].from_link() == [SMALL] * 5


# --- another protocol on the UDP port ---------------------------------------------------------------------------------


def foreign(relay: Relay) -> list[bytes]:
    return [each for event in relay.events if isinstance(event, api.Foreign) for each in event.datagrams]


def test_quic_packets_are_handed_on_and_answered(relay: Relay) -> None:
    node = relay.nodes[2]
    packets = [b"\xc0" + bytes(1199), b"\x41 short", b"\x40"]
    for packet in packets:
        node.udp.sendto(packet, relay.endpoint)
    relay.turn_until(lambda: len(foreign(relay)) >= 3)
    assert foreign(relay) == packets
    assert {event.source for event in relay.events if isinstance(event, api.Foreign)} == {node.udp.getsockname()}
    relay.do(api.SendDatagrams((*packets, packets[0], packets[0]), node.udp.getsockname()))
    relay.arrive(node.from_udp, [*packets, packets[0], packets[0]])
    assert relay.drops == {}


def test_quic_packets_that_the_kernel_joined_are_cut_and_a_flood_is_bounded(relay: Relay) -> None:
    inbound, source, now = relay.loop._inbound, ("192.0.2.1", 5), clock()
    inbound.run(memoryview(bytearray((b"\x40" + bytes(99)) * 2 + b"\x40" + bytes(9))), 100, source, now)
    assert [len(datagram) for datagram in foreign(relay)] == [100, 100, 10]
    assert len(relay.events) == 1, "what came together is handed on together"
    for _ in range(3000):
        inbound.run(memoryview(bytearray(b"\xff")), 1, source, now)
    assert len(foreign(relay)) == 2000
    assert relay.drops == {"foreign_rate": 1003}


def test_who_is_expected_to_send_much_of_another_protocol_has_a_bound_of_its_own(relay: Relay) -> None:
    inbound, now = relay.loop._inbound, clock()
    strangers, known = ("192.0.2.1", 5), ("192.0.2.2", 5)
    relay.do(api.ExpectForeign(known, expected=True))
    for _ in range(20):
        for source in (strangers, known):
            inbound.run(memoryview(bytearray(b"\xff" * 250)), 1, source, now)
    came = Counter(event.source for event in relay.events if isinstance(event, api.Foreign) for _ in event.datagrams)
    assert came == {strangers: FOREIGN_BURST, known: EXPECTED_BURST}
    assert relay.drops == {"foreign_rate": 10_000 - FOREIGN_BURST - EXPECTED_BURST}
    relay.do(api.ExpectForeign(known, expected=False))
    inbound.run(memoryview(bytearray(b"\xff")), 1, known, now)
    assert relay.drops == {"foreign_rate": 10_001 - FOREIGN_BURST - EXPECTED_BURST}


def test_stun_is_handed_on_and_told_from_handshakes(relay: Relay) -> None:
    node = relay.nodes[2]
    stun = [kind + bytes.fromhex("00002112a442") + bytes(12) for kind in (b"\0\x01", b"\x01\x01", b"\x01\x11")]
    others = [b"\0\x01" + bytes(40), b"\x01\0\0\0\x21\x12\xa4\x42" + bytes(140)]
    for packet in (*stun, *others):
        node.udp.sendto(packet, relay.endpoint)
    relay.turn_until(lambda: sum(relay.drops.values()) >= 2)
    assert relay.events == [api.Foreign((packet,), node.udp.getsockname()) for packet in stun]
    assert relay.drops == {"unknown_type": 1, "bad_mac1": 1}


def test_a_flood_of_stun_is_bounded_and_holds_up_no_quic(relay: Relay) -> None:
    inbound, source, now = relay.loop._inbound, ("192.0.2.1", 5), clock()
    request = bytes.fromhex("000100002112a442") + bytes(12)
    inbound.run(memoryview(bytearray(request * 30)), 20, source, now)
    for _ in range(2000):
        inbound.run(memoryview(bytearray(request)), 20, source, now)
    inbound.run(memoryview(bytearray(b"\xff")), 1, source, now)
    assert len(relay.events) == 2001
    assert relay.drops == {"stun_rate": 30}


def test_a_connection_that_ended_on_the_way_to_us_is_told(relay: Relay) -> None:
    ours, theirs = tcp_pair()
    ours.close()
    theirs.close()
    relay.do(api.AddLink(7, Handed(ours, Plain()), 2, "tcp"))
    assert relay.lost() == [api.LinkLost(7, "link_failed")]
    assert "internal_error" not in relay.drops and relay.sockets.links == {}


def test_a_number_that_is_used_again_takes_the_place_of_the_link_before(relay: Relay) -> None:
    relay.by_link(relay.nodes[2], 1)
    relay.by_link(relay.nodes[3], 1)
    assert relay.nodes[2].ended() and not relay.nodes[3].ended()
    assert way_to(relay, 2) is None and way_to(relay, 3) == link_endpoint(1)
