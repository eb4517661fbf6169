"""Inside the tunnel as on any other link: what cannot be reached says so, and hops are counted."""

import errno
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.lab.engines import Key, ping
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.test_engine_network import A, B, allowed, check_clean, direct_pair

pytestmark = pytest.mark.lab

NOBODY, NOBODY6 = "10.9.0.99", "fd00:9::99"
LONG = 30.0  # s; what is said at once comes long before


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def connect(namespace: Namespace, address: str, port: int = 80) -> int:
    """The errno with which a TCP connection fails; 0: it does not. Raises `TimeoutError` if nothing is said."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.enter():
        connection = socket.socket(family, socket.SOCK_STREAM)
    with connection:
        connection.settimeout(LONG)
        try:
            connection.connect((address, port))
        except TimeoutError:
            raise
        except OSError as error:
            return error.errno or -1
        return 0


def refusal(namespace: Namespace, address: str) -> str:
    """What `ping` says of one echo request."""
    return str(namespace.run(["ping", "-n", "-c", "1", "-W", "10", address], check=False).stdout)


# --- destination unreachable ------------------------------------------------------------------------------------------


def test_an_address_that_no_peer_has_is_unreachable_at_once(lab: Lab) -> None:
    a, _, one, other = direct_pair(lab)
    assert "Destination Host Unreachable" in refusal(a, NOBODY)
    assert "Destination unreachable: Address unreachable" in refusal(a, NOBODY6)
    assert connect(a, NOBODY) == errno.EHOSTUNREACH
    assert connect(a, NOBODY6) == errno.EHOSTUNREACH
    assert connect(a, B) == errno.ECONNREFUSED
    assert one.inspect()["drops"]["no_peer"] >= 4
    check_clean(one, other)


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_reverse_path_filter_and_firewall_let_the_error_in(lab: Lab, rp_filter: int) -> None:
    a, _, one, other = direct_pair(lab)
    for scope in ("all", one.ready["interface"]):
        a.set(f"net.ipv4.conf.{scope}.rp_filter", rp_filter)
    a.firewall(one.ready["interface"])
    assert connect(a, NOBODY) == errno.EHOSTUNREACH
    assert connect(a, NOBODY6) == errno.EHOSTUNREACH
    check_clean(one, other)


def test_machines_behind_a_node_get_the_error_too(lab: Lab) -> None:
    a, _, one, other = direct_pair(lab)
    inside = lab.namespace("inside")
    lab.link(a, ["192.168.50.1/24", "fd00:50::1/64"], inside, ["192.168.50.2/24", "fd00:50::2/64"])
    a.forward()
    for address, gateway in ((NOBODY, "192.168.50.1"), (NOBODY6, "fd00:50::1")):
        inside.route("default", gateway)
        assert connect(inside, address) == errno.EHOSTUNREACH
    assert "Destination Host Unreachable" in refusal(inside, NOBODY)
    assert "Destination unreachable: Address unreachable" in refusal(inside, NOBODY6)
    check_clean(one, other)


def test_what_is_sent_to_many_gets_no_error(lab: Lab) -> None:
    a, _, one, other = direct_pair(lab)
    a.run(["ip", "route", "add", "224.0.0.0/4", "dev", one.ready["interface"]])
    before = icmp_errors(a)
    with a.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"everybody", ("224.0.0.251", 5353))
    wait_for(lambda: one.inspect()["drops"].get("not_unicast"), "a packet to many")
    assert connect(a, NOBODY) == errno.EHOSTUNREACH
    assert icmp_errors(a) == before + 1  # about the connection alone
    check_clean(one, other)


def icmp_errors(namespace: Namespace) -> int:
    """ICMP destination unreachable received, by the namespace's own count."""
    lines = [line.split() for line in namespace.run(["cat", "/proc/net/snmp"]).stdout.splitlines()]
    names, values = (line for line in lines if line[0] == "Icmp:")
    return int(values[names.index("InDestUnreachs")])


def test_a_peer_that_nothing_leads_to_is_unreachable_soon(lab: Lab) -> None:
    a, _, one, other = direct_pair(lab)
    one.peer(Key(), 4, allowed(4))
    assert connect(a, "10.9.0.4") == errno.EHOSTUNREACH
    assert connect(a, "fd00:9::4") == errno.EHOSTUNREACH
    assert one.inspect()["drops"]["no_path"] >= 2
    check_clean(one, other)


def test_a_connection_waits_for_a_handshake_that_takes_long(lab: Lab) -> None:
    a, b, one, other = direct_pair(lab)
    assert ping(a, B)  # the path is proven; the session is made anew below
    a.rules(
        """
        table inet overlay_lab_silence {
            counter initiations {}
            chain output {
                type filter hook output priority -10; policy accept;
                udp dport 41641 @th,64,32 0x01000000 counter name initiations drop
            }
        }
        """
    )
    one.order("remove_peer", number=3)
    one.peer(other.key, 3, allowed(3), [("198.51.100.2", other.port)])
    outcome: list[int] = []
    connecting = threading.Thread(target=lambda: outcome.append(connect(a, B)))
    connecting.start()
    wait_for(lambda: initiations(a) >= 3, "three initiations", LONG)
    a.rules("delete table inet overlay_lab_silence\n")
    connecting.join(LONG)
    assert outcome == [errno.ECONNREFUSED]  # nobody listens there, and B says so itself
    check_clean(one, other)


def initiations(namespace: Namespace) -> int:
    said = namespace.run(["nft", "list", "counters"]).stdout
    found = re.search(r"packets (\d+)", said)
    return int(found[1]) if found else 0


# --- hops -------------------------------------------------------------------------------------------------------------


def hops(namespace: Namespace, address: str, source: str = "") -> list[str]:
    """The routers on the way to `address` as their "time exceeded" names them, and at the end who answered."""
    found: list[str] = []
    for limit in range(1, 10):
        origin = ["-I", source] if source else []
        said = namespace.run(["ping", "-n", "-c", "1", "-W", "10", "-t", str(limit), *origin, address], check=False)
        answer = re.search(
            r"[Ff]rom ([0-9a-f.:]+?):? icmp_seq=1 (Time to live exceeded|Time exceeded|ttl=)", said.stdout
        )
        assert answer, said.stdout
        found.append(answer[1])
        if answer[2] == "ttl=":
            return found
    raise AssertionError(f"no end after {found}")


def test_the_tunnel_is_one_hop_between_two_routers(lab: Lab) -> None:
    """LAN – A ══ B – LAN: A and B count as one hop each, as routers do; the engines and the way between do not."""
    a, b, one, other = direct_pair(lab)
    here, there = lab.namespace("here"), lab.namespace("there")
    lab.link(a, ["192.168.50.1/24", "fd00:50::1/64"], here, ["192.168.50.2/24", "fd00:50::2/64"])
    lab.link(b, ["192.168.60.1/24", "fd00:60::1/64"], there, ["192.168.60.2/24", "fd00:60::2/64"])
    for router, inside, gateways in (
        (a, here, ("192.168.50.1", "fd00:50::1")),
        (b, there, ("192.168.60.1", "fd00:60::1")),
    ):
        router.forward()
        for gateway in gateways:
            inside.route("default", gateway)
    # As a network with routes to LANs behind nodes has it: the peer's networks, and the kernel's way there.
    one.peer(other.key, 3, [*allowed(3), "192.168.60.0/24", "fd00:60::/64"], [("198.51.100.2", other.port)])
    other.peer(one.key, 2, [*allowed(2), "192.168.50.0/24", "fd00:50::/64"], [("198.51.100.1", one.port)])
    for router, host, networks in (
        (a, one, ("192.168.60.0/24", "fd00:60::/64")),
        (b, other, ("192.168.50.0/24", "fd00:50::/64")),
    ):
        for network in networks:
            router.run(["ip", "route", "add", network, "dev", host.ready["interface"]])

    assert hops(a, B) == [B]
    assert hops(a, "192.168.60.2") == [B, "192.168.60.2"]
    assert hops(here, "192.168.60.2") == ["192.168.50.1", B, "192.168.60.2"]
    assert hops(there, "192.168.50.2") == ["192.168.60.1", A, "192.168.50.2"]
    assert hops(a, "fd00:9::3") == ["fd00:9::3"]
    assert hops(here, "fd00:60::2") == ["fd00:50::1", "fd00:9::3", "fd00:60::2"]
    assert hops(there, "fd00:50::2") == ["fd00:60::1", "fd00:9::2", "fd00:50::2"]
    check_clean(one, other)
