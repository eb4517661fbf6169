"""Runs of datagrams as the kernel joins them, in which some are not what they seem: what is authentic comes once.

They come through real sockets, with GSO and GRO, so that all ways that a run may take through the engine are taken:
that of a whole record at speed, and that of datagrams one by one.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import pytest

from overlay.engine import api
from overlay.wire.relay import pack_header
from tests.engine.test_hostile_peer import Scene
from tests.engine.test_loop import turn_until
from tests.wire.packet import lies
from tests.wire.packet.packets import Flow

DATAGRAM = 700  # bytes
TICKET = 77
RELAY = 1
MOST = 64  # datagrams of a run


@pytest.fixture(params=["direct", "relayed"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = Scene("record", prefix=pack_header(2, TICKET) if request.param == "relayed" else b"")
    if made.prefix:
        made.victim.post(api.SetRelay((("127.0.0.1", 9),), RELAY, bytes(range(32)), TICKET))
    made.victim.loop.turn(0.0)
    yield made
    made.close()


def packet(number: int, size: int) -> bytes:
    """A frame that names itself."""
    return bytes(lies.VNET_SIZE) + Flow(protocol=253).packet(number.to_bytes(4, "big").ljust(size, b"x"))


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[lies.VNET_SIZE + 20 :][:4], "big")


class Sender:
    """Makes records and sends them as runs; knows what each held."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.frames: dict[int, bytes] = {}

    def record(self, size: int) -> list[bytes]:
        """The datagrams of a new record with a packet of `size` bytes of payload."""
        frame = self.frames[len(self.frames)] = packet(len(self.frames), size)
        return [self.scene.prefix + each for each in self.scene.peer.record(lies.plaintext(frame), DATAGRAM)]

    def send(self, datagrams: list[bytes]) -> None:
        """As runs as long as may be, and wait until all is looked at: an honest record behind it has come."""
        run: list[bytes] = []
        for each in datagrams:
            if run and (len(each) > len(run[-1]) or len(run[-1]) < len(run[0]) or len(run) == MOST):
                self.scene.peer.send_run(run)
                run = []
            run.append(each)
        if run:
            self.scene.peer.send_run(run)

    def received(self) -> list[int]:
        """Numbers of the packets that came until now; each must be as it was made."""
        last = self.record(10)
        self.send(last)
        found: list[bytes] = []

        def over() -> bool:
            found.extend(self.scene.written())
            return bool(found) and number_of(found[-1]) == len(self.frames) - 1

        turn_until(over, self.scene.victim)
        for frame in found:
            assert self.frames[number_of(frame)] == frame, "not what was sent"
        return [number_of(frame) for frame in found[:-1]]


def test_honest_runs_arrive(scene: Scene) -> None:
    sender = Sender(scene)
    for size in (10_000, 10_000, 30_000, 640, 641, 5000, 100, 20_000, 40_000):
        sender.send(sender.record(size))
        assert sender.received() == [len(sender.frames) - 2]
    assert not scene.drops()


@pytest.mark.parametrize("size", [630, 1300, 100])  # in one datagram each, in two, and small ones
def test_honest_records_side_by_side_arrive(scene: Scene, size: int) -> None:
    sender = Sender(scene)
    for _ in range(8):
        first = len(sender.frames)
        sender.send([each for _ in range(20) for each in sender.record(size)])
        assert sender.received() == list(range(first, first + 20))
    assert not scene.drops()


def flipped(datagrams: list[bytes], chance: Random) -> list[bytes]:
    """A bit anywhere, headers in front."""
    at = chance.randrange(len(datagrams))
    changed = bytearray(datagrams[at])
    where = chance.randrange(min(len(changed), 40)) if chance.random() < 0.7 else chance.randrange(len(changed))
    changed[where] ^= 1 << chance.randrange(8)
    return [*datagrams[:at], bytes(changed), *datagrams[at + 1 :]]


def swapped(datagrams: list[bytes], chance: Random) -> list[bytes]:
    one, other = sorted((chance.randrange(len(datagrams)), chance.randrange(len(datagrams))))
    changed = list(datagrams)
    changed[one], changed[other] = changed[other], changed[one]
    return changed


def doubled(datagrams: list[bytes], chance: Random) -> list[bytes]:
    at = chance.randrange(len(datagrams))
    return [*datagrams[: at + 1], *datagrams[at:]]


def lost(datagrams: list[bytes], chance: Random) -> list[bytes]:
    at = chance.randrange(len(datagrams))
    return [*datagrams[:at], *datagrams[at + 1 :]]


def shortened(datagrams: list[bytes], chance: Random) -> list[bytes]:
    return [*datagrams[:-1], datagrams[-1][: chance.randrange(1, len(datagrams[-1]) + 1)]]


def made_up(datagrams: list[bytes], chance: Random) -> list[bytes]:
    """A datagram replaced by nonsense that begins like one."""
    at = chance.randrange(len(datagrams))
    whole = datagrams[at]
    kept = min(chance.randrange(33), len(whole))
    return [*datagrams[:at], whole[:kept] + chance.randbytes(len(whole) - kept), *datagrams[at + 1 :]]


def rotated(datagrams: list[bytes], chance: Random) -> list[bytes]:
    at = chance.randrange(len(datagrams))
    return [*datagrams[at:], *datagrams[:at]]


@pytest.mark.parametrize("change", [flipped, swapped, doubled, lost, shortened, made_up, rotated])
def test_whatever_is_done_to_a_run_what_comes_is_authentic_and_comes_once(
    scene: Scene, change: Callable[[list[bytes], Random], list[bytes]]
) -> None:
    chance = Random(5)
    sender = Sender(scene)
    arrived: Counter[int] = Counter()
    for turn in range(160):
        # Whole records, so that the next one is expected to be one, then two with something done to them.
        for _ in range(2):
            sender.send(sender.record(10_000))
        if turn % 2:
            datagrams = [each for _ in range(2) for each in sender.record(chance.choice((10_000, 3000, 640)))]
        else:  # side by side, all of one size
            size = chance.choice((630, 1300, 2000))
            datagrams = [each for _ in range(12) for each in sender.record(size)]
        for _ in range(chance.randrange(1, 3)):
            datagrams = change(datagrams, chance) or datagrams
        sender.send(datagrams)
        arrived.update(sender.received())
    assert not [number for number, times in arrived.items() if times > 1]
    assert len(arrived) >= 2 * 160
    drops = scene.drops()
    assert not {"internal_error", "bad_offload", "wrong_source"} & drops.keys(), drops


def test_a_run_that_comes_again_is_a_replay(scene: Scene) -> None:
    sender = Sender(scene)
    for _ in range(3):
        run = sender.record(10_000)
        sender.send(run)
        sender.send(run)
        assert sender.received() == [len(sender.frames) - 2]
    assert scene.drops() == {"replay": 3 * len(run)}


def test_records_side_by_side_that_come_again_are_replays(scene: Scene) -> None:
    sender = Sender(scene)
    for _ in range(3):
        first = len(sender.frames)
        run = [each for _ in range(10) for each in sender.record(630)]
        sender.send(run)
        sender.send(run)
        assert sender.received() == list(range(first, first + 10))
    assert scene.drops() == {"replay": 3 * len(run)}


def test_every_lie_in_a_record_among_others_stays_out(scene: Scene) -> None:
    """The honest ones beside it come; what is like a checked one is checked with it, and a lie is not."""
    sender = Sender(scene)
    for _ in range(3):
        sender.send([each for _ in range(10) for each in sender.record(630)])
        sender.received()
    expected: Counter[str] = Counter()
    for tell in (lies.of_headers, lies.of_sources):
        for lie in tell(b"lie"):
            first = len(sender.frames)
            size = len(lies.plaintext(lie.frame)) - len(lies.plaintext(packet(0, 0)))
            run = sender.record(size) + sender.record(size)
            run += [scene.prefix + each for each in scene.peer.record(lies.plaintext(lie.frame), DATAGRAM)]
            sender.send(run + sender.record(size))
            assert sender.received() == [first, first + 1, first + 2], lie.name
            expected[lie.reason] += 1
    assert scene.drops() == expected


def test_every_lie_in_a_record_of_several_datagrams_stays_out(scene: Scene) -> None:
    """As in a record of one; here it arrives as one run, and an honest frame stands before the lie."""
    sender = Sender(scene)
    for _ in range(3):
        sender.send(sender.record(10_000))
        sender.received()
    expected: Counter[str] = Counter()
    for tell in (lies.of_headers, lies.of_sources):
        for lie in tell(b"lie"):
            number = len(sender.frames)
            honest = sender.frames[number] = packet(number, 1200)
            datagrams = scene.peer.record(lies.plaintext(honest, lie.frame), DATAGRAM)
            sender.send([scene.prefix + each for each in datagrams])
            assert sender.received() == [number], lie.name
            expected[lie.reason] += 1
    assert scene.drops() == expected
