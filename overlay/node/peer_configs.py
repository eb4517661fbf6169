"""What a network map says of the other nodes, as the engine takes it; and which node a person means. Pure."""

from contextlib import suppress
from ipaddress import ip_address, ip_network

from overlay.engine.api import Network, PeerConfig
from overlay.node.ciphers import choose
from overlay.wire.control.messages import MapNode, NetworkMap
from overlay.wire.endpoint import parse_endpoint


def peer_configs(network_map: NetworkMap, own_number: int) -> dict[int, PeerConfig]:
    """What the engine must know of each other node of the map."""
    return PeerConfigs().of(network_map, own_number)


class PeerConfigs:
    """The same for one map after the other: made anew only for a node whose entry is another object than before, as it
    is after a delta. In a network of thousands something changes all the time."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[MapNode, PeerConfig]] = {}
        self._made_with: object = None

    def of(self, network_map: NetworkMap, own_number: int) -> dict[int, PeerConfig]:
        own = next((node for node in network_map.nodes if node.number == own_number), None)
        own_ciphers = own.ciphers if own is not None else ()
        made_with = (network_map.networks, own_ciphers)
        if made_with != self._made_with:
            self._made_with, self._made = made_with, {}
        networks = [ip_network(text) for text in network_map.networks]
        made: dict[int, tuple[MapNode, PeerConfig]] = {}
        for node in network_map.nodes:
            known = self._made.get(node.number)
            if known is None or known[0] is not node:
                known = (node, _peer_config(node, networks, own_ciphers))
            made[node.number] = known
        self._made = made
        return {number: config for number, (_, config) in made.items() if number != own_number}


def _peer_config(node: MapNode, networks: list[Network], own_ciphers: tuple[str, ...]) -> PeerConfig:
    addresses = [ip_address(text) for text in node.addresses]
    lan = tuple(parse_endpoint(text) for text in node.lan)
    observed = tuple(parse_endpoint(text) for text in node.observed)
    return PeerConfig(
        number=node.number,
        public_key=node.key,
        # Within the network's ranges only: nothing that the server says makes a peer the owner of other addresses.
        allowed=tuple(ip_network(a) for a in addresses if any(a in network for network in networks)),
        # What the map says of both: measured again, this machine's order could differ from what the peer goes by.
        cipher=choose(own_ciphers, node.ciphers),
        endpoints=tuple(dict.fromkeys(lan + observed)),
        lan_endpoints=lan,
        epoch=node.epoch,
    )


def find_node(network_map: NetworkMap | None, text: str) -> MapNode | None:
    """The node that a person means: by name, full name, overlay address or number."""
    if network_map is None:
        return None
    with suppress(ValueError):
        text = str(ip_address(text))
    wanted = text.lower().rstrip(".")
    for node in network_map.nodes:
        full = (f"{node.name}.{domain}" for domain in network_map.domains)
        if wanted in (node.name, *full, *node.addresses, str(node.number)):
            return node
    return None
