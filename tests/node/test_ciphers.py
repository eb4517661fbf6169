"""Which cipher a pair uses."""

from hypothesis import given
from hypothesis import strategies as st

from overlay.node.ciphers import AES, CHACHA, choose, measure

NAMES = st.lists(st.sampled_from([AES, CHACHA, "rot13"]), max_size=3)


def test_measuring_names_both_once() -> None:
    assert sorted(measure()) == [AES, CHACHA]


def test_aes_only_where_both_are_fast_at_it() -> None:
    assert choose((AES, CHACHA), (AES, CHACHA)) == AES
    assert choose((AES, CHACHA), (CHACHA, AES)) == CHACHA
    assert choose((CHACHA, AES), (CHACHA, AES)) == CHACHA
    assert choose((), ()) == CHACHA


@given(NAMES, NAMES)
def test_both_ends_find_the_same(ours: list[str], theirs: list[str]) -> None:
    assert choose(ours, theirs) == choose(theirs, ours)
    assert choose(ours, tuple(theirs)) == choose(ours, theirs)
