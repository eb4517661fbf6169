"""How captured packets travel from a daemon to who shows them: messages, their framing, and the local API's part.

    length u32, little-endian | a message as MessagePack

and so on until the capture ends. `Started` comes first; `Counts` comes after packets and says what there has been so
far. Knows how packets are described, and nothing of what is in them.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from overlay.daemon.localapi import Produce, Streamed, json_object
from overlay.errors import Exit, UserError

LARGEST_MESSAGE: Final = 1 << 20
LARGEST_SNAPLEN: Final = 1 << 18
_LENGTH_SIZE: Final = 4

Host = tuple[str, int]  # address, port


class Started(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The capture is on."""

    id: str  # for `DELETE /v1/captures/ID`
    interface: str | None  # name of the TUN; None: there is none
    port: int  # the UDP port of our messages
    names: dict[str, str]  # overlay address → node's name
    numbers: dict[int, str]  # node number → node's name


class Inner(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """An IP packet as the TUN had it: maybe a superpacket, maybe with a checksum left to fill in."""

    time: int  # Unix time, ns
    outbound: bool
    size: int  # bytes of the packet
    data: bytes  # virtio-net header (10 bytes, little-endian) and packet, the packet maybe cut


class Outer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """UDP payloads that were sent or received as one run: `segment` bytes each, the last maybe shorter."""

    time: int  # Unix time, ns
    outbound: bool
    local: Host  # our own address as routes have it now; the unspecified address if they have none
    remote: Host
    segment: int  # > 0
    data: bytes


class Counts(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """What there has been: inner packets and outer datagrams, those dropped (of those seen) because nobody took them
    in time."""

    inner_seen: int
    inner_dropped: int
    outer_seen: int
    outer_dropped: int


CaptureMessage = Started | Inner | Outer | Counts

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CaptureMessage)


def encode(messages: Iterable[CaptureMessage]) -> bytearray:
    """Messages as they travel."""
    buffer = bytearray()
    for message in messages:
        start = len(buffer)
        buffer += bytes(_LENGTH_SIZE)
        _encoder.encode_into(message, buffer, -1)  # at its end: packets are large, and each copy costs
        buffer[start : start + _LENGTH_SIZE] = (len(buffer) - start - _LENGTH_SIZE).to_bytes(_LENGTH_SIZE, "little")
    return buffer


class CaptureReader:
    """Puts the stream's messages together again."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[CaptureMessage]:
        """The messages that are complete with `data`. Raises `UserError` ("bad-answer") for what is none."""
        held = self._held
        held += data
        at = 0
        try:
            while len(held) >= at + _LENGTH_SIZE:
                start = at + _LENGTH_SIZE
                end = start + int.from_bytes(held[at:start], "little")
                if end - start > LARGEST_MESSAGE:
                    raise _bad_answer("a message is too long")
                if len(held) < end:
                    break
                with memoryview(held) as view, view[start:end] as body:
                    message: CaptureMessage = _decoder.decode(body)
                at = end
                yield message
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _bad_answer(str(error)) from error
        finally:
            del held[:at]


def _bad_answer(detail: str) -> UserError:
    return UserError(
        "bad-answer",
        f"The daemon answered something that is no capture ({detail}).",
        "Command and daemon may be of two versions: start the daemon again.",
    )


# the daemon's side ---------------------------------------------------------------------------------------------------


class CaptureWish(msgspec.Struct, frozen=True):
    """What somebody wants to see."""

    peer: int | None = None  # node number; None: everybody
    outer: bool = False
    snaplen: int = LARGEST_SNAPLEN  # bytes of each packet


class Capturing(Protocol):
    """What a daemon that captures offers. All of it raises `UserError`."""

    def find_peer(self, text: str) -> dict[str, Any]:
        """The peer of that name, overlay address or number: `{"number", "name", "addresses"}`."""

    def capture(self, wish: CaptureWish) -> Produce:
        """What writes the stream until it is stopped or cancelled."""

    def stop_capture(self, id: str) -> None:
        """Have it write what waits, and end."""


def capture_routes(daemon: Capturing) -> list[Route]:
    """For a local API."""

    async def find_peer(request: Request) -> Response:
        return JSONResponse(daemon.find_peer(request.path_params["peer"]))

    async def start(request: Request) -> Response:
        try:
            wish = msgspec.convert(await json_object(request), CaptureWish)
        except msgspec.ValidationError as error:
            raise UserError("bad-request", f"That is no capture: {error}.", exit_code=Exit.USAGE) from error
        if not 0 < wish.snaplen <= LARGEST_SNAPLEN:
            message = f"The snap length must be from 1 to {LARGEST_SNAPLEN} bytes."
            raise UserError("bad-request", message, exit_code=Exit.USAGE)
        return Streamed(daemon.capture(wish))

    async def stop(request: Request) -> Response:
        daemon.stop_capture(request.path_params["id"])
        return JSONResponse({})

    return [
        Route("/v1/peers/{peer}", find_peer, methods=["GET"]),
        Route("/v1/captures", start, methods=["POST"]),
        Route("/v1/captures/{id}", stop, methods=["DELETE"]),
    ]
