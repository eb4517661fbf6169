"""Many peers in one engine: what a packet costs must not depend on how many others there are.

Asked three times: with one peer that talks and others that are only known; with a session to each and every packet to
another one; and the same with packets that come one at a time, each to an engine that had gone to sleep. Of those that
come together several belong to one peer where there are two, and none where there are a thousand, so that what is done
once a turn for each peer is shared by fewer. One at a time, the pattern is the same whatever the number of peers.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tests.lab.bench import load
from tests.lab.bench.contenders import (
    FIRST_STRANGER,
    HOST_B,
    INNER_A,
    NUMBER_A,
    PLAIN_WIRE,
    STRANGERS_FROM,
    Contender,
    Ends,
    Overlay,
)
from tests.lab.bench.crowd import CIPHER
from tests.lab.bench.machine import cpu_seconds, resident_mb
from tests.lab.bench.result import Quantity, Result, Sample
from tests.lab.bench.rivals import WireGuard
from tests.lab.bench.runner import EXPECTED, Bench, reason
from tests.lab.bench.suites.tcp import throughput
from tests.lab.engines import EngineHost, Key
from tests.lab.netns import Lab, Namespace, wait_for

TITLE = "Many peers in one engine"
PEERS = (2, 100, 1000)
COST = Quantity("CPU per packet, sending end", "µs", more_is_better=False)
IN_TURN = Quantity("CPU per packet, all peers in turn", "µs", more_is_better=False)
ONE_BY_ONE = Quantity("the same, one packet at a time", "µs", more_is_better=False)
MEMORY = Quantity("memory, sending end", "MB", more_is_better=False)
RATE = 10_000.0  # datagrams/s that all can carry
SLOW_RATE = 2500.0  # datagrams/s that find everybody asleep
SIZE = 64  # bytes
READY_TIMEOUT = 60.0  # s for as many handshakes
HANDSHAKES = 90.0  # per s: from 128 on an engine counts as under load, and asks for proof of addresses first


class Crowd:
    """A contender whose end a knows many peers."""

    def __init__(self, contender: Contender, peers: int) -> None:
        self.name = f"{contender.name}, {peers} peers"
        self._contender = contender
        self._peers = peers

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        return replace(self._contender.join(a, b, self._peers - 1), contender=self.name)


def _cost(ends: Ends, seconds: int) -> Sequence[Sample]:
    before = cpu_seconds(ends.processes_a)
    carried = load.udp(ends, seconds, SIZE, RATE)
    spent = cpu_seconds(ends.processes_a) - before
    return [(COST, spent * 1e6 / (carried.sent * seconds)), (MEMORY, resident_mb(ends.processes_a))]


# --- a session to each ------------------------------------------------------------------------------------------------

_SEND = """
import socket, sys, time
rate, seconds, size, pause = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
addresses = sys.stdin.read().split()
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
start, sent, payload = time.monotonic(), 0, bytes(size)
while (passed := time.monotonic() - start) < seconds:
    while sent < passed * rate:
        sender.sendto(payload, (addresses[sent % len(addresses)], 9))
        sent += 1
    time.sleep(pause)
print(sent)
"""


@dataclass
class Circle(Ends):
    """An engine on machine a, and a crowd on b, one inside address each; it has a session with all of them."""

    addresses: Sequence[str] = ()

    def send(self, rate: float, seconds: float, pause: float = 0.001) -> int:
        """Datagrams to all in turn, those together that are due after `pause` s; how many."""
        command = [sys.executable, "-c", _SEND, *map(str, (rate, seconds, SIZE, pause))]
        return int(self.a.run(command, input=" ".join(self.addresses)).stdout)


def make_circle(lab: Lab, name: str, peers: int) -> Circle:
    """An engine with a session to each of so many peers."""
    a, b, _ = PLAIN_WIRE.lay(lab, name)
    engine = EngineHost(a, Key(), NUMBER_A, addresses=[f"{INNER_A}/14"])
    command = [sys.executable, "-m", "tests.lab.bench.crowd", "--engine-key", engine.key.public_text]
    crowd = b.popen(
        [*command, "--first", str(FIRST_STRANGER), "--count", str(peers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert crowd.stdout is not None
    addresses = []
    for index, (key, port) in enumerate(json.loads(crowd.stdout.readline())):
        addresses.append(str(STRANGERS_FROM + index))
        engine.order(
            "peer",
            number=FIRST_STRANGER + index,
            public_key=key,
            allowed=[f"{addresses[-1]}/32"],
            endpoints=[[HOST_B, port]],
            cipher=CIPHER,
        )
    engine.inspect()
    circle = Circle(f"overlay, {peers} peers", a, b, processes_a=[engine.process.pid], addresses=addresses)

    def all_known() -> bool:
        missing = [peer["number"] for peer in engine.inspect()["peers"] if peer["last_handshake"] is None]
        if missing:
            replace(circle, addresses=[addresses[number - FIRST_STRANGER] for number in missing]).send(HANDSHAKES, 1.0)
        return not missing

    wait_for(all_known, "a session with each of the crowd", READY_TIMEOUT)
    return circle


@contextlib.contextmanager
def _circles(bench: Bench, result: Result, sizes: Sequence[int]) -> Iterator[list[Circle]]:
    with Lab() as lab:
        ready = []
        for size in sizes:
            bench.say(f"{result.suite}: a session with each of {size} peers comes up")
            try:
                ready.append(make_circle(lab, f"c{size}", size))
            except EXPECTED as error:
                result.fail(f"overlay, {size} peers", "a session with each", reason(error))
        yield ready


def _cost_in_turn(ends: Ends, seconds: int) -> Sequence[Sample]:
    assert isinstance(ends, Circle)
    found = []
    for quantity, rate, pause in ((IN_TURN, RATE, 0.001), (ONE_BY_ONE, SLOW_RATE, 1 / SLOW_RATE)):
        before = cpu_seconds(ends.processes_a)
        sent = ends.send(rate, seconds, pause)
        found.append((quantity, (cpu_seconds(ends.processes_a) - before) * 1e6 / sent))
    return found


def run(bench: Bench) -> Result:
    """The subject is the largest crowd: its ratio to the smallest is what must stay near 1."""
    sizes = PEERS[:2] if bench.quick else PEERS
    makers: list[Contender] = [Overlay(), *[rival for rival in bench.rivals if isinstance(rival, WireGuard)]]
    crowds: list[Contender] = [Crowd(maker, size) for maker in makers for size in sizes]
    result = Result("scale", TITLE, f"overlay, {sizes[-1]} peers")
    with bench.joined(result, crowds) as joined:
        bench.ask(
            result,
            joined,
            ("cost", lambda ends: _cost(ends, bench.seconds)),
            throughput("1 stream", bench.seconds),
        )
    with _circles(bench, result, sizes) as circles:
        bench.ask(result, circles, ("cost, in turn", lambda ends: _cost_in_turn(ends, bench.seconds)))
    return result
