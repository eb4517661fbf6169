"""A look at a NAT, in virtual time: every behaviour there is gets its right name, also with loss."""

import itertools

import pytest

from overlay.path.nat import Dependence, NatBehaviour, classify
from overlay.path.observation import LIFETIME_PAUSES, LifetimeSearch, Observer
from overlay.testing import Internet, Nat
from tests.path.stun_world import ADDRESSES, OWN, OWN_PORT, SERVERS, World

DEPENDENCES: tuple[Dependence, ...] = ("endpoint-independent", "address-dependent", "address-and-port-dependent")
DELTAS = (None, 1, 2, -4)
OUTSIDE = "203.0.113.7"


def look(world: World, own: str = OWN) -> NatBehaviour:
    observer = Observer(SERVERS, [own], OWN_PORT, world.clock.now)
    assert world.run(observer)
    return classify(observer.observations)


@pytest.mark.parametrize(("mapping", "filtering"), [*itertools.product(DEPENDENCES, DEPENDENCES)])
def test_every_nat_is_told(mapping: Dependence, filtering: Dependence) -> None:
    for hairpinning, preserved, delta in itertools.product((True, False), (True, False), DELTAS):
        for loss in (0.0, 0.05):
            world = World(loss=loss, seed=7)
            nat = Nat(
                world.internet,
                OUTSIDE,
                mapping=mapping,
                filtering=filtering,
                hairpinning=hairpinning,
                port_preserved=preserved,
                port_delta=delta,
                seed=3,
            )
            world.put_behind(nat)
            steps = delta if mapping != "endpoint-independent" and not preserved else None
            shown = hairpinning if "endpoint-independent" in (mapping, filtering) else None
            expected = NatBehaviour(True, mapping, filtering, shown, preserved, steps)
            assert look(world) == expected, (hairpinning, preserved, delta, loss)


def test_without_a_nat() -> None:
    world = World()
    assert look(world) == NatBehaviour(False, "endpoint-independent", "endpoint-independent", None, True)
    assert world.asked == len(SERVERS) + 3


def test_a_nat_behind_a_nat_is_as_bad_as_the_worse_of_them() -> None:
    world = World()
    carrier = Nat(world.internet, OUTSIDE, mapping="address-and-port-dependent", port_preserved=False)
    world.put_behind(Nat(carrier, "100.64.0.9", filtering="endpoint-independent"))
    found = look(world)
    assert (found.mapping, found.filtering) == ("address-and-port-dependent", "address-and-port-dependent")
    assert found.port_preserved is False


@pytest.mark.parametrize("filtering", DEPENDENCES)
def test_a_server_of_one_address(filtering: Dependence) -> None:
    """What takes a second address is presumed, each in the sense that is right for most, or costs nothing."""
    world = World(addresses=1)
    world.put_behind(Nat(world.internet, OUTSIDE, mapping="address-dependent", filtering=filtering))
    found = look(world)
    assert found.mapping == "endpoint-independent"
    assert found.filtering == max(filtering, "address-dependent", key=DEPENDENCES.index)


def test_a_server_of_one_port() -> None:
    """Nothing is known of what takes a second port, and that is said."""
    world = World(addresses=1, ports=1)
    world.put_behind(Nat(world.internet, OUTSIDE, hairpinning=True))
    assert look(world) == NatBehaviour(True, None, None, True, True)


def test_udp_is_blocked() -> None:
    world = World()
    nat = Nat(world.internet, OUTSIDE)
    nat.open = False
    world.put_behind(nat)
    assert look(world) == NatBehaviour()
    assert world.asked == 3 * len(SERVERS)


def test_no_server() -> None:
    assert Observer([], [OWN], OWN_PORT, 0.0).done


def test_a_server_that_does_not_know_change_request_says_nothing_of_filtering() -> None:
    world = World(addresses=1)
    world.put_behind(Nat(world.internet, OUTSIDE))
    served = world._serve

    def ignorant(datagram: bytes, source: tuple[str, int], destination: tuple[str, int]) -> None:
        served(datagram.partition(b",")[0] + b",0,0,0", source, destination)

    world.internet.attach(ADDRESSES[0], ignorant)
    assert look(world).filtering is None


def test_answers_that_nobody_asked_for_change_nothing() -> None:
    world = World()
    world.put_behind(Nat(world.internet, OUTSIDE))
    observer = Observer(SERVERS, [OWN], OWN_PORT, world.clock.now)
    observer.answered(99, 0, (OUTSIDE, 1), SERVERS[0], world.clock.now)
    observer.answered(1, 5, (OUTSIDE, 1), SERVERS[0], world.clock.now)  # at a socket that did not ask
    observer.answered(1, 0, (OUTSIDE, 1), SERVERS[2], world.clock.now)  # from somebody who was not asked that
    observer.arrived(99, (OUTSIDE, 1), world.clock.now)
    observer.refused(99, world.clock.now)
    assert world.run(observer)
    assert classify(observer.observations).port_preserved


@pytest.mark.parametrize("lifetime", [5.0, 15.0, 30.0, 60.0, 120.0, 310.0, 900.0])
def test_lifetime(lifetime: float) -> None:
    for refresh in (True, False):
        world = World()
        world.put_behind(Nat(world.internet, OUTSIDE, lifetime=lifetime, inbound_refresh=refresh))
        search = LifetimeSearch(SERVERS[0], world.clock.now)
        assert world.run(search, within=1000.0)
        assert search.lifetime == max((each for each in LIFETIME_PAUSES if each < lifetime), default=0.0)
        assert world.asked <= 4 * len(LIFETIME_PAUSES)


def test_lifetime_without_udp_or_help_is_not_known() -> None:
    world = World()
    nat = Nat(world.internet, OUTSIDE)
    nat.open = False
    world.put_behind(nat)
    search = LifetimeSearch(SERVERS[0], world.clock.now)
    assert world.run(search) and search.lifetime is None
    search = LifetimeSearch(SERVERS[0], 0.0)
    search.refused(1, 1.0)
    assert search.done and search.lifetime is None


def test_a_line_that_fails_meanwhile_says_nothing_of_the_lifetime() -> None:
    world = World()
    nat = Nat(world.internet, OUTSIDE, lifetime=900.0)
    world.put_behind(nat)
    search = LifetimeSearch(SERVERS[0], world.clock.now)
    assert not world.run(search, within=15.0)
    assert search.lifetime == 10.0
    nat.open = False
    assert world.clock.run_until(lambda: search.done, 60.0)
    assert search.lifetime == 10.0


def test_a_simulated_internet_without_nat_is_transparent() -> None:
    world = World()
    assert isinstance(world.internet, Internet)
    assert look(world, own="10.9.9.9").translated
