"""What a NAT does, in the words of RFC 4787 and RFC 5780, and what observations say of it. Pure: who observes, and how,
is not known here.
"""

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from overlay.wire.endpoint import Endpoint

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

        translated u8 | mapping u8 | filtering u8 | hairpinning u8 | port preserved u8 | 0 u8
        port delta i16 | lifetime u16

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
_PORTS: Final = 2**16
_LARGEST_DELTA: Final = 64  # steps beyond it are chance
_MOST_STEPS: Final = 8  # of the delta between two of our mappings: somebody else's may come between


@dataclass(frozen=True, slots=True)
class Observations:
    """What was seen through one NAT by one address family. None, and empty: not tried, or nothing came of it."""

    own: tuple[str, ...] = ()  # this machine's addresses
    port: int = 0  # of the socket whose mappings `mapped` has
    mapped: tuple[tuple[Endpoint, Endpoint], ...] = ()  # endpoint that was asked → how that socket looked from there
    fresh: tuple[tuple[int, int], ...] = ()  # own port and mapped port of sockets that asked one place, in that order
    other_port: bool | None = None  # an answer from another port of the address that was asked came in
    other_address: bool | None = None  # one from another address did
    hairpin: bool | None = None  # what was sent to our own mapped endpoint came in
    lifetime: float | None = None  # s


def classify(seen: Observations) -> NatBehaviour:
    """What these observations say.

    Mapping takes two places that were asked. Two ports of one address cannot tell endpoint-independent from
    address-dependent: nearly all NATs that map alike for both are the former (RFC 4787 REQ-1 demands it), so that is
    presumed. Filtering that lets another port in and was not tried from another address is presumed to depend on the
    address: that asks no more of the NAT than was seen. That nothing came in by our own mapped endpoint says
    nothing of hairpinning where mapping and filtering both depend on the other end: it would be filtered in any case.
    """
    if not seen.mapped:
        return NatBehaviour(lifetime=seen.lifetime)
    _, first = seen.mapped[0]
    translated = first[0] not in seen.own or first[1] != seen.port
    samples = [(seen.port, first[1]), *seen.fresh]
    preserved = sum(own == mapped for own, mapped in samples) * 2 > len(samples)
    mapping, filtering = _mapping(seen.mapped), _filtering(seen.other_port, seen.other_address)
    shows = seen.hairpin or "endpoint-independent" in (mapping, filtering)
    return NatBehaviour(
        translated=translated,
        mapping=mapping,
        filtering=filtering,
        hairpinning=seen.hairpin if shows else None,
        port_preserved=preserved,
        port_delta=None if preserved else _delta([mapped for _, mapped in seen.fresh]),
        lifetime=seen.lifetime,
    )


def _mapping(mapped: Sequence[tuple[Endpoint, Endpoint]]) -> Dependence | None:
    by_host: dict[str, set[Endpoint]] = {}
    for (host, _), endpoint in mapped:
        by_host.setdefault(host, set()).add(endpoint)
    if any(len(found) > 1 for found in by_host.values()):
        return "address-and-port-dependent"
    if len({endpoint for _, endpoint in mapped}) > 1:
        return "address-dependent"
    return "endpoint-independent" if len({asked for asked, _ in mapped}) > 1 else None


def _filtering(other_port: bool | None, other_address: bool | None) -> Dependence | None:
    if other_address:
        return "endpoint-independent"
    if other_port:
        return "address-dependent"
    return "address-and-port-dependent" if other_port is False else None


def _delta(ports: Sequence[int]) -> int | None:
    """The step that most of the ports in a row have, if the others are multiples of it."""
    steps = [(after - before + _PORTS // 2) % _PORTS - _PORTS // 2 for before, after in pairwise(ports)]
    if len(steps) < 2:
        return None
    step, number = Counter(steps).most_common(1)[0]
    if not 0 < abs(step) <= _LARGEST_DELTA or number * 3 < len(steps) * 2:
        return None
    return step if all(each % step == 0 and 0 < each // step <= _MOST_STEPS for each in steps) else None


def _pack_flag(value: bool | None) -> int:
    return 0 if value is None else 1 + value


def _pack_dependence(value: Dependence | None) -> int:
    return 0 if value is None else 1 + _DEPENDENCE.index(value)


def _unpack_dependence(value: int) -> Dependence | None:
    return _DEPENDENCE[value - 1] if 0 < value <= len(_DEPENDENCE) else None
