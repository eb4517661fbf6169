"""When to order a certificate from an authority: at first, again ahead of its end, and later after a failure.

Account and certificate stand in the state folder, so that a restart orders nothing.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import anyio
from cryptography.hazmat.primitives.asymmetric import ec

from overlay.daemon.state import StateDir, corrupt
from overlay.errors import UserError
from overlay.server.acme import KINDS, Account, AcmeFailure, Orders, new_account
from overlay.server.certificate import Certificate
from overlay.server.certificate_files import day, keep, load_kept
from overlay.server.challenges import Challenges
from overlay.server.pace import Pace

CERTIFICATE_NAME: Final = "tls-acme.pem"
ACCOUNT_NAME: Final = "acme-account.json"
_SPREAD: Final = 1 / 30  # of a certificate's time: servers that were set up together do not come together

_log = logging.getLogger(__name__)


class AcmeRenewal:
    """See the module's docstring."""

    def __init__(
        self,
        state: StateDir,
        key: ec.EllipticCurvePrivateKey,
        names: Sequence[str],
        challenges: Challenges,
        *,
        directory: str,
        email: str,
        wall: Callable[[], float],
        uniform: Callable[[float, float], float],
        pace: Pace,
    ) -> None:
        """Raises `UserError`: "state-corrupt", or what the file system refuses."""
        self.certificate: Certificate | None = None  # the newest
        self.warning = ""  # why there is none, or no newer one
        self._state = state
        self._names = tuple(names)
        self._wall = wall
        self._uniform = uniform
        self._pace = pace
        self._kinds = list(KINDS)
        self._failures = 0
        self._not_before = float("-inf")  # by the event loop's clock
        account = self._open_account(directory, email)
        try:
            self._orders = Orders(account, key=key, answers=challenges, wall=wall, keep=self._keep_account)
        except ValueError as error:
            raise corrupt(state.path / ACCOUNT_NAME, "its key cannot be read") from error
        found = load_kept(state, CERTIFICATE_NAME, key)
        if found is not None and set(self._names) <= set(found.names):
            self._take(found)

    def try_at_once(self) -> None:
        """Forget that there were failures."""
        self._failures, self._not_before = 0, float("-inf")

    async def renew_if_due(self) -> None:
        """Order, if it is time to. Takes as long as an order takes."""
        if self.certificate is not None and self._wall() < self._due:
            return
        if anyio.current_time() < self._not_before:
            return
        reasons: list[str] = []
        for kind in tuple(self._kinds):
            try:
                certificate = await self._orders.obtain(self._names, kind)
            except AcmeFailure as failure:
                reasons.append(str(failure))
                refused = failure.refused
                if not refused:
                    break  # the other kind of challenge would not be heard either
                continue
            # What worked comes first the next time.
            self._kinds.sort(key=lambda each: each != kind)
            self._take(certificate)
            keep(self._state, certificate, CERTIFICATE_NAME)
            self.try_at_once()
            self.warning = ""
            _log.info("an authority has certified %s until %s", ", ".join(self._names), day(certificate.expires))
            return
        self._wait(refused)
        sentence = " ".join(reasons)
        if sentence != self.warning:
            _log.warning("%s", sentence)
        self.warning = sentence

    def _take(self, certificate: Certificate) -> None:
        self.certificate = certificate
        self._due = certificate.renew_at - self._uniform(0.0, _SPREAD) * (certificate.expires - certificate.begins)

    def _wait(self, refused: bool) -> None:
        pace = self._pace
        first, most = (pace.refused, pace.refused_most) if refused else (pace.unreachable, pace.unreachable_most)
        wait = min(most, first * 2 ** min(self._failures, 16))
        self._failures += 1
        self._not_before = anyio.current_time() + wait * self._uniform(1.0, 1.25)

    def _open_account(self, directory: str, email: str) -> Account:
        account = self._state.read_struct(ACCOUNT_NAME, Account)
        if account is not None and (account.directory, account.email) == (directory, email):
            return account
        if account is not None and account.directory != directory:
            self._state.remove(CERTIFICATE_NAME)  # another authority's
        account = new_account(directory, email)
        self._state.write_struct(ACCOUNT_NAME, account)
        return account

    def _keep_account(self, account: Account) -> None:
        try:
            self._state.write_struct(ACCOUNT_NAME, account)
        except UserError as error:  # the authority knows its key: the next start registers it again
            _log.warning("%s", error.message)
