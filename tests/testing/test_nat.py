"""The NAT of simulations: what RFC 4787 says of each behaviour holds for it."""

import itertools

import pytest

from overlay.path.nat import Dependence
from overlay.testing import Internet, Nat, VirtualClock
from overlay.wire.endpoint import Endpoint

DEPENDENCES: tuple[Dependence, ...] = ("endpoint-independent", "address-dependent", "address-and-port-dependent")
INSIDE: Endpoint = ("192.168.1.10", 4000)
HOSTS = ("198.51.100.1", "198.51.100.2")


class Lan:
    """One machine behind a NAT, and two outside that note what comes."""

    def __init__(self, clock: VirtualClock, internet: Internet, nat: Nat) -> None:
        self.clock = clock
        self.internet = internet
        self.nat = nat
        self.got: list[tuple[bytes, Endpoint, Endpoint]] = []
        self.came_in: list[tuple[bytes, Endpoint, Endpoint]] = []
        nat.attach(INSIDE[0], lambda *each: self.came_in.append(each))
        for host in HOSTS:
            internet.attach(host, lambda *each: self.got.append(each))

    def seen_from(self, *remote: Endpoint) -> list[Endpoint]:
        """Send to each in turn; how that looked there."""
        self.got.clear()
        for each in remote:
            self.nat.send(INSIDE, each, b"out")
            self.clock.advance(1.0)
        return [source for _, source, _ in self.got]

    def lets_in(self, source: Endpoint, mapped: Endpoint) -> bool:
        self.came_in.clear()
        self.internet.send(source, mapped, b"in")
        self.clock.advance(1.0)
        return bool(self.came_in)


def lan(mapping: Dependence = "endpoint-independent", filtering: Dependence = "endpoint-independent") -> Lan:
    clock = VirtualClock()
    internet = Internet(clock)
    nat = Nat(internet, "203.0.113.7", mapping=mapping, filtering=filtering, port_preserved=False)
    return Lan(clock, internet, nat)


@pytest.mark.parametrize("mapping", DEPENDENCES)
def test_mapping(mapping: Dependence) -> None:
    a, b, c = lan(mapping).seen_from((HOSTS[0], 1), (HOSTS[0], 2), (HOSTS[1], 1))
    assert {each[0] for each in (a, b, c)} == {"203.0.113.7"}
    assert (a == b) == (mapping != "address-and-port-dependent")
    assert (a == c) == (mapping == "endpoint-independent")


@pytest.mark.parametrize(("mapping", "filtering"), [*itertools.product(DEPENDENCES, DEPENDENCES)])
def test_filtering(mapping: Dependence, filtering: Dependence) -> None:
    home = lan(mapping, filtering)
    (mapped,) = home.seen_from((HOSTS[0], 1))
    assert home.lets_in((HOSTS[0], 1), mapped)
    assert home.lets_in((HOSTS[0], 2), mapped) == (filtering != "address-and-port-dependent")
    assert home.lets_in((HOSTS[1], 1), mapped) == (filtering == "endpoint-independent")
    assert not home.lets_in((HOSTS[0], 1), (mapped[0], mapped[1] ^ 1))
    assert home.nat.drops["no_mapping"] == 1


def test_a_mapping_is_forgotten_unless_it_is_used_from_inside() -> None:
    home = lan()
    (mapped,) = home.seen_from((HOSTS[0], 1))
    home.clock.advance(25.0)
    assert home.lets_in((HOSTS[0], 1), mapped)
    assert home.seen_from((HOSTS[0], 1)) == [mapped]
    home.clock.advance(27.0)
    assert home.lets_in((HOSTS[0], 1), mapped)
    home.clock.advance(2.0)
    assert not home.lets_in((HOSTS[0], 1), mapped)
    assert home.seen_from((HOSTS[0], 1)) != [mapped]
    assert home.nat.mappings == 1


def test_what_comes_in_keeps_it_where_the_nat_is_of_that_kind() -> None:
    home = lan()
    home.nat.inbound_refresh = True
    (mapped,) = home.seen_from((HOSTS[0], 1))
    for _ in range(4):
        home.clock.advance(20.0)
        assert home.lets_in((HOSTS[0], 1), mapped)


def test_reboot_and_another_address() -> None:
    home = lan()
    (before,) = home.seen_from((HOSTS[0], 1))
    home.nat.reboot()
    assert not home.lets_in((HOSTS[0], 1), before)
    (after,) = home.seen_from((HOSTS[0], 1))
    assert after != before
    home.nat.move("203.0.113.8")
    assert home.seen_from((HOSTS[0], 1))[0][0] == "203.0.113.8"
    assert not home.lets_in((HOSTS[0], 1), after)
    assert home.internet.drops["no_machine"] == 1


def test_ports_are_preserved_where_they_are_free() -> None:
    home = lan("address-and-port-dependent")
    home.nat.port_preserved, home.nat.port_delta = True, 2
    ports = [port for _, port in home.seen_from((HOSTS[0], 1), (HOSTS[0], 2), (HOSTS[0], 3))]
    assert ports[0] == INSIDE[1]
    assert ports[2] - ports[1] == 2
    home.nat.port_preserved = False
    home.nat.reboot()
    ports = [port for _, port in home.seen_from(*((HOSTS[0], port) for port in range(1, 6)))]
    assert {(after - before) % 64512 for before, after in itertools.pairwise(ports)} == {2}


@pytest.mark.parametrize("hairpinning", [True, False])
def test_hairpinning(hairpinning: bool) -> None:
    home = lan()
    home.nat.hairpinning = hairpinning
    (mapped,) = home.seen_from((HOSTS[0], 1))
    other: Endpoint = ("192.168.1.11", 4000)
    home.nat.send(other, mapped, b"neighbour")
    home.clock.advance(1.0)
    assert [(data, source[0], to) for data, source, to in home.came_in] == (
        [(b"neighbour", "203.0.113.7", INSIDE)] if hairpinning else []
    )


def test_neighbours_need_no_nat() -> None:
    home = lan()
    home.nat.send(("192.168.1.11", 5), INSIDE, b"hello")
    home.clock.advance(1.0)
    assert home.came_in == [(b"hello", ("192.168.1.11", 5), INSIDE)]
    assert home.nat.mappings == 0


def test_a_nat_behind_a_nat() -> None:
    clock = VirtualClock()
    internet = Internet(clock)
    carrier = Nat(internet, "203.0.113.7", port_preserved=False)
    home = Nat(carrier, "100.64.0.9")
    within = Lan(clock, internet, home)
    (mapped,) = within.seen_from((HOSTS[0], 1))
    assert mapped[0] == "203.0.113.7"
    assert within.lets_in((HOSTS[0], 1), mapped)
    assert not within.lets_in((HOSTS[0], 2), mapped)
    assert carrier.drops["filtered"] == 1


def test_a_closed_nat_lets_nothing_through() -> None:
    home = lan()
    home.nat.open = False
    assert home.seen_from((HOSTS[0], 1)) == []
    assert home.nat.drops["closed"] == 1
