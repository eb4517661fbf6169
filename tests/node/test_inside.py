"""Which bridges are within a machine, by a tree as /sys/class/net has it."""

from ipaddress import ip_network
from pathlib import Path

from overlay.node.inside import networks_inside
from overlay.node.interface import Machine, Route


def interface(sysfs: Path, name: str, *, ports: tuple[str, ...] | None = None, card: bool = False) -> None:
    folder = sysfs / name
    folder.mkdir()
    if card:
        (folder / "device").mkdir()
    if ports is not None:
        (folder / "bridge").mkdir()
        (folder / "brif").mkdir()
        for port in ports:
            (folder / "brif" / port).touch()


def test_bridges_of_containers_are_and_those_of_a_lan_are_not(tmp_path: Path) -> None:
    interface(tmp_path, "eth0", card=True)
    interface(tmp_path, "eth0.7")
    (tmp_path / "eth0.7" / "lower_eth0").touch()
    interface(tmp_path, "veth1")
    interface(tmp_path, "docker0", ports=("veth1",))
    interface(tmp_path, "empty0", ports=())
    interface(tmp_path, "lan0", ports=("veth1", "eth0"))
    interface(tmp_path, "vlan0", ports=("eth0.7",))
    names = ("eth0", "docker0", "empty0", "lan0", "vlan0", "gone0")
    routes = [Route(f"172.17.{number}.0/24", name) for number, name in enumerate(names)]
    machine = Machine(routes=(*routes, Route("0.0.0.0/0", "docker0")))
    inside = [ip_network("172.17.1.0/24"), ip_network("172.17.2.0/24")]
    assert sorted(map(str, networks_inside(machine, tmp_path))) == sorted(map(str, inside))
