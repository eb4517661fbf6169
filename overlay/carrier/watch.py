"""Sockets watched all together, by one `epoll` beside the event loop's.

The loop's own way costs 10 µs for each socket that is added or removed, and a few for each event: as much as all else
that forwarding a short connection takes. One `epoll` in the loop's does it for a tenth. In a loop of `new_event_loop`
it is the loop's that is in this one: what happens to a socket is dealt with as soon as the process wakes up, by one
system call and without a turn of the loop.
"""

import asyncio
import contextvars
import select
import selectors
import weakref
from collections.abc import Callable
from typing import Final

_TURN: Final = 64  # sockets that are looked after before the loop's other work has its turn
_READABLE: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_WRITABLE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR

Call = Callable[[], object]


class Watch:
    """Of one event loop; `watch` gives it. Sockets are named by descriptors, and are better removed before they are
    closed. What is called may be called for nothing, and is called again as long as there is something."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Call] = {}
        self._writers: dict[int, Call] = {}
        self.context: contextvars.Context | None = None
        """In which calls are made, where no handle of the loop does it."""

    def close(self) -> None:
        self._epoll.close()

    def fileno(self) -> int:
        """Is readable when `turn` has something to do."""
        return self._epoll.fileno()

    def add_reader(self, number: int, call: Call) -> None:
        """In the place of who waited before, if somebody did."""
        self._add(number, call, self._readers, self._writers, select.EPOLLIN)

    def remove_reader(self, number: int) -> None:
        """If there is one."""
        self._remove(number, self._readers, self._writers, select.EPOLLOUT)

    def add_writer(self, number: int, call: Call) -> None:
        self._add(number, call, self._writers, self._readers, select.EPOLLOUT)

    def remove_writer(self, number: int) -> None:
        self._remove(number, self._writers, self._readers, select.EPOLLIN)

    def _add(self, number: int, call: Call, these: dict[int, Call], others: dict[int, Call], event: int) -> None:
        if number in these or number in others:
            wanted = select.EPOLLIN | select.EPOLLOUT if number in others else event
            try:
                self._epoll.modify(number, wanted)
            except FileNotFoundError:
                # It was closed without a word, and this is another socket: it would never be heard of.
                others.pop(number, None)
                self._epoll.register(number, event)
        else:
            self._epoll.register(number, event)
        these[number] = call

    def _remove(self, number: int, these: dict[int, Call], others: dict[int, Call], left: int) -> None:
        if these.pop(number, None) is None:
            return
        try:
            if number in others:
                self._epoll.modify(number, left)
            else:
                self._epoll.unregister(number)
        except OSError:
            others.pop(number, None)  # it was closed before

    def turn(self, timeout: float = 0) -> None:
        """Wait for something, so many seconds at most (-1: as long as it takes), and call whom it is for."""
        for number, events in self._epoll.poll(timeout, _TURN):
            if events & _READABLE:
                self._call(self._readers.get(number))
            if events & _WRITABLE:
                self._call(self._writers.get(number))

    def _call(self, call: Call | None) -> None:
        if call is None:
            return
        try:
            call()
        except Exception as error:
            context = {"message": "what was called for a socket failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


class _Selector(selectors.EpollSelector):
    """The loop's own, waited for together with the sockets of a `Watch`."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch()
        self.watch.add_reader(self.fileno(), self._note)
        self._has_something = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._has_something = False
        patience = -1 if timeout is None else max(0, timeout)
        if self.watch.context is None:  # nobody has come yet
            self.watch.turn(patience)
        else:
            self.watch.context.run(self.watch.turn, patience)
        return super().select(0) if self._has_something else []

    def close(self) -> None:
        self.watch.close()
        super().close()

    def _note(self) -> None:
        self._has_something = True


def new_event_loop() -> asyncio.AbstractEventLoop:
    """One whose sockets are watched in the shortest way."""
    selector = _Selector()
    loop = asyncio.SelectorEventLoop(selector)
    _watches[loop] = selector.watch
    return loop


_watches: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Watch]" = weakref.WeakKeyDictionary()


def watch() -> Watch:
    """That of the loop that runs."""
    loop = asyncio.get_running_loop()
    found = _watches.get(loop)
    if found is None:
        found = _watches[loop] = Watch()
        loop.add_reader(found.fileno(), found.turn)
    if found.context is None:
        found.context = contextvars.copy_context()  # what is called finds in it what a task of the loop would
    return found
