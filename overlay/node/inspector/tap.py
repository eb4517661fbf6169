"""One connection to a target, as who stands beside it sees it: what goes by becomes exchanges. No I/O, no clock.

It is told what passes and has no way to hold that up. What it does not understand it leaves alone from there on: `lost`
says so, and the exchanges that were under way.
"""

from collections import deque
from typing import Final

from overlay.node.inspector.exchanges import Exchange, Exchanges
from overlay.wire.ingress.body import BodyReader
from overlay.wire.ingress.http1 import HEAD_END, HttpError, parse_request, parse_response

LONGEST_HEAD: Final = 32 * 1024  # bytes; the ingress takes half of it
MOST_WAITING: Final = 64  # requests that were sent before the first of them is answered


class Tap:
    def __init__(self, exchanges: Exchanges, exposure: str, limit: int, replay_of: str = "") -> None:
        """`limit`: bytes of each body that are kept; `replay_of`: the exchange that is repeated here."""
        self.lost = False
        self.answers = 0  # that have ended
        self.last: Exchange | None = None  # that was begun
        self._exchanges = exchanges
        self._exposure = exposure
        self._limit = limit
        self._replay_of = replay_of
        self._request_head = bytearray()
        self._answer_head = bytearray()
        self._request_body: tuple[Exchange, BodyReader] | None = None
        self._answer_body: BodyReader | None = None  # of the first that waits
        self._waiting: deque[Exchange] = deque()  # their answers have not ended
        self._upgraded: Exchange | None = None

    def to_target(self, data: bytes, at: float, now: float) -> None:
        """`at`: Unix seconds; `now`: monotonic."""
        if self.lost:
            return
        if self._upgraded is not None:
            self._upgraded.sent.size += len(data)
            return
        try:
            self._read_requests(data, at, now)
        except HttpError:
            self._lose(now)

    def from_target(self, data: bytes, now: float) -> None:
        if self.lost:
            return
        if self._upgraded is not None:
            self._upgraded.received.size += len(data)
            return
        try:
            self._read_answers(data, now)
        except HttpError:
            self._lose(now)

    def target_ended(self, now: float) -> None:
        """The target has said all."""
        if self._answer_body is not None and self._answer_body.end():
            self._answered(now)

    def closed(self, now: float) -> None:
        if self._upgraded is not None:
            self._exchanges.ended(self._upgraded, "done", now)
        for exchange in self._waiting:
            self._exchanges.ended(exchange, "cut", now)
        self._waiting.clear()
        self.lost = True

    # inside ----------------------------------------------------------------------------------------------------------

    def _read_requests(self, data: bytes, at: float, now: float) -> None:
        while data:
            if self._request_body is None:
                head, data = _take_head(self._request_head, data)
                if head is None:
                    return
                request = parse_request(head)
                if len(self._waiting) >= MOST_WAITING:
                    raise HttpError(400, "bad_http", "too many requests that wait")
                exchange = self._exchanges.begin(
                    self._exposure, self._limit, request, at=at, now=now, replay_of=self._replay_of
                )
                self._waiting.append(exchange)
                self.last = exchange
                reader = BodyReader(request.framing)
                exchange.asked = reader.done
                if not reader.done:
                    self._request_body = exchange, reader
                continue
            exchange, reader = self._request_body
            self._exchanges.add(exchange, exchange.sent, reader.feed(data))
            if not reader.done:
                return
            exchange.asked = True
            data, self._request_body = reader.rest, None

    def _read_answers(self, data: bytes, now: float) -> None:
        while data:
            if self._answer_body is None:
                head, data = _take_head(self._answer_head, data)
                if head is None:
                    return
                if not self._waiting:
                    raise HttpError(502, "bad_answer", "an answer to nothing")
                exchange = self._waiting[0]
                answer = parse_response(head, exchange.request.method)
                if answer.status == 101:
                    self._exchanges.answered(exchange, answer)
                    exchange.upgraded, self._upgraded = True, exchange
                    exchange.received.size += len(data)
                    self._waiting.popleft()
                    return
                if answer.status < 200:
                    continue
                self._exchanges.answered(exchange, answer)
                self._answer_body = BodyReader(answer.framing, extensions=True)
            else:
                exchange = self._waiting[0]
                self._exchanges.add(exchange, exchange.received, self._answer_body.feed(data))
                data = b""
            if not self._answer_body.done:
                continue  # more of it is to come, if there is more
            data = data or self._answer_body.rest
            self._answered(now)

    def _answered(self, now: float) -> None:
        self._answer_body = None
        self.answers += 1
        self._exchanges.ended(self._waiting.popleft(), "done", now)

    def _lose(self, now: float) -> None:
        self.lost = True
        for exchange in self._waiting:
            self._exchanges.ended(exchange, "lost", now)
        self._waiting.clear()
        self._request_body = self._answer_body = None
        self._request_head.clear()
        self._answer_head.clear()


def _take_head(held: bytearray, data: bytes) -> tuple[bytes | None, bytes]:
    """→ a whole head, which leaves `held`, and what is behind it. Raises `HttpError`."""
    searched = max(0, len(held) - len(HEAD_END) + 1)
    held += data
    end = held.find(HEAD_END, searched)
    if end < 0 or end > LONGEST_HEAD:
        if len(held) > LONGEST_HEAD:
            raise HttpError(431, "http_head_too_large")
        return None, b""
    end += len(HEAD_END)
    head, rest = bytes(held[:end]), bytes(held[end:])
    held.clear()
    return head, rest
