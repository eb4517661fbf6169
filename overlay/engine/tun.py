"""The TUN device: whole superpackets in and out, with the kernel's offload fields. Linux only; knows no peer.

A packet is read as `virtio_net_hdr (10 bytes, little-endian) | IP packet`, which is the tail of a frame: the reader
leaves room for the frame's length in front and so seals what the kernel wrote, where the kernel wrote it. What the
kernel cannot do is done here (`wire.packet.superpacket`), so that the rest of the engine sees one shape only.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable
from ctypes import c_size_t, c_void_p
from dataclasses import replace
from typing import Final, Protocol

import pytun

from overlay.engine import drops
from overlay.engine.features import Features
from overlay.engine.libc import address_of, get_errno, read
from overlay.errors import Exit, UserError
from overlay.wire.packet.superpacket import split

logger = logging.getLogger(__name__)

IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFF_TUN_EXCL: Final = 0x8000  # fail on a name in use rather than take a persistent device over

TUNSETOFFLOAD: Final = 0x400454D0  # mask by value
TUNSETVNETLE: Final = 0x400454DC  # pointer to int
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08
TUN_F_USO4: Final = 0x20
TUN_F_USO6: Final = 0x40

VIRTIO_SIZE: Final = 10  # bytes
MAX_PACKET: Final = 65535  # bytes, IPv4's total length
MAX_FRAME: Final = 4 + VIRTIO_SIZE + MAX_PACKET
_GSO_TYPE_AT: Final = 1
_GSO_UDP_L4: Final = 5
_NO_OFFLOAD: Final = bytes(VIRTIO_SIZE)
_MAX_SLOTS: Final = 1024
_NAME_LIMIT: Final = 15  # IFNAMSIZ less its final zero

_pack_length = struct.Struct("<I").pack_into


class Device(Protocol):
    """What owns the file descriptor: pytun's device, or a test's."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Tun:
    """An open device. Reads and writes never block."""

    def __init__(self, device: Device, name: str, features: Features) -> None:
        """`features` as found. Takes the device over; its descriptor becomes non-blocking."""
        self._device = device
        self._fd = device.fileno()
        self._vnet = features.tun_vnet
        self._uso = features.tun_uso
        self._view = memoryview(b"")
        self._slots: dict[int, tuple[c_void_p, c_size_t]] = {}
        self.name = name
        self.features = features
        os.set_blocking(self._fd, False)

    def fileno(self) -> int:
        return self._fd

    def read(self, view: memoryview, at: int = 0) -> int:
        """Read one packet as a frame (its length and offload fields first) to `view[at:]`.

        There must be `MAX_FRAME` bytes: the kernel cuts what does not fit. Returns the frame's size in bytes, 0 when
        nothing waits. Raises `OSError` when the device is gone.
        """
        slot = self._slots.get(at)
        if slot is None or view is not self._view:
            slot = self._slot(view, at)
        size: int = read(self._fd, slot[0], slot[1])
        if size < 0:
            number = get_errno()
            if number == errno.EAGAIN or number == errno.EINTR:
                return 0
            raise OSError(number, os.strerror(number))
        if not self._vnet:
            size += VIRTIO_SIZE if size else 0
            view[at + 4 : at + 14] = _NO_OFFLOAD
        if size <= VIRTIO_SIZE:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))  # no kernel sends less than a packet: end of file
        _pack_length(view, at, size - VIRTIO_SIZE)
        return size + 4

    def _slot(self, view: memoryview, at: int) -> tuple[c_void_p, c_size_t]:
        """Address and size of where a packet is read to: looked up once for each place, as packets come to the same few
        ones."""
        if view is not self._view or len(self._slots) >= _MAX_SLOTS:
            self._slots.clear()
            self._view = view
        place = view[at + 4 if self._vnet else at + 4 + VIRTIO_SIZE :]
        slot = self._slots[at] = c_void_p(address_of(place)), c_size_t(len(place))
        return slot

    def write(self, packet: memoryview | bytes | bytearray) -> str:
        """Write `virtio_net_hdr | IP packet`, offload fields already checked. Returns "" or the reason of a drop."""
        if not self._vnet or (packet[_GSO_TYPE_AT] == _GSO_UDP_L4 and not self._uso):
            return self._write_split(packet)
        try:
            os.write(self._fd, packet)
        except OSError as error:
            return _reason(error)
        return ""

    def _write_split(self, packet: memoryview | bytes | bytearray) -> str:
        failed = ""
        for plain in split(memoryview(packet)):
            try:
                os.writev(self._fd, [_NO_OFFLOAD, plain] if self._vnet else [plain])
            except OSError as error:
                failed = _reason(error)
        return failed

    def mtu(self) -> int:
        """Of the interface, bytes; 0: not known (it may have been renamed)."""
        try:
            return int(getattr(self._device, "mtu", 0))
        except OSError:
            return 0

    def close(self) -> None:
        self._device.close()


def _reason(error: OSError) -> str:
    if error.errno == errno.EIO:
        return drops.TUN_DOWN
    if error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
        return drops.TUN_FULL
    return drops.TUN_REFUSED  # EINVAL: fields that the kernel does not like; EBADFD: gone, which the loop finds out


def open_tun(name: str, wanted: Features) -> Tun:
    """Make the device `name` (with `%d` the kernel numbers it) with as much of `wanted` as the kernel has.

    Raises `UserError`: tun-missing, tun-not-permitted, interface-name-invalid, interface-in-use, tun-failed.
    """
    device, vnet = _attach(name, wanted)
    try:
        descriptor: int = device.fileno()
        os.set_inheritable(descriptor, False)  # pytun opens without O_CLOEXEC
        found = replace(wanted, tun_vnet=False, tun_csum=False, tun_tso=False, tun_uso=False)
        if vnet:
            found = negotiate_offload(wanted, lambda mask: fcntl.ioctl(descriptor, TUNSETOFFLOAD, mask))
        return Tun(device, str(device.name), found)
    except BaseException:
        device.close()
        raise


def _attach(name: str, wanted: Features) -> tuple[pytun.TunTapDevice, bool]:
    """The device, and whether its packets carry a little-endian virtio header."""
    if len(name) > _NAME_LIMIT or "/" in name or not name or name in (".", ".."):
        raise UserError(
            "interface-name-invalid",
            f"'{name}' cannot be the name of a network interface.",
            f"Choose a name of 1 to {_NAME_LIMIT} characters without a slash.",
            Exit.USAGE,
        )
    flags = IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL
    if wanted.tun_vnet:
        device = None
        with contextlib.suppress(OSError):  # the plain attempt below tells what is wrong, if something is
            device = pytun.TunTapDevice(name=name, flags=flags | IFF_VNET_HDR)
        if device is not None:
            if _little_endian(device.fileno()):
                return device, True
            device.close()
        logger.info("the kernel gives no offload fields on TUN devices; going on without")
    try:
        return pytun.TunTapDevice(name=name, flags=flags), False
    except OSError as error:
        raise _explained(error, name) from error


def _little_endian(descriptor: int) -> bool:
    try:
        fcntl.ioctl(descriptor, TUNSETVNETLE, struct.pack("=i", 1))
    except OSError:
        return sys.byteorder == "little"  # older kernels have the host's order alone
    return True


def negotiate_offload(wanted: Features, set_offload: Callable[[int], object]) -> Features:
    """Ask for offloads, most first; `set_offload` is TUNSETOFFLOAD and raises `OSError` on a mask it does not know."""
    ladder = (
        (wanted.tun_csum, wanted.tun_tso, wanted.tun_uso),
        (wanted.tun_csum, wanted.tun_tso, False),
        (wanted.tun_csum, False, False),
    )
    for csum, tso, uso in ladder:
        if not csum:
            break  # the kernel takes no segmentation without checksums
        mask = TUN_F_CSUM
        if tso:
            mask |= TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
        if uso:
            mask |= TUN_F_USO4 | TUN_F_USO6  # both or none: the kernel refuses one alone
        try:
            set_offload(mask)
        except OSError as error:
            logger.info("TUN offload mask %#x refused (%s); asking for less", mask, error.strerror)
            continue
        return replace(wanted, tun_vnet=True, tun_csum=True, tun_tso=tso, tun_uso=uso)
    return replace(wanted, tun_vnet=True, tun_csum=False, tun_tso=False, tun_uso=False)


def _explained(error: OSError, name: str) -> UserError:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return UserError(
            "tun-missing",
            "This machine has no TUN device (/dev/net/tun).",
            "Load it with 'modprobe tun', or give the container access to /dev/net/tun.",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return UserError(
            "tun-not-permitted",
            "Making a network interface is not permitted.",
            "Run it as root, or give it the capability CAP_NET_ADMIN.",
            Exit.REFUSED,
        )
    if error.errno == errno.EBUSY or name in (interface for _, interface in socket.if_nameindex()):
        return UserError(
            "interface-in-use",
            f"A network interface named '{name}' exists already.",
            "Choose another with --interface NAME, or leave the choice to the program.",
        )
    return UserError(
        "tun-failed",
        f"The network interface '{name}' could not be made: {error.strerror or error}.",
        "See the kernel's log (dmesg) for the reason.",
    )
