"""What two nodes say to each other through the server, which must not read it: the bytes of a stream as messages of a
Noise channel between the two, each up to 64 KiB. An empty message ends a direction.
"""

from typing import Final

from overlay.wire.control.channel import NoiseChannel
from overlay.wire.stream.codec import Octets

PROLOGUE: Final = b"overlay private v1"
"""The same keys speak to the server: what is said here is of no use there."""
LONGEST: Final = 64 * 1024  # bytes of a message


class Secured:
    """A `Codec`, over an established channel."""

    def __init__(self, channel: NoiseChannel) -> None:
        self._channel = channel
        self._ended = False

    @property
    def ended(self) -> bool:
        return self._ended

    def encode(self, data: Octets) -> bytes:
        view = memoryview(data)
        for start in range(0, len(view), LONGEST):
            self._channel.send(bytes(view[start : start + LONGEST]))
        return self._channel.data_to_send()

    def decode(self, data: Octets) -> bytes:
        """Raises `RemoteProtocolError`, as `NoiseChannel.receive_data`."""
        if self._ended:
            return b""
        self._channel.receive_data(bytes(data))
        pieces: list[bytes] = []
        for message in self._channel.messages():
            if not message:
                self._ended = True
                break
            pieces.append(message)
        return b"".join(pieces)

    def answers(self) -> bytes:
        return b""

    def end(self) -> bytes:
        self._channel.send(b"")
        return self._channel.data_to_send()
