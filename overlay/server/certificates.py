"""The server's certificate for tls, wss and quic: where it comes from, and that it is a good one all the time.

Three sources: made here and signed by itself (the default), files that somebody else keeps, or an authority by ACME.
The first and the last have one key, made at the first start and kept, so that an invite may pin it for good; until an
authority has given a certificate, and whenever its one has expired, the self-signed one serves. Which of several files
serves, the client's hello says; names that are exposed have certificates of their own.
"""

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from ssl import SSLContext
from time import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import anyio.to_thread

from overlay.carrier.verification import public_key_sha256
from overlay.certificates.authority import LETS_ENCRYPT, check_authority
from overlay.certificates.certificate import ALPN_HTTP, Certificate, Contexts, is_for, is_name, self_signed
from overlay.certificates.certificate_files import CertificateFiles, day, keep, load_kept, load_or_make_key
from overlay.certificates.challenges import Challenges
from overlay.certificates.host_certificates import HostCertificates, LeadsHere, anything_leads_here
from overlay.certificates.pace import DEFAULT_PACE, Pace
from overlay.daemon.state import StateDir
from overlay.errors import Exit, UserError
from overlay.server.settings import ServerSettings
from overlay.wire.ingress.client_hello import NO_HELLO, ClientHello

if TYPE_CHECKING:
    from overlay.certificates.acme_renewal import AcmeRenewal

SELF_SIGNED_NAME: Final = "tls-self-signed.pem"
_NO_HOST: Final = "localhost"  # in a self-signed certificate of a server that knows no name or address of itself

_log = logging.getLogger(__name__)


def check_settings(settings: ServerSettings) -> None:
    """Raises `UserError` (exit 2): "tls-options", "acme-invalid"."""
    if len(settings.tls_cert) != len(settings.tls_key):
        raise UserError(
            "tls-options", "--tls-cert and --tls-key go together.", "Give as many of both.", exit_code=Exit.USAGE
        )
    if settings.tls_cert and settings.acme_email:
        raise UserError(
            "tls-options",
            "The certificate comes from files or from an authority, not from both.",
            "Leave out either --tls-cert and --tls-key, or --acme-email.",
            Exit.USAGE,
        )
    check_authority(settings.acme_email, settings.acme_directory)


class Leases(Protocol):
    """The names that are exposed, and whose TLS is ended here."""

    def host_of(self, name: str) -> str | None:
        """The one that this name belongs to: itself, or `*.` and the rest of it."""

    def hosts(self) -> Iterable[str]: ...


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
        leads_here: LeadsHere = anything_leads_here,
    ) -> None:
        """`hosts`: names and addresses under which others know the server. `leads_here`: whether one that is exposed
        does, by the public DNS.

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
        self._file_warnings: dict[int, str] = {}  # by place
        self._challenges = Challenges()
        self._files = tuple(
            CertificateFiles(Path(certificate), Path(key))
            for certificate, key in zip(settings.tls_cert, settings.tls_key, strict=True)
        )
        self._stamps = [files.stamp() for files in self._files]
        self._authority: AcmeRenewal | None = None
        self._hosts_have: HostCertificates | None = None
        self.leases: Leases | None = None
        """Whose names are exposed."""
        self._more: dict[int, Contexts] = {}  # of files but the first, by their place
        if self._files:
            self._current = self._files[0].load(wall())
            self._more = {place: Contexts(files.load(wall())) for place, files in enumerate(self._files) if place}
        else:
            self._key = load_or_make_key(state)
            self._self_signed = self._load_self_signed()
            self._current = self._self_signed
            self._open_authority(settings, leads_here)
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
        return b"" if self._files else public_key_sha256(self._key.public_key())

    def context(self, hello: ClientHello = NO_HELLO, protocols: tuple[str, ...] = (ALPN_HTTP,)) -> SSLContext:
        """For the connection that began so: ask for each one anew. TLS 1.2 and up, with one of these `protocols`
        (ALPN); or acme-tls/1, when an authority comes to see that."""
        return self._challenges.context(hello) or self._contexts_for(hello.name).get(protocols)

    def _contexts_for(self, name: str) -> Contexts:
        """The certificate of a name that somebody asks for: of the files that have it, of an exposure, or ours."""
        for contexts in self._more.values():
            if is_for(contexts.certificate, name):
                return contexts
        host = self.leases.host_of(name) if self.leases is not None and name else None
        if host is None or self._hosts_have is None:
            return self._contexts
        if self._hosts_have.awaits(host):
            self._woken.set()
        return self._hosts_have.contexts(host)

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
        found = [*self._file_warnings.values(), self._authority.warning if self._authority is not None else ""]
        if self._hosts_have is not None:
            found += self._hosts_have.warnings
        if self._wall() > self._current.expires:
            found.append(f"The server's certificate expired on {day(self._current.expires)}.")
        return tuple(filter(None, found))

    def status(self) -> dict[str, Any]:
        """{"source", "names", "expires" (Unix s), "pin" (hex; of the certificate that serves now), "hosts" (that are
        exposed: name → source)}."""
        if self._files:
            source = "files"
        else:
            source = "self-signed" if self._current is self._self_signed else "acme"
        return {
            "source": source,
            "names": list(self._current.names),
            "expires": self._current.expires,
            "pin": self._current.pin.hex(),
            "hosts": self._hosts_have.status(self._leased()) if self._hosts_have is not None else {},
        }

    # over time

    def reload(self) -> None:
        """Look at once: for a change of files that a stamp does not show, and for an authority that said no."""
        self._stamps = [() for _ in self._files]
        if self._authority is not None:
            self._authority.try_at_once()
        if self._hosts_have is not None:
            self._hosts_have.try_at_once()
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled: keep the certificate a good one."""
        while True:
            self._woken = anyio.Event()
            for place in range(len(self._files)):
                await self._look_at_files(place)
            if not self._files:
                self._renew_self_signed()
                if self._authority is not None:
                    await self._authority.renew_if_due()
                self._use(self._best())
            if self._hosts_have is not None and await self._hosts_have.renew_if_due(self._leased()):
                continue
            with anyio.move_on_after(self._pace.look):
                await self._woken.wait()

    def _leased(self) -> tuple[str, ...]:
        return tuple(self.leases.hosts()) if self.leases is not None else ()

    async def _look_at_files(self, place: int) -> None:
        files = self._files[place]
        stamp = await anyio.to_thread.run_sync(files.stamp)
        if stamp == self._stamps[place]:
            return
        self._stamps[place] = stamp  # as it was before reading: what changes meanwhile is seen the next time
        try:
            certificate = await anyio.to_thread.run_sync(files.load, self._wall())
        except UserError as error:
            warning = f"The certificate's files have changed, and the old one stays: {error.message}"
            self._file_warnings[place] = warning
            _log.warning("%s", warning)
        else:
            self._file_warnings.pop(place, None)
            if self._use(certificate, place):
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

    def _open_authority(self, settings: ServerSettings, leads_here: LeadsHere) -> None:
        seldom: dict[str, Any] = {"wall": self._wall, "uniform": self._uniform, "pace": self._pace}
        if not settings.acme_email:
            self._hosts_have = HostCertificates(self._state, self._key, leads_here=leads_here, **seldom)
            return
        names = [host for host in self._hosts if is_name(host)]
        if not names or names == [_NO_HOST]:
            raise UserError(
                "acme-no-name",
                "A certificate authority needs a public name of the server, and it has none.",
                "Name it with --public vpn.example.org.",
                Exit.USAGE,
            )
        # The library takes a third of a second to load, which servers without ACME are spared.
        from overlay.certificates.acme import KINDS
        from overlay.certificates.acme_renewal import AcmeRenewal, open_orders

        orders = open_orders(
            self._state,
            self._key,
            self._challenges,
            directory=settings.acme_directory or LETS_ENCRYPT,
            email=settings.acme_email,
            wall=self._wall,
        )
        kinds = list(KINDS)
        self._authority = AcmeRenewal(self._state, self._key, names, orders, kinds=kinds, **seldom)
        self._hosts_have = HostCertificates(
            self._state, self._key, leads_here=leads_here, orders=orders, kinds=kinds, **seldom
        )

    def _best(self) -> Certificate:
        given = self._authority.certificate if self._authority is not None else None
        return given if given is not None and given.good_at(self._wall()) else self._self_signed

    def _use(self, certificate: Certificate, place: int = 0) -> bool:
        if place:
            changed = certificate.chain != self._more[place].certificate.chain
            self._more[place] = Contexts(certificate) if changed else self._more[place]
            return changed
        if certificate.chain == self._current.chain:
            return False
        self._current = certificate
        self._contexts = Contexts(certificate)
        return True
