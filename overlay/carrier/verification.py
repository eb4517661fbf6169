"""Who the server's certificate must come from: the key that the invite names, a certificate authority, or both.

The Noise channel inside proves the server on every carrier. The outer certificate is checked as well where it can be,
so that nobody in between even learns that there is a Noise channel.
"""

import hmac
import ssl
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from overlay.errors import RemoteProtocolError

PIN_SIZE: Final = 32


def spki_sha256(certificate_der: bytes) -> bytes:
    """SHA-256 of the certificate's SubjectPublicKeyInfo: 32 bytes, the same for each certificate of one key
    (RFC 7469 §2.4). Raises `ValueError` for what is no certificate."""
    return public_key_sha256(x509.load_der_x509_certificate(certificate_der).public_key())


def public_key_sha256(key: PublicKeyTypes) -> bytes:
    """As `spki_sha256`, of the key itself."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def check_pin(certificate_der: bytes | None, pin: bytes) -> None:
    """Raises `RemoteProtocolError` (`wrong_certificate`) if the certificate's key has another pin. Empty: all pass.

    Only for the certificate of a finished handshake: by that the peer has proven that it holds the key.
    """
    if not pin:
        return
    try:
        found = spki_sha256(certificate_der or b"")
    except Exception as error:
        # cryptography raises errors of several families for keys that it does not know.
        raise RemoteProtocolError("wrong_certificate", "its certificate cannot be read") from error
    if not hmac.compare_digest(found, pin):
        raise RemoteProtocolError("wrong_certificate", "its certificate is not the one that the invite names")


def authorities_pem(ca_file: str | None) -> tuple[bytes | None, str | None, str | None]:
    """What to verify by: certificates as PEM, else a file and a folder of the system's own; either may be missing.

    Raises `OSError`, whose text is the reason, if `ca_file` cannot be read or holds no certificate.
    """
    if ca_file is None:
        paths = ssl.get_default_verify_paths()
        return None, paths.cafile, paths.capath
    try:
        certificates = x509.load_pem_x509_certificates(Path(ca_file).read_bytes())
    except ValueError as error:
        raise OSError(f"{ca_file} holds no certificate") from error
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates), None, None
