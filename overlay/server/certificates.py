"""The server's certificate for tls, wss and quic: where it comes from, and that it is a good one all the time.

Three sources: made here and signed by itself (the default), two files that somebody else keeps, or an authority by
ACME. The first and the last have one key, made at the first start and kept, so that an invite may pin it for good;
until an authority has given a certificate, and whenever its one has expired, the self-signed one serves.
"""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from ssl import SSLContext
from time import time
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from overlay.carrier.verification import public_key_sha256
from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.server.certificate import ALPN_HTTP, Certificate, Contexts, is_name, self_signed
from overlay.server.certificate_files import CertificateFiles, day, keep, load_kept, load_or_make_key
from overlay.server.challenges import Challenges
from overlay.server.pace import DEFAULT_PACE, Pace
from overlay.server.settings import LETS_ENCRYPT, ServerSettings
from overlay.wire.ingress.client_hello import NO_HELLO, ClientHello

if TYPE_CHECKING:
    from overlay.server.acme_renewal import AcmeRenewal

SELF_SIGNED_NAME: Final = "tls-self-signed.pem"
_NO_HOST: Final = "localhost"  # in a self-signed certificate of a server that knows no name or address of itself

_log = logging.getLogger(__name__)


def check_settings(settings: ServerSettings) -> None:
    """Raises `UserError` (exit 2): "tls-options", "acme-invalid"."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise UserError(
            "tls-options", "--tls-cert and --tls-key go together.", "Give both, or neither.", exit_code=Exit.USAGE
        )
    if settings.tls_cert and settings.acme_email:
        raise UserError(
            "tls-options",
            "The certificate comes from files or from an authority, not from both.",
            "Leave out either --tls-cert and --tls-key, or --acme-email.",
            Exit.USAGE,
        )
    if not settings.acme_email:
        if settings.acme_directory:
            raise UserError(
                "acme-invalid", "--acme-directory needs --acme-email.", "Give an address of yours.", Exit.USAGE
            )
        return
    user, at, host = settings.acme_email.partition("@")
    if not (user and at and host and settings.acme_email.isprintable()) or set(" ,?") & set(settings.acme_email):
        raise UserError(
            "acme-invalid",
            f"'{settings.acme_email}' is not an e-mail address.",
            "As in --acme-email admin@example.org.",
            Exit.USAGE,
        )
    if settings.acme_directory and not settings.acme_directory.startswith("https://"):
        raise UserError(
            "acme-invalid",
            "The ACME directory must be an https URL.",
            f"As in --acme-directory {LETS_ENCRYPT}.",
            Exit.USAGE,
        )


class Certificates:
    """See the module's docstring. For the event loop's thread."""

    def __init__(
        self,
        state: StateDir,
        settings: ServerSettings,
        hosts: Sequence[str],
        *,
        wall: Callable[[], float] = time,
        uniform: Callable[[float, float], float] = random.uniform,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        """`hosts`: names and addresses under which others know the server.

        Raises `UserError`: as `check_settings` and `CertificateFiles.load`, "acme-no-name" (exit 2), "state-corrupt",
        and what the file system refuses.
        """
        check_settings(settings)
        self._state = state
        self._hosts = tuple(dict.fromkeys(hosts)) or (_NO_HOST,)
        self._wall = wall
        self._uniform = uniform
        self._pace = pace
        self._woken = anyio.Event()
        self._file_warning = ""
        self._stamp: tuple[object, ...] = ()
        self._challenges = Challenges()
        self._files: CertificateFiles | None = None
        self._authority: AcmeRenewal | None = None
        if settings.tls_cert:
            self._files = CertificateFiles(Path(settings.tls_cert), Path(settings.tls_key))
            self._stamp = self._files.stamp()
            self._current = self._files.load(wall())
        else:
            self._key = load_or_make_key(state)
            self._self_signed = self._load_self_signed()
            self._current = self._self_signed
            if settings.acme_email:
                self._authority = self._open_authority(settings)
                self._current = self._best()
        self._contexts = Contexts(self._current)

    # what the carriers ask for

    @property
    def current(self) -> Certificate:
        """For new connections. It is another object after a change."""
        return self._current

    @property
    def pin(self) -> bytes:
        """SHA-256 of the public key that every certificate of this server will have, for invites; empty: whoever keeps
        the files may change the key, and a pin would lock nodes out."""
        return b"" if self._files is not None else public_key_sha256(self._key.public_key())

    def context(self, hello: ClientHello = NO_HELLO, protocols: tuple[str, ...] = (ALPN_HTTP,)) -> SSLContext:
        """For the connection that began so: ask for each one anew. TLS 1.2 and up, with one of these `protocols`
        (ALPN); or acme-tls/1, when an authority comes to see that."""
        return self._challenges.context(hello) or self._contexts.get(protocols)

    def chain_and_key(self) -> tuple[bytes, bytes]:
        """PEM, for QUIC: the chain, this server's own certificate first, and the private key."""
        return self._current.chain_pem(), self._current.key_pem()

    def http_answer(self, path: str) -> bytes | None:
        """As `Challenges.http_answer`."""
        return self._challenges.http_answer(path)

    # what people see

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences."""
        found = [self._file_warning, self._authority.warning if self._authority is not None else ""]
        if self._wall() > self._current.expires:
            found.append(f"The server's certificate expired on {day(self._current.expires)}.")
        return tuple(filter(None, found))

    def status(self) -> dict[str, Any]:
        """{"source", "names", "expires" (Unix s), "pin" (hex; of the certificate that serves now)}."""
        if self._files is not None:
            source = "files"
        else:
            source = "self-signed" if self._current is self._self_signed else "acme"
        return {
            "source": source,
            "names": list(self._current.names),
            "expires": self._current.expires,
            "pin": self._current.pin.hex(),
        }

    # over time

    def reload(self) -> None:
        """Look at once: for a change of files that a stamp does not show, and for an authority that said no."""
        self._stamp = ()
        if self._authority is not None:
            self._authority.try_at_once()
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled: keep the certificate a good one."""
        while True:
            self._woken = anyio.Event()
            if self._files is not None:
                await self._look_at_files(self._files)
            else:
                self._renew_self_signed()
                if self._authority is not None:
                    await self._authority.renew_if_due()
                self._use(self._best())
            with anyio.move_on_after(self._pace.look):
                await self._woken.wait()

    async def _look_at_files(self, files: CertificateFiles) -> None:
        stamp = await anyio.to_thread.run_sync(files.stamp)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # as it was before reading: what changes meanwhile is seen the next time
        try:
            certificate = await anyio.to_thread.run_sync(files.load, self._wall())
        except UserError as error:
            self._file_warning = f"The certificate's files have changed, and the old one stays: {error.message}"
            _log.warning("%s", self._file_warning)
        else:
            self._file_warning = ""
            if self._use(certificate):
                _log.info("the certificate in %s is taken, good until %s", files.certificate, day(certificate.expires))

    def _renew_self_signed(self) -> None:
        if self._self_signed.begins <= self._wall() < self._self_signed.renew_at:
            return
        self._self_signed = self_signed(self._key, self._hosts, self._wall())
        keep(self._state, self._self_signed, SELF_SIGNED_NAME)

    def _load_self_signed(self) -> Certificate:
        found = load_kept(self._state, SELF_SIGNED_NAME, self._key)
        if found is not None and set(found.names) == set(self._hosts) and found.good_at(self._wall()):
            return found
        made = self_signed(self._key, self._hosts, self._wall())
        keep(self._state, made, SELF_SIGNED_NAME)
        return made

    def _open_authority(self, settings: ServerSettings) -> "AcmeRenewal":
        names = [host for host in self._hosts if is_name(host)]
        if not names or names == [_NO_HOST]:
            raise UserError(
                "acme-no-name",
                "A certificate authority needs a public name of the server, and it has none.",
                "Name it with --public vpn.example.org.",
                Exit.USAGE,
            )
        # The library takes a third of a second to load, which servers without ACME are spared.
        from overlay.server.acme_renewal import AcmeRenewal

        return AcmeRenewal(
            self._state,
            self._key,
            names,
            self._challenges,
            directory=settings.acme_directory or LETS_ENCRYPT,
            email=settings.acme_email,
            wall=self._wall,
            uniform=self._uniform,
            pace=self._pace,
        )

    def _best(self) -> Certificate:
        given = self._authority.certificate if self._authority is not None else None
        return given if given is not None and given.good_at(self._wall()) else self._self_signed

    def _use(self, certificate: Certificate) -> bool:
        if certificate.chain == self._current.chain:
            return False
        self._current = certificate
        self._contexts = Contexts(certificate)
        return True
