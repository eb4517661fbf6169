"""Names of nodes and of the network's domain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import Exit, UserError
from overlay.server.names import MAX_LABEL, check_domain, check_name, derive_name


@given(st.text(max_size=300), st.sets(st.text(max_size=5)))
def test_a_derived_name_is_always_a_free_label(wish: str, taken: set[str]) -> None:
    name = derive_name(wish, taken)
    assert check_name(name, taken) == name


def test_a_derived_name_that_is_taken_gets_a_number() -> None:
    assert derive_name("b.example.org", set()) == "b"
    assert derive_name("b", {"b"}) == "b-2"
    assert derive_name("b", {"b", "b-2", "b-3"}) == "b-4"
    long = "x" * 80
    assert derive_name(long, {"x" * MAX_LABEL}) == "x" * (MAX_LABEL - 2) + "-2"
    assert derive_name("My Laptop!", set()) == "my-laptop"
    assert derive_name("…", set()) == "node"
    assert derive_name("localhost", set()) == "node"


def test_a_chosen_name_is_taken_or_refused_as_it_is() -> None:
    assert check_name("Laptop", set()) == "laptop"
    with pytest.raises(UserError) as caught:
        check_name("b", {"b"})
    assert (caught.value.code, caught.value.exit_code) == ("name-taken", Exit.REFUSED)


@pytest.mark.parametrize("name", ["", "-a", "a-", "a.b", "a_b", "ä", "localhost", "a" * 64, "a b", "a\n"])
def test_what_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        check_name(name, set())
    assert caught.value.code == "name-invalid"


def test_domains() -> None:
    assert check_domain("Local.Test.") == "local.test"
    for bad in ("", ".", "a..b", "-a.test", "a/b", "x" * 64, ".".join(["x" * 60] * 4)):
        with pytest.raises(UserError) as caught:
            check_domain(bad)
        assert (caught.value.code, caught.value.exit_code) == ("domain-invalid", Exit.USAGE)
    for multicast in ("local", "LOCAL.", "home.local"):
        with pytest.raises(UserError, match="multicast") as caught:
            check_domain(multicast)
        assert caught.value.code == "domain-invalid"
