"""`/etc/resolv.conf` is taken over and given back, whatever kind of file it was and whatever happened meanwhile."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from overlay.daemon.state import StateDir
from overlay_dns.osconfig.resolvconf import JOURNAL_NAME, ResolvConf, parse_nameservers

ORIGINAL = (
    "# by hand\ndomain old.example\nsearch example.com\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions edns0\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "etc" / "resolv.conf"
    path.parent.mkdir()
    path.write_text(ORIGINAL)
    path.chmod(0o640)
    return path


@pytest.fixture
def journal(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state").open()


def test_several_domains_are_searched(path: Path, journal: StateDir) -> None:
    resolver = ResolvConf(journal, path)
    path.write_text("search corp.example example.com\n")
    resolver.apply(["10.77.0.2"], "local.test corp.example")
    assert "search local.test corp.example example.com\n" in path.read_text()
    resolver.restore()
    assert path.read_text() == "search corp.example example.com\n"


def test_take_over_and_give_back(path: Path, journal: StateDir) -> None:
    resolver = ResolvConf(journal, path)
    assert resolver.apply(["10.77.0.2"], "local.test") == ["192.0.2.53", "2001:db8::53"]
    text = path.read_text()
    assert parse_nameservers(text) == ["10.77.0.2", "192.0.2.53", "2001:db8::53"]
    assert "search local.test example.com\n" in text
    assert "options edns0\n" in text and "\noptions timeout:1 attempts:2\n" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert resolver.restore()
    assert path.read_text() == ORIGINAL
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not resolver.restore()
    assert os.listdir(path.parent) == ["resolv.conf"]


def test_a_killed_daemons_file_is_put_back_at_the_next_start(path: Path, journal: StateDir) -> None:
    ResolvConf(journal, path).apply(["10.77.0.2"], "local.test")
    again = ResolvConf(journal, path)  # a new process: the journal alone remembers
    assert again.apply(["10.77.0.9"], "local.test") == ["192.0.2.53", "2001:db8::53"]
    again.restore()
    assert path.read_text() == ORIGINAL


def test_a_link_comes_back_as_a_link(path: Path, journal: StateDir) -> None:
    path.rename(path.with_name("stub"))
    path.symlink_to("stub")
    resolver = ResolvConf(journal, path)
    assert resolver.apply(["10.77.0.2"], "local.test") == ["192.0.2.53", "2001:db8::53"]
    assert not path.is_symlink()
    assert path.with_name("stub").read_text() == ORIGINAL  # the link is replaced, not what it points to
    resolver.restore()
    assert os.readlink(path) == "stub"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_missing_file_is_missing_again(path: Path, journal: StateDir, dangling: bool) -> None:
    path.unlink()
    if dangling:
        path.symlink_to("nowhere")
    resolver = ResolvConf(journal, path)
    assert resolver.apply(["10.77.0.2"], "local.test") == []
    assert parse_nameservers(path.read_text()) == ["10.77.0.2"]
    resolver.restore()
    assert path.is_symlink() == dangling
    assert not path.exists()


def test_somebody_elses_change_stays(path: Path, journal: StateDir) -> None:
    resolver = ResolvConf(journal, path)
    resolver.apply(["10.77.0.2"], "local.test")
    path.write_text("nameserver 198.51.100.1\n")
    assert not resolver.restore()
    assert path.read_text() == "nameserver 198.51.100.1\n"
    assert journal.read(JOURNAL_NAME) is None


def test_a_damaged_journal_changes_nothing(path: Path, journal: StateDir) -> None:
    journal.write(JOURNAL_NAME, b"{}")
    assert not ResolvConf(journal, path).restore()
    assert path.read_text() == ORIGINAL


def test_no_take_over_without_a_journal(path: Path, journal: StateDir) -> None:
    class FullDisk:
        def read(self, _name: str) -> bytes | None:
            return None

        def write(self, _name: str, _data: bytes) -> None:
            raise OSError(28, "No space left on device")

        def remove(self, _name: str) -> None:
            return None

    with pytest.raises(OSError, match="No space"):
        ResolvConf(FullDisk(), path).apply(["10.77.0.2"], "local.test")
    assert path.read_text() == ORIGINAL


def test_only_three_name_servers_are_written(path: Path, journal: StateDir) -> None:
    path.write_text("".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 6)) + "nameserver junk\nnameserver\n")
    ResolvConf(journal, path).apply(["10.77.0.2"], "local.test")
    assert parse_nameservers(path.read_text()) == ["10.77.0.2", "192.0.2.1", "192.0.2.2"]


_IN_MOUNT = """
import sys
from pathlib import Path
from overlay.daemon.state import StateDir
from overlay_dns.osconfig.resolvconf import ResolvConf
path, journal = Path(sys.argv[1]), StateDir(sys.argv[2])
before = path.read_text()
resolver = ResolvConf(journal, path)
for _ in range(int(sys.argv[3])):
    resolver.apply(["10.77.0.2"], "local.test")
    assert "10.77.0.2" in path.read_text()
    resolver.restore()
    assert path.read_text() == before
print("same")
"""


def in_mount(source: Path, path: Path, journal: StateDir, times: int) -> "subprocess.Popen[str]":
    """Taken over and given back so many times, where the file is a mount of its own."""
    source.write_text(ORIGINAL)
    command = ["unshare", "--mount", "sh", "-euc", 'mount --bind "$1" "$2"; exec "$3" -c "$4" "$2" "$5" "$6"', "sh"]
    command += [str(source), str(path), sys.executable, _IN_MOUNT, str(journal.path), str(times)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


def is_well(process: "subprocess.Popen[str]", source: Path) -> None:
    told, wrong = process.communicate(timeout=60)
    assert told == "same\n", wrong
    assert source.read_text() == ORIGINAL


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_that_is_a_mount_is_written_in_place(path: Path, journal: StateDir) -> None:
    source = path.with_name("source")
    is_well(in_mount(source, path, journal, 1), source)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_machines_in_namespaces_are_in_nobodys_way(path: Path, tmp_path: Path) -> None:
    """Their files are their own, the folder is everybody's."""
    sources = [path.with_name(f"source-{number}") for number in range(3)]
    running = [(in_mount(source, path, StateDir(tmp_path / source.name).open(), 100), source) for source in sources]
    for process, source in running:
        is_well(process, source)
    assert sorted(path.parent.iterdir()) == [path, *sources], "nothing is left"
