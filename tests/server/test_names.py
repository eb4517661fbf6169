"""Names of nodes and of the network's domain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import Exit, UserError
from overlay.server.names import check_domains, check_name, derive_name
from overlay.wire.control.hostnames import MAX_LABEL, is_suffixed


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


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a.b", "a_b", "localhost", "a" * 64, "a b", "a\n", "xn--a", "ab--c", "\u2665", "\ud800"]
)
def test_what_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        check_name(name, set())
    assert caught.value.code == "name-invalid"


def test_names_beyond_ascii_are_a_labels() -> None:
    assert check_name("Bücher", set()) == derive_name("Bücher.example.org", set()) == "xn--bcher-kva"
    with pytest.raises(UserError, match="taken"):
        check_name("bücher", {"xn--bcher-kva"})
    assert derive_name("xn--a", set()) == "xn-a" and derive_name("ab--c", set()) == "ab-c"


@pytest.mark.parametrize(
    ("name", "wish", "suffixed"),
    [("b-2", "b", True), ("b", "b", False), ("b-x", "b", False), ("c-2", "b", False), ("b-2", "d", False)],
)
def test_a_suffix_is_told_apart_from_a_name(name: str, wish: str, suffixed: bool) -> None:
    assert is_suffixed(name, wish, {"b", "x" * MAX_LABEL}) is suffixed
    assert is_suffixed(derive_name("x" * 80, {"x" * MAX_LABEL}), "x" * MAX_LABEL, {"x" * MAX_LABEL})


def test_domains() -> None:
    assert check_domains(["Local.Test.", "local.test", "Bücher.example"]) == ("local.test", "xn--bcher-kva.example")
    too_many = [f"{number}.test" for number in range(7)]
    for bad in (
        [""],
        ["."],
        ["a..b"],
        ["-a.test"],
        ["a/b"],
        ["x" * 64],
        [".".join(["x" * 60] * 4)],
        ["10.0"],
        too_many,
    ):
        with pytest.raises(UserError) as caught:
            check_domains(bad)
        assert (caught.value.code, caught.value.exit_code) == ("domain-invalid", Exit.USAGE)
    with pytest.raises(UserError, match=r"within local\.test"):
        check_domains(["local.test", "corp.local.test"])
    for multicast in ("local", "LOCAL.", "home.local"):
        with pytest.raises(UserError, match="multicast") as caught:
            check_domains([multicast])
        assert caught.value.code == "domain-invalid"
