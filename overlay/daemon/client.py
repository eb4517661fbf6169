"""A daemon's local API from the outside: HTTP on a unix socket. Imports little: every command starts with it."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from overlay.daemon.launch import error_from
from overlay.daemon.state import SOCKET_NAME
from overlay.errors import Exit, UserError

_PATIENCE = 10.0  # s
_LARGEST_CHUNK = 1 << 18


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class LocalClient:
    """Calls the daemon whose state is in `state`."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def request(self, method: str, path: str, body: Any = None, timeout: float = _PATIENCE) -> dict[str, Any]:
        """Returns the JSON document that the daemon answers.

        Raises the daemon's `UserError`, or "not-running" (exit 3), "no-permission" (exit 4), "no-answer" of its own.
        """
        with closing(_UnixConnection(str(self._state / SOCKET_NAME), timeout)) as connection, self._explained():
            document: dict[str, Any] = json.loads(_ask(connection, method, path, body).read() or b"{}")
            return document

    @contextmanager
    def stream(self, method: str, path: str, body: Any = None) -> Iterator[Iterator[bytes]]:
        """The bytes of an answer that goes on for any time, as they come. Raises as `request` does; the iterator raises
        "no-answer" when the daemon ends before its answer is complete.
        """
        with closing(_UnixConnection(str(self._state / SOCKET_NAME), _PATIENCE)) as connection:
            with self._explained():
                response = _ask(connection, method, path, body)
                connection.sock.settimeout(None)
            yield self._chunks(response)

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            with self._explained():
                chunk = response.read1(_LARGEST_CHUNK)
            if not chunk:
                return
            yield chunk

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise UserError(
                "not-running",
                f"No daemon is running on the state folder {self._state}.",
                "Start it with 'overlay up' (or 'overlay server'), or name its folder with --state DIR.",
                Exit.NOT_RUNNING,
            ) from error
        except PermissionError as error:
            raise UserError(
                "no-permission",
                f"You may not talk to the daemon of {self._state}.",
                "Run the command with sudo, or join the group 'overlay'.",
                Exit.REFUSED,
            ) from error
        except (http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionResetError) as error:
            raise UserError(
                "no-answer",
                f"The daemon of {self._state} has ended.",
                f"Start it again; its log in {self._state} says more.",
                Exit.NOT_RUNNING,
            ) from error
        except (TimeoutError, OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(
                "no-answer",
                f"The daemon of {self._state} does not answer as it should ({error}).",
                f"See its log in {self._state}; if it hangs, end it and start it again.",
            ) from error


def _ask(connection: _UnixConnection, method: str, path: str, body: Any) -> http.client.HTTPResponse:
    """The answer, if it is a good one. Raises the daemon's `UserError`."""
    payload = None if body is None else json.dumps(body)
    headers = {"Content-Type": "application/json"} if payload is not None else {}
    connection.request(method, path, payload, headers)
    response = connection.getresponse()
    if response.status in (404, 405) and "json" not in response.headers.get("Content-Type", ""):
        raise UserError(
            "other-daemon",
            "The daemon that runs there does not know this command: it is a server's where a node's is asked, or a "
            "node's where a server's is, or of another version.",
            "Run it on the other machine, or name the other daemon's folder with --state DIR; see 'overlay status'.",
        )
    if response.status >= 400:
        raise error_from(json.loads(response.read() or b"{}").get("error", {}))
    return response
