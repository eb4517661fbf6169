"""For all tests: what counts as a failure, and what does not."""

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# How long an example takes says something of the machine, not of the code: no test fails by the clock.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI there are root, IPv6, this kernel's offloads, and what set-up installs: what is skipped there is broken."""
    report = yield
    if report.skipped and (os.environ.get("NO_SKIPS") or os.environ.get("CI")):
        report.outcome = "failed"
        report.longrepr = f"skipped on CI: {report.longrepr}"
    return report
