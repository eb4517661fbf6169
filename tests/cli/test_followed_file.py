"""What is said of a file of exposures, and when it is tried again. The whole of it: tests/lab/test_expose_file.py."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from overlay.errors import Exit, UserError
from overlay_cli.followed_file import RequestLog, awaits_server


def outcome(exit_code: int | None) -> dict[str, Any]:
    error = None if exit_code is None else {"code": "x", "message": "No.", "hint": "", "exit_code": exit_code}
    return {"entry": "web", "action": "added", "exposure": None, "error": error}


@pytest.mark.parametrize(
    ("codes", "waits"), [((), False), ((None, 1), False), ((2, 4), False), ((None, 5), True), ((3,), True)]
)
def test_only_what_wanted_the_server_is_tried_again(codes: tuple[int | None, ...], waits: bool) -> None:
    assert awaits_server({"entries": [outcome(code) for code in codes]}) is waits


class Client:
    """A daemon that ends, or an exposure that does."""

    def __init__(self, error: UserError | None) -> None:
        self.error = error

    @contextmanager
    def stream(self, method: str, path: str) -> Iterator[Iterator[bytes]]:
        if self.error is not None:
            raise self.error
        yield iter(())


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (None, False),
        (UserError("exposure-unknown", "Gone."), False),
        (UserError("no-answer", "Ended.", exit_code=Exit.NOT_RUNNING), True),
    ],
)
def test_a_daemon_that_ends_is_noticed(error: UserError | None, lost: bool) -> None:
    log = RequestLog(cast(Any, Client(error)), json=False, quiet=False)
    log.follow({"entries": [{"entry": "web", "exposure": {"id": "x1", "url": "http://a.test/"}}]})
    for each in threading.enumerate():
        if each.name == "requests to x1":
            each.join(10)
    assert log.is_lost() is lost
