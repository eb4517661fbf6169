"""A network of homes: a server, and nodes behind NATs of every kind, two of each; and homes that let less through.

internet
 ├── server        198.51.100.1
 ├── <kind>1, <kind>2     for each kind of NAT: a home with one node of that name
 ├── lan           a port-restricted home with two nodes, lan1 and lan2; it does not hairpin
 ├── carrier       a carrier's port-restricted NAT that hairpins, with the port-restricted homes of `deep1` and `deep2`
 ├── no-udp1, no-udp2     homes that let no UDP out
 └── narrow        a home that lets out TCP to port 443, and nothing else
"""

from tests.lab.gates import restrict
from tests.lab.nats import NAT_KINDS, NatKind, home
from tests.lab.netns import Lab, Namespace
from tests.lab.topology import RESOLVER_ADDRESS, SERVER_ADDRESS, Network, build_internet

HOMES: dict[str, tuple[NatKind, tuple[str, ...]]] = {
    **{f"{kind}{number}": (kind, (f"{kind}{number}",)) for kind in NAT_KINDS for number in (1, 2)},
    "lan": ("port-restricted", ("lan1", "lan2")),
    "carrier": ("port-restricted", ()),
    "no-udp1": ("port-restricted", ("no-udp1",)),
    "no-udp2": ("port-restricted", ("no-udp2",)),
    "narrow": ("port-restricted", ("narrow",)),
}
"""Home → its NAT, and the nodes in it."""

DEEP = ("deep1", "deep2")
NODES = (*(node for _, nodes in HOMES.values() for node in nodes), *DEEP)
WITHOUT_UDP = "meta l4proto != udp"
ONLY_443 = "tcp dport 443"
QUESTIONS = "udp dport 53"


def outside_address(name: str) -> str:
    """Of the router of a home."""
    return f"198.51.100.{20 + list(HOMES).index(name)}"


def build_homes(lab: Lab, *names: str) -> Network:
    """The network with these homes, or with all. Nobody is up yet but the internet's resolver."""
    wanted = names or tuple(HOMES)
    routers = {name: lab.namespace(f"{name}-nat") for name in wanted}
    server = lab.namespace("server")
    public = [(server, SERVER_ADDRESS), *((router, outside_address(name)) for name, router in routers.items())]
    network = Network(lab, build_internet(lab, public))
    network.machine(server)
    for number, name in enumerate(wanted):
        kind, nodes = HOMES[name]
        inside = f"192.168.{number}"
        if name == "carrier":
            _carrier(lab, network, routers[name])
            continue
        spaces = [_node(lab, network, node) for node in nodes]
        home(lab, routers[name], inside, [(space, str(10 + at)) for at, space in enumerate(spaces)], kind)
        for blocked, rule in (("no-udp", WITHOUT_UDP), ("narrow", ONLY_443)):
            if name.startswith(blocked):
                restrict(routers[name], rule, QUESTIONS)
    return network


def new_lease(space: Namespace) -> None:
    """The machine has another host address in its home now, and the way out by it."""
    (line,) = space.run(["ip", "-4", "-o", "addr", "show", "dev", "eth0"]).stdout.splitlines()
    before = line.split()[3]
    network, _, host = before.partition("/")[0].rpartition(".")
    after = f"{network}.{10 + (int(host) - 10 + 1) % 100}/24"
    steps = f"addr del {before} dev eth0\naddr add {after} dev eth0\nroute add default via {network}.1\n"
    space.run(["ip", "-batch", "-"], input=steps)


def _carrier(lab: Lab, network: Network, carrier: Namespace) -> None:
    inner = {name: lab.namespace(f"{name}-nat") for name in DEEP}
    customers = [(router, str(9 + at)) for at, router in enumerate(inner.values())]
    home(lab, carrier, "100.64.0", customers, "port-restricted", hairpinning=True)
    for name, router in inner.items():
        home(lab, router, "192.168.99", [(_node(lab, network, name), "10")], "port-restricted")


def _node(lab: Lab, network: Network, name: str) -> Namespace:
    space = lab.namespace(name)
    space.resolv_conf.write_text(f"nameserver {RESOLVER_ADDRESS}\n")
    network.machine(space)
    return space
