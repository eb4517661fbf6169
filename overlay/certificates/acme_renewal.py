"""When to order a certificate from an authority: at first, again ahead of its end, and later after a failure.

Account and certificates stand in the state folder, so that a restart orders nothing.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import anyio
from cryptography.hazmat.primitives.asymmetric import ec

from overlay.certificates.acme import KINDS, Account, AcmeFailure, ChallengeKind, Orders, new_account
from overlay.certificates.certificate import Certificate
from overlay.certificates.certificate_files import day, keep, load_kept
from overlay.certificates.challenges import Challenges
from overlay.certificates.pace import Pace
from overlay.daemon.state import StateDir, corrupt
from overlay.errors import UserError

CERTIFICATES: Final = "tls-acme"  # how the names of their files begin
CERTIFICATE_NAME: Final = f"{CERTIFICATES}.pem"
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
        orders: Orders,
        *,
        wall: Callable[[], float],
        uniform: Callable[[float, float], float],
        pace: Pace,
        kept_as: str = CERTIFICATE_NAME,
        kinds: list[ChallengeKind] | None = None,
    ) -> None:
        """`kept_as`: the certificate's file. `kinds`: of challenges, the one that worked last first; shared by those
        that meet the same authority. Raises `UserError` for what the file system refuses."""
        self.certificate: Certificate | None = None  # the newest
        self.warning = ""  # why there is none, or no newer one
        self._state = state
        self._names = tuple(names)
        self._orders = orders
        self._kept_as = kept_as
        self._wall = wall
        self._uniform = uniform
        self._pace = pace
        self._kinds = list(KINDS) if kinds is None else kinds
        self._failures = 0
        self._not_before = float("-inf")  # by the event loop's clock
        found = load_kept(state, kept_as, key)
        if found is not None and set(self._names) <= set(found.names):
            self._take(found)

    def try_at_once(self) -> None:
        """Forget that there were failures."""
        self._failures, self._not_before = 0, float("-inf")

    def is_due(self) -> bool:
        return not (self.certificate is not None and self._wall() < self._due) and (
            anyio.current_time() >= self._not_before
        )

    async def renew_if_due(self) -> None:
        """Order, if it is time to. Takes as long as an order takes."""
        if not self.is_due():
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
            keep(self._state, certificate, self._kept_as)
            self.try_at_once()
            self.warning = ""
            _log.info("an authority has certified %s until %s", ", ".join(self._names), day(certificate.expires))
            return
        self.put_off(" ".join(reasons), refused=refused)

    def put_off(self, sentence: str, *, refused: bool) -> None:
        """It cannot be had now, for this reason. `refused`: as in `AcmeFailure`."""
        self._wait(refused)
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


def open_orders(
    state: StateDir,
    key: ec.EllipticCurvePrivateKey,
    challenges: Challenges,
    *,
    directory: str,
    email: str,
    wall: Callable[[], float],
    kept_as: str = ACCOUNT_NAME,
) -> Orders:
    """For the account in the state folder, or a new one. `kept_as`: its file.

    Raises `UserError`: "state-corrupt", or what the file system refuses.
    """
    account = state.read_struct(kept_as, Account)
    if account is None or (account.directory, account.email) != (directory, email):
        if account is not None and account.directory != directory:
            for path in state.path.glob(f"{CERTIFICATES}*.pem"):  # another authority's
                state.remove(path.name)
        account = new_account(directory, email)
        state.write_struct(kept_as, account)

    def keep_account(changed: Account) -> None:
        try:
            state.write_struct(kept_as, changed)
        except UserError as error:  # the authority knows its key: the next start registers it again
            _log.warning("%s", error.message)

    try:
        return Orders(account, key=key, answers=challenges, wall=wall, keep=keep_account)
    except ValueError as error:
        raise corrupt(state.path / kept_as, "its key cannot be read") from error
