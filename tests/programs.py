"""Programs that set-up installs as root: where they are, or that the test is left out (on CI that is a failure)."""

import os
import shutil

import pytest


def program(name: str) -> str:
    """Its path; skips the test where it is not installed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path
