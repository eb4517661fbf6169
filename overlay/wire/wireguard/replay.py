"""The replay window over packet counters, as RFC 6479 has it: a ring of 64-bit words instead of a shifted bitmap.

Knows nothing of keys or packets: numbers in, verdicts out.
"""

from overlay.wire.wireguard.constants import REJECT_AFTER_MESSAGES, REPLAY_WINDOW

_WORD_BITS = 6
_WORDS = (REPLAY_WINDOW >> _WORD_BITS) + 1  # one word more than the window, so that it slides by whole words
_BIT = tuple(1 << bit for bit in range(64))
_ALL_BITS = (1 << 64) - 1


class ReplayWindow:
    """Tells which counters of one key were seen: each is accepted once, and none that is more than 8128 behind.

    Memory is constant. `check` and `accept` cost a few comparisons.
    """

    __slots__ = ("_newest", "_ring")

    def __init__(self) -> None:
        self._newest = 0
        self._ring = [0] * _WORDS

    def check(self, counter: int) -> bool:
        """Could `counter` still be accepted? A cheap question before decryption; changes nothing."""
        if counter > self._newest:
            return counter < REJECT_AFTER_MESSAGES
        if self._newest - counter > REPLAY_WINDOW:
            return False
        return not self._ring[(counter >> _WORD_BITS) % _WORDS] & _BIT[counter & 63]

    def all_new(self, first: int, count: int) -> bool:
        """Are `first` and the `count` − 1 counters after it all newer than any that was accepted?"""
        return first > self._newest and first + count <= REJECT_AFTER_MESSAGES

    def accept_all(self, first: int, count: int) -> None:
        """Take `count` counters from `first` on, of packets that were **authenticated**, and of which `all_new` holds.

        A few steps for 64 of them, where `accept` takes as many for each.
        """
        if not count:
            return
        ring = self._ring
        newest_word = self._newest >> _WORD_BITS
        self._newest = first + count - 1
        last_word = self._newest >> _WORD_BITS
        for passed in range(newest_word + 1, min(last_word, newest_word + _WORDS) + 1):
            ring[passed % _WORDS] = 0
        bits = (1 << count) - 1 << (first & 63)
        for word in range(first >> _WORD_BITS, last_word + 1):
            ring[word % _WORDS] |= bits & _ALL_BITS
            bits >>= 64

    def accept(self, counter: int) -> bool:
        """Take `counter` of a packet that was **authenticated**; False: a replay, too old, or past the limit."""
        newest = self._newest
        word = counter >> _WORD_BITS
        ring = self._ring
        if counter > newest:
            if counter >= REJECT_AFTER_MESSAGES:
                return False
            newest_word = newest >> _WORD_BITS
            if word != newest_word:
                for passed in range(newest_word + 1, min(word, newest_word + _WORDS) + 1):
                    ring[passed % _WORDS] = 0
            self._newest = counter
        elif newest - counter > REPLAY_WINDOW:
            return False
        bit = _BIT[counter & 63]
        slot = word % _WORDS
        if ring[slot] & bit:
            return False
        ring[slot] |= bit
        return True
