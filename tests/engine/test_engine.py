"""Two and three real engines on loopback: what one kernel sends, the other gets, on every path."""

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from overlay.engine import Engine, Features, api
from overlay.errors import LocalProtocolError, UserError
from overlay.wire.packet import icmp
from overlay.wire.packet.virtio import GSO_UDP_L4, NEEDS_CSUM, VIRTIO_HEADER
from overlay.wire.record.fragments import MESSAGE_TYPE
from overlay.wire.relay import pack_header
from tests.engine.rig import PATIENCE, Machine, acquaint, udp4, udp6


@pytest.fixture
def pair() -> Iterator[tuple[Machine, Machine]]:
    with Machine(2) as one, Machine(3) as other:
        yield one, other


def exchange(one: Machine, other: Machine) -> None:
    """A packet each way."""
    there = udp4(one.address, other.address, b"there")
    one.send(there)
    assert other.receive() == there
    back = udp4(other.address, one.address, b"and back")
    other.send(back)
    assert one.receive() == back


@pytest.mark.parametrize("cipher", ["chacha20-poly1305", "aes-256-gcm"])
def test_packets_cross_in_both_ciphers_and_families(pair: tuple[Machine, Machine], cipher: api.Cipher) -> None:
    one, other = pair
    acquaint(one, other, cipher=cipher)
    exchange(one, other)
    packet = udp6(one.address6, other.address6, b"six")
    one.send(packet)
    assert other.receive() == packet
    assert isinstance(one.wait_for(api.HandshakeCompleted), api.HandshakeCompleted)
    (peer,) = one.snapshot().peers
    assert peer.path is not None
    assert peer.path.kind == "udp"
    assert peer.path.endpoint == other.endpoint
    assert peer.last_handshake is not None
    assert peer.tx_bytes == len(udp4(one.address, other.address, b"there")) + len(packet)


def test_a_superpacket_arrives_as_one(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    acquaint(one, other)
    exchange(one, other)
    payload = os.urandom(40_000)
    packet = udp4(one.address, other.address, payload)
    header = VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 1000, 20, 6)
    one.send(packet, header)
    assert other.receive_frame() == header + packet


def test_packets_that_wait_for_the_handshake_arrive_in_order(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    acquaint(one, other)
    packets = [udp4(one.address, other.address, bytes([index]) * 1000, (index + 1, 2000)) for index in range(40)]
    for packet in packets:
        one.send(packet)
    assert [other.receive() for _ in packets] == packets


def test_a_packet_from_an_address_that_is_not_the_peers_does_not_reach_the_kernel(
    pair: tuple[Machine, Machine],
) -> None:
    one, other = pair
    acquaint(one, other)
    exchange(one, other)
    one.send(udp4("10.0.0.99", other.address, b"spoofed"))
    exchange(one, other)
    assert other.snapshot().drops["wrong_source"] == 1


def test_packets_for_nobody_are_counted(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    acquaint(one, other)
    to_nobody = udp4(one.address, "10.9.9.9", b"nobody")
    one.send(to_nobody)
    assert one.receive() == icmp.unreachable(to_nobody)
    one.send(udp4(one.address, "224.0.0.251", b"everybody"))
    one.send(b"\x00" * 40)
    exchange(one, other)
    counted = one.snapshot().drops
    assert (counted["no_peer"], counted["not_unicast"], counted["not_ip"]) == (1, 1, 1)


def test_offload_fields_that_the_packet_does_not_bear_out_do_not_reach_the_kernel(
    pair: tuple[Machine, Machine],
) -> None:
    one, other = pair
    acquaint(one, other)
    exchange(one, other)
    one.send(udp4(one.address, other.address, bytes(3000)), VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 0, 20, 6))
    exchange(one, other)
    assert other.snapshot().drops["bad_offload"] == 1


def test_stock_wireguard_transport_between_two_engines(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    secret = os.urandom(32)
    one.engine.post(api.SetPeer(other.config(transport="wireguard", preshared_key=secret)))
    # The responder has no endpoint: it learns it from the first authentic message.
    other.engine.post(api.SetPeer(one.config(transport="wireguard", preshared_key=secret, endpoints=())))
    exchange(one, other)
    payload = os.urandom(9000)
    packet = udp4(one.address, other.address, payload)
    one.send(packet, VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 1000, 20, 6))
    received = b""
    while len(received) < len(payload):
        received += other.receive()[28:]
    assert received == payload
    (peer,) = other.snapshot().peers
    assert peer.path is not None
    assert peer.path.endpoint == one.endpoint


def test_a_wrong_preshared_key_completes_no_handshake(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    one.engine.post(api.SetPeer(other.config(transport="wireguard", preshared_key=os.urandom(32))))
    other.engine.post(api.SetPeer(one.config(transport="wireguard", preshared_key=os.urandom(32))))
    one.send(udp4(one.address, other.address, b"x"))
    deadline = time.monotonic() + PATIENCE
    while "bad_tag" not in one.snapshot().drops:
        assert time.monotonic() < deadline
    assert one.snapshot().peers[0].last_handshake is None
    assert other.silent()


# --- the relay --------------------------------------------------------------------------------------------------------


def test_two_nodes_talk_through_a_relay_at_once() -> None:
    with Machine(1, relay_clients=True) as relay, Machine(2) as one, Machine(3) as other:
        one.set_relay(relay)
        other.set_relay(relay)
        acquaint(one, other, direct=False)
        observed = one.wait_for(api.Observed)
        assert observed == api.Observed(one.endpoint)
        other.wait_for(api.Observed)
        exchange(one, other)
        packet = udp4(one.address, other.address, os.urandom(30_000))
        one.send(packet)
        assert other.receive() == packet
        (peer,) = one.snapshot().peers
        assert peer.path is not None
        assert (peer.path.kind, peer.path.endpoint) == ("relay", None)
        assert relay.snapshot().relayed_bytes > 30_000
        assert one.snapshot().relay_rtt is not None
        assert relay.silent()


def test_the_server_talks_to_its_clients_through_the_relay_header() -> None:
    with Machine(1, relay_clients=True) as server, Machine(2) as node:
        node.set_relay(server)
        acquaint(server, node, direct=False)
        node.wait_for(api.Observed)
        exchange(node, server)
        exchange(server, node)
        assert server.snapshot().relayed_bytes == 0
        (peer,) = server.snapshot().peers
        assert peer.path is not None
        assert peer.path.kind == "relay"


def test_a_direct_path_replaces_the_relay_and_sessions_do_not_notice() -> None:
    with Machine(1, relay_clients=True) as relay, Machine(2) as one, Machine(3) as other:
        one.set_relay(relay)
        other.set_relay(relay)
        acquaint(one, other, direct=False)
        one.wait_for(api.Observed)
        other.wait_for(api.Observed)
        exchange(one, other)
        one.wait_for(api.HandshakeCompleted)
        one.engine.post(api.SetPeer(other.config()))
        deadline = time.monotonic() + PATIENCE
        while (one.path_kind(), other.path_kind()) != ("udp", "udp"):
            exchange(one, other)
            assert time.monotonic() < deadline
        forwarded = relay.snapshot().relayed_bytes
        exchange(one, other)
        exchange(one, other)
        assert relay.snapshot().relayed_bytes - forwarded < 1000
        assert not any(isinstance(event, api.HandshakeCompleted) for event in list(one.events.queue))


class Wire:
    """A way between two machines that can be cut: neither sees the other's own endpoint."""

    def __init__(self, one: Machine, other: Machine) -> None:
        self.is_cut = False
        self.swallowed = 0  # messages of data, from the first
        self._ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for end in self._ends:
            end.bind(("127.0.0.1", 0))
        self._machines = one, other
        self._threads = [threading.Thread(target=self._carry, args=(at,), daemon=True) for at in range(2)]
        for thread in self._threads:
            thread.start()

    def endpoint(self, at: int) -> tuple[str, int]:
        """Where machine `at` finds the other one."""
        host, port = self._ends[at].getsockname()
        return host, port

    def close(self) -> None:
        for end in self._ends:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", end.getsockname())
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _carry(self, at: int) -> None:
        while datagram := self._ends[at].recv(1 << 16):
            if not self.is_cut:
                self._ends[1 - at].sendto(datagram, self._machines[1 - at].endpoint)
            elif at == 0 and datagram[0] == MESSAGE_TYPE:
                self.swallowed += 1


def test_what_went_by_a_path_in_doubt_goes_once_more_by_the_next_one() -> None:
    with Machine(1, relay_clients=True) as relay, Machine(2) as one, Machine(3) as other:
        wire = Wire(one, other)
        one.set_relay(relay)
        other.set_relay(relay)
        one.engine.post(api.SetPeer(other.config(endpoints=(wire.endpoint(0),))))
        other.engine.post(api.SetPeer(one.config(endpoints=(wire.endpoint(1),))))
        deadline = time.monotonic() + PATIENCE
        while one.path_kind() != "udp":
            exchange(one, other)
            assert time.monotonic() < deadline
        wire.is_cut = True
        came, sent, last = [], 0, None
        while last is None or not came or came[-1] < last:
            one.send(udp4(one.address, other.address, sent.to_bytes(4)))
            sent += 1
            while select.select([other.tun], [], [], 0.005)[0]:
                came.append(int.from_bytes(other.receive()[-4:]))
            if last is None and one.path_kind() == "relay":
                last = sent
            assert time.monotonic() < deadline
        wire.close()
        assert came == list(range(came[0], came[-1] + 1)), "in order, and each once"
        assert 0 < came[0] < wire.swallowed, "some that were swallowed have come after all"


def test_a_stranger_gets_nothing_forwarded() -> None:
    with (
        Machine(1, relay_clients=True) as relay,
        Machine(2) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        one.set_relay(relay)
        one.wait_for(api.Observed)
        stranger.sendto(pack_header(2, one.ticket) + b"\x04" + bytes(31), relay.endpoint)
        stranger.sendto(pack_header(2, 1) + b"\x04" + bytes(31), one.endpoint)
        wait_for_drop(relay, "relay_unbound")
        wait_for_drop(one, "relay_not_ours")
        assert relay.snapshot().relayed_bytes == 0


def test_a_removed_client_is_unbound_and_one_that_is_away_is_counted() -> None:
    with Machine(1, relay_clients=True) as relay, Machine(2) as one, Machine(3) as other:
        one.set_relay(relay)
        other.set_relay(relay)
        acquaint(one, other, direct=False)
        one.wait_for(api.Observed)
        other.wait_for(api.Observed)
        exchange(one, other)
        relay.engine.post(api.RemoveClient(3))
        one.send(udp4(one.address, other.address, b"gone"))
        wait_for_drop(relay, "relay_no_client")
        relay.engine.post(api.SetClient(4, os.urandom(32), 7))
        relay.engine.post(api.SetClient(3, os.urandom(32), other.ticket))
        one.send(udp4(one.address, other.address, b"away"))
        wait_for_drop(relay, "relay_client_away")


def wait_for_drop(machine: Machine, reason: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while reason not in machine.snapshot().drops:
        assert time.monotonic() < deadline, machine.snapshot().drops


# --- life -------------------------------------------------------------------------------------------------------------


def test_every_feature_off_still_carries_all() -> None:
    poor = Features(**dict.fromkeys(Features().as_dict(), False))
    with Machine(2, wanted=poor) as one, Machine(3, wanted=poor) as other:
        acquaint(one, other)
        for size in (10, 1300, 20_000):
            packet = udp4(one.address, other.address, os.urandom(size))
            one.tun.send(packet)  # no virtio header
            assert other.tun.recv(1 << 17) == packet
        assert one.snapshot().features == poor.as_dict()


def test_updating_a_peer_keeps_its_session_and_removing_it_ends_it(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    acquaint(one, other)
    exchange(one, other)
    one.wait_for(api.HandshakeCompleted)
    grown = other.config()
    one.engine.post(api.SetPeer(replace(grown, allowed=(*grown.allowed, ip_network("192.0.2.0/24")))))
    one.snapshot()
    packet = udp4(one.address, "192.0.2.7", b"behind")
    one.send(packet)
    assert other.receive() == packet
    assert not any(isinstance(event, api.HandshakeCompleted) for event in list(one.events.queue))
    one.engine.post(api.RemovePeer(3), api.RemovePeer(3))
    assert one.snapshot().peers == ()  # commands and packets come by different descriptors: done before the next packet
    one.send(packet)
    wait_for_drop(one, "no_peer")


def test_a_peer_that_started_anew_gets_a_new_session_at_once(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    acquaint(one, other)
    exchange(one, other)
    one.wait_for(api.HandshakeCompleted)
    # The other end loses its sessions, as a daemon that starts anew does.
    other.engine.post(api.RemovePeer(one.number), api.SetPeer(one.config()))
    one.engine.post(api.SetPeer(replace(other.config(), epoch=7)))
    one.wait_for(api.HandshakeCompleted)
    exchange(one, other)
    one.engine.post(api.SetPeer(other.config()))  # a map from before the peer said its epoch: nothing new
    exchange(one, other)
    assert not any(isinstance(event, api.HandshakeCompleted) for event in list(one.events.queue))


def test_a_command_that_cannot_be_done_costs_only_itself(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    one.engine.post(api.SetPeer(replace(one.config(), number=9)))  # a peer with our own key
    acquaint(one, other)
    exchange(one, other)
    assert one.snapshot().drops["internal_error"] == 1


def test_the_tun_device_vanishing_is_reported() -> None:
    with Machine(2) as machine:
        machine.tun.close()
        failed = machine.wait_for(api.EngineFailed)
        assert isinstance(failed, api.EngineFailed)
        assert isinstance(failed.error, UserError)
        assert failed.error.code == "interface-gone"


def test_stop_ends_the_thread_and_is_harmless_again() -> None:
    before = threading.active_count()
    machine = Machine(2)
    machine.engine.stop()
    with machine:
        assert threading.active_count() == before + 1
        machine.engine.stop()
        assert threading.active_count() == before
        machine.engine.post(api.LinkChanged())
        with pytest.raises(LocalProtocolError):
            machine.engine.start()


def test_without_a_tun_there_is_a_port_all_the_same() -> None:
    engine = Engine(api.EngineConfig(private_key=os.urandom(32), number=1, interface=None), lambda event: None)
    engine.start()
    try:
        assert engine.port > 0
        assert engine.interface is None
        taken = Engine(
            api.EngineConfig(private_key=os.urandom(32), number=1, interface=None, port=engine.port), lambda event: None
        )
        with pytest.raises(UserError) as refused:
            taken.start()
        assert refused.value.code == "port-taken"
    finally:
        engine.stop()


def test_an_endpoint_inside_the_network_is_never_a_path(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    acquaint(one, other)
    one.engine.post(api.SetPeer(other.config(endpoints=((other.address, 41641), other.endpoint))))
    exchange(one, other)
    path = one.snapshot().peers[0].path
    assert path is not None
    assert path.endpoint == other.endpoint
    assert one.snapshot().drops["inner_endpoint"] >= 1


def test_link_changes_prove_the_path_anew(pair: tuple[Machine, Machine]) -> None:
    one, other = pair
    acquaint(one, other)
    exchange(one, other)
    one.engine.post(api.LinkChanged())
    exchange(one, other)
