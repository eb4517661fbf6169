"""One HTTP/1.1 request to a router, and its answer, by h11 (RFC 9112). Sans-I/O; a router's answers are short."""

from collections.abc import Sequence
from typing import Final

import h11

from overlay.errors import RemoteProtocolError

MAX_BODY_SIZE: Final = 128 * 1024
"""Bytes; the longest descriptions of real routers have some 20 KiB."""


class Call:
    """`host` is an IPv4 address. `headers` besides Host, Connection and Content-Length."""

    def __init__(
        self, method: str, host: str, port: int, path: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        """Raises `RemoteProtocolError`: http_bad_path, for a path that a router named."""
        self.status = 0
        self.body = b""
        self._connection = h11.Connection(h11.CLIENT)
        own = [("Host", f"{host}:{port}"), ("Connection", "close"), ("Content-Length", str(len(body)))]
        try:
            request = h11.Request(method=method, target=path, headers=[*own, *headers])
            events = (request, h11.Data(data=body), h11.EndOfMessage())
            self.request = b"".join(self._connection.send(event) or b"" for event in events)
        except h11.LocalProtocolError as error:
            raise RemoteProtocolError("http_bad_path") from error

    def receive(self, data: bytes) -> bool:
        """What came, b"" at its end. Returns whether the answer is whole.

        Raises `RemoteProtocolError`: http_bad_answer, http_too_long.
        """
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Response):
                    self.status = event.status_code
                elif isinstance(event, h11.Data):
                    self.body += event.data
                    if len(self.body) > MAX_BODY_SIZE:
                        raise RemoteProtocolError("http_too_long")
                elif isinstance(event, h11.EndOfMessage):
                    return True
                elif event is h11.NEED_DATA:
                    return False
                elif not isinstance(event, h11.InformationalResponse):
                    raise RemoteProtocolError("http_bad_answer")
        except h11.RemoteProtocolError as error:
            raise RemoteProtocolError("http_bad_answer", str(error)) from error
