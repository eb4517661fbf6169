"""The TUN device: the ladder of offloads, and the same packets whatever the kernel can do. No root needed here."""

import errno
import os
import socket

import pytest

from overlay.engine.features import Features
from overlay.engine.tun import MAX_FRAME, Tun, negotiate_offload, open_tun
from overlay.errors import Exit, UserError
from overlay.wire.packet.virtio import GSO_UDP_L4, NEEDS_CSUM, NO_OFFLOAD, VIRTIO_HEADER
from overlay.wire.record.frames import frames
from tests.engine.rig import fake_tun, udp4

CSUM, TSO, USO = 0x01, 0x02 | 0x04 | 0x08, 0x20 | 0x40


@pytest.mark.parametrize(
    ("known", "asked", "found"),
    [
        (CSUM | TSO | USO, [CSUM | TSO | USO], (True, True, True)),
        (CSUM | TSO, [CSUM | TSO | USO, CSUM | TSO], (True, True, False)),  # before Linux 6.2
        (CSUM, [CSUM | TSO | USO, CSUM | TSO, CSUM], (True, False, False)),
        (0, [CSUM | TSO | USO, CSUM | TSO, CSUM], (False, False, False)),
    ],
)
def test_offloads_fall_back_one_by_one(known: int, asked: list[int], found: tuple[bool, bool, bool]) -> None:
    masks: list[int] = []

    def set_offload(mask: int) -> None:
        masks.append(mask)
        if mask & ~known:
            raise OSError(errno.EINVAL, "Invalid argument")

    features = negotiate_offload(Features(), set_offload)
    assert masks == asked
    assert features.tun_vnet
    assert (features.tun_csum, features.tun_tso, features.tun_uso) == found


def test_only_what_is_wanted_is_asked_for() -> None:
    masks: list[int] = []
    negotiate_offload(Features(tun_uso=False), masks.append)
    negotiate_offload(Features(tun_tso=False, tun_uso=False), masks.append)
    negotiate_offload(Features(tun_csum=False), masks.append)
    assert masks == [CSUM | TSO, CSUM]


def test_a_packet_is_read_as_a_frame() -> None:
    tun, kernel = fake_tun(Features())
    packet = udp4("10.0.0.1", "10.0.0.2", b"hello")
    view = memoryview(bytearray(MAX_FRAME))
    assert tun.read(view) == 0
    kernel.send(NO_OFFLOAD + packet)
    size = tun.read(view)
    assert frames(view[:size]) == [(0, size)]
    assert view[14:size] == packet
    kernel.close()
    tun.close()


def test_without_a_virtio_header_the_frame_looks_the_same() -> None:
    tun, kernel = fake_tun(Features(tun_vnet=False))
    packet = udp4("10.0.0.1", "10.0.0.2", b"hello")
    view = memoryview(bytearray(b"\xff" * MAX_FRAME))
    assert tun.read(view) == 0
    kernel.send(packet)
    size = tun.read(view)
    assert view[4:size] == NO_OFFLOAD + packet
    kernel.close()
    with pytest.raises(OSError, match="File descriptor in bad state"):
        tun.read(view)
    tun.close()


SUPERPACKET = VIRTIO_HEADER.pack(NEEDS_CSUM, GSO_UDP_L4, 28, 1000, 20, 6) + udp4("10.0.0.1", "10.0.0.2", bytes(2500))


def test_a_superpacket_is_written_as_it_is_where_the_kernel_can() -> None:
    tun, kernel = fake_tun(Features())
    assert tun.write(SUPERPACKET) == ""
    assert kernel.recv(1 << 16) == SUPERPACKET
    kernel.close()
    tun.close()


@pytest.mark.parametrize(("features", "header"), [(Features(tun_uso=False), 10), (Features(tun_vnet=False), 0)])
def test_a_superpacket_is_split_where_the_kernel_cannot(features: Features, header: int) -> None:
    tun, kernel = fake_tun(features)
    assert tun.write(SUPERPACKET) == ""
    written = [kernel.recv(1 << 16) for _ in range(3)]
    assert [len(packet) - header - 28 for packet in written] == [1000, 1000, 500]
    assert all(packet[:header] == bytes(header) for packet in written)
    kernel.close()
    tun.close()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EIO, "tun_down"),
        (errno.EAGAIN, "tun_full"),
        (errno.ENOBUFS, "tun_full"),
        (errno.EINVAL, "tun_refused"),
    ],
)
def test_a_refused_write_is_a_drop_with_a_reason(number: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    for features in (Features(), Features(tun_vnet=False)):
        tun, kernel = fake_tun(features)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse)
            patch.setattr(os, "writev", refuse)
            outcome = tun.write(NO_OFFLOAD + udp4("10.0.0.1", "10.0.0.2", b""))
        assert outcome == reason
        kernel.close()
        tun.close()


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", ".", ".."])
def test_a_name_that_no_interface_can_have_is_said_at_once(name: str) -> None:
    with pytest.raises(UserError) as refused:
        open_tun(name, Features())
    assert refused.value.code == "interface-name-invalid"
    assert refused.value.exit_code == Exit.USAGE


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, "tun-missing"),
        (errno.ENODEV, "tun-missing"),
        (errno.EPERM, "tun-not-permitted"),
        (errno.EBUSY, "interface-in-use"),
        (errno.ENFILE, "tun-failed"),
    ],
)
def test_what_a_person_can_mend_is_said(number: int, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> object:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pytun.TunTapDevice", refuse)
    with pytest.raises(UserError) as refused:
        open_tun("ov9", Features())
    assert refused.value.code == code
    assert refused.value.hint


def test_the_descriptor_never_blocks() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tun = Tun(ours, "fake0", Features())
    assert not os.get_blocking(tun.fileno())
    assert tun.mtu() == 0
    tun.close()
    theirs.close()
