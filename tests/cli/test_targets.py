"""Targets as they are typed, before the daemon sees them."""

from pathlib import Path

import pytest

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
