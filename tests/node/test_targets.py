"""What a person may write as a target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import Exit, UserError
from overlay.node.targets import Target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://127.0.0.1:8080", "tcp://127.0.0.1:8080"),
        ("udp://127.0.0.1:53", "udp://127.0.0.1:53"),
        ("tls://db.lan:5432", "tls://db.lan:5432"),
        ("UDP://localhost:53", "udp://localhost:53"),
        ("localhost:8080", "http://localhost:8080"),
        ("8080", "http://127.0.0.1:8080"),
        ("udp://53", "udp://127.0.0.1:53"),
        (" 8080 ", "http://127.0.0.1:8080"),
        ("http://app.lan/", "http://app.lan:80"),
        ("http://[::1]", "http://[::1]:80"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("tcp://[0:0::1]:8080", "tcp://[::1]:8080"),
        ("tcp://db-1.lan.example:65535", "tcp://db-1.lan.example:65535"),
    ],
)
def test_right_targets(text: str, expected: str) -> None:
    assert Target.parse(text).text == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "port"),
        ("tcp://", "port"),
        ("localhost", "port"),
        ("0", "port"),
        ("65536", "port"),
        ("99999999999999999999", "port"),
        ("tcp://a:", "port"),
        ("tcp://a:٣", "port"),
        ("gopher://127.0.0.1:80", "'gopher'"),
        ("://127.0.0.1:80", "''"),
        (":80", "host is missing"),
        ("tcp://:80", "host is missing"),
        ("::1:80", "brackets"),
        ("[::g]:80", "IPv6"),
        ("a b:80", "neither"),
        ("a/b:80", "neither"),
        ("a" * 254 + ":80", "neither"),
    ],
)
def test_wrong_targets_say_why(text: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        Target.parse(text)
    assert (caught.value.code, caught.value.exit_code) == ("bad-target", Exit.USAGE)
    assert why in caught.value.message
    assert caught.value.hint


@given(st.text())
def test_any_text_is_a_target_or_a_user_error(text: str) -> None:
    try:
        target = Target.parse(text)
    except UserError:
        return
    assert Target.parse(target.text) == target
