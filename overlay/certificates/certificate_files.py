"""Certificates in files: those that somebody else keeps (`--tls-cert`, `--tls-key`), read, checked, and seen to change;
and those that this server keeps in its state folder.
"""

import datetime
import logging
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from overlay.certificates.certificate import MAX_FILE, Certificate, PrivateKey, belongs, make_key, read_chain, read_key
from overlay.daemon.state import StateDir, corrupt
from overlay.errors import Exit, UserError

_HINT_CERT: Final = "--tls-cert takes a file with the server's certificate and those above it, in PEM form."
_HINT_KEY: Final = "--tls-key takes the file with the certificate's private key, in PEM form and without a password."
_KEY_NAME: Final = "tls-key.pem"

_log = logging.getLogger(__name__)


class CertificateFiles:
    """The two files. `stamp` tells one state of them from another without reading them."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate = certificate
        self.key = key

    def stamp(self) -> tuple[object, ...]:
        """Different after a change of either file; a link that points elsewhere is a change too."""
        return (_stamp(self.certificate), _stamp(self.key))

    def load(self, wall: float) -> Certificate:
        """Read and check both, at `wall` Unix s.

        Raises `UserError`: "tls-file-missing", "tls-file-unreadable", "tls-cert-invalid", "tls-key-invalid",
        "tls-key-mismatch", "tls-cert-expired", "tls-cert-early".
        """
        chain_pem, key_pem = _read(self.certificate, _HINT_CERT), _read(self.key, _HINT_KEY)
        try:
            chain = read_chain(chain_pem)
        except ValueError as error:
            raise _invalid("tls-cert-invalid", f"{self.certificate} {error}.", _HINT_CERT) from error
        try:
            key: PrivateKey = read_key(key_pem)
        except ValueError as error:
            raise _invalid("tls-key-invalid", f"{self.key} {error}.", _HINT_KEY) from error
        try:
            if not belongs(chain, key):
                raise _invalid(
                    "tls-key-mismatch",
                    f"The key in {self.key} is not that of the first certificate in {self.certificate}.",
                    "Name two files of one certificate; the server's own stands first, those above it follow.",
                )
            certificate = Certificate(chain, key)
            certificate.context()  # what OpenSSL does not take is said now
            self._check_time(certificate, wall)
        except ValueError as error:
            raise _invalid("tls-cert-invalid", f"{self.certificate} cannot be used: {error}.", _HINT_CERT) from error
        return certificate

    def _check_time(self, certificate: Certificate, wall: float) -> None:
        if wall > certificate.expires:
            raise UserError(
                "tls-cert-expired",
                f"The certificate in {self.certificate} expired on {day(certificate.expires)}.",
                "Renew it, or leave --tls-cert out: the server then makes one of its own.",
            )
        if wall < certificate.begins:
            raise UserError(
                "tls-cert-early",
                f"The certificate in {self.certificate} is good from {day(certificate.begins)} on only.",
                "Is this machine's clock right?",
            )


def load_or_make_key(state: StateDir) -> ec.EllipticCurvePrivateKey:
    """The key of every certificate that is not from somebody's files; made and kept at the first start.

    Raises `UserError`: "state-corrupt", or what the file system refuses.
    """
    pem = state.read(_KEY_NAME)
    if pem is None:
        key = make_key()
        state.write(_KEY_NAME, Certificate((), key).key_pem())
        return key
    try:
        found = read_key(pem)
    except ValueError as error:
        raise corrupt(state.path / _KEY_NAME, f"it {error}") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise corrupt(state.path / _KEY_NAME, "it holds a key of another kind")
    return found


def load_kept(state: StateDir, name: str, key: PrivateKey) -> Certificate | None:
    """A certificate for `key` in the state folder. None: there is none, or it must be had anew. Raises `UserError` for
    what the file system refuses."""
    data = state.read(name)
    if data is None:
        return None
    try:
        chain = read_chain(data)
        if belongs(chain, key):
            return Certificate(chain, key)
        reason = "is for another key"
    except ValueError as error:
        reason = str(error)
    _log.warning("%s %s: it is had anew", state.path / name, reason)
    return None


def keep(state: StateDir, certificate: Certificate, name: str) -> None:
    """Write one for `load_kept`. If the disk refuses, it serves all the same, and the next start has it anew."""
    try:
        state.write(name, certificate.chain_pem())
    except UserError as error:
        _log.warning("%s", error.message)


def day(wall: float) -> str:
    """A Unix time as people write a day."""
    return datetime.datetime.fromtimestamp(wall, datetime.UTC).strftime("%Y-%m-%d")


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read(path: Path, hint: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError as error:
        raise UserError("tls-file-missing", f"There is no file {path}.", hint, Exit.USAGE) from error
    except PermissionError as error:
        hint = "Let the user that runs the server read it, or run the server with sudo."
        raise UserError("tls-file-unreadable", f"This user may not read {path}.", hint, Exit.REFUSED) from error
    except OSError as error:
        raise UserError("tls-file-unreadable", f"Cannot read {path}: {error.strerror}.", hint) from error
    if len(data) > MAX_FILE:
        raise _invalid("tls-cert-invalid", f"{path} is too large for a certificate or a key.", hint)
    return data


def _invalid(code: str, message: str, hint: str) -> UserError:
    return UserError(code, message, hint)
