"""Many new nodes in one process: each joins a server by tcp, each from an address of its own, and stays.

They say what a node says (a hello with the invite, a ping now and then) and throw away what they are told behind the
answer. When the server goes, they come back as nodes do, after `Backoff`'s waits, and in no other order.
A child process of the bench: it reads the invite, then one command a line, and answers each with a line of JSON.

    join      all join, so many at a time: how long that took (`seconds`)
    settle    how many are connected when what they were told is dealt with (`connected`)
    return    said when the server has gone and comes back: how long until the last one was welcome again (`seconds`,
              from its listening, which is when the first one got through), how many connections that took (`dialled`)

It ends with its standard input.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
import time
from ipaddress import IPv4Address
from typing import Final

from overlay.wire.control.channel import NoiseChannel
from overlay.wire.control.codec import decode_server_message, encode
from overlay.wire.control.invite import Invite
from overlay.wire.control.messages import Hello, Ping, Welcome

FIRST: Final = IPv4Address("198.18.0.1")
TOGETHER: Final = 64  # that join at a time: the server lets 128 strangers in at once
ATTEMPTS: Final = 20  # of one node: the server's door turns who comes too fast away
PAUSE: Final = 0.2  # s until the next
SETTLE: Final = 8.0  # s until what they were told is dealt with
HEARTBEAT: Final = 15.0  # s
_IP_FREEBIND: Final = 15  # bind to an address that is nobody's: linux/in.h


class Joiner:
    """One new node."""

    def __init__(self, number: int, invite: Invite) -> None:
        self.connected = False
        self._number = number
        self._invite = invite
        self._key = os.urandom(32)

    async def join(self) -> None:
        """Raises `ConnectionError` if it is turned away again and again."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(OSError, EOFError):
                await self._once()
                return
            await asyncio.sleep(PAUSE)
        raise ConnectionError(f"node {self._number} was turned away {ATTEMPTS} times")

    async def stay(self) -> None:
        pings = asyncio.create_task(self._ping())
        with contextlib.suppress(OSError):
            while await self._reader.read(1 << 16):
                continue
        self.connected = False
        pings.cancel()

    async def _once(self) -> None:
        host, port = self._invite.addresses[0].rsplit(":", 1)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind((str(FIRST + self._number), 0))
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
            self._reader, self._writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            self._channel = NoiseChannel.initiator(self._key, self._invite.server_key, random_bytes=os.urandom)
            self._flush()
            while not self._channel.established:
                self._channel.receive_data(await self._some())
            hello = Hello(name=f"joiner-{self._number}", invite=self._invite.secret, software="bench")
            self._channel.send(encode(hello))
            self._flush()
            while not (messages := self._channel.messages()):
                self._channel.receive_data(await self._some())
            answer = decode_server_message(messages[0])
            if not isinstance(answer, Welcome):
                raise EOFError(repr(answer))
        except BaseException:
            self._writer.close()
            raise
        self.connected = True

    async def _some(self) -> bytes:
        data = await self._reader.read(1 << 16)
        if not data:
            raise EOFError("closed")
        return data

    async def _ping(self) -> None:
        seq = 0
        while True:
            await asyncio.sleep(HEARTBEAT)
            seq += 1
            self._channel.send(encode(Ping(seq=seq)))
            self._flush()

    def _flush(self) -> None:
        self._writer.write(self._channel.data_to_send())


async def run(invite: Invite, count: int) -> None:
    joiners = [Joiner(number, invite) for number in range(count)]
    waiting = iter(joiners)
    staying: list[asyncio.Task[None]] = []

    async def one_by_one() -> None:
        for joiner in waiting:
            await joiner.join()
            staying.append(asyncio.create_task(joiner.stay()))

    start = time.monotonic()
    await asyncio.gather(*(one_by_one() for _ in range(TOGETHER)))
    _say({"seconds": time.monotonic() - start})
    await asyncio.sleep(SETTLE)
    _say({"connected": sum(joiner.connected for joiner in joiners)})
    await asyncio.to_thread(sys.stdin.read)


def _say(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True)
    count = parser.parse_args().count
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    invite = Invite.parse(sys.stdin.readline().strip())
    try:
        asyncio.run(run(invite, count))
    except (OSError, EOFError) as error:
        _say({"error": str(error)})
        os._exit(1)
    os._exit(0)  # thousands of connections take long to end in order


if __name__ == "__main__":
    main()
