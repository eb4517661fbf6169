"""Keys and certificates for those rivals that want X.509 or RSA. Throw-away ones: they live as long as a lab does."""

import datetime
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

LIFE = datetime.timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and a certificate that it signed itself, PEM; `fingerprint` is SHA-256 as openssl prints it."""

    certificate: str
    key: str = field(repr=False)
    fingerprint: str

    @classmethod
    def new(cls, name: str) -> "Identity":
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - LIFE)
            .not_valid_after(now + LIFE)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(
            certificate.public_bytes(serialization.Encoding.PEM).decode(),
            private.decode(),
            certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
        )


def rsa_pair() -> tuple[str, str]:
    """Private and public key in PKCS #1 PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    return private.decode(), public.decode()
