"""A hostile peer in front of a real interface: no lie reaches the kernel, and the kernel refuses nothing that does."""

import os
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from overlay.engine.features import Features
from overlay.engine.tun import open_tun
from tests.engine.hostile_peer import HostilePeer
from tests.lab.bad_network import HOST_A, HOST_B, INNER, allowed
from tests.lab.bench.machine import resident_mb
from tests.lab.engines import EngineHost, Key
from tests.lab.netns import Lab
from tests.lab.packet_socket import PacketSocket
from tests.wire.packet import lies
from tests.wire.packet.packets import Flow

pytestmark = pytest.mark.lab

MARKER = b"not for a kernel"
MEMORY = 15.0  # MB that an engine may grow by under a flood
BURST = 64  # datagrams that any socket buffer holds
PATIENCE = 10.0  # s


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


class Scene:
    """An engine with a real interface, a socket that sees what reaches it, and a hostile peer on another machine."""

    def __init__(self, lab: Lab, *, transport: str = "record", without: tuple[str, ...] = ()) -> None:
        self.a, self.b = lab.namespace("a"), lab.namespace("b")
        lab.link(self.a, f"{HOST_A}/24", self.b, f"{HOST_B}/24")
        addresses = [f"{INNER[3][4]}/24", f"{INNER[3][6]}/64"]
        options = [f"--without={name}" for name in without]
        self.engine = EngineHost(self.b, Key(), 3, addresses=addresses, options=options)
        key = Key()
        with self.a.enter():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((HOST_A, 0))
        sock.settimeout(10)
        self.engine.peer(key, 2, allowed(2), [sock.getsockname()], transport=transport)
        self.peer = HostilePeer(sock, (HOST_B, self.engine.port), self.engine.key.public, key.private)
        self.peer.shake_hands()
        self.interface = PacketSocket(self.b, self.engine.ready["interface"])
        self.seen: list[bytes] = []
        """Packets that reached the interface, those that `say` added excepted."""
        self._transport = transport
        self._said = 0
        self.say([b""])

    def say(self, plaintexts: list[bytes]) -> None:
        """Seal and send all of these, not faster than they are taken."""
        for at in range(0, len(plaintexts), BURST):
            for plain in plaintexts[at : at + BURST]:
                self.peer.send(self._seal(plain))
            self.wait_until_taken()

    def wait_until_taken(self) -> None:
        """Until the engine has looked at all that was sent: an honest packet behind it has reached the kernel."""
        self._said += 1
        last = Flow(protocol=253).packet(b"last %d" % self._said)
        frame = bytes(lies.VNET_SIZE) + last
        self.peer.send(self._seal(lies.plaintext(frame) if self._transport == "record" else last))
        deadline = time.monotonic() + PATIENCE
        while not self.seen or self.seen[-1] != last:
            assert select.select([self.interface], [], [], max(0.0, deadline - time.monotonic()))[0], self.drops()
            self.seen += [each[lies.VNET_SIZE :] for each in self.interface.frames()]
        self.seen.pop()

    def _seal(self, plain: bytes) -> list[bytes]:
        return self.peer.record(plain) if self._transport == "record" else [self.peer.packet(plain)]

    def drops(self) -> Counter[str]:
        """Less the kernel's own multicast, which has no peer, and reports to ours, which answers no ping."""
        counted = Counter(self.engine.inspect()["drops"])
        del counted["no_peer"], counted["not_unicast"], counted["no_path"]
        return counted

    def check_clean(self) -> None:
        drops = self.drops()
        assert not {"internal_error", "tun_refused"} & drops.keys(), (drops, self.engine.log())
        assert self.engine.stop()["failed"] == []

    def close(self) -> None:
        self.peer.close()
        self.interface.close()


Make = Callable[..., Scene]


@pytest.fixture
def make(lab: Lab) -> Iterator[Make]:
    made: list[Scene] = []

    def build(**options: Any) -> Scene:
        made.append(Scene(lab, **options))
        return made[-1]

    yield build
    for scene in made:
        scene.close()


def test_no_lie_reaches_the_kernel(make: Make) -> None:
    scene = make()
    expected: Counter[str] = Counter()
    plaintexts = []
    before = scene.drops()
    for tell in (lies.of_offload_fields, lies.of_headers, lies.of_plain_packets, lies.of_sources):
        for lie in tell(MARKER):
            plaintexts.append(lies.plaintext(lie.frame))
            expected[lie.reason] += 1
    for _, plain, reason in lies.of_frame_lengths(MARKER):
        plaintexts.append(plain)
        expected[reason] += 1
    scene.say(plaintexts)
    assert scene.drops() - before == expected
    assert scene.seen == []
    honest = [frame for _, frame in lies.honest(MARKER)]
    for frame in honest:  # one by one: neighbouring datagrams of a flow that come together reach the kernel as one
        scene.say([lies.plaintext(frame)])
    assert scene.seen == [frame[lies.VNET_SIZE :] for frame in honest]
    scene.check_clean()


def test_the_kernel_itself_refuses_some_of_those_lies(lab: Lab) -> None:
    """So that its silence above proves something."""
    refused = 0
    with lab.namespace("a").enter():
        device = open_tun("ovlies", Features())
    machine = lab.namespaces["a"]
    machine.link_state("ovlies", up=True)
    for tell in (lies.of_offload_fields, lies.of_headers, lies.of_plain_packets):
        for lie in tell(MARKER):
            try:
                os.write(device.fileno(), lie.frame)
            except OSError:
                refused += 1
    device.close()
    assert refused > 1000


@pytest.mark.parametrize("without", [(), ("tun_uso",), ("tun_vnet",)], ids=["all offloads", "no uso", "plain"])
def test_the_kernel_takes_whatever_the_engine_lets_through(make: Make, without: tuple[str, ...]) -> None:
    """Honest frames with a few bytes changed, by the thousand: what is not dropped by name is not refused either."""
    chance = random.Random(11)
    scene = make(without=without)
    honest = [frame for _, frame in lies.honest(MARKER)]
    for _ in range(100):
        scene.say([lies.plaintext(damaged(chance.choice(honest), chance)) for _ in range(BURST)])
    drops = scene.drops()
    assert drops["bad_offload"] > 500, drops
    assert len(scene.seen) > 1000
    scene.check_clean()


def damaged(frame: bytes, chance: random.Random) -> bytes:
    changed = bytearray(frame)
    for _ in range(chance.randrange(4)):
        changed[chance.randrange(min(len(changed), 90))] = chance.choice(
            (0, 1, 4, 5, 6, 17, 255, chance.randrange(256))
        )
    return bytes(changed)


def test_the_kernel_takes_whatever_comes_in_the_stock_transport(make: Make) -> None:
    chance = random.Random(12)
    scene = make(transport="wireguard")
    honest = [frame[lies.VNET_SIZE :] for _, frame in lies.honest(MARKER) if len(frame) < 1400]
    for _ in range(50):
        scene.say([damaged(chance.choice(honest), chance) for _ in range(BURST)])
    drops = scene.drops()
    assert drops["wrong_source"] > 100, drops
    assert len(scene.seen) > 1000
    scene.check_clean()


def test_a_flood_of_half_finished_records_changes_neither_memory_nor_what_others_get(make: Make) -> None:
    scene = make()
    for _ in range(20):
        scene.peer.send(scene.peer.first_fragment(bytes(1300), 255) for _ in range(BURST))
        scene.wait_until_taken()
    before = resident_mb([scene.engine.process.pid])
    for _ in range(500):
        scene.peer.send(scene.peer.first_fragment(bytes(1300), 255) for _ in range(BURST))
        scene.wait_until_taken()
    assert resident_mb([scene.engine.process.pid]) < before + MEMORY
    drops = scene.drops()
    assert drops["record_evicted"] + drops["record_expired"] > 515 * BURST, drops
    scene.check_clean()
