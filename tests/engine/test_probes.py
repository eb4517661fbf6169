"""Probes of the path's datagram size between real engines on loopback, whose MTU of 65,536 takes the largest."""

import os
import socket
import time
from collections.abc import Callable

import pytest

from overlay.engine import api
from overlay.path.pmtu import MAX_PLPMTU
from overlay.wire.disco import DISCO_TYPE, DiscoKey, Ping, Pong
from overlay.wire.endpoint import Endpoint
from overlay.wire.packet.virtio import GSO_UDP_L4, NEEDS_CSUM, VIRTIO_HEADER
from overlay.wire.relay import pack_header, parse_header
from overlay.wire.wireguard.primitives import clamp, public_key
from tests.engine.rig import PATIENCE, Machine, acquaint, udp4

NODE: Endpoint = ("198.51.100.7", 1000)


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline


def mtu(machine: Machine, peer: Machine) -> int:
    (path,) = [each.path for each in machine.snapshot().peers if each.number == peer.number]
    return 0 if path is None else path.mtu


def one_way(one: Machine, other: Machine) -> None:
    packet = udp4(one.address, other.address, os.urandom(1000))
    one.send(packet)
    assert other.receive() == packet


def superpacket(one: Machine, other: Machine) -> None:
    packet = udp4(one.address, other.address, os.urandom(40_000))
    header = VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 1000, 20, 6)
    one.send(packet, header)
    assert other.receive_frame() == header + packet


def test_the_direct_path_takes_jumbo_frames_in_both_directions() -> None:
    with Machine(2) as one, Machine(3) as other:
        acquaint(one, other)
        one_way(one, other)
        assert mtu(other, one) in (0, 1444), "who sent nothing has asked for nothing"
        one_way(other, one)
        until(lambda: mtu(one, other) == mtu(other, one) == MAX_PLPMTU)
        superpacket(one, other)


def test_relayed_the_path_is_probed_from_end_to_end() -> None:
    with Machine(1, relay_clients=True) as relay, Machine(2) as one, Machine(3) as other:
        acquaint(one, other, direct=False)
        for node in (one, other):
            node.set_relay(relay)
            node.wait_for(api.Observed)
        one_way(one, other)
        until(lambda: mtu(one, other) == MAX_PLPMTU)
        superpacket(one, other)
        (path,) = [peer.path for peer in one.snapshot().peers]
        assert path is not None and path.kind == "relay"
        for machine in (relay, one, other):
            assert not {"relay_bad_message", "unknown_type"} & set(machine.snapshot().drops)


def test_the_relay_itself_probes_the_way_to_its_clients() -> None:
    with Machine(1, relay_clients=True) as relay, Machine(2) as one:
        acquaint(relay, one, direct=False)
        one.set_relay(relay)
        one.wait_for(api.Observed)
        one_way(one, relay)
        one_way(relay, one)
        until(lambda: mtu(one, relay) == mtu(relay, one) == MAX_PLPMTU)


class StandIn:
    """Stands in for the home relay of `node`, and says what it wants."""

    def __init__(self, node: Machine, ticket: int) -> None:
        self.private_key = clamp(os.urandom(32))
        self.public_key = public_key(self.private_key)
        self.node = node
        self.ticket = ticket
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(PATIENCE)
        self.key = DiscoKey(self.private_key, node.public_key)

    def relayed(self, number: int, message: bytes) -> None:
        self.socket.sendto(pack_header(number, self.ticket) + message, self.node.endpoint)

    def disco(self, number: int, message: Ping | Pong) -> None:
        self.relayed(number, self.key.seal(message, number, os.urandom(24)))


def test_relayed_disco_is_answered_by_relay_to_peers_alone() -> None:
    with Machine(2) as node:
        relay = StandIn(node, node.ticket)
        stranger = clamp(os.urandom(32))
        node.engine.post(
            api.SetRelay((relay.socket.getsockname(),), 1, relay.public_key, node.ticket),
            api.SetPeer(api.PeerConfig(number=1, public_key=relay.public_key, allowed=())),
        )
        asked, source = relay.socket.recvfrom(2000)
        ping = relay.key.open(asked)
        assert isinstance(ping, Ping)
        relay.socket.sendto(relay.key.seal(Pong(ping.txid, NODE), 1, os.urandom(24)), source)
        assert node.wait_for(api.Observed) == api.Observed(NODE)

        relay.disco(1, Ping(b"t" * 12, 4000))
        answer = relay.socket.recv(2000)
        assert parse_header(answer).number == 1
        assert answer[16] == DISCO_TYPE
        pong = relay.key.open(answer[16:])
        assert pong == Pong(b"t" * 12, relay.socket.getsockname())
        assert len(answer) < 200, "an answer is small, whatever the size of the question"

        relay.disco(9, Ping(b"u" * 12))  # nobody's number
        relay.relayed(1, DiscoKey(stranger, node.public_key).seal(Ping(b"v" * 12), 1, os.urandom(24)))  # not its key
        relay.relayed(1, relay.key.seal(Ping(b"w" * 12), 3, os.urandom(24)))  # another sender than the relay says
        relay.disco(1, Pong(b"x" * 12, NODE))  # to no ping
        relay.relayed(1, b"\x07junk")
        names = ("disco_stranger", "bad_tag", "disco_unasked", "disco_short_header")
        until(lambda: [node.snapshot().drops.get(name, 0) for name in names] == [2, 1, 1, 1])
        relay.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            relay.socket.recv(2000)
        relay.socket.close()
