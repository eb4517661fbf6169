"""A stream between two nodes through the server, made their own by a Noise handshake: the server joins two connections,
and neither sees what is said nor can put anything in.

Who is asked proves his node's key. Who asks is who the server says: it has looked at his tag or his token, as it does
for peers who come by the overlay, and his key is made for these connections alone.
"""

import os
from functools import partial

import anyio

from overlay.carrier.stream import TcpStream
from overlay.carrier.streams import CodecStream, OverTcp
from overlay.wire.control.channel import NoiseChannel
from overlay.wire.stream.codec import Codec
from overlay.wire.stream.secured import LONGEST, PROLOGUE, Secured
from overlay.wire.wireguard.primitives import KEY_SIZE, clamp


class SecuredStream(CodecStream):
    """What ends without the peer's word was cut short: whoever is between the two can do that, and must not make it
    look like an end."""

    def __init__(self, secured: Secured, tcp: TcpStream, codec: Codec, received: bytes) -> None:
        super().__init__(tcp, codec, received)
        self._secured = secured

    async def receive(self, max_bytes: int = 65536, within: float | None = None) -> bytes:
        try:
            return await super().receive(max_bytes, within)
        except anyio.EndOfStream as error:
            self._check_end(error)
            raise

    def receive_now(self, max_bytes: int = 65536) -> bytes | None:
        try:
            return super().receive_now(max_bytes)
        except anyio.EndOfStream as error:
            self._check_end(error)
            raise

    def _check_end(self, error: anyio.EndOfStream) -> None:
        if not self._secured.ended:
            raise anyio.BrokenResourceError("it was cut short") from error


async def secure_to(stream: OverTcp, remote_key: bytes) -> CodecStream:
    """The end of who asks; `stream` is not to be used any more. Raises `RemoteProtocolError` if it is not the holder of
    `remote_key` that answers, and what the stream raises. Closing stays the caller's."""
    channel = NoiseChannel.initiator(
        clamp(os.urandom(KEY_SIZE)), remote_key, random_bytes=os.urandom, max_message=LONGEST, prologue=PROLOGUE
    )
    return await _shake_hands(stream, channel)


async def secure_from(stream: OverTcp, private_key: bytes) -> CodecStream:
    """The end of the holder of `private_key`. Otherwise as `secure_to`."""
    channel = NoiseChannel.responder(private_key, random_bytes=os.urandom, max_message=LONGEST, prologue=PROLOGUE)
    return await _shake_hands(stream, channel)


async def _shake_hands(stream: OverTcp, channel: NoiseChannel) -> CodecStream:
    while True:
        if said := channel.data_to_send():
            await stream.send(said)
        if channel.established:
            break
        channel.receive_data(await stream.receive())
    secured = Secured(channel)
    make = partial(SecuredStream, secured)
    if isinstance(stream, CodecStream):
        return stream.around(secured, make)
    return make(stream, secured, secured.decode(b""))  # the first data may have come right behind
