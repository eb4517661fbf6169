"""How often the server looks after its certificate."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds."""

    look: float = 5.0  # between looks at files and dates
    unreachable: float = 30.0  # the first wait for an authority that does not answer; twice as long each time
    unreachable_most: float = 3600.0
    # After an authority's no. Let's Encrypt takes five failures per name and hour, and two kinds of challenge are two.
    refused: float = 1800.0
    refused_most: float = 12 * 3600.0


DEFAULT_PACE: Final = Pace()
