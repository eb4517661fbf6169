"""A certificate from an authority by ACME (RFC 8555), through certbot's `acme` library.

The library blocks, so each of its requests goes to a thread of its own, one after the other; an order can be cancelled
at any point, and has its time. What the authority says is foreign text: cut and cleaned before a person sees it.
"""

import asyncio
import datetime
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar, cast

import anyio
import msgspec
import requests
from acme import challenges as acme_challenges
from acme import client, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC

from overlay.certificates.certificate import Certificate, belongs, make_key, read_chain
from overlay.certificates.challenges import Challenges

T = TypeVar("T")
ChallengeKind = Literal["tls-alpn-01", "http-01"]
THREAD: Final = "acme"
"""The name of the threads in which requests wait."""
KINDS: Final[tuple[ChallengeKind, ...]] = ("tls-alpn-01", "http-01")

_REQUEST: Final = 10  # s for the authority to go on with an answer
_ORDER: Final = 120.0  # s from the order to its certificate
_FIRST_POLL: Final = 0.25  # s, then twice as long each time
_LONGEST_POLL: Final = 5.0  # s
_BAD_NONCES: Final = 8  # times two requests: an authority may forget nonces (RFC 8555 §6.5), not all of them
_MAX_REASON: Final = 300  # characters
_AGENT: Final = "acme-python"  # the library's own: the authority need not know more


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the authority knows us as."""

    directory: str  # URL
    email: str
    key: str  # PEM, private
    uri: str = ""  # empty: not registered yet

    def __repr__(self) -> str:
        return f"Account(directory={self.directory!r}, uri={self.uri!r})"


class AcmeFailure(Exception):
    """No certificate this time. The text is a sentence for a person."""

    def __init__(self, reason: str, *, refused: bool) -> None:
        """`refused`: the authority has answered, and trying again soon would only use up its patience."""
        super().__init__(reason)
        self.refused = refused


class TLSALPN01Response(acme_challenges.KeyAuthorizationChallengeResponse):
    """RFC 8737; the library no longer brings it."""

    typ = "tls-alpn-01"


class TLSALPN01(acme_challenges.KeyAuthorizationChallenge):
    """RFC 8737 §3. What the certificate must show is the key authorization's digest."""

    typ = "tls-alpn-01"
    response_cls = TLSALPN01Response

    def validation(self, account_key: JWK, **_kwargs: Any) -> str:
        return self.key_authorization(account_key)


class _Session(requests.Session):
    """Closed, it asks nothing more: the thread of an order that was cancelled would open connections anew."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if self.closed:
            raise requests.ConnectionError("the order was given up")
        return super().send(request, **kwargs)


class _Network(client.ClientNetwork):
    """Tries again with a new nonce more than once."""

    def __init__(self, key: JWK) -> None:
        super().__init__(key, alg=ES256, user_agent=_AGENT, timeout=_REQUEST)
        self.session = _Session()

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        for _ in range(_BAD_NONCES - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


def new_account(directory: str, email: str) -> Account:
    key = make_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Account(directory=directory, email=email, key=key.decode("ascii"))


def register_challenge() -> None:
    """Let the library know TLS-ALPN-01, if it does not."""
    acme_challenges.Challenge.TYPES.setdefault(TLSALPN01.typ, TLSALPN01)
    acme_challenges.ChallengeResponse.TYPES.setdefault(TLSALPN01Response.typ, TLSALPN01Response)


class Orders:
    """Orders certificates for one account. One order at a time."""

    def __init__(
        self,
        account: Account,
        *,
        key: ec.EllipticCurvePrivateKey,
        answers: Challenges,
        wall: Callable[[], float],
        keep: Callable[[Account], None],
    ) -> None:
        """`key` is the server's, which the certificate is for; `keep` stores the account when it has changed.

        Raises `ValueError` for an account key that cannot be read.
        """
        register_challenge()
        self._account = account
        self._key = key
        self._answers = answers
        self._wall = wall
        self._keep = keep
        loaded = serialization.load_pem_private_key(account.key.encode(), password=None)
        self._account_key = JWKEC(key=loaded)

    async def obtain(self, names: Sequence[str], kind: ChallengeKind) -> Certificate:
        """A new certificate for these names, each proven by a challenge of this kind. Raises `AcmeFailure`."""
        try:
            with anyio.fail_after(_ORDER):
                return await self._obtain(names, kind)
        except TimeoutError as error:
            raise AcmeFailure("The certificate authority did not come to an end in time.", refused=True) from error
        except errors.ValidationError as error:
            raise AcmeFailure(_validation_reason(error, kind), refused=True) from error
        except messages.Error as error:
            if error.code in ("accountDoesNotExist", "unauthorized") and self._account.uri:
                self._know_account("")  # the next order registers anew
            raise AcmeFailure(
                f"The certificate authority says: {_clean(error.detail or error)}.", refused=True
            ) from error
        except errors.IssuanceError as error:
            reason = _clean(error.error.detail or error.error)
            raise AcmeFailure(f"The certificate authority says: {reason}.", refused=True) from error
        except (requests.RequestException, OSError) as error:
            raise AcmeFailure(f"Cannot reach the certificate authority: {_root(error)}.", refused=False) from error
        except (errors.Error, JoseError, ValueError, KeyError, TypeError, AttributeError) as error:
            # The library does not check all that an authority may say, so that these are the authority's errors.
            reason = _clean(f"{type(error).__name__}: {error}")
            raise AcmeFailure(f"The certificate authority's answer makes no sense: {reason}.", refused=True) from error
        finally:
            self._answers.clear()

    async def _obtain(self, names: Sequence[str], kind: ChallengeKind) -> Certificate:
        network = _Network(self._account_key)
        try:
            directory = await self._call(client.ClientV2.get_directory, self._account.directory, network)
            authority = client.ClientV2(directory, network)
            await self._log_in(authority, network)
            order = await self._call(authority.new_order, self._request(names))
            for authorization in order.authorizations:
                await self._answer(authority, authorization, kind)
            await self._wait_proven(authority, order)
            chain = read_chain((await self._finish(authority, order)).encode())
        finally:
            network.session.close()
        if not belongs(chain, self._key):
            raise ValueError("a certificate for another key")
        certificate = Certificate(chain, self._key)
        if missing := set(names) - set(certificate.names):
            raise ValueError(f"a certificate without {', '.join(sorted(missing))}")
        return certificate

    async def _log_in(self, authority: client.ClientV2, network: client.ClientNetwork) -> None:
        if self._account.uri:
            network.account = messages.RegistrationResource(body=messages.Registration(), uri=self._account.uri)
            return
        wish = messages.NewRegistration.from_data(email=self._account.email, terms_of_service_agreed=True)
        try:
            registered = await self._call(authority.new_account, wish)
            uri = str(registered.uri)
        except errors.ConflictError as error:  # an account of this key is there: an earlier answer was lost
            uri = str(error.location)
            network.account = messages.RegistrationResource(body=messages.Registration(), uri=uri)
        self._know_account(uri)

    def _know_account(self, uri: str) -> None:
        self._account = msgspec.structs.replace(self._account, uri=uri)
        self._keep(self._account)

    def _request(self, names: Sequence[str]) -> bytes:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    async def _answer(
        self, authority: client.ClientV2, authorization: messages.AuthorizationResource, kind: ChallengeKind
    ) -> None:
        if authorization.body.status == messages.STATUS_VALID:
            return  # proven for an earlier order, and still good
        name = authorization.body.identifier.value
        for challenge in authorization.body.challenges:
            if challenge.chall.typ != kind:
                continue
            proof = challenge.chall.key_authorization(self._account_key)
            if kind == "http-01":
                self._answers.set_http(challenge.chall.path, proof)
            else:
                self._answers.set_tls(name, proof, self._wall())
            await self._call(authority.answer_challenge, challenge, challenge.response(self._account_key))
            return
        raise AcmeFailure(f"The certificate authority offers no {kind} challenge for {_clean(name)}.", refused=True)

    async def _wait_proven(self, authority: client.ClientV2, order: messages.OrderResource) -> None:
        for authorization in order.authorizations:
            pause = _FIRST_POLL
            while True:
                authorization, response = await self._call(authority.poll, authorization)
                if authorization.body.status == messages.STATUS_VALID:
                    break
                if authorization.body.status != messages.STATUS_PENDING:
                    raise errors.ValidationError([authorization])
                asked = (authority.retry_after(response, 0) - datetime.datetime.now()).total_seconds()
                await anyio.sleep(min(max(pause, asked), _LONGEST_POLL))
                pause *= 2

    async def _finish(self, authority: client.ClientV2, order: messages.OrderResource) -> str:
        try:
            order = await self._call(authority.begin_finalization, order)
        except messages.Error as error:
            if error.code != "orderNotReady":  # it soon will be, and polling then asks again
                raise
        while True:
            # Its loop sleeps for a second before each look; one look at a time, so that this can be cancelled.
            until = datetime.datetime.now() + datetime.timedelta(seconds=0.5)
            try:
                done = await self._call(authority.poll_finalization, order, until)
            except errors.TimeoutError:
                continue
            return str(done.fullchain_pem)

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await _in_thread(lambda: function(*args))


async def _in_thread(work: Callable[[], T]) -> T:
    """Cancelled, it leaves the thread alone, and the process does not wait for it at its end: what `requests` bounds in
    time is each read, not the whole, so that an authority which sends drop by drop would hold up a shutdown."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return  # cancelled
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    return await future


def _validation_reason(error: errors.ValidationError, kind: ChallengeKind) -> str:
    for authorization in error.failed_authzrs:
        name = _clean(authorization.body.identifier.value)
        for challenge in authorization.body.challenges:
            if challenge.error is not None:
                detail = _clean(challenge.error.detail or challenge.error)
                return f"The certificate authority could not verify {name} by {kind}: {detail}."
    return f"The certificate authority could not verify the names by {kind}."


def _root(error: BaseException) -> str:
    """What the system said, out of the layers of requests and urllib3."""
    seen: BaseException = error
    while True:
        reason = getattr(seen, "reason", None)
        below = reason if isinstance(reason, BaseException) else seen.__cause__ or seen.__context__
        if below is None and seen.args and isinstance(seen.args[0], BaseException):
            below = seen.args[0]
        if below is None or isinstance(below, type(seen)) and below is seen:
            return _clean(getattr(seen, "strerror", None) or seen)
        seen = below


def _clean(text: object) -> str:
    """One line of printable characters, without the full stop that the caller sets."""
    printable = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * _MAX_REASON])
    return " ".join(printable.split())[:_MAX_REASON].rstrip(". ")
