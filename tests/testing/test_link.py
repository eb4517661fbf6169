from hypothesis import given
from hypothesis import strategies as st

from overlay.testing import Link, VirtualClock


class Receiver:
    """Collects what a link delivers, and when."""

    def __init__(self, **settings: float) -> None:
        mtu = int(settings.pop("mtu", 65_507))
        seed = int(settings.pop("seed", 0))
        self.clock = VirtualClock(0.0)
        self.got: list[tuple[float, bytes]] = []
        self.link = Link(
            self.clock, lambda data: self.got.append((self.clock.now, data)), mtu=mtu, seed=seed, **settings
        )

    def feed(self, count: int, every: float = 0.001) -> list[int]:
        for number in range(count):
            self.link.send(number.to_bytes(4, "big"))
            self.clock.advance(every)
        self.clock.advance(10.0)
        return [int.from_bytes(data, "big") for _, data in self.got]


def test_a_good_link_is_late_and_nothing_else() -> None:
    receiver = Receiver(latency=0.25)
    receiver.link.send(b"one")
    receiver.clock.advance(0.2)
    assert receiver.got == []
    receiver.clock.advance(0.2)
    assert receiver.got == [(0.25, b"one")]
    assert receiver.feed(100)[1:] == list(range(100))


def test_what_was_sent_is_copied() -> None:
    receiver = Receiver()
    buffer = bytearray(b"before")
    receiver.link.send(buffer)
    buffer[:] = b"after!"
    receiver.clock.advance(1.0)
    assert receiver.got[0][1] == b"before"


def test_loss_duplicates_and_reordering_happen_as_often_as_asked() -> None:
    lossy = Receiver(loss=0.2)
    assert 1500 < len(lossy.feed(2000)) < 1700
    assert lossy.link.fates["lost"] + lossy.link.fates["delivered"] == 2000
    doubled = Receiver(duplicate=0.1)
    assert 2150 < len(doubled.feed(2000)) < 2250
    reordered = Receiver(reorder=0.1)
    numbers = reordered.feed(2000)
    assert sorted(numbers) == list(range(2000)) != numbers
    jittered = Receiver(jitter=0.01)
    numbers = jittered.feed(200)
    assert sorted(numbers) == list(range(200)) != numbers


@given(st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_fates(seed: int) -> None:
    settings = {"loss": 0.3, "duplicate": 0.3, "reorder": 0.3, "jitter": 0.005, "seed": seed}
    assert Receiver(**settings).feed(30) == Receiver(**settings).feed(30)


def test_a_cut_takes_what_is_under_way_too() -> None:
    receiver = Receiver(latency=0.1)
    receiver.link.send(b"under way")
    receiver.link.cut()
    receiver.link.send(b"while cut")
    receiver.clock.advance(1.0)
    receiver.link.mend()
    receiver.link.send(b"after")
    receiver.clock.advance(1.0)
    assert [data for _, data in receiver.got] == [b"after"]
    assert receiver.link.fates == {"sent": 3, "cut": 2, "delivered": 1}


def test_a_narrow_link_takes_no_large_datagram() -> None:
    receiver = Receiver(mtu=100)
    receiver.link.send(bytes(101))
    receiver.link.send(bytes(100))
    receiver.clock.advance(1.0)
    assert [len(data) for _, data in receiver.got] == [100]
    assert receiver.link.fates["too_big"] == 1
