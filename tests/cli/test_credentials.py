"""Secrets of an exposure's users, as people give them to the command."""

from pathlib import Path

import pytest

from overlay.errors import Exit, UserError
from overlay.wire.credentials import digest_of, fits_password
from overlay_cli.credentials import make_credentials, with_link


def test_nothing_asked_for() -> None:
    made = make_credentials(users="", bearer="", link=False)
    assert not made.access and not made.shown


def test_what_is_made_is_shown_and_only_its_hashes_travel() -> None:
    made = make_credentials(users="new", bearer="new", link=True)
    name, _, encoded = made.access["users"][0].partition(":")
    assert name == made.shown["user"] and fits_password(encoded, made.shown["password"].encode())
    assert made.access["bearers"] == [digest_of(made.shown["bearer"].encode())]
    assert made.access["link"] == digest_of(made.shown["link"].encode())
    assert not any(secret in str(made.access) for name, secret in made.shown.items() if name != "user")
    assert with_link("https://a.test/b/", "x") == "https://a.test/b/?overlay-link=x"


def test_files_of_users_and_tokens(tmp_path: Path) -> None:
    users, tokens = tmp_path / "users", tmp_path / "tokens"
    encoded = make_credentials(users="new", bearer="", link=False).access["users"][0].partition(":")[2]
    users.write_text(f"\ufeffanna:a:b c\r\n# ours\n\notto:{encoded}\n")  # with the mark of some editors
    tokens.write_text("one\n two \n")
    access = make_credentials(users=str(users), bearer=str(tokens), link=False).access
    anna, otto = access["users"]
    assert fits_password(anna.removeprefix("anna:"), b"a:b c") and otto == f"otto:{encoded}"
    assert access["bearers"] == [digest_of(b"one"), digest_of(b"two")]


@pytest.mark.parametrize("line", ["secret", "an na:secret", "anna:", "anna:" + "secret" * 50, "anna:$2y$05$secret"])
def test_a_line_that_is_no_user_is_not_repeated(tmp_path: Path, line: str) -> None:
    users = tmp_path / "users"
    users.write_text(f"anna:good\n{line}\n")
    with pytest.raises(UserError) as caught:
        make_credentials(users=str(users), bearer="", link=False)
    assert caught.value.exit_code == Exit.USAGE and "Line 2" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(("text", "why"), [("", "says nothing"), ("x" * 70000, "is too large")])
def test_files_that_cannot_be(tmp_path: Path, text: str, why: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(text)
    for name, expected in ((tokens, why), (tmp_path / "none", "Cannot read")):
        with pytest.raises(UserError, match=expected):
            make_credentials(users="", bearer=str(name), link=False)
