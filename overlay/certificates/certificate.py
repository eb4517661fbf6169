"""One certificate with its key: made here, read from files, and in the forms that TLS and QUIC want. Keeps nothing."""

import datetime
import os
import ssl
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.utils import CryptographyDeprecationWarning

from overlay.carrier.tls import harden
from overlay.carrier.verification import public_key_sha256

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

ALPN_HTTP: Final = "http/1.1"
MAX_FILE: Final = 256 * 1024  # bytes of a certificate or key file: a chain of forty certificates
LIFETIME: Final = datetime.timedelta(days=397)  # of one made here: what browsers and middleboxes take for ordinary
_EARLIER: Final = datetime.timedelta(days=1)  # it is good from so long ago, for clocks that are behind
_MAX_COMMON_NAME: Final = 64  # characters, RFC 5280 appendix A.1
_CONTEXTS_KEPT: Final = 16  # of a certificate: whoever comes may ask for protocols of his own
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A chain, the server's own certificate first, and its private key. `repr` shows no key."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey

    def __repr__(self) -> str:
        return f"Certificate(names={self.names}, pin={self.pin.hex()})"

    @property
    def pin(self) -> bytes:
        """SHA-256 of the public key's SubjectPublicKeyInfo, DER: 32 bytes (RFC 7469 §2.4)."""
        return public_key_sha256(self.key.public_key())

    @property
    def names(self) -> tuple[str, ...]:
        """Host names and addresses that it is for."""
        try:
            names = self.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, ValueError):
            return ()
        return tuple(str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress))

    @property
    def begins(self) -> float:
        """Unix s."""
        return self.chain[0].not_valid_before_utc.timestamp()

    @property
    def expires(self) -> float:
        """Unix s."""
        return self.chain[0].not_valid_after_utc.timestamp()

    @property
    def renew_at(self) -> float:
        """Unix s: when a third of its time is left."""
        return self.expires - (self.expires - self.begins) / 3

    def good_at(self, wall: float) -> bool:
        return self.begins <= wall <= self.expires

    def chain_pem(self) -> bytes:
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    def key_pem(self) -> bytes:
        """PKCS #8, not encrypted."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def context(self, protocols: Sequence[str] = (ALPN_HTTP,)) -> ssl.SSLContext:
        """For the server's side, TLS 1.2 and up. Raises `ValueError` for what OpenSSL does not take."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        harden(context)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        # Python's ssl reads keys from files only: this one is in memory, and no other user can open it.
        with os.fdopen(os.memfd_create("certificate", os.MFD_CLOEXEC), "wb") as file:
            file.write(self.chain_pem() + self.key_pem())
            file.flush()
            try:
                context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
            except ssl.SSLError as error:
                raise ValueError(f"OpenSSL refuses it ({error.reason or error})") from error
        return context


class Contexts:
    """One certificate's contexts, each made when it is first wanted and kept among the last ones."""

    def __init__(self, certificate: Certificate) -> None:
        self.certificate = certificate
        self._made: OrderedDict[tuple[str, ...], ssl.SSLContext] = OrderedDict()

    def get(self, protocols: tuple[str, ...]) -> ssl.SSLContext:
        """As `Certificate.context`."""
        found = self._made.get(protocols)
        if found is None:
            found = self._made[protocols] = self.certificate.context(protocols)
            if len(self._made) > _CONTEXTS_KEPT:
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(protocols)
        return found


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def read_key(pem: bytes) -> PrivateKey:
    """A private key that is not encrypted. Raises `ValueError` with the end of a sentence."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ValueError("is encrypted with a password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("holds no private key in PEM form") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and not isinstance(key.curve, _CURVES):
        raise ValueError(f"holds a key of the curve {key.curve.name}, which TLS does not use")
    if not isinstance(key, PrivateKey):
        raise ValueError("holds a private key of a kind that TLS does not use")
    return key


def read_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """One certificate or more. Raises `ValueError` with the end of a sentence."""
    try:
        with warnings.catch_warnings():
            # What the library still reads with a warning (a serial number below 1, say) it is about to refuse.
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            return tuple(x509.load_pem_x509_certificates(pem))
    except CryptographyDeprecationWarning as error:
        raise ValueError("holds a certificate that is not as RFC 5280 has it") from error
    except ValueError as error:
        raise ValueError("holds no certificate in PEM form") from error


def belongs(chain: Sequence[x509.Certificate], key: PrivateKey) -> bool:
    """Whether the first certificate is for this key. Raises `ValueError` for a public key that nobody can read."""
    try:
        return chain[0].public_key() == key.public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError("holds a certificate for a kind of key that TLS does not use") from error


def self_signed(
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    wall: float,
    *,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Certificate:
    """A certificate for these names and addresses (at least one), good from yesterday. `extensions` come on top, each
    with whether it is critical. It says nothing but the hosts."""
    now = datetime.datetime.fromtimestamp(wall, datetime.UTC).replace(microsecond=0)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hosts[0][:_MAX_COMMON_NAME])])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Certificate((builder.sign(key, hashes.SHA256()),), key)


def is_for(certificate: Certificate, name: str) -> bool:
    """Whether it is for this name, in lower case; `*.` stands for one label (RFC 6125 §6.4.3)."""
    names = {each.lower() for each in certificate.names}
    return name in names or f"*.{name.partition('.')[2]}" in names


def is_name(host: str) -> bool:
    """A host name, not an address."""
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


def _general_name(host: str) -> x509.GeneralName:
    return x509.DNSName(host) if is_name(host) else x509.IPAddress(ip_address(host))
