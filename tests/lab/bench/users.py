"""Many users who have connected, have had one byte answered, and then say nothing. A child process of the bench.

`HOST PORT COUNT` → a line when all have had their answer. It ends with its standard input.
"""

import resource
import socket
import sys
import time
from typing import Final

TOGETHER: Final = 32  # who connect before the first of them gets his answer
PATIENCE: Final = 10.0  # s for one answer


def connect(host: str, port: int, count: int, asks: bytes, answers: bytes) -> list[socket.socket]:
    """Raises `OSError` for one that is turned away, or answered something else."""
    users: list[socket.socket] = []
    while len(users) < count:
        new = [socket.create_connection((host, port), PATIENCE) for _ in range(min(TOGETHER, count - len(users)))]
        for user in new:
            user.sendall(asks)
        for user in new:
            got = b""
            while len(got) < len(answers):
                piece = user.recv(65536)
                if not piece:
                    raise ConnectionError(f"user {len(users)} was turned away")
                got += piece
            if not got.startswith(answers):
                raise ConnectionError(got[:100].decode("latin-1"))
        users += new
    return users


def main() -> None:
    host, port, count, *site = sys.argv[1:]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asks, answers = b"?", b"?"
    if site:
        asks, answers = f"GET / HTTP/1.1\r\nHost: {site[0]}\r\n\r\n".encode(), b"HTTP/1.1 200 OK\r\n"
    start = time.monotonic()
    try:
        users = connect(host, int(port), int(count), asks, answers)
    except OSError as error:
        sys.stdout.write(f"failed: {error}\n")
        return
    sys.stdout.write(f"{len(users)} in {time.monotonic() - start:.2f} s\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
