"""Which router is asked, and what of its answer is believed. The asking itself is in tests/lab/test_portmap.py."""

import socket
from ipaddress import IPv4Address

import anyio
import pytest

from overlay.node import portmap, upnp
from overlay.node.interface import Assigned, Machine, Route
from overlay.node.portmap import Mapping, PortMapper, is_public, try_out, way_out
from overlay.wire.portmap import igd, ssdp

MACHINE = Machine(
    (Assigned("192.168.1.2", "eth0"), Assigned("10.0.0.2", "wlan0"), Assigned("10.9.0.1", "wg0")),
    (
        Route("0.0.0.0/0", "eth0", gateway="192.168.1.1"),
        Route("0.0.0.0/0", "wg0"),
        Route("0.0.0.0/0", "wlan0", gateway="fe80::1"),
        Route("10.0.0.0/8", "wlan0"),
    ),
)


@pytest.mark.parametrize(
    ("own", "gateway"), [("192.168.1.2", "192.168.1.1"), ("10.0.0.2", None), ("10.9.0.1", None), ("203.0.113.9", None)]
)
def test_the_router_is_the_way_out_of_the_link_that_packets_take(own: str, gateway: str | None) -> None:
    assert way_out(MACHINE, own) == gateway


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "172.31.0.1", "192.168.0.1", "100.127.0.1", "127.0.0.1", "0.0.0.0", "224.0.0.1"]
)
def test_addresses_that_nobody_outside_can_send_to(address: str) -> None:
    assert not is_public(address)
    mapper = PortMapper(lambda: 41641, lambda: None)
    mapper._take(Mapping("192.168.1.1", "pcp", (address, 41641), ""))
    assert mapper.endpoints == () and "behind another" in mapper.status.why


def test_a_mapping_is_offered_where_it_leads_to_what_others_see() -> None:
    told: list[tuple[tuple[str, int], ...]] = []
    mapper = PortMapper(lambda: 41641, lambda: told.append(mapper.endpoints))
    external = ("203.0.113.7", 41641)
    mapper._take(Mapping("192.168.1.1", "pcp", external, ""))
    mapper.seen([("2001:db8::1", 1), ("192.168.1.2", 41641), ("203.0.113.7", 5)])
    mapper.seen([("203.0.113.8", 5)])
    assert told == [(external,), ()] and "is seen at 203.0.113.8" in mapper.status.why
    mapper.seen([])
    assert told[2:] == [(external,)] and mapper.status.external == "203.0.113.7:41641"


def test_without_a_router_nobody_is_asked() -> None:
    found = anyio.run(try_out, (), Machine())
    assert found.external is None and "no router" in found.why


def test_a_router_that_never_answers_by_upnp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upnp, "CALL_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = ssdp.Location(silent.getsockname()[1], "/")
        device = upnp.Device(
            IPv4Address("127.0.0.1"), "127.0.0.1", igd.Service("WANIPConnection:1", where), IPv4Address(1)
        )
        with pytest.raises(upnp.Failed, match="does not answer"):
            anyio.run(device.map, 41641)


def test_a_router_that_is_gone_by_upnp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        where = ssdp.Location(gone.getsockname()[1], "/")
    device = upnp.Device(IPv4Address("127.0.0.1"), "127.0.0.1", igd.Service("WANIPConnection:1", where), IPv4Address(1))
    with pytest.raises(upnp.Failed, match="not reached"):
        anyio.run(device.map, 41641)
    assert portmap.LONGEST_REMOVAL >= upnp.CALL_TIMEOUT
