"""Engines in namespaces of their own, with real interfaces: direct, through a relay, and from one to the other."""

import os
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from overlay.engine.features import Features
from overlay.engine.tun import open_tun
from overlay.errors import UserError
from tests.lab.engines import EngineHost, Key, ping, transfer, wait_for_ping
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.pings import COMMAND, Pings

pytestmark = pytest.mark.lab

A, B = "10.9.0.2", "10.9.0.3"
A6, B6 = "fd00:9::2", "fd00:9::3"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def allowed(number: int) -> list[str]:
    return [f"10.9.0.{number}/32", f"fd00:9::{number}/128"]


def node(namespace: Namespace, number: int, *options: str) -> EngineHost:
    addresses = [f"10.9.0.{number}/24", f"fd00:9::{number}/64"]
    return EngineHost(namespace, Key(), number, addresses=addresses, options=options)


def direct_pair(
    lab: Lab, *, cipher: str = "chacha20-poly1305", options: tuple[str, ...] = (), outer6: bool = False
) -> tuple[Namespace, Namespace, EngineHost, EngineHost]:
    a, b = lab.namespace("a"), lab.namespace("b")
    lab.link(a, ["198.51.100.1/24", "2001:db8::1/64"], b, ["198.51.100.2/24", "2001:db8::2/64"])
    one, other = node(a, 2, *options), node(b, 3, *options)
    one.peer(other.key, 3, allowed(3), [("2001:db8::2" if outer6 else "198.51.100.2", other.port)], cipher=cipher)
    other.peer(one.key, 2, allowed(2), [("2001:db8::1" if outer6 else "198.51.100.1", one.port)], cipher=cipher)
    return a, b, one, other


def check_clean(*hosts: EngineHost) -> None:
    """No engine failed, none had a bug."""
    for host in hosts:
        assert "internal_error" not in host.inspect()["drops"], host.log()
        assert host.stop()["failed"] == []


@pytest.mark.parametrize("cipher", ["chacha20-poly1305", "aes-256-gcm"])
def test_two_engines_carry_ping_and_tcp_both_ways(lab: Lab, cipher: str) -> None:
    a, b, one, other = direct_pair(lab, cipher=cipher)
    assert ping(a, B)
    assert ping(b, A6)
    for sender, receiver, address in ((a, b, B), (b, a, A6)):
        sent, received = transfer(sender, receiver, address)
        assert sent == received
    assert one.inspect()["peers"][0]["path"]["kind"] == "udp"
    check_clean(one, other)


def test_a_path_over_ipv6(lab: Lab) -> None:
    a, b, one, other = direct_pair(lab, outer6=True)
    assert ping(a, B)
    sent, received = transfer(a, b, B)
    assert sent == received
    assert one.inspect()["peers"][0]["path"]["endpoint"] == ["2001:db8::2", other.port]
    check_clean(one, other)


@pytest.mark.parametrize(
    "without",
    [["tun_vnet"], ["tun_csum"], ["tun_tso"], ["tun_uso"], ["udp_gso"], ["udp_gro"], list(Features().as_dict())],
)
def test_without_a_kernel_feature_everything_still_works(lab: Lab, without: list[str]) -> None:
    """One end without, the other with all of them: what one sends, the other must be able to write."""
    a, b = lab.namespace("a"), lab.namespace("b")
    lab.link(a, "198.51.100.1/24", b, "198.51.100.2/24")
    one, other = node(a, 2, *(f"--without={name}" for name in without)), node(b, 3)
    one.peer(other.key, 3, allowed(3), [("198.51.100.2", other.port)])
    other.peer(one.key, 2, allowed(2), [("198.51.100.1", one.port)])
    assert ping(a, B, 1)
    for sender, receiver, address in ((a, b, B), (b, a, A6)):
        sent, received = transfer(sender, receiver, address, 2_000_000)
        assert sent == received
    found = one.inspect()["features"]
    assert not any(found[name] for name in without)
    check_clean(one, other)


def test_a_keys_renewal_does_not_disturb_a_transfer(lab: Lab) -> None:
    a, b, one, other = direct_pair(lab)
    assert ping(a, B)
    # A session sends no handshake message within 5 s of its last.
    wait_for(lambda: min(host.inspect()["peers"][0]["last_handshake"] for host in (one, other)) > 5.0, "an old key")
    before = len(completed(one))
    sent, received = transfer(a, b, B, 20_000_000, during=lambda: one.order("rekey", number=3))
    assert sent == received
    wait_for(lambda: len(completed(one)) > before, "a new key")
    assert ping(b, A)
    check_clean(one, other)


def completed(host: EngineHost) -> list[float]:
    return [index for index, event in enumerate(host.events) if event["name"] == "HandshakeCompleted"]


def test_the_interface_goes_down_and_comes_up_again(lab: Lab) -> None:
    a, b, one, other = direct_pair(lab)
    assert ping(a, B)
    name = other.ready["interface"]
    b.link_state(name, up=False)
    assert not ping(a, B, 2)
    b.link_state(name, up=True)
    wait_for_ping(a, B)
    assert other.inspect()["drops"]["tun_down"] >= 1
    check_clean(one, other)


def test_the_network_goes_away_and_comes_back(lab: Lab) -> None:
    a, b, one, other = direct_pair(lab)
    assert ping(a, B)
    a.link_state("eth0", up=False)
    assert not ping(a, B, 2)
    assert one.inspect()["drops"]["send_unreachable"] >= 1
    a.link_state("eth0", up=True)
    wait_for_ping(a, B)
    check_clean(one, other)


def test_an_interface_that_is_removed_ends_the_engine_with_a_reason(lab: Lab) -> None:
    a, _, one, other = direct_pair(lab)
    a.run(["ip", "link", "delete", one.ready["interface"]])
    wait_for(lambda: [event for event in one.events if event["name"] == "EngineFailed"], "EngineFailed")
    assert "was removed" in one.stop()["failed"][0]
    check_clean(other)


def test_a_path_with_a_small_mtu_gets_smaller_datagrams(lab: Lab) -> None:
    a, b, one, other = direct_pair(lab)
    assert ping(a, B)
    for namespace in (a, b):
        namespace.run(["ip", "link", "set", "eth0", "mtu", "1280"])
    for sender, receiver, address in ((a, b, B), (b, a, A)):
        sent, received = transfer(sender, receiver, address, 2_000_000)
        assert sent == received
    assert one.inspect()["peers"][0]["path"]["mtu"] in (1232, 1252)  # 1252 once the search has come so far
    check_clean(one, other)


def test_an_interface_name_in_use_is_said(lab: Lab) -> None:
    a = lab.namespace("a")
    with a.enter():
        first = open_tun("ovtest0", Features())
        try:
            with pytest.raises(UserError) as refused:
                open_tun("ovtest0", Features())
            assert refused.value.code == "interface-in-use"
            with pytest.raises(UserError) as refused:
                open_tun("lo", Features())
            assert refused.value.code == "interface-in-use"
            numbered = open_tun("ovn%d", Features())
            assert numbered.name == "ovn0"
            numbered.close()
        finally:
            first.close()


# --- the relay --------------------------------------------------------------------------------------------------------


def connect_to_relay(relay: EngineHost, address: str, host: EngineHost) -> None:
    ticket = int.from_bytes(os.urandom(8), "little")
    relay.order("client", number=host.number, public_key=host.key.public_text, ticket=ticket)
    relay.peer(host.key, host.number, allowed(host.number))
    host.order("relay", endpoints=[[address, relay.port]], number=1, public_key=relay.key.public_text, ticket=ticket)
    host.peer(relay.key, 1, allowed(1))
    # What is sent to a node before its relay knows it is lost, and a handshake is tried again after 5 s only.
    wait_for(lambda: [event for event in host.events if event["name"] == "Observed"], "the relay's answer")


def relayed_pair(lab: Lab) -> tuple[tuple[Namespace, Namespace, Namespace], tuple[EngineHost, EngineHost, EngineHost]]:
    """A relay between two networks, and a peer in each: their namespaces and engines, the relay's first."""
    r, a, b = lab.namespace("r"), lab.namespace("a"), lab.namespace("b")
    lab.link(r, "198.51.100.1/24", a, "198.51.100.2/24")
    lab.link(r, "203.0.113.1/24", b, "203.0.113.2/24")
    relay, one, other = node(r, 1, "--relay-clients"), node(a, 2), node(b, 3)
    connect_to_relay(relay, "198.51.100.1", one)
    connect_to_relay(relay, "203.0.113.1", other)
    one.peer(other.key, 3, allowed(3))
    other.peer(one.key, 2, allowed(2))
    return (r, a, b), (relay, one, other)


def test_through_a_relay_and_with_the_relay_itself(lab: Lab) -> None:
    (r, a, b), (relay, one, other) = relayed_pair(lab)
    assert ping(a, B)
    for sender, receiver, address in ((a, b, B), (b, a, A6), (a, r, "10.9.0.1"), (r, b, B)):
        sent, received = transfer(sender, receiver, address)
        assert sent == received
    assert one.path_kind(3) == "relay"
    assert relay.inspect()["relayed_bytes"] > 20_000_000
    assert [event["endpoint"] for event in one.events if event["name"] == "Observed"] == [["198.51.100.2", one.port]]
    check_clean(relay, one, other)


def test_a_relay_that_starts_again_is_found_again(lab: Lab) -> None:
    r, a, b = lab.namespace("r"), lab.namespace("a"), lab.namespace("b")
    lab.bridge(r, "198.51.100.1/24", [(a, "198.51.100.2/24"), (b, "198.51.100.3/24")])
    relay, one, other = node(r, 1, "--relay-clients"), node(a, 2), node(b, 3)
    for host in (one, other):
        connect_to_relay(relay, "198.51.100.1", host)
    one.peer(other.key, 3, allowed(3))
    other.peer(one.key, 2, allowed(2))
    assert ping(a, B)
    handshakes = len(completed(one))
    relay.stop()
    again = EngineHost(r, relay.key, 1, addresses=["10.9.0.1/24"], options=["--relay-clients"])
    for host in (one, other):
        connect_to_relay(again, "198.51.100.1", host)
    wait_for_ping(a, B, 8)
    assert len([event for event in one.events[handshakes:] if event.get("number") == 3]) <= 4
    check_clean(again, one, other)


def test_the_direct_path_is_taken_and_left_within_a_second_when_it_is_cut(lab: Lab) -> None:
    r, a, b = lab.namespace("r"), lab.namespace("a"), lab.namespace("b")
    lab.bridge(r, "198.51.100.1/24", [(a, "198.51.100.2/24"), (b, "198.51.100.3/24")])
    relay, one, other = node(r, 1, "--relay-clients"), node(a, 2), node(b, 3)
    for host in (one, other):
        connect_to_relay(relay, "198.51.100.1", host)
    one.peer(other.key, 3, allowed(3), lan_endpoints=[("198.51.100.3", other.port)])
    other.peer(one.key, 2, allowed(2), lan_endpoints=[("198.51.100.2", one.port)])
    pings = Pings(a.popen([*COMMAND, B], stdout=subprocess.PIPE))
    try:
        wait_for(lambda: (one.path_kind(3), other.path_kind(2)) == ("lan", "lan"), "the direct path")
        pings.wait_for_answers(20)
        a.block("ip daddr 198.51.100.3")
        a_cut = time.time()
        wait_for(lambda: (one.path_kind(3), other.path_kind(2)) == ("relay", "relay"), "the relay")
        pings.wait_for_answers(30)
        a.unblock()
        wait_for(lambda: one.path_kind(3) == "lan", "the direct path again", 20)
    finally:
        pings.stop()
    arrivals = [when for when, _ in pings.arrivals]
    gaps = [(after - before, before) for before, after in zip(arrivals, arrivals[1:], strict=False)]
    worst, when = max(gaps)
    assert worst < 1.5, (worst, when - a_cut)
    sent, received = transfer(a, b, B, 2_000_000)
    assert sent == received
    check_clean(relay, one, other)


def test_the_hosts_addresses_are_what_the_tests_think() -> None:
    """A guard of this file: numbers and networks agree."""
    assert [str(ip_network(text).network_address) for text in allowed(3)] == [B, B6]
