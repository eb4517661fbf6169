"""System calls as the C library has them, for what the data plane does often: a call that finds nothing to do says so
by a number, where Python's own raises an exception and looks its text up in the catalogue of the locale.

Memory is named by its address. Whoever has one looked up keeps the buffer, at its size, for as long as it is used. An
address or a size passes as `c_void_p` or `c_size_t`, made once: a Python int would pass as a C int, and what converts
arguments by their declared types takes twice the time of a call that has nothing to convert.
"""

import ctypes
from ctypes import c_char
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
read: Final = _libc.read
sendmsg: Final = _libc.sendmsg
recvmsg: Final = _libc.recvmsg
recvmmsg: Final = _libc.recvmmsg
read.restype = sendmsg.restype = recvmsg.restype = ctypes.c_ssize_t

get_errno: Final = ctypes.get_errno
"""The errno of the calling thread's last call here."""


def address_of(buffer: bytearray | memoryview) -> int:
    """Where a writable buffer lies."""
    return ctypes.addressof(c_char.from_buffer(buffer))
