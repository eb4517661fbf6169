"""The server's certificate, met by real TLS clients: its own, somebody's files, and what changes over time."""

import base64
import hashlib
import os
import ssl
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.certificates.certificate import LIFETIME, is_name, make_key, self_signed
from overlay.certificates.certificate_files import CertificateFiles
from overlay.certificates.challenges import ALPN, Challenges
from overlay.certificates.pace import Pace
from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.server.certificates import Certificates, check_settings
from overlay.server.settings import ServerSettings
from tests.server.tls_port import PATIENCE, handshake, tls_port, trusting_nobody

HOSTS = ("vpn.example.org", "203.0.113.1", "2001:db8::1")
DAY = 86400.0
NOW = 1_790_000_000.0
QUICK = Pace(look=0.01)


class Wall:
    """A clock that a test sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def certificates(
    state: Path, wall: Callable[[], float] | None = None, hosts: tuple[str, ...] = HOSTS, **settings: Any
) -> Certificates:
    made = ServerSettings(state=str(state), **settings)
    return Certificates(StateDir(state).open(), made, hosts, wall=wall or Wall(NOW), pace=QUICK)


def pin_of(der: bytes) -> bytes:
    key = x509.load_der_x509_certificate(der).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


async def until(outcome: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not outcome():  # noqa: ASYNC110 - a certificate tells nobody
            await anyio.sleep(0.01)


def running(kept: Certificates, test: Callable[[int], Awaitable[None]]) -> None:
    """The test gets the number of a port that shows the certificate, which is looked after meanwhile."""

    async def main() -> None:
        with anyio.fail_after(2 * PATIENCE):
            async with tls_port(kept) as port, anyio.create_task_group() as tasks:
                tasks.start_soon(kept.run)
                await test(port)
                tasks.cancel_scope.cancel()

    anyio.run(main)


# its own


def test_its_own_certificate_says_the_hosts_and_nothing_else(tmp_path: Path) -> None:
    kept = certificates(tmp_path)
    made = kept.current.chain[0]
    assert set(kept.current.names) == set(HOSTS)
    assert made.subject.rfc4514_string() == made.issuer.rfc4514_string() == "CN=vpn.example.org"
    assert [extension.oid.dotted_string for extension in made.extensions] == ["2.5.29.17"]
    assert b"overlay" not in made.public_bytes(Encoding.DER).lower()
    key = made.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1"
    assert kept.current.begins <= NOW - DAY / 2 and kept.current.expires == NOW + LIFETIME.total_seconds()
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert "PRIVATE" not in repr(kept.current)


def test_a_client_with_the_pin_knows_the_server(tmp_path: Path) -> None:
    kept = certificates(tmp_path)

    async def test(port: int) -> None:
        der, protocol, version = await handshake(port, "vpn.example.org")
        assert pin_of(der) == kept.pin == kept.current.pin and len(kept.pin) == 32
        assert (protocol, version) == ("http/1.1", "TLSv1.3")
        assert (await handshake(port, None))[0] == der
        assert (await handshake(port, "something.else"))[0] == der
        trusting = ssl.create_default_context(cadata=der)
        assert (await handshake(port, "203.0.113.1", trusting))[0] == der
        with pytest.raises(ssl.SSLCertVerificationError):
            await handshake(port, "other.example.org", trusting)

    # By the real clock, because a client that verifies looks at its own.
    kept = certificates(tmp_path, wall=time.time)
    running(kept, test)


def test_old_versions_of_tls_are_refused(tmp_path: Path) -> None:
    async def test(port: int) -> None:
        twelve = trusting_nobody()
        twelve.maximum_version = ssl.TLSVersion.TLSv1_2
        assert (await handshake(port, None, twelve))[2] == "TLSv1.2"

    kept = certificates(tmp_path)
    assert kept.context().minimum_version is ssl.TLSVersion.TLSv1_2
    running(kept, test)


def test_a_restart_keeps_key_and_certificate_and_new_hosts_keep_the_key(tmp_path: Path) -> None:
    first = certificates(tmp_path)
    again = certificates(tmp_path, wall=Wall(NOW + DAY))
    assert again.current.chain == first.current.chain and again.pin == first.pin
    moved = certificates(tmp_path, hosts=("other.example.org",))
    assert moved.current.names == ("other.example.org",) and moved.pin == first.pin
    nameless = certificates(tmp_path, hosts=())
    assert nameless.current.names == ("localhost",)


def test_it_is_renewed_ahead_of_time_with_the_same_key_and_without_a_restart(tmp_path: Path) -> None:
    wall = Wall(NOW)
    kept = certificates(tmp_path, wall)
    held = kept.context()

    async def test(port: int) -> None:
        before = (await handshake(port, None))[0]
        wall.now = kept.current.renew_at - 1
        kept.reload()
        assert (await handshake(port, None))[0] == before
        wall.now += 2
        await until(lambda: kept.current.begins > NOW)
        after = (await handshake(port, None))[0]
        assert after != before and pin_of(after) == pin_of(before) == kept.pin
        assert wall.now + LIFETIME.total_seconds() - kept.current.expires < 1

    running(kept, test)
    assert kept.context() is not held and kept.warnings == ()
    assert certificates(tmp_path, wall).current.chain == kept.current.chain


def test_a_clock_that_was_wrong_at_the_start_does_no_harm(tmp_path: Path) -> None:
    early = certificates(tmp_path, Wall(0.0))
    later = certificates(tmp_path, Wall(NOW))
    assert later.current.good_at(NOW) and later.pin == early.pin
    back = certificates(tmp_path, Wall(DAY))
    assert back.current.good_at(DAY) and back.pin == early.pin


@pytest.mark.parametrize("damage", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_certificate_is_made_anew_and_a_damaged_key_is_said(tmp_path: Path, damage: bytes) -> None:
    first = certificates(tmp_path)
    (tmp_path / "tls-self-signed.pem").write_bytes(damage)
    assert certificates(tmp_path).pin == first.pin
    (tmp_path / "tls-key.pem").write_bytes(damage)
    with pytest.raises(UserError) as caught:
        certificates(tmp_path)
    assert caught.value.code == "state-corrupt" and "tls-key.pem" in caught.value.message


def test_status_for_people_and_what_quic_takes(tmp_path: Path) -> None:
    kept = certificates(tmp_path)
    assert kept.status() == {
        "source": "self-signed",
        "names": list(kept.current.names),
        "expires": kept.current.expires,
        "pin": kept.pin.hex(),
        "hosts": {},
    }
    chain, key = kept.chain_and_key()
    loaded = load_pem_private_key(key, password=None)
    (shown,) = x509.load_pem_x509_certificates(chain)
    assert shown.public_key() == loaded.public_key()


# somebody's files


class Files:
    """A certificate and a key as an administrator keeps them."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "fullchain.pem", folder / "privkey.pem"
        self.authority = trustme.CA()
        self.issue()

    def issue(self, name: str = "vpn.example.org") -> None:
        """Replaced whole, as certbot and others do."""
        leaf = self.authority.issue_cert(name)
        for path, data in (
            (self.key, leaf.private_key_pem.bytes()),
            (self.certificate, b"".join(blob.bytes() for blob in leaf.cert_chain_pems)),
        ):
            new = path.with_suffix(".new")
            new.write_bytes(data)
            os.replace(new, path)

    @property
    def settings(self) -> dict[str, Any]:
        return {"tls_cert": (str(self.certificate),), "tls_key": (str(self.key),)}

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "files"
    folder.mkdir()
    return Files(folder)


def from_files(tmp_path: Path, files: Files) -> Certificates:
    return certificates(tmp_path / "state", wall=time.time, **files.settings)


def refusal(tmp_path: Path, files: Files) -> UserError:
    with pytest.raises(UserError) as caught:
        from_files(tmp_path, files)
    return caught.value


def test_files_are_shown_and_no_pin_is_given_away(tmp_path: Path, files: Files) -> None:
    kept = from_files(tmp_path, files)

    async def test(port: int) -> None:
        assert (await handshake(port, "vpn.example.org", files.client()))[1] == "http/1.1"
        with pytest.raises(ssl.SSLCertVerificationError):
            await handshake(port, "other.example.org", files.client())

    running(kept, test)
    assert kept.pin == b"" and kept.status()["source"] == "files"
    assert [file.name for file in (tmp_path / "state").iterdir()] == []


def test_changed_files_serve_the_next_connection_and_bad_ones_change_nothing(
    tmp_path: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    kept = from_files(tmp_path, files)

    async def test(port: int) -> None:
        first = (await handshake(port, "vpn.example.org", files.client()))[0]
        files.issue()
        await until(lambda: kept.current.chain[0].public_bytes(Encoding.DER) != first)
        await until(lambda: kept.warnings == ())  # between two renames the key fits no certificate
        second = (await handshake(port, "vpn.example.org", files.client()))[0]
        files.certificate.write_bytes(b"garbage")
        await until(lambda: kept.warnings != ())
        (warning,) = kept.warnings
        assert str(files.certificate) in warning and warning in caplog.text
        assert (await handshake(port, "vpn.example.org", files.client()))[0] == second
        files.certificate.unlink()
        await until(lambda: "no file" in kept.warnings[0])
        files.issue()
        await until(lambda: kept.warnings == ())
        assert (await handshake(port, "vpn.example.org", files.client()))[0] not in (first, second)

    running(kept, test)


def test_missing_and_unreadable_files(tmp_path: Path, files: Files) -> None:
    files.key.unlink()
    missing = refusal(tmp_path, files)
    assert (missing.code, missing.exit_code) == ("tls-file-missing", Exit.USAGE) and str(files.key) in missing.message
    files.key.mkdir()
    assert refusal(tmp_path, files).code == "tls-file-unreadable"


def test_a_file_that_this_user_may_not_read(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    refused = refusal(tmp_path, files)
    assert (refused.code, refused.exit_code) == ("tls-file-unreadable", Exit.REFUSED)


def test_files_that_cannot_be_used(tmp_path: Path, files: Files) -> None:
    good = files.key.read_bytes()
    files.key.write_bytes(Files(files.key.parent / "..").key.read_bytes())
    other = refusal(tmp_path, files)
    assert other.code == "tls-key-mismatch" and str(files.key) in other.message
    files.key.write_bytes(b"garbage")
    assert refusal(tmp_path, files).code == "tls-key-invalid"
    key = load_pem_private_key(good, password=None)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    assert "password" in refusal(tmp_path, files).message
    files.key.write_bytes(good)
    files.certificate.write_bytes(b"x" * 300_000)
    assert refusal(tmp_path, files).code == "tls-cert-invalid"


SOUND = self_signed(make_key(), ["vpn.example.org"], NOW)


@given(
    part=st.sampled_from(["certificate", "key"]),
    place=st.floats(0, 1, exclude_max=True),
    put=st.binary(max_size=4),
    armoured=st.booleans(),
)
@example(part="certificate", place=0.0412, put=b"\x80", armoured=False)  # a serial number below 0
def test_damaged_files_load_or_are_said_and_nothing_else(part: str, place: float, put: bytes, armoured: bool) -> None:
    pem = SOUND.chain_pem() if part == "certificate" else SOUND.key_pem()
    lines = pem.splitlines()
    data = pem if armoured else base64.b64decode(b"".join(lines[1:-1]))
    at = int(place * len(data))
    damaged = data[:at] + put + data[at + len(put) :]
    if not armoured:  # then the damage is in what the armour holds
        damaged = b"\n".join((lines[0], base64.encodebytes(damaged).strip(), lines[-1], b""))
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder, "certificate"), Path(folder, "key")
        certificate.write_bytes(damaged if part == "certificate" else SOUND.chain_pem())
        key.write_bytes(damaged if part == "key" else SOUND.key_pem())
        try:
            loaded = CertificateFiles(certificate, key).load(NOW)
        except UserError as error:
            assert error.code.startswith("tls-")
        else:
            assert loaded.pin == SOUND.pin and isinstance(loaded.names, tuple)


@pytest.mark.parametrize(("written", "code"), [(0.0, "tls-cert-expired"), (4e9, "tls-cert-early")])
def test_a_certificate_out_of_its_time(tmp_path: Path, files: Files, written: float, code: str) -> None:
    made = self_signed(make_key(), ["vpn.example.org"], written)
    files.certificate.write_bytes(made.chain_pem())
    files.key.write_bytes(made.key_pem())
    assert refusal(tmp_path, files).code == code


def test_files_that_expire_meanwhile_are_a_warning(tmp_path: Path, files: Files) -> None:
    made = self_signed(make_key(), ["vpn.example.org"], NOW)
    files.certificate.write_bytes(made.chain_pem())
    files.key.write_bytes(made.key_pem())
    wall = Wall(NOW)
    kept = certificates(tmp_path / "state", wall, **files.settings)
    assert kept.warnings == ()
    wall.now = made.expires + 1
    assert "expired on" in " ".join(kept.warnings)


# settings


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"tls_cert": ("a",)}, "tls-options"),
        ({"tls_key": ("a",)}, "tls-options"),
        ({"tls_cert": ("a",), "tls_key": ("b",), "acme_email": "a@b.c"}, "tls-options"),
        ({"acme_email": "nobody"}, "acme-invalid"),
        ({"acme_email": "a@b.c,d@e.f"}, "acme-invalid"),
        ({"acme_directory": "https://ca.test/dir"}, "acme-invalid"),
        ({"acme_email": "a@b.c", "acme_directory": "http://ca.test/dir"}, "acme-invalid"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as caught:
        check_settings(ServerSettings(state="/nowhere", **settings))
    assert (caught.value.code, caught.value.exit_code) == (code, Exit.USAGE)


def test_an_authority_needs_a_name(tmp_path: Path) -> None:
    for hosts in (("203.0.113.1",), ()):
        with pytest.raises(UserError) as caught:
            certificates(tmp_path, hosts=hosts, acme_email="admin@example.org")
        assert caught.value.code == "acme-no-name"
    assert is_name("vpn.example.org") and not is_name("::1")


# challenges


def test_only_who_comes_for_a_challenge_sees_its_certificate(tmp_path: Path) -> None:
    kept = certificates(tmp_path)
    challenges: Challenges = kept._challenges

    async def test(port: int) -> None:
        own = (await handshake(port, "vpn.example.org"))[0]
        challenges.set_tls("VPN.example.org", "token.thumbprint", NOW)
        challenges.set_http("/.well-known/acme-challenge/token", "token.thumbprint")
        der, protocol, _ = await handshake(port, "vpn.example.org", protocols=(ALPN,))
        shown = x509.load_der_x509_certificate(der)
        proof = shown.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31"))
        assert proof.critical and isinstance(proof.value, x509.UnrecognizedExtension)
        assert proof.value.value == b"\x04\x20" + hashlib.sha256(b"token.thumbprint").digest()
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.DNSName("VPN.example.org")] and protocol == ALPN
        assert (await handshake(port, "vpn.example.org"))[:2] == (own, "http/1.1")
        assert (await handshake(port, None))[0] == own
        assert (await handshake(port, "other.example.org", protocols=(ALPN,)))[0] == own
        assert kept.http_answer("/.well-known/acme-challenge/token") == b"token.thumbprint"
        challenges.clear()
        assert (await handshake(port, "vpn.example.org", protocols=(ALPN,)))[0] == own
        assert kept.http_answer("/.well-known/acme-challenge/token") is None

    running(kept, test)
