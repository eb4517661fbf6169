"""The short way of lone packets: nothing is lost, believed or left untold there that the general way has."""

import errno
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from overlay.engine.api import SetPeer
from overlay.engine.lone import Lone
from overlay.path.pmtu import MAX_PLPMTU
from overlay.wire.packet.virtio import NO_OFFLOAD
from overlay.wire.record.frames import FRAME_HEADER_SIZE, LENGTH
from overlay.wire.wireguard.timers import NEVER
from tests.engine.rig import udp4
from tests.engine.test_hostile_peer import MARKER, Scene
from tests.engine.test_loop import Driven, introduce, turn_until
from tests.wire.packet import lies


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Have every turn be one after a pause; what went the short way to its end is counted."""
    monkeypatch.setattr("overlay.engine.loop.IDLE", -1.0)
    counted: Counter[str] = Counter()
    for name in ("_deliver", "_send"):
        original = getattr(Lone, name)

        def watched(self: Lone, *values: Any, original: Any = original, name: str = name) -> Any:
            outcome = original(self, *values)
            counted[name] += outcome is not None
            return outcome

        monkeypatch.setattr(Lone, name, watched)
    return counted


@pytest.fixture
def pair(short: Counter[str]) -> Iterator[tuple[Driven, Driven]]:
    one, other = Driven(2), Driven(3)
    introduce(one, other)
    ends = [next(iter(driven.loop._peers)) for driven in (one, other)]
    while any(peer.datagram_size != MAX_PLPMTU for peer in ends):  # each step of that search makes a channel anew
        say(one, other, b"from here")
        say(other, one, b"from there")
    short.clear()
    yield one, other
    for driven in (one, other):
        driven.close()


def say(one: Driven, other: Driven, payload: bytes) -> None:
    """One packet goes from one to the other, and arrives."""
    packet = udp4(one.machine.address, other.machine.address, payload)
    found: list[bytes] = []

    def arrived() -> bool:
        found.extend(other.received())
        return packet in found

    one.kernel.send(NO_OFFLOAD + packet)
    turn_until(arrived, one, other)
    assert found.count(packet) == 1


def test_questions_and_answers_go_the_short_way_and_are_counted(
    pair: tuple[Driven, Driven], short: Counter[str]
) -> None:
    one, other = pair
    before = one.snapshot().peers[0]
    short.clear()
    for number in range(10):
        say(one, other, b"question %d" % number)
        say(other, one, b"answer %d" % number)
    assert short == {"_deliver": 20, "_send": 20}
    after = one.snapshot().peers[0]
    assert after.tx_bytes - before.tx_bytes == 10 * (28 + len(b"question 0"))
    assert after.rx_bytes - before.rx_bytes == 10 * (28 + len(b"answer 0"))


def test_an_answer_in_the_same_turn_comes_after_the_question(pair: tuple[Driven, Driven]) -> None:
    """Told the other way round, the session would owe a keepalive."""
    one, other = pair
    write = other.tun.write
    answer = udp4(other.machine.address, one.machine.address, b"answer")

    def write_and_answer(packet: memoryview | bytes | bytearray) -> str:
        outcome = write(packet)
        other.kernel.send(NO_OFFLOAD + answer)
        return outcome

    other.tun.write = write_and_answer  # type: ignore[method-assign]
    one.kernel.send(NO_OFFLOAD + udp4(one.machine.address, other.machine.address, b"question"))
    turn_until(lambda: answer in one.received(), one, other)
    (peer,) = other.loop._peers
    assert peer.session._timers.send_keepalive == NEVER


def test_new_keys_are_used_at_once(pair: tuple[Driven, Driven]) -> None:
    one, other = pair
    say(one, other, b"before")
    (peer,) = one.loop._peers
    assert peer.channel is not None
    old = peer.channel.keypair
    one.post(SetPeer(replace(peer.config, epoch=peer.config.epoch + 1)))
    turn_until(lambda: peer.channel is None, one, other)
    for number in range(3):
        say(one, other, b"after %d" % number)
        say(other, one, b"after %d" % number)
    assert peer.channel is not None and peer.channel.keypair is not old


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
def test_what_the_socket_refuses_goes_the_general_way(short: Counter[str], number: int) -> None:
    refused = [0]

    def refusal(call: str, arguments: tuple[Any, ...]) -> int:
        if call == "sendto" and refused[0]:
            refused[0] -= 1
            return number
        return 0

    one, other = Driven(2, refusal), Driven(3)
    try:
        introduce(one, other)
        say(one, other, b"before")
        refused[0] = 1
        say(one, other, b"refused once")
        assert refused[0] == 0
        assert "internal_error" not in one.snapshot().drops
    finally:
        one.close()
        other.close()


def test_every_lie_about_offload_is_counted_by_its_name_and_stays_out(short: Counter[str]) -> None:
    scene = Scene("record")
    try:
        honest = udp4("10.77.0.2", "10.0.0.3", b"honest")
        plain = LENGTH.pack(len(honest)) + NO_OFFLOAD + honest
        for _ in range(20):  # after some alone the next is expected to be alone
            scene.peer.send(scene.peer.record(plain))
            turn_until(lambda: scene.written() != [], scene.victim)
        assert short["_deliver"], "the short way is known to be open"
        before, expected = scene.drops(), Counter[str]()
        for tell in (lies.of_offload_fields, lies.of_sources, lies.of_plain_packets):
            for lie in list(tell(MARKER))[::5]:
                if len(lie.frame) > 1000:
                    continue
                scene.peer.send(scene.peer.record(lies.plaintext(lie.frame)))
                scene.victim.loop.turn(1.0)
                expected[lie.reason] += 1
                assert scene.written() == [], lie.name
        datagrams = scene.peer.record(plain)
        for _ in range(3):
            scene.peer.send(datagrams)
            scene.victim.loop.turn(1.0)
        expected["replay"] += 2
        broken = bytearray(scene.peer.record(plain)[0])
        broken[-1] ^= 1
        scene.peer.send([bytes(broken)])
        scene.victim.loop.turn(1.0)
        expected["bad_tag"] += 1
        assert len(scene.written()) == 1
        assert scene.drops() - before == expected
        assert len(expected) > 5 and FRAME_HEADER_SIZE < len(plain)
    finally:
        scene.close()
