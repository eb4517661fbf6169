"""For all tests."""

from hypothesis import settings

# How long an example takes says something of the machine, not of the code: no test fails by the clock.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
