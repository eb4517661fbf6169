"""So many per user's address: requests, connections, tries of a password. No clock; `now` in seconds, monotonic."""

from collections import OrderedDict
from typing import Final

from overlay.carrier.limits import network_of
from overlay.path.budget import Budget

ADDRESSES_KEPT: Final = 4096  # of the longest unseen it is forgotten what they had


class Rates:
    """`count` at once and `count` each `period` seconds, for each IPv4 address or IPv6 /64."""

    def __init__(self, count: int, period: float) -> None:
        self._count = count
        self._period = period
        self._budgets: OrderedDict[str, Budget] = OrderedDict()

    def take(self, host: str, now: float) -> float:
        """→ 0: it may; else the seconds after which it may."""
        network = network_of(host)
        budget = self._budgets.get(network)
        if budget is None:
            budget = self._budgets[network] = Budget(self._count / self._period, self._count)
            if len(self._budgets) > ADDRESSES_KEPT:
                self._budgets.popitem(last=False)
        self._budgets.move_to_end(network)
        return 0.0 if budget.take(now) else budget.available_at(now) - now

    def put_back(self, host: str) -> None:
        """What was taken last was not used."""
        budget = self._budgets.get(network_of(host))
        if budget is not None:
            budget.put_back()
