"""Bindings and forwarding of the relay, over real loopback sockets."""

import socket
from collections.abc import Iterator

import pytest

from overlay.engine.drops import Drops
from overlay.engine.features import Features
from overlay.engine.link import link_endpoint
from overlay.engine.outbox import Outbox
from overlay.engine.relay_queue import Client
from overlay.engine.relay_role import BINDING_LIFE, RelayRole
from overlay.engine.udp import UdpSockets, open_udp
from overlay.wire.endpoint import Endpoint
from overlay.wire.relay import RelayHeader, pack_header

A: Endpoint = ("192.0.2.1", 1000)
A6: Endpoint = ("2001:db8::1", 1000)
B: Endpoint = ("192.0.2.2", 2000)
TICKET_A, TICKET_B = 11, 22


@pytest.fixture
def sockets() -> Iterator[UdpSockets]:
    opened = open_udp(0, Features())
    yield opened
    opened.close()


@pytest.fixture
def role(sockets: UdpSockets) -> RelayRole:
    counted = Drops()
    role = RelayRole(1, Outbox(sockets, counted), counted, lambda size: b"t" * size)
    role.set_client(2, b"a" * 32, TICKET_A)
    role.set_client(3, b"b" * 32, TICKET_B)
    return role


def test_a_ping_binds_and_only_with_the_ticket_one_may_send(role: RelayRole) -> None:
    assert role.sender(RelayHeader(3, TICKET_A), A) == "relay_unbound"
    assert role.ping_received(2, A, 0.0) is None
    assert role.sender(RelayHeader(3, TICKET_A), A) is role.clients[2]
    assert role.sender(RelayHeader(3, TICKET_B), A) == "relay_bad_ticket"
    assert role.sender(RelayHeader(3, TICKET_A), B) == "relay_unbound"


def test_a_binding_in_use_moves_only_to_who_answers(role: RelayRole) -> None:
    role.ping_received(2, A, 0.0)
    txid = role.ping_received(2, B, 1.0)
    assert txid is not None
    assert role.clients[2].address == A
    assert not role.pong_received(2, B, b"x" * 12, 1.1)
    assert not role.pong_received(2, A, txid, 1.1)
    assert not role.pong_received(9, B, txid, 1.1)
    assert role.pong_received(2, B, txid, 1.1)
    assert role.clients[2].address == B
    assert role.sender(RelayHeader(3, TICKET_A), A) == "relay_unbound"
    assert not role.pong_received(2, B, txid, 1.2)  # once


def test_a_binding_that_is_dead_is_taken_over_at_once(role: RelayRole) -> None:
    role.ping_received(2, A, 0.0)
    assert role.route(2, BINDING_LIFE) is not None
    assert role.route(2, BINDING_LIFE + 0.1) is None
    assert role.ping_received(2, B, BINDING_LIFE + 0.1) is None
    assert role.clients[2].address == B


def test_two_clients_cannot_be_bound_to_one_address(role: RelayRole) -> None:
    role.ping_received(2, A, 0.0)
    role.ping_received(3, A, 0.0)
    assert role.clients[2].address is None
    assert role.sender(RelayHeader(2, TICKET_B), A) is role.clients[3]


def test_a_client_set_again_stays_bound_and_one_with_another_key_does_not(role: RelayRole) -> None:
    role.ping_received(2, A, 0.0)
    role.set_client(2, b"a" * 32, 99)
    assert role.sender(RelayHeader(3, 99), A) is role.clients[2]
    role.set_client(2, b"c" * 32, 99)
    assert role.clients[2].address is None
    assert role.sender(RelayHeader(3, 99), A) == "relay_unbound"


def test_who_asked_by_both_families_may_send_by_either(role: RelayRole) -> None:
    """It uses the one whose answer came first; ours may have been asked the other way round."""
    client = role.clients[2]
    role.ping_received(2, A, 0.0)
    txid = role.ping_received(2, A6, 0.001)
    assert txid is not None and role.sender(RelayHeader(3, TICKET_A), A6) == "relay_unbound", "not proven yet"
    assert role.pong_received(2, A6, txid, 0.002)
    for source in (A, A6, A):
        assert role.sender(RelayHeader(3, TICKET_A), source) is client
    assert client.address == A6, "the last that was proven"
    moved = ("192.0.2.9", 1000)
    txid = role.ping_received(2, moved, 1.0)
    assert txid is not None and role.pong_received(2, moved, txid, 1.1)
    assert [role.sender(RelayHeader(3, TICKET_A), source) for source in (A, A6, moved)] == [
        "relay_unbound",
        client,
        client,
    ], "one of each family"
    txid = role.ping_received(3, A6, 2.0)
    assert txid is None and role.sender(RelayHeader(2, TICKET_B), A6) is role.clients[3], "it is another's now"
    assert client.other is None and client.address == moved
    role.remove_client(2)
    assert role.sender(RelayHeader(3, TICKET_A), moved) == "relay_unbound"


def test_after_a_link_a_client_is_answered_by_the_family_that_it_sends_by(role: RelayRole) -> None:
    client, link = role.clients[2], link_endpoint(7)
    role.add_link(link, 2, 0.0)
    role.ping_received(2, link, 0.0)
    for now, source in ((1.0, A), (1.1, A6)):
        txid = role.ping_received(2, source, now)
        assert txid is not None and role.pong_received(2, source, txid, now)
        assert client.address == link, "as long as the link is used"
    assert role.sender(RelayHeader(3, TICKET_A), A) is client and client.address == A
    assert role.sender(RelayHeader(3, TICKET_A), link) is client and client.address == link
    assert role.sender(RelayHeader(3, TICKET_A), A6) is client and client.address == A6


def test_a_ticket_does_not_show(role: RelayRole) -> None:
    assert "ticket" not in repr(Client(2, b"", TICKET_A))


def test_a_run_goes_on_with_new_headers_in_one_piece(role: RelayRole) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        role.ping_received(2, A, 0.0)
        role.ping_received(3, receiver.getsockname(), 0.0)
        bodies = [bytes([index]) * 100 for index in range(20)] + [b"last"]
        run = b"".join(pack_header(3, TICKET_A) + body for body in bodies)
        assert role.forward(role.clients[2], 3, memoryview(bytearray(run)), 116, 1.0) == ""
        assert [receiver.recv(2000) for _ in bodies] == [pack_header(2, TICKET_B) + body for body in bodies]
        assert role.queues.sent_bytes == len(run)


def test_what_cannot_be_forwarded_has_a_reason(role: RelayRole) -> None:
    run = memoryview(bytearray(40))
    sender = role.clients[2]
    assert role.forward(sender, 9, run, 40, 0.0) == "relay_no_client"
    assert role.forward(sender, 2, run, 40, 0.0) == "relay_reflected"
    assert role.forward(sender, 3, run, 40, 0.0) == "relay_client_away"
    role.ping_received(3, B, 0.0)
    assert role.forward(sender, 3, run, 40, BINDING_LIFE + 1) == "relay_client_away"


def test_what_is_too_long_for_the_next_leg_is_fragmented_but_no_probe(role: RelayRole, sockets: UdpSockets) -> None:
    sent: list[bytes] = []

    def send(buffers: object, segment: int, endpoint: Endpoint, traffic_class: int) -> str:
        return "send_too_long"

    def send_fragmented(buffers: tuple[memoryview], segment: int, endpoint: Endpoint, traffic_class: int) -> str:
        sent.append(bytes(buffers[0][16:]))
        return ""

    role.ping_received(3, B, 0.0)
    vars(sockets.ipv4).update(send=send, send_fragmented=send_fragmented)
    header = pack_header(3, TICKET_A)
    data, probe, last = b"\x05" + bytes(99), b"\x07" + bytes(99), b"\x05" + bytes(40)
    run = memoryview(bytearray(header + data + header + probe + header + last))
    assert role.forward(role.clients[2], 3, run, 116, 0.0) == ""
    assert sent == [data, last]
    run = memoryview(bytearray(header + probe))
    assert role.forward(role.clients[2], 3, run, 116, 0.0) == "send_too_long"
    assert sent == [data, last]
