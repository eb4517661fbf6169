"""Files are read back by programs that are not ours: scapy's reader, and tcpdump where it is installed."""

import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from overlay_cli.capture import pcapng
from tests.cli.capture.samples import TIME
from tests.engine.rig import udp4, udp6
from tests.programs import program

packets = st.tuples(st.integers(0, 2**63), st.binary(min_size=1, max_size=200), st.integers(0, 5), st.booleans())


def write(path: Path, captured: list[tuple[int, bytes, int, bool]], *, linktype: int = pcapng.LINKTYPE_RAW) -> None:
    blocks = [pcapng.section_header("overlay", "Linux"), pcapng.interface("overlay0", "the TUN", 262144, linktype)]
    blocks += [pcapng.packet(0, at, data, len(data) + cut, outbound=out) for at, data, cut, out in captured]
    blocks.append(pcapng.statistics(0, TIME, seen=len(captured) + 3, dropped=3, delivered=len(captured)))
    path.write_bytes(b"".join(blocks))


@settings(deadline=None)
@given(st.lists(packets, max_size=6))
def test_scapy_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, captured: list[tuple[int, bytes, int, bool]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "read-back.pcapng"
    write(path, captured)
    with RawPcapNgReader(str(path)) as reader:
        found: list[tuple[bytes, Any]] = list(reader)
    assert [(data, meta.wirelen, meta.direction) for data, meta in found] == [
        (data, len(data) + cut, 2 if out else 1) for _, data, cut, out in captured
    ]
    for (_, meta), (at, _, _, _) in zip(found, captured, strict=True):
        assert (meta.tshigh << 32 | meta.tslow, meta.tsresol, meta.ifname) == (at, 10**9, b"overlay0")


@settings(deadline=None)
@given(st.binary(max_size=50), st.text(max_size=20))
def test_blocks_are_whole_words_and_end_with_their_length(data: bytes, name: str) -> None:
    for block in (
        pcapng.section_header(name, "Linux"),
        pcapng.interface(name, name, 1, pcapng.LINKTYPE_RAW),
        pcapng.packet(0, TIME, data, len(data), outbound=True),
        pcapng.statistics(0, TIME, seen=1, dropped=0, delivered=1),
    ):
        assert len(block) % 4 == 0
        assert struct.unpack("<I", block[4:8]) == struct.unpack("<I", block[-4:]) == (len(block),)


def test_the_statistics_block_byte_for_byte() -> None:
    """draft-ietf-opsawg-pcapng, section 4.6."""
    block = pcapng.statistics(1, (5 << 32) + 7, seen=258, dropped=3, delivered=255)
    assert block == bytes.fromhex(
        "05000000 40000000 01000000 05000000 07000000"
        "0400 0800 0201000000000000  0500 0800 0300000000000000  0800 0800 ff00000000000000"
        "00000000 40000000".replace(" ", "")
    )


@pytest.mark.parametrize("linktype", [pcapng.LINKTYPE_RAW, pcapng.LINKTYPE_LINUX_SLL])
def test_tcpdump_reads_what_was_written(tmp_path: Path, linktype: int) -> None:
    path = tmp_path / "capture.pcapng"
    inner = [udp4("10.77.0.2", "10.77.0.3", b"one"), udp6("fd12::2", "fd12::3", b"two")]
    if linktype == pcapng.LINKTYPE_LINUX_SLL:
        inner = [pcapng.cooked(packet, outbound=True) for packet in inner]
    write(path, [(TIME, packet, 0, True) for packet in inner], linktype=linktype)
    done = subprocess.run(
        [program("tcpdump"), "-n", "-tt", "-r", str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "1764000000.123456 IP 10.77.0.2.1000 > 10.77.0.3.2000: UDP, length 3",
        "1764000000.123456 IP6 fd12::2.1000 > fd12::3.2000: UDP, length 3",
    ]


def test_tcpdump_reads_two_interfaces(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    packet = pcapng.cooked(udp4("10.77.0.2", "10.77.0.3", b"one"), outbound=False)
    blocks = [pcapng.section_header("overlay", "Linux")]
    blocks += [pcapng.interface(name, "", 262144, pcapng.LINKTYPE_LINUX_SLL) for name in ("overlay0", "overlay-outer")]
    blocks += [pcapng.packet(number, TIME, packet, len(packet), outbound=False) for number in (0, 1, 0)]
    path.write_bytes(b"".join(blocks))
    done = subprocess.run([program("tcpdump"), "-n", "-r", str(path)], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
