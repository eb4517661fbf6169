"""tcpdump's filters, by libpcap itself: compiles the expression once, then says of each packet whether it fits.

Filters see IP packets without a link layer (`LINKTYPE_RAW`), as tcpdump's do on a TUN device.
"""

import ctypes
from typing import Final

from overlay.errors import Exit, UserError

_LIBRARIES: Final = ("libpcap.so.1", "libpcap.so.0.8", "libpcap.so")  # upstream's name, Debian's, a developer's
_DLT_RAW: Final = 12
_NETMASK_UNKNOWN: Final = 0xFFFFFFFF
_SNAPLEN: Final = 1 << 18


class _Program(ctypes.Structure):
    """struct bpf_program"""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _PacketHeader(ctypes.Structure):
    """struct pcap_pkthdr"""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


class Filter:
    """A compiled filter expression. libpcap keeps it until the process ends: a command has one."""

    def __init__(self, expression: str) -> None:
        """Raises `UserError`: "filter-wrong" (wrong usage), "libpcap-missing"."""
        self._library = _load()
        self._program = _Program()
        handle = self._library.pcap_open_dead(_DLT_RAW, _SNAPLEN)
        if not handle:
            raise MemoryError("pcap_open_dead")
        try:
            compiled = self._library.pcap_compile(
                handle, ctypes.byref(self._program), expression.encode(), 1, _NETMASK_UNKNOWN
            )
            if compiled != 0:
                detail = self._library.pcap_geterr(handle).decode(errors="replace").strip()
                raise UserError(
                    "filter-wrong",
                    f"'{expression}' is not a filter: {detail}.",
                    "Filters are tcpdump's, as in: tcp port 443 and not net 10.0.0.0/8 (see pcap-filter(7)).",
                    Exit.USAGE,
                )
        finally:
            self._library.pcap_close(handle)
        self._header = _PacketHeader()

    def fits(self, packet: bytes, length: int) -> bool:
        """`packet`: as much of it as there is, from its IP header on; `length`: bytes that it really has."""
        self._header.captured = len(packet)
        self._header.length = length
        return bool(self._library.pcap_offline_filter(ctypes.byref(self._program), ctypes.byref(self._header), packet))


def _load() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        library.pcap_compile.argtypes = (
            ctypes.c_void_p,
            ctypes.POINTER(_Program),
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint32,
        )
        library.pcap_geterr.restype = ctypes.c_char_p
        library.pcap_geterr.argtypes = (ctypes.c_void_p,)
        library.pcap_close.argtypes = (ctypes.c_void_p,)
        library.pcap_close.restype = None
        library.pcap_offline_filter.argtypes = (
            ctypes.POINTER(_Program),
            ctypes.POINTER(_PacketHeader),
            ctypes.c_char_p,
        )
        return library
    raise UserError(
        "libpcap-missing",
        "Filters need the library libpcap, which this machine does not have.",
        "Install it (Debian: apt-get install libpcap0.8), or capture without a filter.",
    )
