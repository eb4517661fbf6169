"""TLS of users that ends at this node (`--tls-end node`): the server carries it on and has no key to it.

Key, certificates and accounts stand in this node's state folder. Certificates are ordered by TLS-ALPN-01 (RFC 8737):
the authority comes as any user does, through the server. Until there is one, the exposure has a self-signed one.
"""

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import anyio
import msgspec

from overlay.carrier.port import Stream, read_client_hello
from overlay.carrier.quic import QuicStream
from overlay.carrier.streams import CodecStream
from overlay.carrier.tls import server_handshake
from overlay.certificates.authority import LETS_ENCRYPT, check_authority
from overlay.certificates.certificate import ALPN_HTTP
from overlay.certificates.certificate_files import load_or_make_key
from overlay.certificates.challenges import ALPN_OFFERED, Challenges
from overlay.certificates.host_certificates import HostCertificates
from overlay.certificates.pace import DEFAULT_PACE, Pace
from overlay.daemon.state import StateDir
from overlay.errors import RemoteProtocolError

HANDSHAKE_TIMEOUT: Final = 10.0  # s
_DIGEST: Final = 8  # characters, to tell authorities apart in names of files

Source = Literal["self-signed", "acme"]


class TlsOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a person sets for the certificate of an exposure whose TLS ends here. It stays on this node."""

    acme_email: str = ""  # ask an authority; "": a self-signed certificate
    acme_directory: str = ""  # URL; "": Let's Encrypt's

    def check(self) -> None:
        """Raises `UserError` ("acme-invalid", exit 2)."""
        check_authority(self.acme_email, self.acme_directory)


NO_TLS_OPTIONS: Final = TlsOptions()


@dataclass(eq=False)
class _Issuer:
    """Whom certificates are from."""

    certificates: HostCertificates
    challenges: Challenges


class OwnTls:
    """Of all exposures whose TLS ends here. For the event loop's thread."""

    def __init__(
        self,
        state: StateDir,
        *,
        wall: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = random.uniform,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self._state = state
        self._wall = wall
        self._uniform = uniform
        self._pace = pace
        self._issuers: dict[TlsOptions, _Issuer] = {}
        self._hosts: dict[str, tuple[str, _Issuer]] = {}  # by exposure
        self._woken = anyio.Event()

    def prepare(self, options: TlsOptions) -> None:
        """Raises `UserError`: "acme-invalid", "state-corrupt", or what the file system refuses."""
        options.check()
        if options not in self._issuers:
            self._issuers[options] = self._issuer(options)

    def add(self, exposure: str, host: str, options: TlsOptions) -> None:
        """`host`: as users ask for it. Raises as `prepare`."""
        self.prepare(options)
        self._hosts[exposure] = host, self._issuers[options]
        self._woken.set()

    def remove(self, exposure: str) -> None:
        self._hosts.pop(exposure, None)
        self._woken.set()

    def source(self, exposure: str) -> Source | None:
        """Whom its certificate is from now; None: its TLS does not end here."""
        if exposure not in self._hosts:
            return None
        host, issuer = self._hosts[exposure]
        return "acme" if issuer.certificates.status([host])[host] == "acme" else "self-signed"

    def trouble(self, exposure: str) -> str:
        """Why there is no certificate of the authority; "": there is, or none was asked for."""
        if exposure not in self._hosts:
            return ""
        host, issuer = self._hosts[exposure]
        return issuer.certificates.warning_of(host)

    async def run(self) -> None:
        """Until cancelled: have the certificates good ones."""
        while True:
            self._woken = anyio.Event()
            for issuer in tuple(self._issuers.values()):
                hosts = [host for host, its in self._hosts.values() if its is issuer]
                if await issuer.certificates.renew_if_due(hosts):
                    self._woken.set()
            with anyio.move_on_after(self._pace.look):
                await self._woken.wait()

    async def end(self, exposure: str, stream: Stream) -> CodecStream | None:
        """What is in the TLS of a user; None: an authority has looked at its proof, and there is nothing more to do.

        Raises `RemoteProtocolError`, `TimeoutError`, and what the stream raises. Closing stays the caller's then.
        """
        if isinstance(stream, QuicStream):  # which `Exposures.add` lets nobody have
            raise RemoteProtocolError("tls_failed", "TLS is not ended within QUIC")
        if exposure not in self._hosts:
            raise RemoteProtocolError("tls_failed", "it has been given back just now")
        host, issuer = self._hosts[exposure]
        with anyio.fail_after(HANDSHAKE_TIMEOUT):
            hello = await read_client_hello(stream)
            proof = issuer.challenges.context(hello)
            if proof is not None:
                (await server_handshake(stream, proof)).close()
                return None
            if hello.protocols == ALPN_OFFERED:  # another member of the group has it; and nothing else is in such TLS
                raise RemoteProtocolError("no_proof", "an authority, and no order is under way")
            return await server_handshake(stream, issuer.certificates.contexts(host).get((ALPN_HTTP,)))

    def _issuer(self, options: TlsOptions) -> _Issuer:
        challenges = Challenges()
        key = load_or_make_key(self._state)
        orders = None
        directory = options.acme_directory or LETS_ENCRYPT
        mark = hashlib.sha256(f"{directory} {options.acme_email}".encode()).hexdigest()[:_DIGEST]
        if options.acme_email:
            # The library takes a third of a second to load, which nodes without ACME are spared.
            from overlay.certificates.acme_renewal import open_orders

            orders = open_orders(
                self._state,
                key,
                challenges,
                directory=directory,
                email=options.acme_email,
                wall=self._wall,
                kept_as=f"acme-account-{mark}.json",
            )
        certificates = HostCertificates(
            self._state,
            key,
            wall=self._wall,
            uniform=self._uniform,
            pace=self._pace,
            orders=orders,
            kinds=["tls-alpn-01"],  # of plain http nothing comes here
            kept_as=f"tls-acme-{mark}",
        )
        return _Issuer(certificates, challenges)
