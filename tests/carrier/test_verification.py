"""The pin is that of the key, whatever certificate it stands in."""

import subprocess
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from overlay.carrier.verification import PIN_SIZE, authorities_pem, check_pin, spki_sha256
from overlay.errors import RemoteProtocolError

CA = trustme.CA()
LEAF = CA.issue_cert("vpn.example.test")
DER = x509.load_pem_x509_certificate(LEAF.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)


def test_the_pin_is_what_openssl_says(tmp_path: Path) -> None:
    """RFC 7469, appendix A: openssl x509 -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256."""
    LEAF.cert_chain_pems[0].write_to_path(tmp_path / "leaf.pem")
    key = subprocess.run(["openssl", "x509", "-in", tmp_path / "leaf.pem", "-noout", "-pubkey"], capture_output=True)
    der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "der"], input=key.stdout, capture_output=True)
    digest = subprocess.run(["openssl", "dgst", "-sha256", "-binary"], input=der.stdout, capture_output=True)
    assert spki_sha256(DER) == digest.stdout
    private = load_pem_private_key(LEAF.private_key_pem.bytes(), None)
    assert der.stdout == private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_the_right_pin_passes_and_no_pin_passes() -> None:
    check_pin(DER, spki_sha256(DER))
    check_pin(DER, b"")
    check_pin(None, b"")


@pytest.mark.parametrize(
    "pin",
    [bytes(PIN_SIZE), b"short", spki_sha256(DER)[:-1], spki_sha256(DER) + b"x"],
    ids=["zeros", "short", "shorter", "longer"],
)
def test_another_pin_is_refused(pin: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check_pin(DER, pin)
    assert caught.value.reason == "wrong_certificate"


@given(
    st.one_of(st.none(), st.binary(max_size=64), st.integers(0, len(DER)).map(lambda cut: DER[:cut] + DER[cut + 1 :]))
)
def test_fuzz_what_is_no_certificate_never_passes(certificate: bytes | None) -> None:
    with pytest.raises(RemoteProtocolError):
        check_pin(certificate, bytes(PIN_SIZE))


def test_certificate_authorities_of_a_file(tmp_path: Path) -> None:
    """With text around, as bundles have it."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(b"# ours\r\n" + CA.cert_pem.bytes() + b"\nmore text\n" + CA.cert_pem.bytes())
    pem, file, folder = authorities_pem(str(ca_file))
    assert pem is not None
    assert len(x509.load_pem_x509_certificates(pem)) == 2
    assert file is None
    assert folder is None


def test_the_systems_certificate_authorities() -> None:
    pem, file, folder = authorities_pem(None)
    assert pem is None
    assert file or folder
