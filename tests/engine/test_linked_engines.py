"""Whole engines whose relay is reached by links: packets both ways, a link that dies, one that UDP takes over from."""

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlay.engine import api
from overlay.engine.link import Link, Octets, link_endpoint
from overlay.engine.lone import Lone
from overlay.engine.loop import clock
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import pack_header
from overlay.wire.stream.codec import Plain
from overlay.wire.stream.framing import frames
from tests.engine.rig import PATIENCE, Machine, acquaint, udp4
from tests.engine.test_links import Handed, Relay, tcp_pair

NOWHERE: Endpoint = ("127.0.0.1", 9)
"""The discard port: nobody answers, as where UDP is blocked."""


def connect(node: Machine, relay: Machine, number: int) -> None:
    """A link between them."""
    ours, theirs = tcp_pair()
    relay.engine.post(api.AddLink(number, Handed(theirs, Plain()), node.number, "tcp"))
    node.engine.post(api.AddLink(number, Handed(ours, Plain()), None, "tcp"))


def set_relay(node: Machine, relay: Machine, endpoint: Endpoint) -> None:
    relay.engine.post(api.SetClient(node.number, node.public_key, node.ticket))
    node.engine.post(api.SetRelay((endpoint,), relay.number, relay.public_key, node.ticket))


def changed_to(node: Machine, endpoint: Endpoint | None) -> None:
    """Wait until the home relay is reached there."""
    while True:
        event = node.wait_for(api.RelayChanged)
        assert isinstance(event, api.RelayChanged)
        if event.endpoint == endpoint:
            return


def reach_by_links(relay: Machine, *nodes: Machine) -> None:
    """Each node reaches the relay by a link of its own, and by nothing else."""
    for node in nodes:
        set_relay(node, relay, NOWHERE)
        connect(node, relay, node.number)
        changed_to(node, link_endpoint(node.number))


def passes(sender: Machine, receiver: Machine, size: int = 1000) -> None:
    packet = udp4(sender.address, receiver.address, os.urandom(size))
    sender.send(packet)
    assert receiver.receive() == packet


@pytest.fixture
def relay() -> Iterator[Machine]:
    with Machine(1, relay_clients=True) as made:
        yield made


def test_two_engines_that_have_only_links(relay: Machine) -> None:
    with Machine(2) as one, Machine(3) as other:
        reach_by_links(relay, one, other)
        acquaint(one, other, direct=False)
        acquaint(one, relay, direct=False)
        for _ in range(5):
            passes(one, other)
            passes(other, one)
            passes(one, relay)
            passes(relay, one)
        path = one.snapshot().peers[0].path
        assert path is not None and path.kind == "relay"
        for machine in (one, other, relay):
            assert machine.snapshot().drops.get("internal_error") is None


def test_lone_packets_take_the_short_way_over_links(relay: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.engine.loop.IDLE", -1.0)
    sent, opened = [0], [0]
    send, deliver = Link.send_alone, Lone._deliver

    def noted_send(self: Link, datagram: Octets, endpoint: Endpoint) -> None:
        send(self, datagram, endpoint)
        sent[0] += 1

    def noted_deliver(self: Lone, *values: Any) -> Any:
        opened[0] += 1
        return deliver(self, *values)

    monkeypatch.setattr(Link, "send_alone", noted_send)
    monkeypatch.setattr(Lone, "_deliver", noted_deliver)
    with Machine(2) as one, Machine(3) as other:
        reach_by_links(relay, one, other)
        acquaint(one, other, direct=False)
        in_a_row = 0
        while in_a_row < 10:  # each step of the search for the path's datagram size makes a channel anew
            before = [machine.snapshot().peers[0] for machine in (one, other)]
            sent[0] = opened[0] = 0
            passes(one, other, 100)
            passes(other, one, 100)
            in_a_row = in_a_row + 1 if sent[0] == 4 and opened[0] >= 2 else 0  # two by nodes, and two by the relay
            after = [machine.snapshot().peers[0] for machine in (one, other)]
            for now, then in zip(after, before, strict=True):
                assert (now.tx_bytes - then.tx_bytes, now.rx_bytes - then.rx_bytes) == (128, 128)
        for machine in (one, other, relay):
            assert machine.snapshot().drops.get("internal_error") is None


def test_a_link_and_a_client_by_udp(relay: Machine) -> None:
    with Machine(2) as one, Machine(3) as other:
        set_relay(one, relay, NOWHERE)
        connect(one, relay, 1)
        changed_to(one, link_endpoint(1))
        set_relay(other, relay, relay.endpoint)
        changed_to(other, relay.endpoint)
        acquaint(one, other, direct=False)
        passes(one, other)
        passes(other, one)


def test_another_link_takes_over_and_the_session_stays(relay: Machine) -> None:
    with Machine(2) as one, Machine(3) as other:
        set_relay(one, relay, NOWHERE)
        set_relay(other, relay, relay.endpoint)
        connect(one, relay, 1)
        changed_to(one, link_endpoint(1))
        acquaint(one, other, direct=False)
        passes(one, other)
        connect(one, relay, 2)
        relay.engine.post(api.RemoveLink(1))
        lost = one.wait_for(api.LinkLost)
        assert isinstance(lost, api.LinkLost) and lost.number == 1  # closed, or reset if something was on its way
        changed_to(one, link_endpoint(2))
        while not one.events.empty():
            one.events.get()
        passes(one, other)
        passes(other, one)
        assert not any(isinstance(event, api.HandshakeCompleted) for event in list(one.events.queue))


def test_a_relay_that_is_set_after_its_link(relay: Machine) -> None:
    with Machine(2) as one:
        connect(one, relay, 1)
        set_relay(one, relay, NOWHERE)
        changed_to(one, link_endpoint(1))


def test_an_engine_that_stops_closes_what_it_was_given(relay: Machine) -> None:
    with Machine(2) as one:
        ours, theirs = tcp_pair()
        late, late_theirs = tcp_pair()
        one.engine.post(api.AddLink(1, Handed(ours, Plain()), None, "tcp"))
        one.snapshot()
        one.engine.stop()
        one.engine.post(api.AddLink(2, Handed(late, Plain()), None, "tcp"))
    for end in (theirs, late_theirs):
        end.settimeout(PATIENCE)
        while end.recv(1 << 16):
            pass
        end.close()
    assert ours.fileno() == late.fileno() == -1


kinds = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 0x40, 0xFF])
parts = st.tuples(st.booleans(), kinds, st.integers(0, 5), st.binary(max_size=200))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(parts, max_size=4), max_size=4), st.integers(0, 400), st.integers(1, 1000))
def check(relay: Relay, runs: list[list[tuple[bool, int, int, bytes]]], segment: int, cut: int) -> None:
    link = relay.by_link(relay.nodes[2], 1)
    other, far = tcp_pair()
    relay.do(api.AddLink(2, Handed(other, Plain()), None, "tcp"))
    stream = b""
    for run in runs:
        joined = b""
        for relayed, kind, number, body in run:
            joined += pack_header(number, 72) if relayed and number else b""
            joined += bytes([kind, 0, 0, 0, number, 0, 0, 0]) + body
        if joined:
            stream += b"".join(frames(joined, segment))
    for at in range(0, len(stream), cut):
        for each in (link, relay.sockets.links[link_endpoint(2)]):
            if not each.lost:
                each._received = stream[at : at + cut]
                relay.loop._inbound.receive_link(each, clock())
    relay.loop.turn(0.0)
    assert "internal_error" not in relay.drops
    relay.do(api.RemoveLink(1), api.RemoveLink(2))
    stranger = relay.nodes[2].stream
    assert stranger is not None
    stranger.close()
    far.close()


def test_no_bytes_on_a_link_raise() -> None:
    relay = Relay()
    try:
        check(relay)
    finally:
        relay.close()


def test_a_socket_pair_of_another_kind_is_a_link_too(relay: Machine) -> None:
    """What a carrier's own process gives, say: options of TCP are no condition."""
    with Machine(2) as one:
        ours, theirs = socket.socketpair()
        set_relay(one, relay, NOWHERE)
        relay.engine.post(api.AddLink(1, Handed(theirs, Plain()), 2, "tcp"))
        one.engine.post(api.AddLink(1, Handed(ours, Plain()), None, "tcp"))
        changed_to(one, link_endpoint(1))
