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
        ("https://localhost:8443", "https://localhost:8443"),
        ("https://app.lan/", "https://app.lan:443"),
        ("unix:/run/docker.sock", "unix:/run/docker.sock"),
        ("unix:///run/docker.sock", "unix:/run/docker.sock"),
        ("UNIX:/run/a:b", "unix:/run/a:b"),
        ("tcp+unix:/run/x", "tcp+unix:/run/x"),
        ("http+unix:///run/x", "unix:/run/x"),
        ("/srv/www/", "/srv/www"),
        ("/", "/"),
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
        ("unix:run/x", "absolute"),
        ("unix:", "absolute"),
        ("unix:/run/\nx", "cannot be shown"),
        ("unix:/" + "x" * 107, "longer than 107 bytes"),
        ("/" + "x" * 4096, "longer than 4095 bytes"),
        ("ftp:/run/x", "must end in a port"),
        ("a" * 254 + ":80", "neither"),
    ],
)
def test_wrong_targets_say_why(text: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        Target.parse(text)
    assert (caught.value.code, caught.value.exit_code) == ("bad-target", Exit.USAGE)
    assert why in caught.value.message
    assert caught.value.hint


def test_a_socket_speaks_what_the_place_says_and_a_folder_http() -> None:
    assert Target.parse("unix:/run/x", "tcp").text == "tcp+unix:/run/x"
    assert Target.parse("/srv/www", "tcp").protocol == "http"


def test_what_the_server_is_told_of_a_very_long_one_is_its_end() -> None:
    target = Target.parse("/" + "x" * 300 + "/end")
    assert len(target.told) == 256 and target.told.startswith("…x") and target.told.endswith("/end")


@given(st.text() | st.text().map("unix:/{}".format) | st.text().map("/{}".format))
def test_any_text_is_a_target_or_a_user_error(text: str) -> None:
    try:
        target = Target.parse(text)
    except UserError:
        return
    assert Target.parse(target.text) == target
