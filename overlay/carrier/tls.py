"""TLS around a carrier: the client's context, the handshake of either end, and the codec for what comes after it.

Whether the certificate proves anything is up to who dials: the Noise channel inside proves the server in any case, so
TLS may be there only to pass what lets nothing else through.
"""

import ssl
from functools import lru_cache
from typing import Final

from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import CodecStream, OverTcp
from overlay.carrier.verification import check_pin
from overlay.errors import RemoteProtocolError
from overlay.wire.ingress.proxy_protocol import UserTls
from overlay.wire.stream.codec import Codec, Octets

ALPN_WEBSOCKET: Final = ("http/1.1",)
ALPN_ORDINARY: Final = ("h2", "http/1.1")  # what every browser offers; the answer is of no interest
_READ_SIZE: Final = 16 * 1024
_RECORD_SIZE: Final = 64 * 1024


class Tls:
    """A `Codec` over OpenSSL, for a connection whose handshake is done."""

    def __init__(self, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._ended = False

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def agreed(self) -> tuple[UserTls, bytes]:
        """What a target may be told of it, and the protocol within (ALPN); empty: none was agreed on."""
        cipher = self._tls.cipher()
        alpn = self._tls.selected_alpn_protocol() or ""
        return UserTls(self._tls.version() or "", cipher[0] if cipher else ""), alpn.encode()

    def encode(self, data: Octets) -> bytes:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]  # a record at a time
        return self._outgoing.read()

    def decode(self, data: Octets) -> bytes:
        """Raises `RemoteProtocolError("tls_failed")`."""
        if self._ended:
            return b""
        self._incoming.write(data)
        pieces: list[bytes] = []
        try:
            while piece := self._tls.read(_RECORD_SIZE):
                pieces.append(piece)
                if not self._incoming.pending and not self._tls.pending():
                    return pieces[0] if len(pieces) == 1 else b"".join(pieces)  # spares an exception
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as error:
            raise RemoteProtocolError("tls_failed", _words(error)) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def answers(self) -> bytes:
        return self._outgoing.read()  # the answer to a KeyUpdate, which is no longer than what asked for it

    def end(self) -> bytes:
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it would like to read the peer's close_notify too; ours is written
        return self._outgoing.read()


def client_context(
    alpn: tuple[str, ...], *, authorities: bool = False, ca_file: str | None = None, ca_data: str = ""
) -> ssl.SSLContext:
    """For connections of a node. `ca_data`: PEM. Raises `OSError` if `ca_file` cannot be read, `ssl.SSLError` (also
    an `OSError`) if no certificate is in it."""
    if ca_file is None and not ca_data and not authorities:
        return _unverified(alpn)
    context = _client_context(alpn)
    if ca_file is not None or ca_data:
        context.load_verify_locations(ca_file, cadata=ca_data or None)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


@lru_cache(8)  # making one takes OpenSSL 1 ms
def _unverified(alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = _client_context(alpn)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _client_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    harden(context)
    context.set_alpn_protocols(list(alpn))
    return context


def harden(context: ssl.SSLContext) -> None:
    """What both ends have in common: nothing older than TLS 1.2 (RFC 8996), no renegotiation, no compression."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


async def client_handshake(stream: TcpStream, context: ssl.SSLContext, host: str, pin: bytes) -> CodecStream:
    """`host` goes into SNI if it is a name, and is held against the certificate if `context` verifies.

    Raises `RemoteProtocolError`: `tls_failed`, `tls_untrusted`, `wrong_certificate`. Closing stays the caller's.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        tls = context.wrap_bio(incoming, outgoing, server_hostname=host)
    except (ValueError, UnicodeError) as error:
        raise RemoteProtocolError("tls_failed", f"{host} is no name for a certificate") from error
    wrapped = await _shake_hands(stream, tls, incoming, outgoing)
    check_pin(tls.getpeercert(binary_form=True), pin)
    return wrapped


async def server_handshake(stream: OverTcp, context: ssl.SSLContext) -> CodecStream:
    """`stream` is not to be used any more. Raises `RemoteProtocolError("tls_failed")`."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return await _shake_hands(stream, context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)


async def _shake_hands(
    stream: OverTcp, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> CodecStream:
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await stream.send(outgoing.read())
            incoming.write(await stream.receive(_READ_SIZE))
        except ssl.SSLError as error:
            stream.send_now(outgoing.read())  # the alert, if there is one and it can be said at once
            reason = "tls_untrusted" if isinstance(error, ssl.SSLCertVerificationError) else "tls_failed"
            raise RemoteProtocolError(reason, _words(error)) from error
        else:
            break
    await stream.send(outgoing.read())
    codec: Codec = Tls(tls, incoming, outgoing)
    if isinstance(stream, CodecStream):
        return stream.around(codec)
    # The peer's first data may have come right behind its Finished.
    return CodecStream(stream, codec, codec.decode(b""))


def agreed(stream: object) -> tuple[UserTls | None, bytes]:
    """As `Tls.agreed` has it, of a stream whose TLS has been ended; of any other one: None, and nothing."""
    if isinstance(stream, CodecStream) and isinstance(stream.innermost, Tls):
        return stream.innermost.agreed
    return None, b""


def _words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message).lower().rstrip(".")
    return (error.reason or "no TLS").replace("_", " ").lower()
