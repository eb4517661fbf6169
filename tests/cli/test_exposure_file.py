"""A file of exposures, as people write it and get it wrong. No daemon."""

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from overlay.errors import UserError
from overlay_cli.commands.expose import add_exposure, expose_app
from overlay_cli.exposure_file import ExposureFile
from overlay_cli.main import main
from overlay_cli.wishes import wish

TABLE = '[exposures.web]\ntarget = "3000"\n'


def exposure_file(path: Path, *, may_make_secrets: bool = True) -> ExposureFile:
    group: Any = get_command(expose_app)
    context = typer.Context(group.commands["TARGET"])
    return ExposureFile(path, context, inspect.signature(add_exposure), wish, may_make_secrets=may_make_secrets)


def read(folder: Path, text: str) -> dict[str, dict[str, Any]]:
    (folder / "e.toml").write_text(text)
    return documents(exposure_file(folder / "e.toml"))


def documents(file: ExposureFile, known: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    return {name: each.document for name, each in file.wishes(file.read(), known or {}).items()}


def refusal(folder: Path, text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        read(folder, text)
    assert caught.value.exit_code == 2 and str(folder / "e.toml") in caught.value.message
    return caught.value


def test_keys_are_the_long_options(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        [exposures.web]
        target = "3000"
        host = "app.example.com"
        tunnel = "tls"
        max-connections = 5
        [exposures."db.main"]
        target = 5432
        public = "9000"
        known-as = ["db.example.com", "sql.example.com"]
        """,
    )
    assert list(found) == ["web", "db.main"]
    web, db = found["web"], found["db.main"]
    assert (web["target"], web["host"], web["tunnel"], web["public"]) == ("3000", "app.example.com", "tls", "")
    assert web["terms"]["limits"]["connections"] == 5
    assert (db["target"], db["public"], db["tunnel"]) == ("5432", "9000", "auto")
    assert db["known_as"] == ["db.example.com", "sql.example.com"]
    assert read(tmp_path, "") == {} == read(tmp_path, "[exposures]\n")


def test_an_entry_says_what_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without what the environment sets for the command: a file means the same to everybody."""
    monkeypatch.setenv("OVERLAY_HOST", "other.example.com")
    assert read(tmp_path, TABLE)["web"]["host"] == ""


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("[exposures.web\n", "is not TOML", "[exposures.web]"),
        ("[exposure.web]\ntarget = '1'\n", "unknown table 'exposure'", "Did you mean 'exposures'?"),
        ("exposures = 1\n", "no table", "[exposures.web]"),
        ("[exposures]\nweb = 1\n", "no table", "[exposures.web]"),
        (TABLE + "hots = 'a'\n", "[exposures.web] has an unknown key 'hots'", "Did you mean 'host'?"),
        (TABLE + "state = 'a'\n", "unknown key 'state'", ""),
        (TABLE + "qqqqqqq = 'a'\n", "unknown key", "long options"),
        (TABLE + "tunnel = 'tsl'\n", "has 'tunnel' wrong: 'tsl' is not one of", "--help"),
        (TABLE + "max-connections = 'many'\n", "has 'max-connections' wrong", "--help"),
        (TABLE + "max-connections = -1\n", "has 'max-connections' wrong", "--help"),
        (TABLE + "host = true\n", "must be a text in quotes", "--help"),
        (TABLE + "users = '-'\n", "has 'users' wrong: nobody writes to standard input", "Name a file."),
        (TABLE + "host = ['a']\n", "must be a text in quotes", "--help"),
        (TABLE + "expires = 2026-12-31T18:00:00\n", "'2026-12-31T18:00:00' is no point in time", "zone"),
        (TABLE + "expires = 2026-12-31\n", "has 'expires' wrong: it must be a text in quotes", "--help"),
        (TABLE + "expires = 'soon'\n", "'soon' is not a length of time", "24h"),
        (TABLE + "known-as = [1, {}]\n", "must be a list", "--help"),
        ("[exposures.web]\nhost = 'a'\n", "[exposures.web] has no target", 'target = "3000"'),
        ("[exposures.x1]\ntarget = '1'\n", "what IDs look like", "'web'"),
        ("[exposures.'a b']\ntarget = '1'\n", "is no name", "'web'"),
    ],
)
def test_what_is_wrong_is_said_with_file_entry_and_key(text: str, says: str, hint: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, text)
    assert says in error.message and hint in error.hint


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    (folder / "dist").mkdir(parents=True)
    (folder / "ca.pem").write_text("a certificate")
    (folder / "users").write_text("anna:secret\n")
    found = read(
        folder,
        """
        [exposures.a]
        target = "dist"
        listing = true
        users = "users"
        [exposures.b]
        target = "unix:./app.sock"
        [exposures.c]
        target = "https://127.0.0.1:8443"
        target-ca = "ca.pem"
        allow = "10.0.0.0/8"
        """,
    )
    assert (found["a"]["target"], found["a"]["options"]["listing"]) == (f"{folder}/dist", True)
    assert found["b"]["target"] == f"unix:{folder}/app.sock"
    assert found["c"]["options"]["ca"] == "a certificate" and found["c"]["terms"]["access"]["allow"] == ["10.0.0.0/8"]
    missing = refusal(folder, TABLE + 'users = "none"\n')
    assert "[exposures.web] cannot be used: Cannot read" in missing.message


def test_an_end_in_a_file_is_a_point_in_time_or_counts_from_the_begin(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(
        TABLE + "expires = 2030-01-01T00:00:00Z\n"
        "[exposures.b]\ntarget = '1'\nexpires = '2030-01-01T01:00:00+01:00'\n"
        "[exposures.c]\ntarget = '1'\nexpires = '1h30m'\n"
    )
    file = exposure_file(tmp_path / "e.toml")
    web, b, c = file.wishes(file.read(), {}).values()
    assert (web.document["terms"]["expires"], web.lasts) == (1893456000.0, 0.0)
    assert (b.document["terms"]["expires"], b.lasts) == (1893456000.0, 0.0)
    assert c.lasts == 5400.0 and c.document["terms"]["expires"] > 0


def test_secrets_stay_as_they_are_while_the_file_changes(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("anna:secret\nben:other\n")
    path = tmp_path / "e.toml"
    path.write_text(TABLE + 'users = "users"\nbearer = "new"\nsecret-link = true\n')
    file = exposure_file(path)
    (first,) = file.wishes(file.read(), {}).values()
    assert set(first.made.shown) == {"bearer", "link"}
    (again,) = file.wishes(file.read(), {"web": first.document["terms"]}).values()
    assert again.document == first.document and not again.made.shown, "one sees no change"
    (tmp_path / "users").write_text("anna:changed\nben:other\n")
    (changed,) = file.wishes(file.read(), {"web": first.document["terms"]}).values()
    before, after = (each.document["terms"]["access"]["users"] for each in (first, changed))
    assert before[0] != after[0] and before[1] == after[1]
    with pytest.raises(UserError, match="has a secret made, which nobody would see"):
        unseen = exposure_file(path, may_make_secrets=False)
        unseen.wishes(unseen.read(), {})


def test_what_is_no_file_of_text(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    os.mkfifo(path)
    with pytest.raises(UserError, match="is no file"):
        exposure_file(path).read()
    path.unlink()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        exposure_file(path).read()
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(UserError, match="is larger than"):
        exposure_file(path).read()


@given(st.text(max_size=200) | st.text(alphabet='[]{}".=\n exposure target', max_size=200))
def test_whatever_stands_there_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "whatever.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        documents(exposure_file(path))
    except UserError as error:
        assert error.message and error.hint


def test_a_file_that_is_replaced_is_another_one(tmp_path: Path) -> None:
    file = exposure_file(tmp_path / "e.toml")
    assert file.signature() is None
    (tmp_path / "e.toml").write_text(TABLE)
    before = file.signature()
    (tmp_path / "new").write_text(TABLE)
    os.rename(tmp_path / "new", tmp_path / "e.toml")
    assert before is not None and file.signature() not in (None, before)


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["expose", *arguments, "--json", "--state", str(tmp_path / "state")])
    document = json.loads(capsys.readouterr().out)
    return code, document["error"]["message"] if "error" in document else json.dumps(document)


def test_how_the_command_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "e.toml"
    path.write_text(TABLE)
    assert run(tmp_path, capsys, "3000", "--file", str(path)) == (2, "TARGET and --file cannot be together.")
    assert run(tmp_path, capsys, "--host", "a.test") == (2, "Missing argument 'TARGET'.")
    assert run(tmp_path, capsys, "3000", "--dry-run") == (2, "--dry-run is for --file.")
    code, message = run(tmp_path, capsys, "--file", str(path), "--host", "a.test")
    assert (code, message) == (2, "--host cannot be together with --file.")
    assert run(tmp_path, capsys, "--file", str(tmp_path / "none"), "--check")[0] == 2
    assert run(tmp_path, capsys, "--file", str(path), "--background")[0] == 3, "no daemon"
    code, document = run(tmp_path, capsys, "--file", str(path), "--check")
    assert code == 0 and json.loads(document)["entries"][0]["action"] == "added", "without a daemon, too"
