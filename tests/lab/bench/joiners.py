"""Many new nodes in one process: each joins a server by tcp, each from an address of its own, and stays.

They say what a node says (a hello with the invite, a ping now and then) and throw away what they are told behind the
answer. When the server goes, they come back as nodes do, after `Backoff`'s waits, and in no other order.
A child process of the bench: it reads the invite, then commands, and answers each with a line of JSON.

    join      all join: how long that took (`seconds`)
    settle    how many are connected when what they were told is dealt with, after `--settle` s (`connected`)
    return    said before the server goes away and comes back: how long from the first that got through to the last
              (`seconds`), and how many connections all of them took (`dialled`)

It ends with its standard input.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import sys
import time
from ipaddress import IPv4Address
from typing import Final

from overlay.errors import RemoteProtocolError
from overlay.node.backoff import Backoff
from overlay.wire.control.channel import NoiseChannel
from overlay.wire.control.codec import decode_server_message, encode
from overlay.wire.control.invite import Invite
from overlay.wire.control.messages import Hello, Ping, Welcome

FIRST: Final = IPv4Address("198.18.0.1")
TOGETHER: Final = 64  # that join at a time: the server lets 128 strangers in at once
ATTEMPTS: Final = 20  # of one node: the server's door turns who comes too fast away
PAUSE: Final = 0.2  # s until the next
HEARTBEAT: Final = 15.0  # s
_IP_FREEBIND: Final = 15  # bind to an address that is nobody's: linux/in.h


class Joiner:
    """One new node."""

    def __init__(self, number: int, invite: Invite) -> None:
        self.connected = False
        self.dialled = 0
        self._number = number
        self._invite = invite
        self._secret = invite.secret
        self._key = os.urandom(32)

    async def join(self) -> None:
        """Raises `ConnectionError` if it is turned away again and again."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(OSError, EOFError, RemoteProtocolError):
                await self._once()
                self._secret = b""  # it is registered
                return
            await asyncio.sleep(PAUSE)
        raise ConnectionError(f"node {self._number} was turned away {ATTEMPTS} times")

    async def stay(self) -> None:
        """Until the connection is lost."""
        pings = asyncio.create_task(self._ping())
        with contextlib.suppress(OSError):
            while await self._reader.read(1 << 16):
                continue
        self.connected = False
        pings.cancel()
        self._writer.close()

    async def come_back(self) -> None:
        """As `ControlClient.run` does."""
        backoff = Backoff(random.uniform)
        while not self.connected:
            await asyncio.sleep(backoff.next())
            with contextlib.suppress(OSError, EOFError, RemoteProtocolError):
                self.dialled += 1
                await self._once()

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
            hello = Hello(name=f"joiner-{self._number}", invite=self._secret, software="bench")
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


class Crowd:
    """All of them."""

    def __init__(self, invite: Invite, count: int, settle: float) -> None:
        self._settle = settle
        self._joiners = [Joiner(number, invite) for number in range(count)]
        self._lives: list[asyncio.Task[None]] = []
        self._stays: list[asyncio.Task[None]] = []  # of those that came back
        self._returning = False
        self._first_back = 0.0

    async def join(self) -> dict[str, float]:
        waiting = iter(self._joiners)

        async def one_by_one() -> None:
            for joiner in waiting:
                await joiner.join()
                self._lives.append(asyncio.create_task(self._live(joiner)))

        start = time.monotonic()
        await asyncio.gather(*(one_by_one() for _ in range(TOGETHER)))
        return {"seconds": time.monotonic() - start}

    async def settle(self) -> dict[str, float]:
        await asyncio.sleep(self._settle)
        return {"connected": sum(joiner.connected for joiner in self._joiners)}

    async def come_back(self) -> dict[str, float]:
        self._returning = True
        await asyncio.gather(*self._lives)
        seconds = time.monotonic() - self._first_back
        return {"seconds": seconds, "dialled": sum(joiner.dialled for joiner in self._joiners)}

    async def _live(self, joiner: Joiner) -> None:
        await joiner.stay()
        if self._returning:
            await joiner.come_back()
            self._first_back = self._first_back or time.monotonic()
            self._stays.append(asyncio.create_task(joiner.stay()))


async def run(invite: Invite, count: int, settle: float) -> None:
    crowd = Crowd(invite, count, settle)
    commands = {"join": crowd.join, "settle": crowd.settle, "return": crowd.come_back}
    while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
        _say(await commands[command]())


def _say(document: object) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--settle", type=float, default=8.0)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    invite = Invite.parse(sys.stdin.readline().strip())
    try:
        asyncio.run(run(invite, options.count, options.settle))
    except (OSError, EOFError) as error:
        _say({"error": str(error)})
        os._exit(1)
    os._exit(0)  # thousands of connections take long to end in order


if __name__ == "__main__":
    main()
