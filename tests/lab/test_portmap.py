"""Port mapping by a real router daemon (miniupnpd): made, of use to peers, made anew, refused, removed."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from overlay.node import upnp
from overlay.wire.portmap import SERVER_PORT, igd, nat_pmp
from tests.lab.conftest import tracked
from tests.lab.nats import forget_flows, home
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.topology import Network

pytestmark = pytest.mark.lab

# Addresses that a router daemon takes for public ones: it refuses to work on the documentation's (RFC 5737).
SERVER, ROUTER, OTHER = "9.1.1.1", "9.1.1.11", "9.1.1.12"
INSIDE = "192.168.1.10"
PORT = 41000
LEASE = 4  # s
STRANGE = 20  # datagrams: more than a drops of what others send meanwhile
_TABLES = """
table inet filter {
    chain forward { type filter hook forward priority 0; policy accept; jump miniupnpd; }
    chain miniupnpd { }
}
table inet nat {
    chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
    chain prerouting_miniupnpd { }
    chain postrouting { type nat hook postrouting priority 100; policy accept; jump postrouting_miniupnpd; }
    chain postrouting_miniupnpd { }
}
"""
_CONFIGURATION = """
ext_ifname=eth0
{outside}listening_ip={inside}
enable_natpmp={nat_pmp}
enable_upnp={upnp}
min_lifetime=120
max_lifetime=86400
upnp_table_name=filter
upnp_nat_table_name=nat
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
secure_mode=yes
system_uptime=no
uuid=a8500404-9eb2-4937-9ea3-8b1729253cd8
force_igd_desc_v1={version_1}
{rules}
deny 0-65535 0.0.0.0/0 0-65535
"""
_NO_VERSION = "meta l4proto udp udp dport 5351 @th,64,8 {} drop"
"""Drops requests of one protocol: the first byte is its version, 0 of NAT-PMP, 2 of PCP."""


@dataclass
class Router:
    """A home router whose daemon maps ports."""

    namespace: Namespace
    folder: Path
    daemon: "subprocess.Popen[str] | None" = None

    def start(self, *speaks: str, allow: bool = True, version_1: bool = False, outside: str = "") -> None:
        """Speaks some of nat-pmp, pcp and upnp."""
        self.stop()
        dropped = [_NO_VERSION.format(number) for name, number in (("nat-pmp", 0), ("pcp", 2)) if name not in speaks]
        chain = "\n".join(("type filter hook input priority -10; policy accept;", *dropped))
        table = "table inet overlay_lab_spoken"
        self.namespace.rules(f"{table} {{}}\ndelete {table}\n{table} {{\nchain input {{\n{chain}\n}}\n}}\n")
        configuration = self.folder / "miniupnpd.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                inside="br0",
                outside=outside,
                nat_pmp="yes" if {"nat-pmp", "pcp"} & set(speaks) else "no",
                upnp="yes" if "upnp" in speaks else "no",
                version_1="yes" if version_1 else "no",
                rules="allow 1024-65535 192.168.1.0/24 1024-65535" if allow else "",
            )
        )
        with (self.folder / "miniupnpd.log").open("w") as log:
            command = ["miniupnpd", "-d", "-f", str(configuration), "-P", str(self.folder / "miniupnpd.pid")]
            self.daemon = self.namespace.popen(command, stdout=subprocess.DEVNULL, stderr=log)
        wait_for(lambda: ":1900 " in self._sockets() or ":5351 " in self._sockets(), "the router's daemon listens")

    def stop(self) -> None:
        """As a power cut: its mappings are gone, and nobody is told."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None
        emptied = "".join(f"table inet {name} {{}}\ndelete table inet {name}\n" for name in ("filter", "nat"))
        self.namespace.rules(emptied + _TABLES)
        forget_flows(self.namespace)

    def mapped(self) -> str:
        """Its rules that let somebody in."""
        return str(self.namespace.run(["nft", "list", "chain", "inet", "nat", "prerouting_miniupnpd"]).stdout)

    def epoch(self) -> int:
        """How long the daemon has been up, as NAT-PMP says, s."""
        with self.namespace.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5.0)
            asking.sendto(nat_pmp.external_address_request(), ("192.168.1.1", SERVER_PORT))
            return nat_pmp.parse_response(asking.recv(64)).epoch

    def _sockets(self) -> str:
        return str(self.namespace.run(["ss", "-Huln"]).stdout)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A server, and two homes whose NATs draw ports: without a mapping, no datagram of one gets into the other."""
    with Lab() as lab:
        spaces = {name: lab.namespace(name) for name in ("server", "router", "other", "internet", "a", "b")}
        public = (("server", SERVER), ("router", ROUTER), ("other", OTHER))
        lab.bridge(spaces["internet"], [], [(spaces[name], f"{address}/24") for name, address in public])
        home(lab, spaces["router"], "192.168.1", [(spaces["a"], "10")], "symmetric")
        home(lab, spaces["other"], "192.168.2", [(spaces["b"], "10")], "symmetric")
        found = Network(lab, spaces["internet"])
        for name in ("server", "a", "b"):
            found.machine(spaces[name])
        found.server.overlay("server", "--public", SERVER, "--quiet")
        with tracked(found):
            found["b"].overlay("up", "-", "--name", "b", "--port-mapping", "off", "--quiet", given=found.invite())
            found["a"].overlay("up", "-", "--name", "a", "--port-mapping", "off", "--quiet", given=found.invite())
            found["a"].overlay("down", "--quiet")
            yield found


@pytest.fixture(scope="module")
def router(network: Network) -> Iterator[Router]:
    found = Router(network.lab.namespaces["router"], network.lab.directory)
    yield found
    found.stop()


@contextmanager
def up(network: Network) -> Iterator[None]:
    network["a"].overlay("up", "--quiet")
    try:
        yield
    finally:
        network["a"].overlay("down", "--quiet")


def mapping(network: Network) -> dict[str, Any]:
    """What a says of it."""
    found: dict[str, Any] = network["a"].status()["port_mapping"]
    return found


def wait_for_mapping(network: Network) -> dict[str, Any]:
    wait_for(lambda: mapping(network)["external"], "a port is mapped")
    return mapping(network)


def endpoint_of_a(network: Network) -> str | None:
    """Where b sends what is for a."""
    peer = network["b"].peer("a")
    return peer["path"]["endpoint"] if peer is not None and peer["path"] is not None else None


def dropped(network: Network) -> int:
    """Datagrams that a received and could not use."""
    return sum(network["a"].status()["drops"].values())


def strangers_get_in(network: Network, port: int) -> bool:
    """Whether what somebody outside sends to the router's port gets to a's engine, which drops it."""
    before = dropped(network)
    with network.lab.namespaces["other"].enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for _ in range(STRANGE):
            stranger.sendto(bytes(100), (ROUTER, port))
    wait_for(lambda: dropped(network) >= before + STRANGE, "strange datagrams get in")
    return True


@pytest.mark.parametrize(
    ("protocol", "version_1"), [("nat-pmp", False), ("pcp", False), ("upnp", False), ("upnp", True)]
)
def test_each_protocol_lets_others_in_and_is_undone(
    network: Network, router: Router, protocol: str, version_1: bool
) -> None:
    router.start(protocol, version_1=version_1)
    with up(network):
        found = wait_for_mapping(network)
        port = network["a"].status()["port"]
        assert found == {"protocol": protocol, "gateway": "192.168.1.1", "external": f"{ROUTER}:{port}", "why": ""}
        assert f"{INSIDE}:{port}" in router.mapped()
        assert strangers_get_in(network, port)
    assert INSIDE not in router.mapped()


def test_peers_with_hard_nats_reach_each_other_by_it(network: Network, router: Router) -> None:
    router.start("pcp")
    with up(network):
        external = wait_for_mapping(network)["external"]
        pinging = network["b"].popen("ping", "-q", "-i", "0.2", network.address("a"), stdout=subprocess.DEVNULL)
        try:
            wait_for(lambda: endpoint_of_a(network) == external, "b reaches a through it", timeout=20.0)
        finally:
            pinging.kill()
            pinging.wait()


def test_a_router_that_started_anew_is_asked_anew(network: Network, router: Router) -> None:
    router.start("nat-pmp", "pcp")
    with up(network):
        found = wait_for_mapping(network)
        assert found["protocol"] == "nat-pmp"
        wait_for(lambda: router.epoch() > 4, "the router is old enough for its new start to show")
        router.start("nat-pmp", "pcp")
        wait_for(lambda: INSIDE in router.mapped(), "the port is mapped again")
        assert wait_for_mapping(network)["external"] == found["external"]


def test_a_lease_by_upnp_is_renewed_made_anew_and_ends_by_itself(
    network: Network, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the parts that the daemon keeps it with, since nobody waits for an hour."""
    monkeypatch.setattr(upnp, "LIFETIME", LEASE)
    router.start("upnp")

    async def keep(lease: upnp.Lease) -> upnp.Lease:
        """Renew it when that is due, until it is older than it was to become."""
        while lease.due < begin + 1.5 * LEASE:
            await anyio.sleep(lease.renewal)
            lease = await lease.keep()
        return lease

    async def make() -> upnp.Lease:
        return await (await upnp.find(INSIDE, "192.168.1.1")).map(PORT)

    async def left(lease: upnp.Lease) -> int:
        entry = await lease.device.act("GetSpecificPortMappingEntry", igd.entry("udp", PORT))
        return int(entry["NewLeaseDuration"])

    with network["a"].namespace.enter():
        begin = time.monotonic()
        lease = anyio.run(make)
        assert lease.external == (ROUTER, PORT) and 0 < anyio.run(left, lease) <= LEASE
        lease = anyio.run(keep, lease)
        assert time.monotonic() > begin + LEASE and 0 < anyio.run(left, lease) <= LEASE
        anyio.run(lease.remove)  # as the router's owner might
        assert INSIDE not in router.mapped()
        lease = anyio.run(replace(lease, due=time.monotonic() + LEASE).keep)  # a look, and no renewal
        assert f"{INSIDE}:{PORT}" in router.mapped()
        wait_for(lambda: INSIDE not in router.mapped(), "it ends when nobody renews it", 20)


def test_what_a_router_refuses_or_cannot_know_is_said_and_not_offered(network: Network, router: Router) -> None:
    router.start("upnp", allow=False, version_1=True)
    with up(network):
        wait_for(lambda: "By UPnP it refuses" in mapping(network)["why"], "the refusal is told")
        assert mapping(network)["external"] is None and "neither NAT-PMP nor PCP" in mapping(network)["why"]
        router.start("nat-pmp", outside="ext_ip=9.1.1.99\n")
        network["a"].namespace.address("eth0", "192.168.1.20/24")  # a change of the link: asked again at once
        wait_for(lambda: "is seen at" in mapping(network)["why"], "another address outside is noticed")
        shown = network["a"].overlay("status", "-v").stdout
        assert "9.1.1.99" in shown and f"is seen at {ROUTER}" in shown


def test_netcheck_tries_it_and_leaves_nothing(network: Network, router: Router) -> None:
    router.start("upnp")
    report = network["a"].overlay_json("netcheck", "--carrier", "udp")
    assert report["port_mapping"]["protocol"] == "upnp"
    assert INSIDE not in router.mapped()
