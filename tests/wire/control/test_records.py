"""What may stand in a record that somebody puts into the zone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.control.messages import MapRecord
from overlay.wire.control.records import (
    RECORD_TYPES,
    canonical_value,
    check_owner,
    check_record,
    is_shadowed,
    is_within,
)

NODES = {"server": 1, "a": 2, "b": 3}


@pytest.mark.parametrize("name", ["b.local.test", "*.b.local.test", "x" * 63 + ".test", "1.2.3.4", "a"])
def test_names(name: str) -> None:
    for rtype in RECORD_TYPES:
        check_owner(name, rtype)


@pytest.mark.parametrize(
    "name",
    ["", ".", "a.", "a..b", "*", "a.*.b", "-a", "a-", "A", "a b", "x" * 64, ".".join(["x" * 63] * 4), "ä", "a\n"],
)
def test_names_that_are_none(name: str) -> None:
    for rtype in RECORD_TYPES:
        with pytest.raises(ValueError):
            check_owner(name, rtype)


def test_underscores_are_for_services_and_texts() -> None:
    for rtype in ("SRV", "TXT"):
        check_owner("_ssh._tcp.b.local.test", rtype)
    for rtype in ("A", "AAAA", "CNAME"):
        with pytest.raises(ValueError, match="underscores are for SRV and TXT"):
            check_owner("_ssh._tcp.b.local.test", rtype)


@pytest.mark.parametrize(
    ("rtype", "value", "canonical"),
    [
        ("A", "192.0.2.1", "192.0.2.1"),
        ("AAAA", "2001:DB8:0::1", "2001:db8::1"),
        ("CNAME", "b.local.test", "b.local.test"),
        ("TXT", 'v=1; "ü" ', 'v=1; "ü" '),
        ("SRV", " 10  5 22 b.local.test", "10 5 22 b.local.test"),
    ],
)
def test_values(rtype: str, value: str, canonical: str) -> None:
    assert canonical_value(rtype, value) == canonical
    check_record(MapRecord(name="a", rtype=rtype, value=canonical, node=1))


@pytest.mark.parametrize(
    ("rtype", "value"),
    [
        ("A", "192.0.2.256"),
        ("A", "192.0.2.01"),
        ("A", "2001:db8::1"),
        ("AAAA", "192.0.2.1"),
        ("AAAA", "fe80::1%eth0"),
        ("CNAME", "a b"),
        ("TXT", ""),
        ("TXT", "a\0"),
        ("TXT", "ü" * 128),
        ("SRV", "10 5 22"),
        ("SRV", "10 5 65536 b"),
        ("SRV", "10 -5 22 b"),
        ("SRV", "10 5 ٣ b"),
        ("MX", "10 b"),
    ],
)
def test_values_that_are_none(rtype: str, value: str) -> None:
    with pytest.raises(ValueError):
        canonical_value(rtype, value)


@given(st.sampled_from([*RECORD_TYPES, "MX"]), st.text(max_size=300))
def test_a_value_is_canonical_or_refused(rtype: str, value: str) -> None:
    try:
        canonical = canonical_value(rtype, value)
    except ValueError:
        return
    assert canonical_value(rtype, canonical) == canonical


def test_what_is_in_a_domain() -> None:
    assert is_within("local.test", "local.test") and is_within("a.local.test", "local.test")
    assert not is_within("xlocal.test", "local.test") and not is_within("test", "local.test")


@pytest.mark.parametrize(
    ("name", "rtype", "node", "shadowed"),
    [
        ("api.local.test", "A", 2, False),
        ("local.test", "TXT", 2, False),
        ("*.local.test", "A", 2, False),
        ("b.local.test", "TXT", 2, True),
        ("db.b.local.test", "A", 2, True),
        ("*.b.local.test", "A", 2, True),
        ("db.b.local.test", "A", 3, False),
        ("*.b.local.test", "CNAME", 3, False),
        ("b.local.test", "TXT", 3, False),
        ("b.local.test", "A", 3, True),
        ("b.local.test", "CNAME", 3, True),
        ("b.x.local.test", "A", 2, False),
    ],
)
def test_names_of_nodes_are_theirs(name: str, rtype: str, node: int, shadowed: bool) -> None:
    assert (
        is_shadowed(MapRecord(name=name, rtype=rtype, value="x", node=node), ("corp.example", "local.test"), NODES)
        is shadowed
    )
