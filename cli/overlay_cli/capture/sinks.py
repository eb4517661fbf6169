"""Where captured packets go: lines or JSON on standard output, or a pcapng file."""

import io
import json
import os
import platform
import stat
import sys
import time
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from overlay.errors import Exit, UserError
from overlay_cli.capture import pcapng
from overlay_cli.capture.packets import CapturedPacket

if TYPE_CHECKING:
    from overlay.daemon.capture import Counts, Started

OUTER_NAME: Final = "overlay-outer"
"""Interface of our messages on the wire, in lines and files."""

STANDARD_OUTPUT: Final = "-"


class Sink(Protocol):
    """All methods raise `BrokenPipeError` when nobody reads any more, and `UserError` for what cannot be written."""

    def start(self, started: "Started") -> None: ...
    def take(self, packet: CapturedPacket) -> None: ...
    def flush(self) -> None: ...
    def end(self, counts: "Counts") -> None: ...


class Printer:
    """Lines or JSON documents, one per packet."""

    def __init__(self, *, as_json: bool, numeric: bool, details: bool) -> None:
        """`numeric`: no names. `details`: all fields below each line."""
        from overlay_cli.capture import decode  # scapy: before the capture starts, not while packets wait

        self._decode = decode
        self._names = decode.NO_NAMES
        self._as_json = as_json
        self._numeric = numeric
        self._details = details
        self._interface = ""

    def start(self, started: "Started") -> None:
        self._interface = started.interface or ""
        if not self._numeric:
            self._names = self._decode.Names(started.names, started.numbers)

    def take(self, packet: CapturedPacket) -> None:
        from overlay_cli.capture.lines import line

        interface = self._interface if packet.ends is None else OUTER_NAME
        document = self._decode.document(packet, interface, self._names)
        sys.stdout.write((json.dumps(document, ensure_ascii=False) if self._as_json else line(document)) + "\n")
        if self._details and not self._as_json:
            sys.stdout.write(self._decode.details(packet) + "\n")

    def flush(self) -> None:
        sys.stdout.flush()

    def end(self, counts: "Counts") -> None:
        self.flush()


class File:
    """A pcapng file. It holds what others may not see, so that only its owner may read it."""

    def __init__(self, path: str, *, outer: bool, snaplen: int) -> None:
        """Raises `UserError` ("output-is-terminal")."""
        if path == STANDARD_OUTPUT and sys.stdout.isatty():
            raise UserError(
                "output-is-terminal",
                "A capture file is nothing for a terminal.",
                "Name a file after -w, or pipe it on, as in: overlay capture -w - | wireshark -k -i -",
                Exit.USAGE,
            )
        self._path = path
        self._outer = outer
        self._snaplen = snaplen
        self._file: BinaryIO = io.BytesIO()
        self._inner_number: int | None = None
        self._outer_number: int | None = None
        self._delivered = [0, 0]

    def start(self, started: "Started") -> None:
        try:
            self._file = sys.stdout.buffer if self._path == STANDARD_OUTPUT else _open_private(self._path)
        except OSError as error:
            raise self._failed(error) from error
        self._write(pcapng.section_header("overlay", f"{platform.system()} {platform.release()}"))
        if started.interface is not None:
            self._inner_number = 0
            self._write(self._interface(started.interface, "inner packets as the TUN has them"))
        if self._outer:
            self._outer_number = 0 if self._inner_number is None else 1
            self._write(self._interface(OUTER_NAME, f"messages on UDP port {started.port}"))
        self.flush()

    def take(self, packet: CapturedPacket) -> None:
        number = self._inner_number if packet.ends is None else self._outer_number
        if number is None:
            return
        self._delivered[number] += 1
        data, size, outbound = packet.data, packet.size, packet.outbound
        if self._outer:
            data, size = pcapng.cooked(data, outbound=outbound), size + pcapng.SLL_SIZE
        self._write(pcapng.packet(number, packet.time, data, size, outbound=outbound))

    def flush(self) -> None:
        self._write(b"", flush=True)

    def end(self, counts: "Counts") -> None:
        now = time.time_ns()
        for number, seen, dropped in (
            (self._inner_number, counts.inner_seen, counts.inner_dropped),
            (self._outer_number, counts.outer_seen, counts.outer_dropped),
        ):
            if number is not None:
                delivered = self._delivered[number]
                self._write(pcapng.statistics(number, now, seen=seen, dropped=dropped, delivered=delivered))
        self.flush()
        if self._path != STANDARD_OUTPUT:
            self._file.close()

    def _interface(self, name: str, description: str) -> bytes:
        # libpcap wants the same of all interfaces, and takes raw IP of one alone.
        linktype = pcapng.LINKTYPE_LINUX_SLL if self._outer else pcapng.LINKTYPE_RAW
        return pcapng.interface(name, description, self._snaplen + pcapng.SLL_SIZE * self._outer, linktype)

    def _write(self, data: bytes, *, flush: bool = False) -> None:
        try:
            self._file.write(data)
            if flush:
                self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> UserError:
        return UserError(
            "capture-write-failed",
            f"Cannot write {self._path}: {error.strerror or error}.",
            "Name another file with -w.",
            Exit.REFUSED if isinstance(error, PermissionError) else Exit.FAILED,
        )


def _open_private(path: str) -> BinaryIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, 0o600)  # it may have been there before
        return os.fdopen(descriptor, "wb")
    except BaseException:
        os.close(descriptor)
        raise
