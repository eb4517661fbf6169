"""Ranges of ports: `tcp://localhost:8000-8010` at `--public 9000-9010` is an exposure for each, made and given back as
one. Pure."""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from overlay.errors import Exit, UserError
from overlay.node.status import ExposeWish, ExposureStatus

MOST_PORTS: Final = 256
_RANGE: Final = re.compile(r"(|.*[:/])([0-9]{1,5})-([0-9]{1,5})")


def spread(wish: ExposeWish) -> tuple[ExposeWish, ...]:
    """A wish for each port of a range; the wish itself, if there is none in it. Raises `UserError` ("range-invalid",
    exit 2)."""
    target, public = _parse(wish.target), _parse(wish.public)
    if target is None and public is None:
        return (wish,)
    if target is None or public is None:
        raise _invalid("a range needs ports on both sides")
    if target[0].lower().startswith(("http:", "https:")):
        raise _invalid("http has one port, or none with --host")
    if len(target[1]) != len(public[1]):
        raise _invalid(f"{len(target[1])} ports cannot be reached at {len(public[1])}")
    if len(target[1]) > MOST_PORTS:
        raise _invalid(f"a range has {MOST_PORTS} ports at most")
    return tuple(
        msgspec.structs.replace(wish, target=f"{target[0]}{inner}", public=f"{public[0]}{outer}")
        for inner, outer in zip(target[1], public[1], strict=True)
    )


def name_of(made: Sequence[ExposureStatus]) -> str:
    """What the whole is called: `x3-x13`."""
    return f"{made[0].id}-{made[-1].id}"


def whole(made: Sequence[ExposureStatus]) -> ExposureStatus:
    """All exposures of a range, in order, as one; one is itself."""
    first, last = made[0], made[-1]
    if first is last:
        return first
    return msgspec.structs.replace(
        first,
        id=first.range or first.id,
        public=f"{first.public}-{last.public.rpartition(':')[2]}",
        target=f"{first.target}-{last.target.rpartition(':')[2]}",
        connections=sum(each.connections for each in made),
        direct=all(each.direct for each in made),
        trouble=next((each.trouble for each in made if each.trouble), ""),
    )


def _parse(text: str) -> tuple[str, range] | None:
    """What stands before, and the ports; None: this is no range."""
    text = text.strip()
    found = None if text.startswith("/") or "unix:" in text.lower() else _RANGE.fullmatch(text)
    if found is None:
        return None
    first, last = int(found[2]), int(found[3])
    if not 0 < first < last < 65536:
        raise _invalid(f"{first}-{last} is no range of ports")
    return found[1], range(first, last + 1)


def _invalid(why: str) -> UserError:
    return UserError(
        "range-invalid",
        f"That cannot be exposed: {why}.",
        "Write as many on both sides, as in: overlay expose tcp://localhost:8000-8010 --public 9000-9010",
        Exit.USAGE,
    )
