"""The system's plain file while others change it too: respected, put right, and no fight."""

from pathlib import Path

import pytest

from overlay.daemon.state import StateDir
from overlay_dns.osconfig.bus import Bus
from overlay_dns.osconfig.resolvconf import parse_nameservers
from overlay_dns.osconfig.system import REAPPLY_LIMIT, REAPPLY_WINDOW, ROOT, SystemDns

OURS = "10.77.0.2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    return tmp_path / "resolv.conf"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def system(path: Path, tmp_path: Path, clock: Clock) -> SystemDns:
    nobody = Bus(f"unix:path={tmp_path}/no-bus")
    return SystemDns(StateDir(tmp_path / "state").open(), path, bus=nobody, clock=clock)


def test_a_change_by_others_is_respected_and_ours_comes_first_again(system: SystemDns, path: Path) -> None:
    assert system.apply("overlay0", [OURS], "local.test") == ["192.0.2.53"]
    assert not system.check()
    path.write_text("search home.example\nnameserver 198.51.100.53\n")  # DHCP, on another network
    assert system.check() and system.upstreams == ["198.51.100.53"]
    assert parse_nameservers(path.read_text()) == [OURS, "198.51.100.53"]
    assert (system.status().way, system.status().reapplied) == ("file", 1)
    system.restore()
    assert path.read_text() == "search home.example\nnameserver 198.51.100.53\n"


def test_an_edit_of_our_file_is_no_original(system: SystemDns, path: Path) -> None:
    system.apply("overlay0", [OURS], "local.test")
    path.write_text(path.read_text() + "options rotate\n")
    assert system.check() and "options rotate" in path.read_text()
    system.restore()
    assert path.read_text() == "nameserver 192.0.2.53\noptions rotate\n"


def test_an_edit_of_our_file_where_we_are_alone(path: Path, tmp_path: Path) -> None:
    nobody = Bus(f"unix:path={tmp_path}/no-bus")
    system = SystemDns(StateDir(tmp_path / "state").open(), path, bus=nobody)
    for number in range(2):
        assert system.apply("overlay0", [OURS], "local.test", [ROOT]) == ["192.0.2.53"]
        assert parse_nameservers(path.read_text()) == [OURS]
        path.write_text(path.read_text() + f"options x{number}\n")
        assert system.check() and system.upstreams == ["192.0.2.53"]
    system.restore()
    assert path.read_text() == "nameserver 192.0.2.53\noptions x0\noptions x1\n"


def test_it_does_not_fight(system: SystemDns, path: Path, clock: Clock) -> None:
    system.apply("overlay0", [OURS], "local.test")
    for number in range(REAPPLY_LIMIT):
        path.write_text(f"nameserver 192.0.2.{number}\n")
        assert system.check()
    path.write_text("nameserver 192.0.2.99\n")
    assert not system.check() and not system.check()
    assert "keeps changing" in system.status().warning
    assert path.read_text() == "nameserver 192.0.2.99\n"
    system.restore()
    system.apply("overlay0", [OURS], "local.test")  # 'overlay up' tries again
    clock.now += REAPPLY_WINDOW
    path.write_text("nameserver 192.0.2.99\n")
    assert system.check() and system.status().warning == ""


def test_a_link_to_nowhere(system: SystemDns, path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")
    assert system.apply("overlay0", [OURS], "local.test") == []
    assert "not there" in system.status().reason
    assert parse_nameservers(path.read_text()) == [OURS]
    system.restore()
    assert path.is_symlink() and not path.exists()


def test_what_the_link_led_to_goes_on_changing(system: SystemDns, path: Path) -> None:
    others = path.with_name("run.conf")
    path.rename(others)
    path.symlink_to(others.name)
    assert system.apply("overlay0", [OURS], "local.test") == ["192.0.2.53"]
    assert not system.check()
    others.write_text("nameserver 198.51.100.53\n")  # NetworkManager, on another network, in its own folder
    assert system.check() and system.upstreams == ["198.51.100.53"] and not system.check()
    assert parse_nameservers(path.read_text()) == [OURS, "198.51.100.53"]
    system.restore()
    assert path.readlink() == Path(others.name) and others.read_text() == "nameserver 198.51.100.53\n"
