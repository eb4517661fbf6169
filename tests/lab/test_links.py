"""Where no UDP passes, two nodes talk through a relay over TCP links: real TUN devices, real TCP inside and outside."""

from collections.abc import Iterator

import pytest

from tests.lab.engines import EngineHost, Key, ping, transfer, wait_for_ping
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.test_engine_network import A, B, allowed, check_clean, node

pytestmark = pytest.mark.lab

RELAY = "198.51.100.9"
LINKS_PORT = 443
SIZE = 5_000_000

NO_UDP = """
table inet overlay_lab_no_udp {
    chain out { type filter hook output priority 0; oifname "eth*" meta l4proto udp drop; }
    chain in { type filter hook input priority 0; iifname "eth*" meta l4proto udp drop; }
}
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def relayed_pair(lab: Lab, *without_udp: str) -> tuple[Namespace, Namespace, EngineHost, EngineHost, EngineHost]:
    """Two nodes, a and b, on one side of a relay each; they know no endpoint of each other."""
    relay, a, b = lab.namespace("relay"), lab.namespace("a"), lab.namespace("b")
    lab.link(relay, f"{RELAY}/24", a, "198.51.100.1/24")
    lab.link(relay, "203.0.113.9/24", b, "203.0.113.1/24")
    for namespace in (a, b):
        if namespace.short_name in without_udp:
            namespace.rules(NO_UDP)
    options = ("--no-tun", "--relay-clients", "--links-port", str(LINKS_PORT))
    server = EngineHost(relay, Key(), 1, options=options)
    one, other = node(a, 2), node(b, 3)
    for host, address, ticket in ((one, RELAY, 72), (other, "203.0.113.9", 73)):
        server.order("client", number=host.number, public_key=host.key.public_text, ticket=ticket)
        host.order(
            "relay", endpoints=[(address, server.port)], number=1, public_key=server.key.public_text, ticket=ticket
        )
    server.inspect()
    one.peer(other.key, 3, allowed(3))
    other.peer(one.key, 2, allowed(2))
    return a, b, server, one, other


def way(host: EngineHost) -> object:
    """How the home relay is reached, by the last event."""
    changes = [event for event in host.events if event["name"] == "RelayChanged"]
    return changes[-1]["endpoint"] if changes else None


def test_without_udp_a_transfer_arrives_whole_both_ways(lab: Lab) -> None:
    a, b, server, one, other = relayed_pair(lab, "a", "b")
    one.order("link", number=1, endpoint=(RELAY, LINKS_PORT))
    other.order("link", number=1, endpoint=("203.0.113.9", LINKS_PORT))
    wait_for(lambda: way(one) == way(other) == ["@link", 1], "both links")
    wait_for_ping(a, B)
    for sender, receiver, address in ((a, b, B), (b, a, A)):
        sent, received = transfer(sender, receiver, address, SIZE)
        assert sent == received
    assert one.path_kind(3) == "relay"
    check_clean(one, other, server)


def test_a_link_on_one_side_udp_on_the_other(lab: Lab) -> None:
    a, b, server, one, other = relayed_pair(lab, "a")
    one.order("link", number=1, endpoint=(RELAY, LINKS_PORT))
    wait_for(lambda: way(one) == ["@link", 1], "the link")
    wait_for_ping(a, B)
    for sender, receiver, address in ((a, b, B), (b, a, A)):
        sent, received = transfer(sender, receiver, address, SIZE)
        assert sent == received
    check_clean(one, other, server)


def test_udp_is_blocked_in_the_middle_of_a_transfer_and_opened_again(lab: Lab) -> None:
    a, b, server, one, other = relayed_pair(lab)
    wait_for_ping(a, B)
    assert way(one) == [RELAY, server.port]

    def block() -> None:
        a.rules(NO_UDP)
        wait_for(lambda: suspect(one), "a hint to look for another way")
        one.order("link", number=1, endpoint=(RELAY, LINKS_PORT))
        wait_for(lambda: way(one) == ["@link", 1], "the link")

    sent, received = transfer(a, b, B, SIZE, during=block)
    assert sent == received
    a.run(["nft", "delete", "table", "inet", "overlay_lab_no_udp"])
    wait_for(lambda: way(one) == [RELAY, server.port], "UDP again", 40)
    assert ping(b, A)
    one.order("remove_link", number=1)
    assert ping(a, B)
    check_clean(one, other, server)


def suspect(host: EngineHost) -> bool:
    return any(event["name"] == "RelayChanged" and event["suspect"] for event in host.events)
