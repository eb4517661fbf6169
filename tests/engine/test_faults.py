import logging

import pytest

from overlay.engine.drops import Drops
from overlay.engine.faults import Faults
from overlay.engine.features import Features
from overlay.errors import RemoteProtocolError


def test_an_unexpected_error_is_counted_each_time_and_logged_once_per_place(caplog: pytest.LogCaptureFixture) -> None:
    drops = Drops()
    faults = Faults(drops)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with faults:
                raise ZeroDivisionError
        with faults:
            raise KeyError("elsewhere")
    assert drops.counts == {"internal_error": 4}
    assert len(caplog.records) == 2
    assert caplog.records[0].exc_info is not None


def test_what_a_peer_did_wrong_is_a_drop_by_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    drops = Drops()
    with Faults(drops):
        raise RemoteProtocolError("short_frame")
    assert drops.counts == {"short_frame": 1}
    assert caplog.records == []


def test_what_ends_a_program_goes_through() -> None:
    with pytest.raises(KeyboardInterrupt), Faults(Drops()):
        raise KeyboardInterrupt


def test_features_are_taken_away_by_name() -> None:
    features = Features().without(["udp_gso", "tun_uso"])
    assert not features.udp_gso
    assert not features.tun_uso
    assert features.udp_gro
    with pytest.raises(ValueError, match="no kernel feature has the name warp"):
        Features().without(["warp"])
