"""Congestion marks and DSCP across the tunnel, as routers on the way set them and hosts count them."""

from collections.abc import Iterator

import pytest

from tests.lab.delay_link import finish_frames
from tests.lab.engines import EngineHost, Key, ping, transfer
from tests.lab.marks import TUNNEL, Watch, congest, congest_wrongly, ecn_of
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.test_engine_network import B6, A, B, allowed, check_clean, direct_pair, node, relayed_pair
from tests.lab.wireguard import WireGuardGo

pytestmark = pytest.mark.lab

ECT_0, EF = 0x02, 0xB8
ECHO = "icmp type echo-request"
ECHO6 = "icmpv6 type echo-request"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def use_ecn(*namespaces: Namespace) -> None:
    for namespace in namespaces:
        namespace.set("net.ipv4.tcp_ecn", 1)  # both families


def tcp_count(namespace: Namespace, name: str) -> int:
    """A counter of the namespace's own TCP."""
    for line in namespace.run(["nstat", "-asz"]).stdout.splitlines():
        found = line.split()
        if found[0] == name:
            return int(found[1])
    raise AssertionError(f"no counter {name}")


def some(every: int) -> str:
    """A rule that matches one of our datagrams in so many."""
    return f"{TUNNEL} numgen inc mod {every} == 0"


# --- ECN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer6", [False, True], ids=["over IPv4", "over IPv6"])
def test_the_outer_header_has_the_ecn_field_of_the_inner(lab: Lab, outer6: bool) -> None:
    a, b, one, other = direct_pair(lab, outer6=outer6)
    assert ping(a, B)
    watch = Watch(a, "output", **ecn_of(TUNNEL, ipv6=outer6))
    sent, received = transfer(a, b, B, 2_000_000)
    assert sent == received
    seen = watch.packets()
    assert seen["none"] and not seen["ect0"] and not seen["ect1"] and not seen["ce"]
    use_ecn(a, b)
    for address in (B, B6):
        before = watch.packets()["ect0"]
        sent, received = transfer(a, b, address, 2_000_000)
        assert sent == received
        assert watch.packets()["ect0"] > before
    for tos, name in ((1, "ect1"), (2, "ect0"), (3, "ce")):
        before = watch.packets()[name]
        assert ping(a, B, 3, "-Q", str(tos))
        assert watch.packets()[name] >= before + 3
    check_clean(one, other)


@pytest.mark.parametrize("outer6", [False, True], ids=["over IPv4", "over IPv6"])
def test_a_mark_on_the_way_reaches_the_receiver_and_slows_the_sender(lab: Lab, outer6: bool) -> None:
    a, b, one, other = direct_pair(lab, outer6=outer6)
    use_ecn(a, b)
    assert ping(a, B)
    congest(b, "prerouting", some(30))
    for address, ipv6 in ((B, False), (B6, True)):
        inner = Watch(b, "input", **ecn_of(f"iifname {other.ready['interface']}", ipv6=ipv6))
        sent, received = transfer(a, b, address)
        assert sent == received
        seen = inner.packets()
        assert seen["ce"] and seen["ect0"] > seen["ce"]
        b.run(["nft", "delete", "table", "inet", inner.table])
    assert tcp_count(a, "TcpExtTCPDeliveredCE") > 0  # the receiver told the sender
    assert "ecn_not_ect_ce" not in other.inspect()["drops"]
    check_clean(one, other)


def test_one_marked_datagram_of_a_record_marks_what_is_in_it(lab: Lab) -> None:
    """A router in between sees datagrams, not runs, and marks single ones."""
    a, router, b = lab.namespace("a"), lab.namespace("router"), lab.namespace("b")
    out, _ = lab.link(a, "198.51.100.1/24", router, "198.51.100.2/24")
    lab.link(router, "203.0.113.1/24", b, "203.0.113.2/24")
    finish_frames(a, out)
    router.forward()
    a.route("203.0.113.0/24", "198.51.100.2")
    b.route("198.51.100.0/24", "203.0.113.1")
    use_ecn(a, b)
    one, other = node(a, 2), node(b, 3)
    one.peer(other.key, 3, allowed(3), [("203.0.113.2", other.port)])
    other.peer(one.key, 2, allowed(2), [("198.51.100.1", one.port)])
    assert ping(a, B)
    congest(router, "forward", some(100))
    outer = Watch(router, "postrouting", **ecn_of(TUNNEL))
    inner = Watch(b, "input", **ecn_of(f"iifname {other.ready['interface']}"))
    sent, received = transfer(a, b, B, 20_000_000)
    assert sent == received
    marked, seen = outer.packets(), inner.packets()
    assert marked["ect0"] > 50 * marked["ce"] > 0
    assert seen["ce"] and seen["ect0"]
    check_clean(one, other)


@pytest.mark.parametrize("outer6", [False, True], ids=["over IPv4", "over IPv6"])
def test_a_mark_on_what_cannot_be_marked_counts_as_a_loss(lab: Lab, outer6: bool) -> None:
    a, b, one, other = direct_pair(lab, outer6=outer6)
    assert ping(a, B)
    inner = Watch(b, "input", **ecn_of(ECHO))
    congest_wrongly(b, "prerouting")
    assert ping(a, B, 3, "-Q", str(ECT_0))
    assert inner.packets() == {"none": 0, "ect0": 0, "ect1": 0, "ce": 3}
    assert not ping(a, B, 1)
    assert inner.packets()["none"] == 0
    assert other.inspect()["drops"]["ecn_not_ect_ce"] == 1
    check_clean(one, other)


def test_a_relay_passes_marks_on(lab: Lab) -> None:
    (r, a, b), (relay, one, other) = relayed_pair(lab)
    use_ecn(a, b)
    assert ping(a, B)
    congest(r, "prerouting", f"iifname eth0 {some(30)}")
    from_relay = Watch(r, "output", **ecn_of(f"ip daddr 203.0.113.2 {TUNNEL}"))
    inner = Watch(b, "input", **ecn_of(f"iifname {other.ready['interface']}"))
    sent, received = transfer(a, b, B)
    assert sent == received
    assert one.path_kind(3) == "relay"
    seen = from_relay.packets()
    assert seen["ce"] and seen["ect0"] > seen["ce"]
    seen = inner.packets()
    assert seen["ce"] and seen["ect0"]
    check_clean(relay, one, other)


def test_marks_with_a_stock_wireguard_peer(lab: Lab) -> None:
    a, b = lab.namespace("a"), lab.namespace("b")
    lab.link(a, "198.51.100.1/24", b, "198.51.100.2/24")
    ours, theirs = Key(), Key()
    engine = EngineHost(a, ours, 2, addresses=[f"{A}/24"], options=["--mtu", "1420"])
    wireguard = WireGuardGo(b, theirs, port=41641, addresses=[f"{B}/24"])
    wireguard.peer(ours, [f"{A}/32"])
    engine.peer(theirs, 3, [f"{B}/32"], [("198.51.100.2", 41641)], transport="wireguard")
    assert ping(a, B)
    outer = Watch(a, "output", **ecn_of(TUNNEL))
    assert ping(a, B, 3, "-Q", str(ECT_0))
    assert outer.packets()["ect0"] >= 3
    use_ecn(a, b)
    before = outer.packets()["ect0"]
    sent, received = transfer(a, b, B, 2_000_000)
    assert sent == received
    assert outer.packets()["ect0"] > before
    inner = Watch(a, "input", **ecn_of("icmp type echo-request"))
    congest_wrongly(a, "prerouting")  # it sends all as not ECN-capable
    b.run(["ping", "-c", "1", "-W", "10", "-Q", str(ECT_0), A])
    assert inner.packets()["ce"] == 1
    assert not ping(b, A, 1)
    wait_for(lambda: engine.inspect()["drops"].get("ecn_not_ect_ce"), "a drop")
    check_clean(engine)


# --- DSCP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer6", [False, True], ids=["over IPv4", "over IPv6"])
@pytest.mark.parametrize("copied", [False, True], ids=["hidden", "copied"])
def test_the_dscp_is_shown_outside_only_where_it_is_asked_for(lab: Lab, copied: bool, outer6: bool) -> None:
    a, b, one, other = direct_pair(lab, outer6=outer6, options=("--copy-dscp",) if copied else ())
    assert ping(a, B)
    family = "ip6" if outer6 else "ip"
    outer = Watch(a, "output", ef=f"{TUNNEL} {family} dscp ef", marked=f"{TUNNEL} {family} ecn ect0")
    inner = Watch(b, "input", four=f"{ECHO} ip dscp ef", six=f"{ECHO6} ip6 dscp ef", marked=f"{ECHO} ip ecn ect0")
    assert ping(a, B, 3, "-Q", str(EF | ECT_0))
    assert ping(a, B6, 3, "-Q", str(EF))
    assert inner.packets() == {"four": 3, "six": 3, "marked": 3}
    seen = outer.packets()
    assert seen["marked"] >= 3
    assert seen["ef"] >= 6 if copied else seen["ef"] == 0
    sent, received = transfer(a, b, B, 2_000_000)
    assert sent == received
    check_clean(one, other)


def test_what_the_way_made_of_the_dscp_does_not_come_in(lab: Lab) -> None:
    a, b, one, other = direct_pair(lab, options=("--copy-dscp",))
    assert ping(a, B)
    b.rules(
        """
        table inet overlay_lab_remark {
            chain prerouting {
                type filter hook prerouting priority -200; policy accept;
                udp dport 41641 ip dscp set cs1
            }
        }
        """
    )
    inner = Watch(b, "input", ef=f"{ECHO} ip dscp ef", cs1=f"{ECHO} ip dscp cs1")
    assert ping(a, B, 3, "-Q", str(EF))
    assert inner.packets() == {"ef": 3, "cs1": 0}
    check_clean(one, other)
