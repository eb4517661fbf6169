"""So many per address, in virtual time."""

import pytest

from overlay.server.access import rates
from overlay.server.access.rates import Rates


def test_a_burst_and_then_the_rate() -> None:
    each = Rates(3, 60.0)
    assert [each.take("192.0.2.1", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert each.take("192.0.2.1", 0.0) == pytest.approx(20.0, abs=0.01)
    assert each.take("192.0.2.2", 0.0) == 0.0  # another's
    assert each.take("192.0.2.1", 19.9) > 0.0
    assert each.take("192.0.2.1", 20.1) == 0.0
    assert each.take("192.0.2.1", 20.1) > 0.0
    each.put_back("192.0.2.1")
    assert each.take("192.0.2.1", 20.1) == 0.0


def test_a_host_with_many_ipv6_addresses_is_one() -> None:
    each = Rates(1, 60.0)
    assert each.take("2001:db8::1", 0.0) == 0.0
    assert each.take("2001:db8::2", 0.0) > 0.0
    assert each.take("2001:db8:0:1::1", 0.0) == 0.0


def test_addresses_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "ADDRESSES_KEPT", 2)
    each = Rates(1, 60.0)
    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3"):
        each.take(host, 0.0)
    assert each.take("192.0.2.1", 0.0) > 0.0
    assert each.take("192.0.2.2", 0.0) == 0.0  # the longest unseen was forgotten
