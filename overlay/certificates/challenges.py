"""How this server shows an authority that a name is its own: HTTP-01 (RFC 8555 §8.3) and TLS-ALPN-01 (RFC 8737).

Both are answered on the server's one TCP port, and only while an order is under way.
"""

import hashlib
import ssl
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from overlay.certificates.certificate import self_signed
from overlay.wire.ingress.client_hello import ClientHello

ALPN: Final = "acme-tls/1"  # RFC 8737 §6.2
HTTP_PREFIX: Final = "/.well-known/acme-challenge/"
ALPN_OFFERED: Final = (ALPN.encode(),)
"""By an authority that comes for a proof: this alone (RFC 8737 §3)."""
_ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")  # RFC 8737 §6.1
_OCTET_STRING: Final = 0x04


class Challenges:
    """The answers that are good now. For the event loop's thread."""

    def __init__(self) -> None:
        self._http: dict[str, bytes] = {}  # path → key authorization
        self._tls: dict[str, ssl.SSLContext] = {}  # name → context with the certificate that proves it

    def set_http(self, path: str, key_authorization: str) -> None:
        self._http[path] = key_authorization.encode("ascii")

    def set_tls(self, name: str, key_authorization: str, wall: float) -> None:
        """A certificate for `name` alone, with the digest of the key authorization, critical (RFC 8737 §3)."""
        digest = hashlib.sha256(key_authorization.encode("ascii")).digest()
        proof = x509.UnrecognizedExtension(_ACME_IDENTIFIER, bytes([_OCTET_STRING, len(digest)]) + digest)
        certificate = self_signed(ec.generate_private_key(ec.SECP256R1()), [name], wall, extensions=[(proof, True)])
        self._tls[name.lower()] = certificate.context([ALPN])

    def clear(self) -> None:
        """The order is over."""
        self._http.clear()
        self._tls.clear()

    def http_answer(self, path: str) -> bytes | None:
        """The body for a GET of this path, to be sent with status 200; None: not one of ours, 404."""
        return self._http.get(path)

    @property
    def pending(self) -> bool:
        """Whether a handshake may come for a challenge."""
        return bool(self._tls)

    def context(self, hello: ClientHello) -> ssl.SSLContext | None:
        """For an authority that comes for a proof: it offers the challenge's protocol, and wants it agreed in that
        handshake (RFC 8737 §3). None: whoever it is, he came for something else."""
        return self._tls.get(hello.name) if ALPN.encode() in hello.protocols else None
