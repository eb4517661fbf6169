"""Which addresses the network uses: an IPv4 range that the host does not use, and a ULA /48 (RFC 4193). Pure."""

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network

from overlay.errors import Exit, UserError
from overlay.node.interface import Machine, overlapping

_POOLS = tuple(IPv4Network(pool) for pool in ("10.0.0.0/8", "172.16.0.0/12", "100.64.0.0/10"))
"""Where to choose from, the first with room: RFC 1918's largest block, its next, then RFC 6598's. Not 192.168/16: the
home networks that nodes sit in."""
_CHOSEN_PREFIX = 16
_LONGEST_PREFIX = 29  # a /29 holds a server and five nodes; a longer one is a mistake in the typing
_SHORTEST_PREFIX = 8
_UNUSABLE = tuple(IPv4Network(net) for net in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))


def check_range(text: str, machine: Machine) -> IPv4Network:
    """The range that a person asked for. Raises `UserError`: "range-invalid" (exit 2), "range-overlaps"."""
    try:
        network = ip_network(text)
    except ValueError as error:
        raise _invalid(text, str(error)) from error
    if not isinstance(network, IPv4Network):
        raise _invalid(text, "it must be an IPv4 range; the IPv6 range is chosen by itself")
    if not _SHORTEST_PREFIX <= network.prefixlen <= _LONGEST_PREFIX:
        raise _invalid(text, f"its prefix must be from /{_SHORTEST_PREFIX} to /{_LONGEST_PREFIX}")
    if any(network.overlaps(unusable) for unusable in _UNUSABLE):
        raise _invalid(text, "hosts cannot have addresses in it")
    route = overlapping(network, machine)
    if route is not None:
        raise UserError(
            "range-overlaps",
            f"The range {network} overlaps this host's route to {route.destination} through {route.interface}.",
            "Give another one with --range, or leave the option out to have one chosen.",
        )
    return network


def choose_ipv4(machine: Machine, randbelow: Callable[[int], int]) -> IPv4Network:
    """A /16 at random that overlaps no route of the host. Raises `UserError` ("range-overlaps") if there is none."""
    for pool in _POOLS:
        free = [net for net in pool.subnets(new_prefix=_CHOSEN_PREFIX) if overlapping(net, machine) is None]
        if free:
            return free[randbelow(len(free))]
    raise UserError(
        "range-overlaps",
        "The host's own routes take all private IPv4 addresses.",
        "Choose a range for the network with --range.",
    )


def choose_ula(random_bytes: Callable[[int], bytes]) -> IPv6Network:
    """A /48 with a random global id, RFC 4193 §3.2: fd, then 40 random bits."""
    prefix = b"\xfd" + random_bytes(5)
    return IPv6Network((prefix + bytes(10), 48))


def _invalid(text: str, why: str) -> UserError:
    return UserError(
        "range-invalid", f"'{text}' is no range for the network: {why}.", "Write 10.77.0.0/16.", Exit.USAGE
    )
