import pytest

from overlay.errors import LocalProtocolError
from overlay.wire.wireguard.constants import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME
from overlay.wire.wireguard.keypair import Keypair, KeypairSlots


def make(index: int, *, initiator: bool = True, created: float = 0.0) -> Keypair:
    return Keypair(
        local_index=index,
        remote_index=index + 1000,
        send_key=b"s" * 32,
        receive_key=b"r" * 32,
        initiator=initiator,
        created=created,
    )


def test_counters_are_given_once_and_end() -> None:
    keypair = make(1)
    assert [keypair.next_counter() for _ in range(3)] == [0, 1, 2]
    keypair.send_counter = REJECT_AFTER_MESSAGES - 1
    assert keypair.next_counter() == REJECT_AFTER_MESSAGES - 1
    with pytest.raises(LocalProtocolError):
        keypair.next_counter()


def test_counters_are_given_in_rows_or_not_at_all() -> None:
    keypair = make(1)
    assert keypair.next_counter(40) == 0
    assert keypair.next_counter() == 40
    keypair.send_counter = REJECT_AFTER_MESSAGES - 2
    with pytest.raises(LocalProtocolError):
        keypair.next_counter(3)
    assert keypair.next_counter(2) == REJECT_AFTER_MESSAGES - 2


def test_expiry() -> None:
    keypair = make(1, created=0.1)
    assert not keypair.expired(0.1 + REJECT_AFTER_TIME - 1e-6)
    assert keypair.expired(keypair.expires)


def test_wipe_forgets_the_keys_and_repr_never_shows_them() -> None:
    keypair = make(1)
    assert "ssss" not in repr(keypair) and "rrrr" not in repr(keypair)
    keypair.wipe()
    assert keypair.send_key == keypair.receive_key == b""


def test_an_initiators_key_pair_is_current_at_once() -> None:
    slots = KeypairSlots()
    first, second, third = make(1), make(2), make(3)
    assert slots.add(first) == []
    assert slots.add(second) == []
    assert slots.add(third) == [first]
    assert (slots.previous, slots.current, slots.next) == (second, third, None)


def test_a_responders_key_pair_waits_for_its_confirmation() -> None:
    slots = KeypairSlots()
    first, second, third = make(1), make(2, initiator=False), make(3, initiator=False)
    slots.add(first)
    assert slots.add(second) == []
    assert (slots.previous, slots.current, slots.next) == (None, first, second)
    assert slots.add(third) == [second]  # the initiator asked again before it confirmed
    slots.confirm_next()
    assert (slots.previous, slots.current, slots.next) == (first, third, None)


def test_a_responders_key_pair_pushes_out_previous() -> None:
    slots = KeypairSlots()
    first, second, third = make(1), make(2), make(3, initiator=False)
    slots.add(first)
    slots.add(second)
    assert slots.add(third) == [first]
    slots.confirm_next()
    assert (slots.previous, slots.current, slots.next) == (second, third, None)


def test_an_unconfirmed_next_outlives_current_when_handshakes_cross() -> None:
    slots = KeypairSlots()
    old, theirs, ours = make(1), make(2, initiator=False), make(3)
    slots.add(old)
    slots.add(theirs)
    assert slots.add(ours) == [old]
    assert (slots.previous, slots.current, slots.next) == (theirs, ours, None)


def test_remove_expired_takes_only_the_old_ones() -> None:
    slots = KeypairSlots()
    old, new, waiting = make(1, created=0.0), make(2, created=100.0), make(3, initiator=False, created=110.0)
    slots.add(old)
    slots.add(new)
    assert slots.remove_expired(REJECT_AFTER_TIME - 1) == []
    assert slots.remove_expired(REJECT_AFTER_TIME) == [old]
    slots.add(waiting)
    assert slots.remove_expired(REJECT_AFTER_TIME + 100) == [new]
    assert slots.remove_expired(REJECT_AFTER_TIME + 110) == [waiting]
    assert slots.all() == []


def test_clear_takes_all() -> None:
    slots = KeypairSlots()
    first, second = make(1), make(2, initiator=False)
    slots.add(first)
    slots.add(second)
    assert slots.clear() == [first, second]
    assert slots.all() == []
