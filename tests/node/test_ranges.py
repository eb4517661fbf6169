"""Ranges of ports as a person writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import Exit, UserError
from overlay.node.ranges import MOST_PORTS, spread
from overlay.node.status import ExposeWish


def spread_out(target: str, public: str) -> list[tuple[str, str]]:
    return [(each.target, each.public) for each in spread(ExposeWish(target=target, public=public))]


def test_a_wish_for_each_port() -> None:
    assert spread_out("tcp://localhost:8000-8002", "9000-9002") == [
        ("tcp://localhost:8000", "9000"),
        ("tcp://localhost:8001", "9001"),
        ("tcp://localhost:8002", "9002"),
    ]
    assert spread_out("udp://[::1]:1-2", "[2001:db8::1]:5-6")[1] == ("udp://[::1]:2", "[2001:db8::1]:6")
    assert spread_out("8000-8001", "vpn-1.example:9000-9001")[0] == ("8000", "vpn-1.example:9000")


@pytest.mark.parametrize("target", ["3000", "db-1:3000", "/srv/2020-2024", "unix:/run/1-2", "tcp://a-1.b-2:80"])
def test_what_is_no_range_stays(target: str) -> None:
    assert spread_out(target, "") == [(target, "")]


@pytest.mark.parametrize(
    ("target", "public", "why"),
    [
        ("tcp://a:1-2", "", "both sides"),
        ("tcp://a:1", "1-2", "both sides"),
        ("tcp://a:1-2", "1-3", "2 ports cannot be reached at 3"),
        ("tcp://a:2-1", "2-1", "2-1 is no range"),
        ("tcp://a:5-5", "5-5", "5-5 is no range"),
        ("tcp://a:0-1", "0-1", "0-1 is no range"),
        ("tcp://a:65535-65536", "1-2", "no range"),
        ("http://a:1-2", "1-2", "http has one port"),
        (f"tcp://a:1-{MOST_PORTS + 1}", f"1-{MOST_PORTS + 1}", "at most"),
    ],
)
def test_wrong_ranges_say_why(target: str, public: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        spread_out(target, public)
    assert (caught.value.code, caught.value.exit_code) == ("range-invalid", Exit.USAGE)


@given(st.text(), st.text())
def test_any_text_is_spread_or_a_user_error(target: str, public: str) -> None:
    try:
        assert spread_out(target, public) == [(target, public)]
    except UserError as error:
        assert error.code == "range-invalid"
