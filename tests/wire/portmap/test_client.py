"""The client of both protocols in virtual time, before a gateway of a few lines."""

from ipaddress import IPv4Address

import pytest

from overlay.errors import RemoteProtocolError
from overlay.wire.portmap.client import TRIES, Client

OWN = IPv4Address("192.168.1.2")
NONCE = bytes(range(12))
_MAPPED = "0000ffff cb007107"


def pmp_address(epoch: int) -> bytes:
    return b"\x00\x80\x00\x00" + epoch.to_bytes(4, "big") + bytes((203, 0, 113, 7))


def answer(request: bytes, epoch: int, external: int = 49153) -> bytes:
    told, port = epoch.to_bytes(4, "big"), external.to_bytes(2, "big")
    if request[0] == 0:
        return bytes((0, request[1] | 128, 0, 0)) + told + request[4:6] + port + request[8:]
    body = request[24:42] + port + bytes(8) + bytes.fromhex(_MAPPED)
    return b"\x02\x81\x00\x00" + request[4:8] + told + bytes(12) + body


def mapped(protocol: str) -> Client:
    client = Client(OWN, "udp", 41641, NONCE, 0.0)
    assert len(client.datagrams_to_send()) == 2
    if protocol == "nat-pmp":
        client.receive_datagram(pmp_address(1000), 0.01)
    else:
        client.receive_datagram(b"\x02\x80" + bytes(6) + (1000).to_bytes(4, "big") + bytes(12), 0.01)
        client.handle_timeout(client.next_timeout())
    (request,) = client.datagrams_to_send()
    client.receive_datagram(answer(request, 1000), 0.3)
    assert client.protocol == protocol and client.mapped == ("203.0.113.7", 49153)
    return client


@pytest.mark.parametrize("protocol", ["nat-pmp", "pcp"])
def test_renewed_at_half_its_life_and_removed(protocol: str) -> None:
    client = mapped(protocol)
    assert client.next_timeout() == pytest.approx(3600.3)
    client.handle_timeout(client.next_timeout())
    (renewal,) = client.datagrams_to_send()
    assert protocol == "nat-pmp" or renewal[24:36] == NONCE
    client.receive_datagram(answer(renewal, 4600), 3600.3)
    assert client.mapped is not None and client.next_timeout() == pytest.approx(7200.3)
    client.remove()
    (removal,) = client.datagrams_to_send()
    assert removal[-4:] == bytes(4) if protocol == "nat-pmp" else (removal[4:8], removal[24:36]) == (bytes(4), NONCE)
    assert client.mapped is None


@pytest.mark.parametrize("protocol", ["nat-pmp", "pcp"])
def test_a_gateway_that_falls_silent_is_left_when_the_mapping_ends(protocol: str) -> None:
    client, asked = mapped(protocol), 0
    while client.state == "mapped":
        now = client.next_timeout()
        client.handle_timeout(now)
        asked += len(client.datagrams_to_send())
    assert now == pytest.approx(7200.3) and asked < 100
    assert client.state == "none" and client.mapped is None


def test_a_gateway_that_started_anew_is_asked_at_once() -> None:
    client = mapped("nat-pmp")
    client.receive_datagram(pmp_address(1), 60.0)
    assert client.mapped is None
    (request,) = client.datagrams_to_send()
    client.receive_datagram(answer(request, 1, 50000), 60.1)
    assert client.mapped == ("203.0.113.7", 50000)


def test_no_gateway() -> None:
    client = Client(OWN, "udp", 41641, NONCE, 0.0)
    client.handle_timeout(client.next_timeout())
    assert client.state == "none" and client.next_timeout() == float("inf")


def test_a_gateway_that_answers_no_request() -> None:
    client = Client(OWN, "tcp", 41641, NONCE, 0.0)
    client.receive_datagram(pmp_address(1), 0.0)
    client.datagrams_to_send()
    asked = 1
    while client.state == "mapping":
        client.handle_timeout(client.next_timeout())
        asked += len([each for each in client.datagrams_to_send() if len(each) == 12])
    assert (client.state, asked) == ("none", TRIES)


def test_a_gateway_that_refuses() -> None:
    client = Client(OWN, "udp", 41641, NONCE, 0.0)
    client.receive_datagram(pmp_address(1), 0.0)
    client.receive_datagram(bytes.fromhex("0081000200000001"), 0.1)
    assert client.state == "refused" and client.mapped is None


def test_another_nonce_or_port_is_not_believed() -> None:
    client = mapped("pcp")
    client.handle_timeout(client.next_timeout())
    (request,) = client.datagrams_to_send()
    forged = bytearray(answer(request, 4600, 666))
    forged[24] ^= 1
    with pytest.raises(RemoteProtocolError):
        client.receive_datagram(bytes(forged), 3600.3)
    assert client.mapped == ("203.0.113.7", 49153)


def test_a_refused_renewal_leaves_what_was_granted() -> None:
    client = mapped("pcp")
    client.handle_timeout(client.next_timeout())
    (request,) = client.datagrams_to_send()
    refusal = b"\x02\x81\x00\x08" + (1800).to_bytes(4, "big") + (4600).to_bytes(4, "big") + bytes(12) + request[24:]
    client.receive_datagram(refusal, 3600.3)
    assert client.mapped is not None and client.next_timeout() == pytest.approx(7200.3)
    client.handle_timeout(client.next_timeout())
    assert client.state == "refused" and client.retry_after == 1800 and client.datagrams_to_send() == []


@pytest.mark.parametrize("silent", [False, True])
def test_pcp_is_asked_where_nat_pmp_grants_nothing(silent: bool) -> None:
    client = Client(OWN, "udp", 41641, NONCE, 0.0)
    client.receive_datagram(b"\x02\x80" + bytes(6) + (1000).to_bytes(4, "big") + bytes(12), 0.0)
    client.receive_datagram(pmp_address(1000), 0.01)
    while client.protocol == "nat-pmp":
        client.datagrams_to_send()
        if silent:
            client.handle_timeout(client.next_timeout())
        else:
            client.receive_datagram(bytes.fromhex("0081000200000001"), 0.1)
    (request,) = client.datagrams_to_send()
    client.receive_datagram(answer(request, 1000), 30.0)
    assert (client.protocol, client.mapped) == ("pcp", ("203.0.113.7", 49153))
