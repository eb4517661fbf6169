"""Several nodes that send through one relay: shares of a slow line, and rates. Outcomes, not durations."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.lab.engines import EngineHost, Key, ping, transfer
from tests.lab.netns import Lab, Namespace, wait_for
from tests.lab.topology import two_homes

pytestmark = pytest.mark.lab

LINE = "20mbit"
SINK_PORTS = (6001, 6002)

_FLOOD = """
import socket, sys
payload = bytes(int(sys.argv[3]))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    while True:
        sock.sendto(payload, (sys.argv[1], int(sys.argv[2])))
"""

_SINK = """
import json, select, socket, sys
received = {}
socks = {}
for port in map(int, sys.argv[2:]):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((sys.argv[1], port))
    socks[sock] = port
    received[port] = 0
print("listening", flush=True)
while True:
    for sock in select.select([*socks, sys.stdin], [], [])[0]:
        if sock is sys.stdin:
            if not sys.stdin.readline():
                sys.exit()
            print(json.dumps(received), flush=True)
        else:
            received[socks[sock]] += len(sock.recv(65536))
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@dataclass
class Relayed:
    """Node 1 relays; the others know no way to each other but through it, each on a cable of its own."""

    relay: EngineHost
    machine: Namespace
    nodes: dict[int, tuple[Namespace, EngineHost]]

    def machine_of(self, number: int) -> Namespace:
        return self.nodes[number][0]

    def slow_line_to(self, number: int) -> None:
        """What the relay sends to that node goes through a line of `LINE`, with room for more than its socket holds."""
        interface = self.machine.interfaces[list(self.nodes).index(number)]
        limits = ["rate", LINE, "burst", "16kb", "limit", "4mb"]
        self.machine.run(["tc", "qdisc", "add", "dev", interface, "root", "tbf", *limits])

    def check_clean(self) -> None:
        for host in (self.relay, *(host for _, host in self.nodes.values())):
            assert "internal_error" not in host.inspect()["drops"], host.log()
            assert host.stop()["failed"] == []


def inner(number: int) -> str:
    return f"10.9.0.{number}"


def relayed(lab: Lab, *numbers: int, options: Sequence[str] = ()) -> Relayed:
    machine = lab.namespace("r")
    cables = {}
    for number in numbers:
        cables[number] = lab.namespace(f"n{number}")
        lab.link(machine, f"203.0.{number}.1/24", cables[number], f"203.0.{number}.2/24")
    relay = EngineHost(machine, Key(), 1, addresses=[f"{inner(1)}/24"], options=["--relay-clients", *options])
    network = Relayed(relay, machine, {})
    for number, namespace in cables.items():
        host = EngineHost(namespace, Key(), number, addresses=[f"{inner(number)}/24"])
        ticket = int.from_bytes(os.urandom(8), "little")
        relay.order("client", number=number, public_key=host.key.public_text, ticket=ticket)
        relay.peer(host.key, number, [f"{inner(number)}/32"])
        endpoints = [[f"203.0.{number}.1", relay.port]]
        host.order("relay", endpoints=endpoints, number=1, public_key=relay.key.public_text, ticket=ticket)
        host.peer(relay.key, 1, [f"{inner(1)}/32"])
        wait_for(lambda host=host: any(e["name"] == "Observed" for e in host.events), "the relay's answer")  # type: ignore[misc]
        for other, (_, known) in network.nodes.items():
            host.peer(known.key, other, [f"{inner(other)}/32"])
            known.peer(host.key, number, [f"{inner(number)}/32"])
        network.nodes[number] = (namespace, host)
    return network


def flood(sender: Namespace, receiver: int, port: int, size: int = 1300) -> "subprocess.Popen[str]":
    return flood_address(sender, inner(receiver), port, size)


def flood_address(sender: Namespace, address: str, port: int, size: int = 1300) -> "subprocess.Popen[str]":
    return sender.popen([sys.executable, "-c", _FLOOD, address, str(port), str(size)])


class Sink:
    """Counts what comes to each of its ports."""

    def __init__(self, machine: Namespace, number: int) -> None:
        command = [sys.executable, "-c", _SINK, inner(number), *map(str, SINK_PORTS)]
        self._process = machine.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._line() == "listening"

    def received(self) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        counts: dict[str, int] = json.loads(self._line())
        return counts

    def _line(self) -> str:
        assert self._process.stdout is not None
        line: str = self._process.stdout.readline()
        return line.strip()


def test_a_flood_does_not_take_a_slow_line_from_others(lab: Lab) -> None:
    network = relayed(lab, 2, 3, 4)
    busy, modest, target = (network.machine_of(number) for number in (2, 3, 4))
    assert ping(busy, inner(4)) and ping(modest, inner(4))
    network.slow_line_to(4)
    sink = Sink(target, 4)
    flooding = flood(busy, 4, SINK_PORTS[0])
    wait_for(lambda: network.relay.inspect()["drops"].get("relay_queue_full", 0) > 1000, "the flood fills its queue")
    assert ping(modest, inner(4), 100, "-i", "0.02", "-s", "1000"), "a ping of 400 kbit/s was not answered in full"
    assert sink.received()[str(SINK_PORTS[0])] > 100_000
    flooding.terminate()
    flooding.wait()
    network.check_clean()


def test_two_floods_share_a_slow_line_whatever_they_send(lab: Lab) -> None:
    network = relayed(lab, 2, 3, 4)
    assert ping(network.machine_of(2), inner(4)) and ping(network.machine_of(3), inner(4))
    network.slow_line_to(4)
    sink = Sink(network.machine_of(4), 4)
    one, other = map(str, SINK_PORTS)
    processes = [flood(network.machine_of(2), 4, SINK_PORTS[0]) for _ in range(3)]
    processes.append(flood(network.machine_of(3), 4, SINK_PORTS[1], 900))

    def both_wait() -> bool:
        counts = sink.received()
        return min(counts.values()) > 50_000 and network.relay.inspect()["relay_waiting"] > 600_000

    wait_for(both_wait, "both floods fill their queues")
    before = sink.received()
    wait_for(lambda: sum(sink.received().values()) - sum(before.values()) > 6_000_000, "6 MB over the line", 30)
    after = sink.received()
    shares = after[one] - before[one], after[other] - before[other]
    assert min(shares) > 0.8 * max(shares), shares
    for process in processes:
        process.terminate()
        process.wait()
    network.check_clean()


def test_the_relays_own_traffic_and_what_it_relays_leave_each_other_room(lab: Lab) -> None:
    network = relayed(lab, 2, 4)
    own, node = network.machine, network.machine_of(2)
    assert ping(own, inner(4)) and ping(node, inner(4))
    network.slow_line_to(4)
    sink = Sink(network.machine_of(4), 4)
    for busy, modest, port in ((own, node, SINK_PORTS[0]), (node, own, SINK_PORTS[1])):
        flooding = flood(busy, 4, port)
        wait_for(lambda port=port: sink.received()[str(port)] > 4_000_000, "the line is full", 30)  # type: ignore[misc]
        assert ping(modest, inner(4), 100, "-i", "0.02", "-s", "1000"), "a ping of 400 kbit/s was not answered in full"
        flooding.terminate()
        flooding.wait()
    network.check_clean()


def test_a_node_with_a_rate_is_slowed_and_loses_nothing_that_its_tcp_minds(lab: Lab) -> None:
    rate, size = 2_000_000.0, 5_000_000
    network = relayed(lab, 2, 3, options=["--relay-rate", str(rate)])
    began = time.monotonic()
    sent, received = transfer(network.machine_of(2), network.machine_of(3), inner(3), size)
    assert sent == received
    assert time.monotonic() - began > 0.9 * size / rate, "faster than the rate"
    network.check_clean()


def test_a_servers_option_bounds_each_node_and_its_status_says_so(lab: Lab) -> None:
    network = two_homes(lab)
    network.start_server("--relay-rate", "8Mbit")
    network.join("a", "b", "c")
    a, c = network["a"].namespace, network["c"].namespace
    address = network.address("b")
    for namespace in (a, c):
        wait_for(lambda namespace=namespace: ping(namespace, address, 1), "a ping through the relay")  # type: ignore[misc]
    flooding = flood_address(a, address, SINK_PORTS[0])
    wait_for(lambda: network.server.status()["drops"].get("relay_rate", 0) > 1000, "the flood is above its rate")
    assert ping(c, address, 20), "what one node may not send is no matter of another's"
    status = network.server.status()
    assert status["relay_rate_bit_s"] == 8e6
    shown = network.server.overlay("status", "-v").stdout
    assert "8 Mbit/s per node at most" in shown and "relay_rate" in shown
    flooding.terminate()
    flooding.wait()
