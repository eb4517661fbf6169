"""Every timer rule of the paper's section 6, in virtual time, between two ends that seal real packets."""

from random import Random

import pytest

from overlay.wire.wireguard import constants, messages, transport
from overlay.wire.wireguard.session import DropStaged, HandshakeCompleted, KeypairRemoved, SendHandshake, SendKeepalive
from overlay.wire.wireguard.timers import NEVER, Timers

from .ends import START, Pair

LATENCY = 0.01
CONNECTED = START + 3 * LATENCY  # both ends have a current key: initiation, response, keepalive


def near(*times: float) -> list[object]:
    return [pytest.approx(time, abs=0.05) for time in times]


def test_no_timer_no_timeout() -> None:
    timers = Timers()
    assert timers.next() is None
    timers.new_handshake = 7.0
    timers.send_keepalive = 5.0
    assert timers.next() == 5.0
    timers.cancel_all()
    assert (timers.next(), timers.send_keepalive) == (None, NEVER)


def test_an_idle_session_is_silent() -> None:
    pair = Pair()
    pair.run(10_000)
    assert pair.wire == []
    pair.connect()
    sent = len(pair.wire)
    pair.run(10_000)
    assert len(pair.wire) == sent == 3


# Retrying a handshake (paper §6.4) ----------------------------------------------------------------------------------


def test_an_initiation_without_answer_is_repeated_every_five_seconds() -> None:
    pair = Pair()
    pair.cut()
    pair.a.send(b"x", pair.now)
    pair.run(16)
    assert pair.sent("a", messages.INITIATION) == near(START, START + 5, START + 10, START + 15)


def test_retries_are_spread_by_jitter() -> None:
    draws = iter([0.0, 0.5, 0.999])
    pair = Pair(jitter=lambda: next(draws, 0.0))
    pair.cut()
    pair.a.send(b"x", pair.now)
    pair.run(16)
    times = pair.sent("a", messages.INITIATION)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    jitter = constants.REKEY_TIMEOUT_JITTER
    assert gaps == [pytest.approx(gap) for gap in (5.0, 5.0 + 0.5 * jitter, 5.0 + 0.999 * jitter)]


def test_each_retry_is_a_new_initiation() -> None:
    pair = Pair()
    pair.cut()
    pair.a.send(b"x", pair.now)
    pair.run(11)
    datagrams = [datagram for _, _, datagram in pair.wire]
    assert len({datagram[4:8] for datagram in datagrams}) == len({datagram[8:40] for datagram in datagrams}) == 3
    assert len(pair.a.device._indices) == 1  # the index of the one under way


def test_a_handshake_is_given_up_after_ninety_seconds_of_retries() -> None:
    pair = Pair()
    pair.cut()
    pair.a.send(b"x", pair.now)
    pair.run(400)
    sent = pair.sent("a", messages.INITIATION)
    assert len(sent) == constants.MAX_HANDSHAKE_ATTEMPTS + 2
    assert pair.a.times_of(DropStaged) == near(START + 100)
    assert pair.a.staged == []


def test_data_starts_anew_after_giving_up() -> None:
    pair = Pair()
    pair.cut()
    pair.a.send(b"lost", pair.now)
    pair.run(200)
    pair.mend()
    pair.a.send(b"again", pair.now)
    pair.run(1)
    assert pair.b.received == [b"again"]


def test_data_resets_the_count_of_attempts() -> None:
    pair = Pair()
    pair.cut()
    for _ in range(40):
        pair.a.send(b"x", pair.now)
        pair.run(10)
    assert pair.a.times_of(DropStaged) == []
    assert len(pair.sent("a", messages.INITIATION)) == 81  # at 0 s, 5 s, … 400 s


def test_what_is_left_of_a_handshake_that_was_given_up_is_forgotten() -> None:
    pair = Pair()
    pair.cut()
    pair.a.send(b"x", pair.now)
    pair.run(100 + constants.ZERO_KEY_MATERIAL_TIME - 1)
    assert len(pair.a.device._indices) == 1
    pair.run(2)
    assert len(pair.a.device._indices) == 0
    assert pair.a.session.next_timeout() is None


def test_wanting_a_handshake_again_and_again_sends_one() -> None:
    pair = Pair()
    pair.cut()
    for _ in range(49):
        pair.a.send(b"x", pair.now)
        pair.run(0.1)
    assert len(pair.sent("a", messages.INITIATION)) == 1


def test_a_lost_response_does_not_leave_the_responder_stuck() -> None:
    pair = Pair()
    pair.lose = lambda datagram: datagram[0] == messages.RESPONSE
    pair.a.session.request_handshake(pair.now)
    pair.a.drain(pair.now)
    pair.run(1)
    pair.a.device.remove_peer(pair.b.device.public_key)  # the initiator goes away and comes back
    pair.a.session = pair.a.device.add_peer(pair.b.device.public_key, now=pair.now)
    pair.mend()
    pair.b.send(b"from b", pair.now)  # within 5 s of its response: must wait, and must not be forgotten
    pair.run(1)
    assert pair.sent("b", messages.INITIATION) == []
    pair.run(5)
    assert pair.a.received == [b"from b"]


def test_initiations_that_cross_bring_the_session_up_at_once() -> None:
    pair = Pair()
    pair.a.send(b"from a", pair.now)
    pair.b.send(b"from b", pair.now)
    pair.run(1)
    assert pair.b.received == [b"from a"]
    assert pair.a.received == [b"from b"]
    pair.a.send(b"later", pair.now)
    pair.b.send(b"later", pair.now)
    pair.run(1)
    assert (pair.a.received[1:], pair.b.received[1:]) == ([b"later"], [b"later"])


# Renewing a key (paper §6.2, §6.3) ----------------------------------------------------------------------------------


def test_the_initiator_renews_a_key_of_two_minutes_when_it_sends() -> None:
    pair = Pair()
    pair.connect()
    for _ in range(130):
        pair.run(1)
        pair.a.send(b"x", pair.now)
    pair.run(1)
    assert pair.sent("a", messages.INITIATION) == near(START, START + 120.05)
    assert pair.sent("b", messages.INITIATION) == []
    assert len(pair.b.received) == 130


def test_the_responder_does_not_renew_by_age() -> None:
    pair = Pair()
    pair.connect()
    for age in (121, 150, 166, 179):
        pair.clock.now = START + age
        pair.b.send(b"x", pair.now)
    assert pair.b.staged == []
    assert pair.sent("b", messages.INITIATION) == []


def test_an_idle_key_of_two_minutes_is_not_renewed() -> None:
    pair = Pair()
    pair.connect()
    pair.run(170)
    assert len(pair.sent("a", messages.INITIATION)) == 1


@pytest.mark.parametrize("sender", ["a", "b"])
def test_either_end_renews_a_key_after_so_many_messages(sender: str) -> None:
    pair = Pair()
    pair.connect()
    pair.run(10)
    end = pair.a if sender == "a" else pair.b
    keypair = end.session.sending_keypair(pair.now)
    assert keypair is not None
    keypair.send_counter = constants.REKEY_AFTER_MESSAGES - 1
    end.send(b"x", pair.now)
    assert pair.sent(sender, messages.INITIATION, since=START + 1) == []
    end.send(b"y", pair.now)
    assert pair.sent(sender, messages.INITIATION, since=START + 1) == [pair.now]
    pair.run(1)
    assert end.session.sending_keypair(pair.now) is not keypair


def test_a_key_whose_counters_are_used_up_does_not_seal() -> None:
    pair = Pair()
    pair.connect()
    pair.run(10)
    keypair = pair.b.session.sending_keypair(pair.now)
    assert keypair is not None
    keypair.send_counter = constants.REJECT_AFTER_MESSAGES - 1
    assert pair.b.session.sending_keypair(pair.now) is keypair
    keypair.next_counter()
    assert pair.b.session.sending_keypair(pair.now) is None
    pair.b.send(b"x", pair.now)
    pair.run(1)
    assert pair.a.received == [b"x"]  # under a new key


def test_an_initiator_that_only_receives_renews_shortly_before_the_end_and_once() -> None:
    pair = Pair()
    pair.connect()
    pair.lose = lambda datagram: datagram[0] == messages.INITIATION
    while pair.now < START + 179:
        pair.run(1)
        # The initiator's own keepalives would ask for a key from 120 s on: they must not be sent in this test.
        pair.a.session._timers.send_keepalive = NEVER
        pair.b.send(b"x", pair.now)
    first = START + 0.06 + constants.LAST_MINUTE_TIME
    assert pair.sent("a", messages.INITIATION, since=START + 1) == near(first, first + 5, first + 10)


def test_renewing_shortly_before_the_end_leaves_the_pace_to_the_retries() -> None:
    pair = Pair(jitter=lambda: 0.9)
    pair.connect()
    pair.lose = lambda datagram: datagram[0] == messages.INITIATION
    (keypair,) = pair.a.keypairs.values()
    for step in range(100):
        pair.clock.now = keypair.created + constants.LAST_MINUTE_TIME + step * 0.1
        pair.a.timeout(pair.now)
        pair.a.session._timers.send_keepalive = NEVER
        pair.a.session.data_received(keypair, pair.now, empty=False)
        pair.a.drain(pair.now)
    first, second = pair.sent("a", messages.INITIATION, since=START + 1)
    assert first == pytest.approx(keypair.created + constants.LAST_MINUTE_TIME)
    assert second >= first + constants.REKEY_TIMEOUT + 0.9 * constants.REKEY_TIMEOUT_JITTER


def test_every_key_is_renewed_shortly_before_its_end() -> None:
    pair = Pair()
    pair.connect()
    for renewals in (1, 2, 3):
        keypair = pair.a.session.sending_keypair(pair.now)
        assert keypair is not None
        pair.clock.now = keypair.created + constants.LAST_MINUTE_TIME
        pair.a.session.data_received(keypair, pair.now, empty=True)
        pair.a.drain(pair.now)
        pair.run(1)
        assert len(pair.a.times_of(HandshakeCompleted)) == 1 + renewals


def test_a_key_neither_seals_nor_opens_after_three_minutes() -> None:
    pair = Pair()
    pair.connect()
    pair.run(CONNECTED - LATENCY + constants.REJECT_AFTER_TIME - pair.now - 0.05)
    assert pair.a.session.sending_keypair(pair.now) is not None
    pair.run(0.1)
    assert pair.a.session.sending_keypair(pair.now) is None
    assert pair.a.keypairs == pair.b.keypairs == {}
    assert len(pair.a.times_of(KeypairRemoved)) == len(pair.b.times_of(KeypairRemoved)) == 1


def test_an_expired_key_does_not_seal_even_if_the_timer_comes_late() -> None:
    pair = Pair()
    pair.connect()
    keypair = pair.a.session.sending_keypair(pair.now)
    assert keypair is not None
    assert pair.a.session.sending_keypair(keypair.expires) is None


def test_a_dead_key_is_wiped_on_both_ends() -> None:
    pair = Pair()
    pair.connect()
    held = [*pair.a.keypairs.values(), *pair.b.keypairs.values()]
    assert len(held) == 2
    assert all(len(keypair.send_key) == len(keypair.receive_key) == 32 for keypair in held)
    pair.run(constants.REJECT_AFTER_TIME + 1)
    assert all(keypair.send_key == keypair.receive_key == b"" for keypair in held)


def test_all_key_material_is_forgotten_after_nine_minutes() -> None:
    pair = Pair()
    pair.connect()
    pair.run(CONNECTED + constants.ZERO_KEY_MATERIAL_TIME - pair.now - 0.1)
    assert pair.a.session._timers.zero_key_material != NEVER
    pair.run(0.2)
    assert pair.a.session._timers.next() is None
    assert pair.a.times_of(DropStaged) == near(START + 2 * LATENCY + constants.ZERO_KEY_MATERIAL_TIME)
    assert len(pair.a.device._indices) == len(pair.b.device._indices) == 0


def test_a_new_key_puts_the_forgetting_off() -> None:
    pair = Pair()
    pair.connect()
    pair.run(500)
    pair.a.send(b"x", pair.now)
    pair.run(100)
    assert pair.a.times_of(DropStaged) == []


def test_hours_of_traffic_both_ways_renew_every_two_minutes_and_lose_nothing() -> None:
    pair = Pair(jitter=Random(5).random)
    for index in range(7200):
        pair.a.send(b"%d" % index, pair.now)
        pair.b.send(b"%d" % index, pair.now)
        pair.run(0.5)
    numbers = [b"%d" % index for index in range(7200)]
    assert pair.a.received == pair.b.received == numbers
    assert not pair.a.drops and not pair.b.drops
    assert 29 <= len(pair.a.times_of(HandshakeCompleted)) <= 62
    assert len(pair.a.keypairs) <= 3 and len(pair.a.device._indices) <= 4


# Keepalives (paper §6.5) --------------------------------------------------------------------------------------------


def test_who_received_and_has_nothing_to_say_sends_a_keepalive_after_ten_seconds() -> None:
    pair = Pair()
    pair.connect()
    pair.a.send(b"x", pair.now)
    arrived = pair.now + LATENCY
    pair.run(60)
    assert pair.sent("b", transport.TYPE) == near(arrived + constants.KEEPALIVE_TIMEOUT)
    assert len(pair.b.times_of(SendKeepalive)) == 1
    assert len(pair.sent("a", transport.TYPE)) == 2  # the confirmation and the data: a keepalive asks for none back


def test_an_answer_makes_the_keepalive_unnecessary() -> None:
    pair = Pair()
    pair.connect()
    pair.a.send(b"x", pair.now)
    pair.run(5)
    pair.b.send(b"y", pair.now)
    pair.run(9)
    assert pair.b.times_of(SendKeepalive) == []


def test_data_that_came_while_a_keepalive_was_due_gets_another() -> None:
    pair = Pair()
    pair.connect()
    pair.a.send(b"x", pair.now)
    first = pair.now + LATENCY
    pair.run(4)
    pair.a.send(b"y", pair.now)
    pair.run(60)
    assert pair.sent("b", transport.TYPE) == near(first + 10, first + 20)


def test_who_sent_and_hears_nothing_starts_a_handshake_after_fifteen_seconds() -> None:
    pair = Pair()
    pair.connect()
    pair.run(30)
    pair.cut()
    sent = pair.now
    pair.a.send(b"x", pair.now)
    pair.run(10)
    pair.a.send(b"y", pair.now)  # does not put it off
    pair.run(9)
    assert pair.sent("a", messages.INITIATION, since=START + 1) == near(sent + constants.NEW_HANDSHAKE_TIME)


def test_the_fifteen_seconds_have_jitter_too() -> None:
    pair = Pair(jitter=lambda: 0.9)
    pair.connect()
    pair.run(30)
    pair.cut()
    sent = pair.now
    pair.a.send(b"x", pair.now)
    pair.run(19)
    expected = sent + constants.NEW_HANDSHAKE_TIME + 0.9 * constants.REKEY_TIMEOUT_JITTER
    assert pair.sent("a", messages.INITIATION, since=START + 1) == [pytest.approx(expected)]


def test_any_packet_heard_keeps_the_session_as_it_is() -> None:
    pair = Pair()
    pair.connect()
    pair.a.send(b"x", pair.now)
    pair.run(60)  # the passive keepalive of b
    assert len(pair.sent("a", messages.INITIATION)) == 1


def test_a_keepalive_asks_for_no_answer() -> None:
    pair = Pair()
    pair.connect()
    pair.run(30)
    pair.lose = lambda datagram: True
    keypair = pair.a.session.sending_keypair(pair.now)
    assert keypair is not None
    keypair.next_counter()
    pair.a.session.data_sent(keypair, pair.now, empty=True)
    pair.run(60)
    assert len(pair.sent("a", messages.INITIATION)) == 1


def test_persistent_keepalives_come_at_their_interval_from_the_first_moment_on() -> None:
    pair = Pair(keepalive_a=25.0)
    pair.run(111)
    assert pair.sent("a", messages.INITIATION) == near(START)
    assert pair.sent("a", transport.TYPE) == near(*(CONNECTED + 25 * index for index in range(5)))
    assert len(pair.sent("b", transport.TYPE)) == 0


def test_persistent_keepalives_keep_the_key_fresh() -> None:
    pair = Pair(keepalive_a=25.0)
    pair.run(1000)
    assert pair.a.session.sending_keypair(pair.now) is not None
    assert 7 <= len(pair.a.times_of(HandshakeCompleted)) <= 9


def test_traffic_either_way_puts_a_persistent_keepalive_off() -> None:
    pair = Pair(keepalive_a=25.0)
    pair.run(10)
    pair.b.send(b"x", pair.now)
    pair.run(1)
    pair.a.send(b"y", pair.now)
    answered = pair.now
    heard = answered + LATENCY + constants.KEEPALIVE_TIMEOUT + LATENCY  # the passive keepalive of b
    pair.run(40)
    assert pair.sent("a", transport.TYPE) == near(CONNECTED, answered, heard + 25)


def test_persistent_keepalives_bring_the_session_back_after_giving_up() -> None:
    pair = Pair(keepalive_a=25.0)
    pair.run(1)
    pair.cut()
    pair.run(1000)
    assert pair.a.times_of(DropStaged)
    pair.mend()
    pair.run(60)
    assert pair.b.session.sending_keypair(pair.now) is not None


def test_a_persistent_keepalive_that_could_not_be_sent_comes_again() -> None:
    pair = Pair(keepalive_a=25.0)
    pair.connect()
    keypair = pair.a.session.sending_keypair(pair.now)
    due = pair.a.session.next_timeout()
    assert keypair is not None and due is not None
    for index in range(3):
        pair.a.session.handle_timeout(due + 25 * index)
        assert pair.a.session.events() == [SendKeepalive(keypair)]
        assert pair.a.session.next_timeout() == due + 25 * (index + 1)


def test_persistent_keepalives_can_be_changed_and_switched_off() -> None:
    pair = Pair(keepalive_a=25.0)
    pair.connect()
    pair.a.session.set_persistent_keepalive(5.0, pair.now)
    changed = pair.now
    pair.run(6)
    assert pair.a.times_of(SendKeepalive)[-1] == pytest.approx(changed + 5)
    pair.a.session.set_persistent_keepalive(0.0, pair.now)
    count = len(pair.wire)
    pair.run(1000)
    assert len(pair.wire) == count


# Together -----------------------------------------------------------------------------------------------------------


def test_a_peer_that_lost_its_keys_gets_new_ones_at_once_when_somebody_says_so() -> None:
    pair = Pair()
    pair.connect()
    before = pair.a.session.sending_keypair(pair.now)
    asked = pair.now
    pair.a.session.renew(pair.now)  # within 5 s of the last handshake message
    assert pair.a.session.sending_keypair(pair.now) is before, "the old key goes on meanwhile"
    pair.a.drain(pair.now)
    pair.run(1)
    assert len(pair.sent("a", messages.INITIATION, since=asked)) == 1
    assert pair.a.session.sending_keypair(pair.now) is not before


def test_without_keys_there_is_nothing_to_renew() -> None:
    pair = Pair()
    pair.a.session.renew(pair.now)
    pair.a.drain(pair.now)
    pair.run(10)
    assert pair.wire == []


def test_a_session_survives_an_outage_of_any_length() -> None:
    for outage in (3, 30, 100, 170, 190, 600):
        pair = Pair()
        pair.connect()
        pair.cut()
        for _ in range(outage):
            pair.a.send(b"lost", pair.now)
            pair.run(1)
        pair.mend()
        pair.a.send(b"back", pair.now)
        pair.run(6)
        assert pair.b.received[-1] == b"back", outage


def test_a_session_comes_through_a_bad_link() -> None:
    randomness = Random(7)
    pair = Pair(jitter=randomness.random)
    pair.lose = lambda datagram: randomness.random() < 0.3
    for index in range(2000):
        pair.a.send(b"%d" % index, pair.now)
        pair.run(0.5)
    assert len(pair.b.received) > 1200
    assert len(set(pair.b.received)) == len(pair.b.received)


def test_a_late_timeout_call_does_what_was_due_once() -> None:
    pair = Pair()
    pair.cut()
    pair.a.send(b"x", pair.now)
    pair.clock.now += 60
    pair.a.timeout(pair.now)
    assert len(pair.a.times_of(SendHandshake)) == 2
    timeout = pair.a.session.next_timeout()
    assert timeout is not None and timeout > pair.now
