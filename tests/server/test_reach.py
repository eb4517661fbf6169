"""Where the server listens and under which addresses others know it."""

import errno
import socket
from ipaddress import ip_network

import anyio
import pytest
from anyio.abc import SocketAttribute

from overlay.errors import Exit, UserError
from overlay.node.interface import Assigned, Machine
from overlay.server import reach as module
from overlay.server.reach import Reach, find_reach, listening_port, open_listeners, parse_listen

MACHINE = Machine(
    addresses=(
        Assigned("10.1.2.3", "eth1"),
        Assigned("2001:4860::10", "eth0"),
        Assigned("8.8.4.4", "eth0"),
        Assigned("127.0.0.1", "lo"),
        Assigned("172.17.0.1", "docker0"),
        Assigned("10.77.0.1", "overlay7"),
    )
)
RANGES = (ip_network("10.77.0.0/16"),)


def found(public: tuple[str, ...] = (), listen: tuple[str, ...] = (), machine: Machine = MACHINE) -> Reach:
    async def main() -> Reach:
        return await find_reach(public, parse_listen(listen), 443, machine, RANGES)

    return anyio.run(main)


def test_the_hosts_own_addresses_public_ones_first() -> None:
    reach = found()
    assert reach.addresses == reach.relays == ("8.8.4.4:443", "[2001:4860::10]:443", "10.1.2.3:443")
    assert reach.hosts == ("8.8.4.4", "2001:4860::10", "10.1.2.3")


def test_what_is_listened_on_is_where_it_is_reached() -> None:
    assert found(listen=("192.0.2.1:443",)).addresses == ("192.0.2.1:443",)
    assert found(listen=("0.0.0.0:443",)).addresses == ("8.8.4.4:443", "10.1.2.3:443")
    assert found(listen=("[::]:443",)).addresses == ("[2001:4860::10]:443",)


def test_what_a_person_names_goes_into_invites() -> None:
    assert found(("203.0.113.1",)) == Reach(("203.0.113.1:443",), ("203.0.113.1:443",))
    assert found(("203.0.113.1:8443", "2001:db8::1", "[2001:db8::2]:9")).addresses == (
        "203.0.113.1:8443",
        "[2001:db8::1]:443",
        "[2001:db8::2]:9",
    )
    local = found(("localhost:8443",))
    assert local.addresses == ("localhost:8443",) and "127.0.0.1:8443" in local.relays


def test_a_reverse_proxy_goes_into_invites_and_relays_nothing() -> None:
    reach = found(("wss://VPN.example.org/x", "203.0.113.1"))
    assert reach.addresses == ("wss://vpn.example.org:443/x", "203.0.113.1:443")
    assert reach.relays == ("203.0.113.1:443",)
    assert reach.hosts == ("vpn.example.org", "203.0.113.1")
    assert found(("wss://vpn.example.org",)).relays == found().relays


def test_a_name_without_an_address_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(anyio, "getaddrinfo", nothing)
    reach = found(("vpn.invalid",))
    assert reach.addresses == ("vpn.invalid:443",)
    assert reach.relays[0] == "8.8.4.4:443"
    assert "vpn.invalid" in reach.warnings[0]


@pytest.mark.parametrize("public", ["", "a b", "host:0", "host:99999", "[::1", "-"])
def test_what_is_no_public_address(public: str) -> None:
    with pytest.raises(UserError) as caught:
        found((public,))
    assert (caught.value.code, caught.value.exit_code) == ("public-invalid", Exit.USAGE)


def test_a_host_without_addresses() -> None:
    with pytest.raises(UserError) as caught:
        found(machine=Machine())
    assert caught.value.code == "no-address"


def test_listen_options() -> None:
    assert parse_listen(["0.0.0.0:443", "[::]:443"]) == (("0.0.0.0", 443), ("::", 443))
    assert parse_listen(["127.0.0.1:0"]) == (("127.0.0.1", 0),)
    for bad in (["443"], ["host:443"], ["1.2.3.4:99999"]):
        with pytest.raises(UserError) as caught:
            parse_listen(bad)
        assert (caught.value.code, caught.value.exit_code) == ("listen-invalid", Exit.USAGE)


def test_more_ports_are_more_ways_in_by_tcp() -> None:
    reach = found(listen=("192.0.2.1:443", "192.0.2.1:80", "0.0.0.0:8443"))
    assert reach.addresses == ("192.0.2.1:443", "192.0.2.1:80", "8.8.4.4:8443", "10.1.2.3:8443")
    assert reach.relays == ("192.0.2.1:443",)

    async def main() -> None:
        (one,) = await open_listeners(parse_listen(["127.0.0.1:0"]))
        port = listening_port([one])
        await one.aclose()
        listeners = await open_listeners(parse_listen(["127.0.0.2:0", f"127.0.0.1:{port}"]))
        assert [listener.extra(SocketAttribute.local_port) for listener in listeners][1:] == [port]
        for listener in listeners:
            await listener.aclose()

    anyio.run(main)


def test_listeners_share_one_port_and_a_taken_one_is_said_so() -> None:
    async def main() -> None:
        listeners = await open_listeners(parse_listen(["127.0.0.1:0", "127.0.0.2:0"]))
        port = listening_port(listeners)
        with pytest.raises(UserError) as caught:
            await open_listeners([("127.0.0.3", port), ("127.0.0.1", port)])
        assert caught.value.code == "port-taken" and str(port) in caught.value.message
        again = await open_listeners([("127.0.0.3", port)])  # what was opened before the failure is closed
        for listener in (*listeners, *again):
            await listener.aclose()

    anyio.run(main)


def test_other_failures_to_listen() -> None:
    async def main() -> None:
        with pytest.raises(UserError) as caught:
            await open_listeners([("192.0.2.77", 9)])
        assert caught.value.code == "listen-failed"

    anyio.run(main)
    denied = module._listen_error(("0.0.0.0", 443), errno.EACCES, PermissionError(errno.EACCES, "no"))
    assert (denied.code, denied.exit_code) == ("no-permission", Exit.REFUSED)
