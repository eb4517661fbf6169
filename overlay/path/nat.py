"""What a NAT does, in the words of RFC 4787 and RFC 5780. Values alone: who observes it is not known here."""

import struct
from dataclasses import dataclass
from typing import Final, Literal

Dependence = Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"]
"""Of mapping (RFC 4787 §4.1) and of filtering (§5)."""

_DEPENDENCE: Final[tuple[Dependence, ...]] = (
    "endpoint-independent",
    "address-dependent",
    "address-and-port-dependent",
)
_BEHAVIOUR = struct.Struct("<BBBBBxhH")
PACKED_SIZE: Final = _BEHAVIOUR.size
"""Bytes of a packed behaviour."""


@dataclass(frozen=True, slots=True)
class NatBehaviour:
    """None everywhere: not known.

        translated u8 | mapping u8 | filtering u8 | hairpinning u8 | port preserved u8 | 0 u8 | port delta i16 | lifetime u16

    Little-endian. 0 is None everywhere; 1 no, 2 yes; 1 to 3 the dependences in the order of `Dependence`; the lifetime
    in whole seconds, at most 65535.
    """

    translated: bool | None = None  # False: the node's own address is what others see
    mapping: Dependence | None = None
    filtering: Dependence | None = None
    hairpinning: bool | None = None
    port_preserved: bool | None = None
    port_delta: int | None = None  # regular step from one mapping to the next; None: none, or irregular
    lifetime: float | None = None  # s; a mapping that is not used is kept at least so long

    def pack(self) -> bytes:
        """`PACKED_SIZE` bytes."""
        delta = self.port_delta if self.port_delta is not None and abs(self.port_delta) < 2**15 else 0
        return _BEHAVIOUR.pack(
            _pack_flag(self.translated),
            _pack_dependence(self.mapping),
            _pack_dependence(self.filtering),
            _pack_flag(self.hairpinning),
            _pack_flag(self.port_preserved),
            delta,
            0 if self.lifetime is None else max(1, min(int(self.lifetime), 2**16 - 1)),
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> "NatBehaviour":
        """The inverse of `pack`, lifetimes in whole seconds. A value that this version does not know is None, and what
        stands after the first `PACKED_SIZE` bytes is ignored. Raises `ValueError` if there are fewer."""
        if len(data) < PACKED_SIZE:
            raise ValueError(f"a NAT's behaviour has {PACKED_SIZE} bytes, not {len(data)}")
        translated, mapping, filtering, hairpinning, preserved, delta, lifetime = _BEHAVIOUR.unpack_from(data)
        return cls(
            translated=_FLAGS.get(translated),
            mapping=_unpack_dependence(mapping),
            filtering=_unpack_dependence(filtering),
            hairpinning=_FLAGS.get(hairpinning),
            port_preserved=_FLAGS.get(preserved),
            port_delta=delta or None,
            lifetime=float(lifetime) if lifetime else None,
        )


UNKNOWN_NAT: Final = NatBehaviour()

_FLAGS: Final = {1: False, 2: True}


def _pack_flag(value: bool | None) -> int:
    return 0 if value is None else 1 + value


def _pack_dependence(value: Dependence | None) -> int:
    return 0 if value is None else 1 + _DEPENDENCE.index(value)


def _unpack_dependence(value: int) -> Dependence | None:
    return _DEPENDENCE[value - 1] if 0 < value <= len(_DEPENDENCE) else None
