from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from overlay.wire.wireguard.allowedips import AllowedIPs, Network


def table(*entries: tuple[str, str]) -> AllowedIPs[str]:
    allowed = AllowedIPs[str]()
    for network, value in entries:
        allowed.insert(ip_network(network), value)
    return allowed


def find(allowed: AllowedIPs[str], address: str) -> str | None:
    return allowed.lookup(ip_address(address).packed)


def test_the_longest_prefix_wins() -> None:
    allowed = table(("10.0.0.0/8", "a"), ("10.1.0.0/16", "b"), ("10.1.2.3/32", "c"), ("0.0.0.0/0", "d"))
    assert find(allowed, "10.1.2.3") == "c"
    assert find(allowed, "10.1.2.4") == "b"
    assert find(allowed, "10.2.0.0") == "a"
    assert find(allowed, "192.0.2.1") == "d"
    assert find(allowed, "2001:db8::1") is None


def test_families_do_not_meet() -> None:
    allowed = table(("::/0", "six"), ("0.0.0.1/32", "four"))
    assert find(allowed, "0.0.0.1") == "four"
    assert find(allowed, "::1") == "six"
    assert find(allowed, "0.0.0.2") is None


def test_a_network_moves_to_who_took_it_last() -> None:
    allowed = table(("10.0.0.0/24", "a"), ("10.0.0.1/32", "a"), ("10.0.0.0/24", "b"))
    assert find(allowed, "10.0.0.2") == "b"
    assert find(allowed, "10.0.0.1") == "a"
    assert len(allowed) == 2


def test_remove_value_takes_all_of_one_and_nothing_else() -> None:
    allowed = table(("10.0.0.0/24", "a"), ("10.0.0.1/32", "b"), ("fd00::/64", "a"), ("fd00::1/128", "a"))
    allowed.remove_value("a")
    assert find(allowed, "10.0.0.1") == "b"
    assert find(allowed, "10.0.0.2") is None
    assert find(allowed, "fd00::1") is None
    assert len(allowed) == 1
    allowed.remove_value("nobody")
    assert len(allowed) == 1


def test_what_is_no_address_is_nobodys() -> None:
    allowed = table(("0.0.0.0/0", "a"), ("::/0", "b"))
    assert [allowed.lookup(bytes(size)) for size in (0, 3, 5, 17)] == [None] * 4


def _network4(bits: int, length: int) -> Network:
    return IPv4Network((bits >> (32 - length) << (32 - length), length))


def _network6(bits: int, length: int) -> Network:
    return IPv6Network((bits >> (128 - length) << (128 - length), length))


# Few distinct bits, so that networks nest and addresses hit.
bits4 = st.integers(0, 2**32 - 1) | st.integers(0, 15).map(lambda bits: bits << 28 | bits)
bits6 = st.integers(0, 2**128 - 1) | st.integers(0, 15).map(lambda bits: bits << 124 | bits)
networks = st.builds(_network4, bits4, st.integers(0, 32)) | st.builds(_network6, bits6, st.integers(0, 128))
addresses = bits4.map(lambda bits: bits.to_bytes(4, "big")) | bits6.map(lambda bits: bits.to_bytes(16, "big"))
steps = st.tuples(networks, st.integers(0, 4)) | st.integers(0, 4)


@given(st.lists(steps, max_size=30), st.lists(addresses, max_size=20))
def test_it_answers_like_a_linear_scan(changes: list[tuple[Network, int] | int], questions: list[bytes]) -> None:
    allowed = AllowedIPs[int]()
    model: dict[Network, int] = {}
    for change in changes:
        if isinstance(change, int):
            allowed.remove_value(change)
            model = {network: value for network, value in model.items() if value != change}
        else:
            allowed.insert(*change)
            model[change[0]] = change[1]
    assert len(allowed) == len(model)
    for packed in [*questions, *(network.network_address.packed for network in model)]:
        address = ip_address(packed)
        hits = [network for network in model if network.version == address.version and address in network]
        longest = max(hits, key=lambda network: network.prefixlen, default=None)
        assert allowed.lookup(packed) == (None if longest is None else model[longest])
