"""A name's addresses by given name servers, over real sockets."""

import struct
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay_dns.lookup import _addresses, look_up
from overlay_dns.upstream import Upstream

from .test_server import upstream


def find(name: str, hosts: Path, *more: Upstream) -> list[str]:
    async def main() -> list[str]:
        with upstream() as server:
            return await look_up(name, [*more, server], hosts)

    return anyio.run(main)


def test_a_name_is_found(tmp_path: Path) -> None:
    assert find("a.example.", tmp_path / "hosts") == ["192.0.2.80"]


def test_the_hosts_file_comes_first(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# 192.0.2.1 a.example\nnonsense a.example\n192.0.2.7 x A.example # here\n::7 a.example\n")
    assert find("a.example", hosts) == ["192.0.2.7", "::7"]


def test_a_name_server_that_is_away_is_passed_over(tmp_path: Path) -> None:
    assert find("a.example", tmp_path / "hosts", Upstream("127.0.0.1", 9)) == ["192.0.2.80"]


def test_what_is_not_found_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="it has no address"):
        find("b.example", tmp_path / "hosts")
    with pytest.raises(OSError, match="do not answer"):
        anyio.run(look_up, "a.example", [], tmp_path / "hosts")


@given(st.binary(max_size=80))
def test_fuzz_replies(data: bytes) -> None:
    from dnslib import DNSError

    try:
        _addresses(data, "A")
    except (DNSError, ValueError, IndexError, UnicodeError, RecursionError):
        return
    except struct.error:
        pytest.fail("an error that look_up does not expect")
