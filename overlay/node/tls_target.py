"""TLS from this node to a target by https, for users' plain requests."""

import ssl
from typing import Final

import anyio
import anyio.to_thread

from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import CodecStream
from overlay.carrier.tls import ALPN_WEBSOCKET, client_context, client_handshake
from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.node.targets import TargetOptions

_WAY_OUT: Final = "name its authority with --target-ca FILE, or leave it unverified with --insecure-target"


class TlsTarget:
    """How one target is spoken to. The certificates that it is verified by are read once."""

    def __init__(self, host: str, options: TargetOptions) -> None:
        self._host = host
        self._options = options
        self._context: ssl.SSLContext | None = None

    async def check(self) -> None:
        """Raises `UserError` ("ca-invalid")."""
        try:
            await self._its_context()
        except ssl.SSLError as error:
            raise UserError(
                "ca-invalid",
                "The file that --target-ca names holds no certificate.",
                "Name a file of certificates in PEM form.",
                Exit.USAGE,
            ) from error

    async def secure(self, stream: TcpStream) -> CodecStream:
        """Raises `OSError`, whose text is the end of a sentence; closing stays the caller's then."""
        context = await self._its_context()
        try:
            return await client_handshake(stream, context, self._host, b"")
        except RemoteProtocolError as error:
            why = str(error).partition(": ")[2] or str(error)
            if error.reason == "tls_untrusted":
                raise OSError(f"its certificate is not trusted ({why}); {_WAY_OUT}") from error
            raise OSError(f"it does not speak TLS ({why})") from error
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise OSError("it closed the connection instead of speaking TLS") from error

    async def _its_context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = await anyio.to_thread.run_sync(self._make_context)  # the system's file takes 20 ms
        return self._context

    def _make_context(self) -> ssl.SSLContext:
        return client_context(ALPN_WEBSOCKET, authorities=not self._options.insecure, ca_data=self._options.ca)
