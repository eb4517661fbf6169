"""A network with one narrow link between routers, so that the machines' own interfaces are wide and know nothing of it.

    a ── a-router ══ narrow ══ core ── b-router ── b, c
                                └── server

What a sends passes the narrow link first; what b, c or the server send to a passes it last, relayed behind the relay.
Outside addresses are documentation ranges (RFC 5737, RFC 3849). There are programs to talk with, too.
"""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.topology import SERVER_ADDRESS

OUTSIDE = {"server": SERVER_ADDRESS, "a": "192.0.2.2", "b": "203.0.113.2", "c": "203.0.113.6"}
OUTSIDE6 = {"server": "2001:db8:1::2", "a": "2001:db8:2::2", "b": "2001:db8:3::2", "c": "2001:db8:4::2"}
LEAST_IPV6 = 1280

_COUNT_FRAGMENTS = """
table inet overlay_lab_fragments {
    counter seen {}
    chain prerouting {
        type filter hook prerouting priority -450; policy accept;
        ip frag-off & 0x3fff != 0 counter name seen
        exthdr frag exists counter name seen
    }
}
"""

_BLACK_HOLE = """
table inet overlay_lab_black_hole {
    chain output {
        type filter hook output priority 0; policy accept;
        icmp type destination-unreachable icmp code frag-needed drop
        icmpv6 type packet-too-big drop
    }
}
"""


@dataclass
class NarrowNetwork:
    """The links but one are wide: 1500, or 9000 where that makes them wider than the narrow one."""

    machines: dict[str, Namespace]
    routers: dict[str, Namespace]
    narrow: tuple[str, str]  # the link's interfaces, at the core and at a-router

    def __getitem__(self, name: str) -> Namespace:
        return self.machines[name]

    def narrow_to(self, mtu: int) -> None:
        for name, interface in zip(("core", "a-router"), self.narrow, strict=True):
            set_mtu(self.routers[name], interface, mtu)

    def black_hole(self) -> None:
        """From now on no router says that a packet was too large."""
        for router in self.routers.values():
            router.rules(_BLACK_HOLE)

    def fragments(self) -> int:
        """IP fragments that the routers have seen or made."""
        total = 0
        for router in self.routers.values():
            listed = router.run(["nft", "list", "counter", "inet", "overlay_lab_fragments", "seen"]).stdout
            total += int(listed.split("packets")[1].split()[0]) + _fragments_made(router)
        return total


def set_mtu(namespace: Namespace, interface: str, mtu: int) -> None:
    namespace.run(["ip", "link", "set", interface, "mtu", str(mtu)])


def _fragments_made(namespace: Namespace) -> int:
    lines = namespace.run(["cat", "/proc/net/snmp", "/proc/net/snmp6"]).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Ip:"))
    (made6,) = (line.split()[1] for line in lines if line.startswith("Ip6FragCreates"))
    return int(values[names.index("FragCreates")]) + int(made6)


def narrow_network(lab: Lab, mtu: int) -> NarrowNetwork:
    """Below 1280 the narrow link carries no IPv6: the kernel forbids it."""
    wide = 9000 if mtu >= 1500 else 1500
    machines = {name: lab.namespace(name) for name in OUTSIDE}
    routers = {name: lab.namespace(name) for name in ("core", "a-router", "b-router")}
    core, a_router, b_router = routers.values()
    for router in routers.values():
        router.forward()
        router.rules(_COUNT_FRAGMENTS)

    def lay(one: Namespace, first: str, other: Namespace, second: str, net6: str, size: int = wide) -> tuple[str, str]:
        ends = lab.link(one, f"{first}/30", other, f"{second}/30")
        for namespace, interface, host in zip((one, other), ends, (1, 2), strict=True):
            set_mtu(namespace, interface, size)
            if size >= LEAST_IPV6:
                namespace.address(interface, f"2001:db8:{net6}::{host}/64")
        return ends

    lay(core, "198.51.100.2", machines["server"], OUTSIDE["server"], "1")
    narrow = lay(core, "198.51.100.5", a_router, "198.51.100.6", "5", mtu)
    lay(core, "198.51.100.9", b_router, "198.51.100.10", "6")
    lay(a_router, "192.0.2.1", machines["a"], OUTSIDE["a"], "2")
    lay(b_router, "203.0.113.1", machines["b"], OUTSIDE["b"], "3")
    lay(b_router, "203.0.113.5", machines["c"], OUTSIDE["c"], "4")
    for machine, gateway, net6 in (
        (machines["server"], "198.51.100.2", "1"),
        (machines["a"], "192.0.2.1", "2"),
        (machines["b"], "203.0.113.1", "3"),
        (machines["c"], "203.0.113.5", "4"),
        (b_router, "198.51.100.9", "6"),
    ):
        machine.route("default", gateway)
        machine.route("default", f"2001:db8:{net6}::1")
    a_router.route("default", "198.51.100.5")
    core.route("192.0.2.0/30", "198.51.100.6")
    core.route("203.0.113.0/29", "198.51.100.10")
    core.route("2001:db8:3::/64", "2001:db8:6::2")
    core.route("2001:db8:4::/64", "2001:db8:6::2")
    if mtu >= LEAST_IPV6:
        a_router.route("default", "2001:db8:5::1")
        core.route("2001:db8:2::/64", "2001:db8:5::2")
    return NarrowNetwork(machines, routers, narrow)


# --- datagrams of a program -------------------------------------------------------------------------------------------


def _socket(namespace: Namespace, address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.enter():
        return socket.socket(family, socket.SOCK_DGRAM)


@contextlib.contextmanager
def echoing(namespace: Namespace, address: str, port: int = 7) -> Iterator[None]:
    """A program that sends every datagram back."""
    sock = _socket(namespace, address)
    sock.bind((address, port))
    sock.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                data, source = sock.recvfrom(1 << 16)
                sock.sendto(data, source)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        sock.close()


def echoed(namespace: Namespace, address: str, size: int, port: int = 7) -> bool:
    """Does a datagram of `size` random bytes come back as it was?"""
    data = os.urandom(size)
    with _socket(namespace, address) as sock:
        sock.settimeout(2.0)
        sock.sendto(data, (address, port))
        try:
            return sock.recv(1 << 16) == data
        except TimeoutError:
            return False


def all_answered(namespace: Namespace, address: str, size: int, count: int = 3) -> bool:
    """Is each of `count` pings of `size` bytes answered? Nothing else may ping from this machine meanwhile.

    The kernel is asked: once `ping` has heard one answer it waits two round trips for the last, and on a busy machine
    calls an answer lost that came a little later.
    """
    sent, answers = _echoes(namespace)
    command = ["ping", "-q", "-c", str(count), "-i", "0.02", "-s", str(size), address]
    namespace.run(command, check=False)  # what it says itself is not asked for
    if _echoes(namespace)[0] - sent != count:
        return False
    with contextlib.suppress(TimeoutError):
        return wait_for(lambda: _echoes(namespace)[1] - answers >= count, "all answers", 3.0)
    return False


def _echoes(namespace: Namespace) -> tuple[int, int]:
    """Echo requests sent and answers received, IPv4 and IPv6."""
    lines = namespace.run(["cat", "/proc/net/snmp", "/proc/net/snmp6"]).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    counted = dict(zip(names, values, strict=True)) | {
        line.split()[0]: line.split()[1] for line in lines if "Icmp6" in line
    }
    return (
        int(counted["OutEchos"]) + int(counted["Icmp6OutEchos"]),
        int(counted["InEchoReps"]) + int(counted["Icmp6InEchoReplies"]),
    )


@contextlib.contextmanager
def talking(namespace: Namespace, *addresses: str) -> Iterator[None]:
    """Some large packets a second to these addresses meanwhile, so that what looks at traffic has some."""
    processes = [
        namespace.popen(["ping", "-q", "-i", "0.1", "-s", "1300", address], stdout=subprocess.DEVNULL)
        for address in addresses
    ]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()
