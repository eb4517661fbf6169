"""Receiver indices: the 32-bit numbers by which messages find their session. Random, so that they tell nothing.

Knows no messages. One per device.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class IndexTable(Generic[T]):
    """index -> owner. An index lives from an initiation (or a response) until its key pair dies."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._owners: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def allocate(self, owner: T) -> int:
        """A new index of `owner`, different from all in use."""
        while True:
            index = int.from_bytes(self._random_bytes(4), "little")
            if index not in self._owners:
                self._owners[index] = owner
                return index

    def owner(self, index: int) -> T | None:
        """Whose index is this?"""
        return self._owners.get(index)

    def release(self, index: int) -> None:
        """The index is free again."""
        del self._owners[index]
