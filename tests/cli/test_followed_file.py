"""What is said of a file of exposures, and when it is tried again. The whole of it: tests/lab/test_expose_file.py."""

from typing import Any

import pytest

from overlay_cli.followed_file import awaits_server


def outcome(exit_code: int | None) -> dict[str, Any]:
    error = None if exit_code is None else {"code": "x", "message": "No.", "hint": "", "exit_code": exit_code}
    return {"entry": "web", "action": "added", "exposure": None, "error": error}


@pytest.mark.parametrize(
    ("codes", "waits"), [((), False), ((None, 1), False), ((2, 4), False), ((None, 5), True), ((3,), True)]
)
def test_only_what_wanted_the_server_is_tried_again(codes: tuple[int | None, ...], waits: bool) -> None:
    assert awaits_server({"entries": [outcome(code) for code in codes]}) is waits
