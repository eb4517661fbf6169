import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The daemons run on asyncio."""
    return "asyncio"
