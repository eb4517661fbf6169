"""Targets as they are typed, before the daemon sees them."""

from pathlib import Path
from typing import Any

import pytest

from overlay.daemon.client import LocalClient
from overlay_cli.main import main
from overlay_cli.targets import absolute_target


def test_paths_become_absolute_and_all_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dist" / "3000").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "dist")
    monkeypatch.setenv("PWD", "")
    for text, expected in {
        ".": f"{tmp_path}/dist",
        "./": f"{tmp_path}/dist",
        "../dist/": f"{tmp_path}/dist",
        "./3000": f"{tmp_path}/dist/3000",
        "/srv/../x/": "/x",
        "unix:s.sock": f"unix:{tmp_path}/dist/s.sock",
        "unix:///run/s": "unix:/run/s",
        "tcp+unix:../s": f"tcp+unix:{tmp_path}/s",
        "3000": "3000",
        "dist": "dist",
        "localhost:80": "localhost:80",
        "http://app.lan/": "http://app.lan/",
    }.items():
        assert absolute_target(text) == expected
    monkeypatch.chdir(tmp_path)
    assert absolute_target("dist") == f"{tmp_path}/dist"


def wished(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, str]:
    """The target's options of what a command asks a daemon for."""
    wishes: list[dict[str, dict[str, str]]] = []

    def request(_self: LocalClient, method: str, _path: str, body: Any = None, timeout: float = 0) -> dict[str, Any]:
        if method == "POST":
            wishes.append(body)
        return {"id": "x1", "public": "192.0.2.1:1", "url": None, "target": "t", "certificate": None, "inspect": 0}

    monkeypatch.setattr(LocalClient, "request", request)
    assert main(["expose", "tcp://a:1", "--background", *arguments]) == 0
    return wishes[0]["options"]


def test_a_proxys_password_comes_by_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auth = tmp_path / "auth"
    auth.write_text("al:ice@x\r\nmore\n")
    state = ("--state", str(tmp_path))
    found = wished(monkeypatch, *state, "--target-proxy", "socks5://p:1080", "--target-proxy-auth", str(auth))
    assert found["proxy"] == "socks5://al:ice%40x@p:1080"
    assert main(["expose", "tcp://a:1", *state, "--target-proxy", "socks5://alice:s3cret@p"]) == 2
    assert "seen by every user" in (said := capsys.readouterr().err) and "s3cret" not in said
    for arguments in (("--target-proxy-auth", str(auth)), ("--target-proxy-auth", str(tmp_path / "missing"))):
        assert main(["expose", "tcp://a:1", *state, *arguments]) == 2
    assert main(["expose", "https://a:1", *state, "--target-ca", str(tmp_path)]) == 2
    monkeypatch.setenv("OVERLAY_TARGET_PROXY", "socks5://alice:s3cret@p")
    assert wished(monkeypatch, *state)["proxy"] == "socks5://alice:s3cret@p"
