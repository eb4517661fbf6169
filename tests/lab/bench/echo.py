"""One byte there and back over TCP: who asks, who answers, and who passes it on. Child processes of the bench.

Blocking sockets and a thread per connection: as little between the wire and the clock as Python has.
"""

import contextlib
import socket
import sys
import threading
import time
from statistics import median

PAUSE = 0.005  # s between two questions: nobody's queue, and nobody's cache either
WARM = 10  # questions that do not count


def _listen(port: int) -> socket.socket:
    listener = socket.create_server(("0.0.0.0", port))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    return listener


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(4096):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _no_delay(connected: socket.socket) -> socket.socket:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def answer(port: int) -> None:
    listener = _listen(port)
    while True:
        connected = _no_delay(listener.accept()[0])
        threading.Thread(target=_pass, args=(connected, connected), daemon=True).start()


def forward(port: int, host: str, port_there: int) -> None:
    listener = _listen(port)
    while True:
        here = _no_delay(listener.accept()[0])
        there = _no_delay(socket.create_connection((host, port_there)))
        for ends in ((here, there), (there, here)):
            threading.Thread(target=_pass, args=ends, daemon=True).start()


def ask(host: str, port: int, count: int) -> float:
    """Median, s."""
    taken = []
    with _no_delay(socket.create_connection((host, port), timeout=10)) as connected:
        for _ in range(WARM + count):
            start = time.perf_counter()
            connected.sendall(b"?")
            if not connected.recv(1):
                raise ConnectionError("closed")
            taken.append(time.perf_counter() - start)
            time.sleep(PAUSE)
    return median(taken[WARM:])


def main() -> None:
    match sys.argv[1:]:
        case ["answer", port]:
            answer(int(port))
        case ["forward", port, host, port_there]:
            forward(int(port), host, int(port_there))
        case ["ask", host, port, count]:
            sys.stdout.write(f"{ask(host, int(port), int(count))}\n")


if __name__ == "__main__":
    main()
