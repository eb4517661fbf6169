"""`overlay capture`: what passes the network's interface and, with `--outer`, our messages on the wire."""

import math
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from overlay.errors import UserError
from overlay_cli import output
from overlay_cli.options import NodeState, Quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from overlay.daemon.capture import CaptureMessage, Counts, Started
    from overlay.daemon.client import LocalClient
    from overlay_cli.capture.bpf import Filter
    from overlay_cli.capture.packets import CapturedPacket
    from overlay_cli.capture.sinks import Sink

WHOLE = 1 << 18
"""Bytes; no packet is longer."""

LAST_WORDS = 1.0
"""s after Ctrl-C in which packets from before it are still printed: printing may be far behind."""


def capture(
    context: typer.Context,
    state: NodeState,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PEER] [FILTER]",
            help="PEER: only what goes to or comes from this peer: its name, overlay address or number. "
            "FILTER: tcpdump's, as in: tcp port 443 and not net 10.0.0.0/8.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(
            "--write",
            "-w",
            metavar="FILE.pcapng",
            help="Write the packets to a file, for Wireshark and tcpdump, instead of printing; - is standard output.",
            show_default=False,
        ),
    ] = None,
    outer: Annotated[
        bool,
        typer.Option(
            "--outer",
            envvar="OVERLAY_OUTER",
            help="Our messages on the wire, too: encrypted, with the addresses outside.",
        ),
    ] = False,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", "-c", envvar="OVERLAY_COUNT", min=1, help="End after so many packets.", show_default=False
        ),
    ] = None,
    snaplen: Annotated[
        int,
        typer.Option(
            "--snaplen",
            "-s",
            envvar="OVERLAY_SNAPLEN",
            min=1,
            max=WHOLE,
            help="Bytes to take of each packet.",
            show_default="all",
        ),
    ] = WHOLE,
    numeric: Annotated[
        bool, typer.Option("--numeric", "-n", envvar="OVERLAY_NUMERIC", help="Addresses instead of the nodes' names.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document per packet, a line each.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="All fields below each line.", show_default=False)
    ] = 0,
    quiet: Quiet = False,
) -> None:
    """Show the packets of the network as they pass, until Ctrl-C.

    Superpackets, which the kernel hands over whole, are shown whole.
    """
    from overlay.daemon.client import LocalClient
    from overlay_cli.capture.sinks import File, Printer

    client = LocalClient(_running_state(context, state))
    peer, wanted, described = _read_words(client, words or [])
    sink: Sink
    if write is not None:
        sink = File(write, outer=outer, snaplen=snaplen)
    else:
        sink = Printer(as_json=json, numeric=numeric, details=bool(verbose))
    run = _Run(client, sink, wanted, snaplen=snaplen, count=count, to_the_end=write is not None)
    wish = {"outer": outer, "snaplen": snaplen, "peer": None if peer is None else peer["number"]}
    try:
        run.run(wish, announce=None if quiet else described)
    finally:
        if run.id and not quiet:
            output.note(f"{run.captured} packet{'s' * (run.captured != 1)} captured, {run.dropped} dropped")
    if json and write is not None and write != "-":
        output.print_json({"captured": run.captured, "dropped": run.dropped, "file": write})


class _Run:
    """One capture from its start to its end."""

    def __init__(
        self,
        client: "LocalClient",
        sink: "Sink",
        wanted: "Filter | None",
        *,
        snaplen: int,
        count: int | None,
        to_the_end: bool,
    ) -> None:
        """`to_the_end`: take all that was captured before the end, however long that takes."""
        self.id = ""
        self.captured = 0
        self._client = client
        self._sink = sink
        self._wanted = wanted
        self._snaplen = snaplen
        self._count = count
        self._to_the_end = to_the_end
        self._counts: Counts | None = None
        self._outer = False
        self._stopped = False
        self._enough = False
        self._show_until = math.inf

    @property
    def dropped(self) -> int:
        return 0 if self._counts is None else self._counts.inner_dropped + self._counts.outer_dropped

    def run(self, wish: dict[str, Any], *, announce: str | None) -> None:
        """Until Ctrl-C, the last packet wanted, or nobody reads. Raises `UserError`."""
        from overlay.daemon.capture import CaptureReader, Counts

        reader = CaptureReader()
        self._outer = wish["outer"]
        with self._signals():
            try:
                with self._client.stream("POST", "/v1/captures", wish) as chunks:
                    for chunk in chunks:
                        for message in reader.feed(chunk):
                            self._take(message, announce)
                        self._sink.flush()
                self._sink.end(self._counts or Counts(0, 0, 0, 0))
            except BrokenPipeError:
                # Who read has seen enough (`overlay capture | head`); the interpreter must not try to flush again.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return
        if not self._stopped:
            raise UserError(
                "capture-ended",
                "The capture ended: the daemon has stopped or left its network.",
                "See 'overlay status'.",
            )

    def _take(self, message: "CaptureMessage", announce: str | None) -> None:
        from overlay.daemon.capture import Counts, Inner, Outer
        from overlay_cli.capture.packets import inner_packet, outer_packets

        if isinstance(message, Inner):
            self._show(inner_packet(message))
        elif isinstance(message, Outer):
            for packet in outer_packets(message, self._snaplen):
                self._show(packet)
        elif isinstance(message, Counts):
            self._counts = message
        else:
            self.id = message.id
            self._sink.start(message)
            if announce is not None:
                output.note(f"Capturing on {_interfaces(message, outer=self._outer)}{announce}. Ctrl-C ends.")

    def _show(self, packet: "CapturedPacket") -> None:
        if self._enough or time.monotonic() > self._show_until:
            return
        if self._wanted is not None and not self._wanted.fits(packet.data, packet.size):
            return
        self._sink.take(packet)
        self.captured += 1
        if self.captured == self._count:
            self._enough = True
            self._stop()

    def _stop(self) -> None:
        """Have the daemon end the stream: with what waits and the last counts."""
        if not self._stopped:
            self._stopped = True
            if not self._to_the_end:
                self._show_until = time.monotonic() + LAST_WORDS
            self._client.request("DELETE", f"/v1/captures/{self.id}")

    @contextmanager
    def _signals(self) -> "Iterator[None]":
        """The first Ctrl-C ends in order, the second at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            if not self.id or self._stopped:
                raise KeyboardInterrupt
            self._stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _read_words(client: "LocalClient", words: list[str]) -> "tuple[dict[str, Any] | None, Filter | None, str]":
    """Peer, filter, and both in words: the first word is a peer if there is one of that name, all others are a filter.

    Raises `UserError`: "filter-wrong", or what the daemon says.
    """
    from overlay_cli.capture.bpf import Filter

    peer = _find_peer(client, words[0]) if words else None
    expression = " ".join(words if peer is None else words[1:])
    try:
        wanted = Filter(expression) if expression else None
    except UserError as error:
        if peer is not None or error.code != "filter-wrong":
            raise
        message = f"There is no peer '{words[0]}', and {error.message}"
        raise UserError(error.code, message, error.hint, error.exit_code) from error
    described = f", to and from {peer['name']}" if peer is not None else ""
    if wanted is not None:
        described += f", what fits '{expression}'"
    return peer, wanted, described


def _find_peer(client: "LocalClient", word: str) -> dict[str, Any] | None:
    try:
        return client.request("GET", f"/v1/peers/{quote(word, safe='')}")
    except UserError as error:
        if error.code == "peer-unknown":
            return None
        raise


def _interfaces(started: "Started", *, outer: bool) -> str:
    from overlay_cli.capture.sinks import OUTER_NAME

    return " and ".join([*([started.interface] if started.interface else []), *([OUTER_NAME] if outer else [])])


def _running_state(context: typer.Context, state: Path) -> Path:
    """The folder that was named, or the one of the two usual ones that has a daemon: servers have a network, too."""
    from overlay.daemon.state import SOCKET_NAME, default_state_dir

    source = context.get_parameter_source("state")
    server = default_state_dir("server")
    if source is not None and source.name.startswith("DEFAULT") and not os.path.exists(state / SOCKET_NAME):
        return server if os.path.exists(server / SOCKET_NAME) else state
    return state
