"""One control connection: messages over the Noise channel over a carrier's stream, with bounds on what a peer may cost.

A dialled connection writes in the task that sends. A served one has a writer of its own (`write_queued`, run by
`serve`), so that telling something to a thousand nodes never waits for the one that does not read: that one is closed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from overlay.carrier.carriers import CarrierName, CarrierStream, Detached
from overlay.carrier.limits import Limits
from overlay.errors import RemoteProtocolError
from overlay.wire.control.channel import MAX_MESSAGE, NoiseChannel
from overlay.wire.control.codec import encode
from overlay.wire.control.messages import Message, Welcome
from overlay.wire.endpoint import Endpoint, format_endpoint

_WRITE_SIZE: Final = 64 * 1024  # bytes of progress that `Limits.write` is granted for
_READ_SIZE: Final = 64 * 1024
_NOTHING: Final = memoryview(b"")
_LINGER: Final = 1.0  # s for the last message to arrive before we close


class ConnectionLost(Exception):
    """The connection is over. `reason` is a stable word (`closed_by_peer`, `silent`, `bad_tag`, …)."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def broken_by(error: anyio.BrokenResourceError, otherwise: str = "reset") -> str:
    """The reason of the protocol that the peer has broken below us, if that is what happened."""
    return error.__cause__.reason if isinstance(error.__cause__, RemoteProtocolError) else otherwise


class ControlConnection:
    """One end of an established control connection. One task receives; any task may send or close."""

    def __init__(
        self,
        stream: CarrierStream,
        channel: NoiseChannel,
        remote_key: bytes,
        remote_address: Endpoint,
        decode: Callable[[bytes], Message | None],
        limits: Limits,
        on_admitted: Callable[[], None] | None = None,
        *,
        carrier: CarrierName = "tcp",
    ) -> None:
        self.remote_key = remote_key
        """The peer's proven static public key, 32 bytes."""
        self.remote_address = remote_address
        """Where the stream comes from or goes to: of the carrier, not of the overlay."""
        self.carrier: CarrierName = carrier
        """What the stream runs over, as this end sees it: behind a proxy that ends TLS, `wss` there is `ws` here."""
        self.admitted = anyio.Event()
        """On the server's end: set by sending `Welcome`. The limits on strangers do not count this peer any more."""
        self._stream = stream
        self._channel = channel
        self._decode = decode
        self._limits = limits
        self._on_admitted = on_admitted
        self._inbox = deque(channel.messages())
        self._outgoing = _NOTHING
        self._lost: ConnectionLost | None = None
        self._closing = False
        self._reading = False
        self._writing = False  # somebody writes, or waits for what is to be written
        self._draining = False
        self._queued = anyio.Event()
        self._written = anyio.Event()
        self._ended = anyio.Event()

    def __repr__(self) -> str:
        state = f"lost: {self._lost}" if self._lost else "open"
        return f"<ControlConnection with {format_endpoint(self.remote_address)}, {state}>"

    @property
    def lost(self) -> ConnectionLost | None:
        return self._lost

    async def send(self, message: Message) -> None:
        """Send one message. Raises `ConnectionLost`.

        A dialled connection waits until the kernel has taken it, at most `Limits.write` for each 64 KiB. A served one
        only queues it and never waits. Messages that are queued when a sender is cancelled go before the next one.
        """
        self._queue((encode(message),))
        if isinstance(message, Welcome):
            self._admit()
        await self._go()

    async def send_encoded(self, messages: Sequence[bytes]) -> None:
        """Send messages that are encoded already, in memory only once for all whom they go to. As `send` else."""
        self._queue(messages)
        await self._go()

    async def receive(self) -> Message:
        """The next message of a type that this version knows. Raises `ConnectionLost`, after what came before it."""
        while True:
            while self._inbox:
                try:
                    message = self._decode(self._inbox.popleft())
                except RemoteProtocolError as error:
                    self._inbox.clear()
                    self.lose(error.reason, str(error))
                    break
                if message is not None:
                    return message
            self._raise_if_lost()
            await anyio.lowlevel.checkpoint_if_cancelled()  # a stream looks first, and is cancelled where it waits
            await self._read(self._limits.silence)

    async def aclose(self) -> None:
        """Let what was sent arrive, for a second at most, then close. Cancelled: close at once."""
        self._closing = True
        try:
            if self._lost is None:
                with anyio.move_on_after(_LINGER):
                    await self._say_goodbye()
        finally:
            self.lose("closed")

    def expect_last(self) -> None:
        """The next message is the last one: what comes behind it, in the same piece too, is for `detach`."""
        self._channel.expect_last()

    async def detach(self) -> Detached | None:
        """Write what is queued, then give the stream away, with what came behind the last message. None: this carrier
        has none to give, and nothing has changed.

        The connection is lost afterwards, as `detached`, without being closed. Messages that were received and not
        asked for are lost. Raises `ConnectionLost`.
        """
        self._raise_if_lost()
        if self._writing:
            while self._waiting():
                await self._written.wait()
                self._raise_if_lost()
        else:
            await self._write()
        try:
            with anyio.fail_after(self._limits.write):
                await self._stream.send_some(b"")  # what the stream itself holds back
            detached = self._stream.detach()
        except TimeoutError:
            self.lose("peer_does_not_read", f"nothing taken for {self._limits.write:g} s")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self.lose("reset", str(error))
        self._raise_if_lost()
        if detached is None:
            return None
        received = detached.received
        detached = replace(detached, received=self._channel.detach() + received)
        self.lose("detached")
        return detached

    def lose(self, reason: str, detail: str = "") -> None:
        """Close at once. Who waits in `receive` or `send` gets `ConnectionLost(reason)`; the first reason stays."""
        if self._lost is None:
            self._lost = ConnectionLost("closed") if self._closing else ConnectionLost(reason, detail)
        self._stream.close()
        self._written.set()
        self._ended.set()

    async def write_queued(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """The writer of a served connection: until the connection is lost, which is not raised here, or cancelled."""
        self._writing = True
        task_status.started()
        try:
            while self._lost is None:
                await self._queued.wait()
                self._queued = anyio.Event()
                await self._drain()
        except ConnectionLost:
            return  # `receive` and `send` raise it where somebody can act on it
        finally:
            self._writing = False

    # inside ----------------------------------------------------------------------------------------------------------

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise ConnectionLost(self._lost.reason, self._lost.detail)

    def _queue(self, messages: Iterable[bytes]) -> None:
        self._raise_if_lost()
        for message in messages:
            self._channel.send(message)
        if self._waiting() > self._limits.outbox:
            self.lose("peer_does_not_read", f"{self._waiting()} bytes wait for it")
            self._raise_if_lost()

    async def _go(self) -> None:
        if self._writing:
            self._write_now()
        else:
            await self._write()

    def _write_now(self) -> None:
        """Give the stream what it takes at once, which is nearly always all of it, and leave the rest to the writer:
        to wake it costs as much as all else that a short message to a node does."""
        if self._draining or self._queued.is_set():
            return  # it is about to go on, in order
        try:
            while self._waiting():
                if not self._outgoing:
                    self._outgoing = memoryview(self._channel.data_to_send(_WRITE_SIZE))
                taken = self._stream.send_now(self._outgoing[:_WRITE_SIZE])
                if not taken:
                    self._queued.set()
                    return
                self._take_off(taken)
        except anyio.ClosedResourceError:
            self.lose("closed")
        except anyio.BrokenResourceError as error:
            self.lose("reset", str(error))
        self._raise_if_lost()

    def _take_off(self, taken: int) -> None:
        # An empty view would hold on to all the bytes that it was cut from, of every idle connection.
        self._outgoing = self._outgoing[taken:] if taken < len(self._outgoing) else _NOTHING

    def _waiting(self) -> int:
        return len(self._outgoing) + self._channel.bytes_to_send

    def _admit(self) -> None:
        self._channel.max_message = MAX_MESSAGE
        self.admitted.set()
        if self._on_admitted is not None:
            self._on_admitted()

    async def _write(self) -> None:
        self._writing = True
        try:
            await self._drain()
        finally:
            self._writing = False

    async def _drain(self) -> None:
        self._draining = True
        try:
            await self._write_all()
        finally:
            self._draining = False
        self._written.set()
        self._written = anyio.Event()

    async def _write_all(self) -> None:
        while self._waiting():
            if not self._outgoing:
                self._outgoing = memoryview(self._channel.data_to_send(_WRITE_SIZE))
            try:
                with anyio.fail_after(self._limits.write):
                    taken = await self._stream.send_some(self._outgoing[:_WRITE_SIZE])
            except TimeoutError:
                self.lose("peer_does_not_read", f"nothing taken for {self._limits.write:g} s")
            except anyio.ClosedResourceError:
                self.lose("closed")
            except anyio.BrokenResourceError as error:
                self.lose("reset", str(error))
            else:
                self._take_off(taken)
            self._raise_if_lost()

    async def _read(self, patience: float) -> None:
        self._reading = True
        try:
            with anyio.fail_after(patience):
                data = await self._stream.receive(_READ_SIZE)
            self._channel.receive_data(data)
        except TimeoutError:
            self.lose("silent", f"nothing heard for {patience:g} s")
        except anyio.EndOfStream:
            self.lose("closed_by_peer")
        except anyio.ClosedResourceError:
            self.lose("closed")
        except anyio.BrokenResourceError as error:
            self.lose(broken_by(error), str(error))
        except RemoteProtocolError as error:
            self.lose(error.reason, str(error))
        finally:
            self._reading = False
        self._inbox.extend(self._channel.messages())

    async def _say_goodbye(self) -> None:
        try:
            if self._writing and self._waiting():
                await self._written.wait()
            elif not self._writing:
                await self._write()
            await self._stream.send_eof()
            # Closing with unread bytes would send RST, which may overtake our last message.
            if self._reading:
                await self._ended.wait()  # whoever receives in another task reads them for us
            while self._lost is None:
                await self._stream.receive(_READ_SIZE)
        except (ConnectionLost, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # gone, which is what we wanted
