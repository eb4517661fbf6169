"""The resolver: questions over UDP and TCP in, answers from the zones or from the forwarder out.

It serves this machine (its containers, too), tells other members of the network no more than the zones' names, and
strangers nothing: who sends packets for the overlay address from the LAN gets no answer. It listens on the overlay
address, so that several can run on one host and none is in the way of a resolver on loopback.

UDP is read many questions at a time: those with a ready reply are answered at once, without a task of their own.
"""

import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from time import monotonic
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import Listener, SocketAttribute, SocketStream, TaskGroup, TaskStatus
from dnslib import EDNS0, QTYPE, RCODE, RR, DNSError, DNSRecord

from overlay_dns.answers import Answers, Forwarded
from overlay_dns.forwarder import Forwarder, ForwardError, Upstream
from overlay_dns.labels import Address, Network
from overlay_dns.message import LARGEST_UDP_SIZE, PLAIN_UDP_SIZE, is_truncated, udp_limit
from overlay_dns.query import parse_query, short_reply
from overlay_dns.zone import Answer, Zones

PORT: Final = 53
TCP_IDLE_TIMEOUT: Final = 10.0
"""Seconds that a TCP connection may wait for its next question (RFC 7766 section 6.2.3: "a few seconds")."""
TCP_CONNECTION_LIMIT: Final = 64  # of this machine, and as many of all others
TCP_PIPELINE: Final = 16
"""Questions of one TCP connection under way at once (RFC 7766 section 6.2.1.1); the next ones wait in its buffer."""
UDP_QUESTION_LIMIT: Final = 512
"""Questions from UDP that wait for an upstream; more are dropped, the client asks again."""
UDP_AT_ONCE: Final = 64
"""Questions read before anybody else has a turn: half a millisecond of ready replies."""
UDP_BUFFER: Final = 1 << 20
"""Bytes that the kernel keeps for us: a browser's burst of questions, many times over."""

LARGEST_QUESTION: Final = 4096
"""Bytes of a question by UDP that are read: a question with its EDNS options has some hundred."""

OTHERS_RATE: Final = 200.0
OTHERS_BURST: Final = 400.0
"""Questions per second, and at once, of all other members of the network together."""
OTHER_RATE: Final = 50.0
OTHER_BURST: Final = 100.0
"""The same of one of them: whoever floods leaves the others three quarters."""
OTHERS_KNOWN: Final = 1024
"""Members whose rate is kept; each has two addresses that the engine vouches for."""

_log = logging.getLogger(__name__)
_Source = tuple[str, int] | tuple[str, int, int, int]


class Resolver:
    """Answers from `zones` and forwards the rest to `upstreams`."""

    def __init__(
        self,
        zones: Zones,
        upstreams: Callable[[], Sequence[Upstream]],
        *,
        inside: Callable[[], Sequence[Network]] = tuple,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`inside`: networks that are within this machine, as those of its containers are."""
        self._zones = zones
        self._answers = {False: Answers(), True: Answers()}  # by UDP, by TCP
        self._forwarded = Forwarded()
        self.forwarder = Forwarder(upstreams, is_own=self._is_own_endpoint, clock=clock)
        self._port = 0
        self._tcp_connections = {True: 0, False: 0}  # of this machine, of others
        self._udp_questions = 0
        self._own: frozenset[Address] = frozenset()
        self._clock = clock
        self._inside = inside
        self._others = _Bucket(OTHERS_RATE, OTHERS_BURST)
        self._other: dict[str, _Bucket] = {}
        self._is_own: set[str] = set()
        self.drops: Counter[str] = Counter()

    def set_zones(self, zones: Zones) -> None:
        """Answer from these from now on."""
        self._zones = zones
        self._forget_clients()
        self._forwarded.clear()
        for answers in self._answers.values():
            answers.clear()

    async def serve(
        self,
        addresses: Sequence[str],
        *,
        port: int = PORT,
        task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on these addresses until cancelled. Signals the port once it listens on all. Raises `OSError`."""
        self._own = frozenset(ip_address(address) for address in addresses)
        self._forget_clients()
        try:
            async with anyio.create_task_group() as tasks:
                for address in addresses:
                    listener = await anyio.create_tcp_listener(local_host=address, local_port=port)
                    self._port = port = port or int(listener.extra(SocketAttribute.local_port))
                    tasks.start_soon(self._serve_udp, _udp_socket(address, port))
                    tasks.start_soon(self._serve_tcp, listener)
                task_status.started(port)
        finally:
            with anyio.CancelScope(shield=True):
                await self.forwarder.aclose()

    async def reply(self, data: bytes, source: str, *, stream: bool) -> bytes | None:
        """The reply to one question, or None for what deserves none."""
        reply = self._ready(data, source, stream=stream)
        if reply is not None or not self._admits(source):
            return reply
        query = self._parsed(data)
        if query is None or isinstance(query, bytes):
            return query
        return await self._work_out(data, query, source, stream=stream)

    # --- what is asked ------------------------------------------------------------------------------------------------

    def _ready(self, data: bytes, source: str, *, stream: bool) -> bytes | None:
        """A reply that was worked out before, for who may have it without being counted."""
        return self._answers[stream].get(data) if self._own_client(source) else None

    def _is_own_endpoint(self, host: str, port: int) -> bool:
        return port == self._port and ip_address(host.partition("%")[0]) in self._own

    def _own_client(self, source: str) -> bool:
        """Is it this machine itself?"""
        if source in self._is_own:
            return True
        client = ip_address(source.partition("%")[0])
        own = client.is_loopback or client in self._own or any(client in network for network in self._inside())
        if own:
            if len(self._is_own) >= OTHERS_KNOWN:
                self._is_own.clear()
            self._is_own.add(source)
        return own

    def _forget_clients(self) -> None:
        self._is_own.clear()
        self._other.clear()

    def _admits(self, source: str) -> bool:
        """Whether a question from there is looked at."""
        if self._own_client(source):
            return True
        if not self._is_member(source):
            self.drops["stranger"] += 1
            return False
        now = self._clock()
        if len(self._other) >= OTHERS_KNOWN:
            self._other.clear()
        bucket = self._other.setdefault(source, _Bucket(OTHER_RATE, OTHER_BURST))
        if bucket.take(now) and self._others.take(now):
            return True
        self.drops["client_rate"] += 1
        return False

    def _is_member(self, source: str) -> bool:
        client = ip_address(source.partition("%")[0])
        return any(client in network for network in self._zones.networks)

    def _parsed(self, data: bytes) -> DNSRecord | bytes | None:
        """The query; or the reply that refuses it; or None for what deserves none."""
        query = parse_query(data)
        if query is None:
            self.drops["not_a_query"] += 1
            return None
        if isinstance(query, int):
            self.drops["bad_query"] += 1
            return short_reply(data, query)
        return query

    def _from_zones(self, data: bytes, query: DNSRecord, *, stream: bool) -> bytes | Answer | None:
        """The reply, where the zones alone decide it: kept for the next time. An `Answer` leads on to a name that is
        not ours; None: nothing of it is."""
        question = query.questions[0]
        answer = self._zones.answer(question.qname, question.qtype)
        if answer is None or answer.onward is not None:
            return answer
        reply = _pack(answer.reply(query), query, stream=stream)
        self._answers[stream].keep(data, reply)
        return reply

    async def _work_out(self, data: bytes, query: DNSRecord, source: str, *, stream: bool) -> bytes:
        found = self._from_zones(data, query, stream=stream)
        if isinstance(found, bytes):
            return found
        if not self._own_client(source):
            self.drops["foreign_client"] += 1
            return short_reply(data, RCODE.REFUSED)  # else each member were an open resolver for the others
        try:
            if found is not None:
                return _pack(await self._followed(found, query), query, stream=stream)
            reply = await self.forwarder.ask(data)
        except ForwardError as error:
            self.drops[str(error.args[0])] += 1
            return short_reply(data, RCODE.SERVFAIL)
        if not stream and len(reply) > max(udp_limit(query), PLAIN_UDP_SIZE) and not is_truncated(reply):
            # The upstream's TCP answer does not fit: the client must come by TCP as well.
            return _truncate(query)
        return reply

    async def _followed(self, answer: Answer, query: DNSRecord) -> DNSRecord:
        """An alias of ours that leads to somebody else's name: what that has. Raises `ForwardError`."""
        reply = answer.reply(query)
        onward = DNSRecord.question(str(answer.onward), QTYPE.get(query.questions[0].qtype))
        try:
            found = DNSRecord.parse(await self.forwarder.ask(bytes(onward.pack())))
        except (DNSError, ValueError, IndexError, RecursionError) as error:
            raise ForwardError("bad_reply") from error
        reply.header.rcode = found.header.rcode
        reply.add_answer(*(record for record in found.rr if isinstance(record, RR)))
        return reply

    # --- UDP ----------------------------------------------------------------------------------------------------------

    async def _serve_udp(self, udp: socket.socket) -> None:
        with udp:
            async with anyio.create_task_group() as tasks:
                while True:
                    await anyio.wait_readable(udp)
                    self._take_some(tasks, udp)
                    await anyio.lowlevel.checkpoint()

    def _take_some(self, tasks: TaskGroup, udp: socket.socket) -> None:
        receive, send = udp.recvfrom, udp.sendto
        ready, is_own = self._answers[False].ready, self._is_own
        self._forwarded.tick(self._clock())
        forwarded = self._forwarded.ready
        for _ in range(UDP_AT_ONCE):
            try:
                data, source = receive(LARGEST_QUESTION)
                reply = ready.get(data[2:]) or forwarded.get(data[2:])
                if reply is not None and source[0] in is_own:
                    send(data[:2] + reply, source)
                elif self._admits(source[0]):
                    self._take(tasks, udp, data, source)
            except BlockingIOError:
                return  # nothing waits; or nobody takes our replies, and those who ask will ask again
            except OSError:  # a reply reached nobody, and the kernel says so now
                self.drops["udp_failed"] += 1

    def _take(self, tasks: TaskGroup, udp: socket.socket, data: bytes, source: _Source) -> None:
        own = self._own_client(source[0])
        if own and (reply := self._forwarded.get(data, self._clock())) is not None:
            self._send(udp, reply, source)
            return
        query = self._parsed(data)
        if query is None:
            return
        found = query if isinstance(query, bytes) else self._from_zones(data, query, stream=False)
        if isinstance(found, bytes):
            self._send(udp, found, source)
        elif self._udp_questions >= UDP_QUESTION_LIMIT:
            self.drops["udp_limit"] += 1
        else:
            assert isinstance(query, DNSRecord)
            if own and found is None and (kept := self.forwarder.remembered(data)) is not None:
                self._forwarded.keep(data, kept, max(udp_limit(query), PLAIN_UDP_SIZE))
                if (reply := self._forwarded.get(data, self._clock())) is not None:
                    self._send(udp, reply, source)
                    return
            self._udp_questions += 1
            tasks.start_soon(self._answer_udp, udp, data, query, source)

    async def _answer_udp(self, udp: socket.socket, data: bytes, query: DNSRecord, source: _Source) -> None:
        try:
            self._send(udp, await self._work_out(data, query, source[0], stream=False), source)
        finally:
            self._udp_questions -= 1

    def _send(self, udp: socket.socket, reply: bytes, source: _Source) -> None:
        try:
            udp.sendto(reply, source)
        except OSError:
            self.drops["send_failed"] += 1

    # --- TCP ----------------------------------------------------------------------------------------------------------

    async def _serve_tcp(self, listener: Listener[SocketStream]) -> None:
        async with listener:
            await listener.serve(self._serve_stream)

    async def _serve_stream(self, stream: SocketStream) -> None:
        async with stream:
            host = stream.extra(SocketAttribute.remote_address)[0]
            own = self._own_client(host)
            if not own and not self._is_member(host):
                self.drops["stranger"] += 1
                return
            if self._tcp_connections[own] >= TCP_CONNECTION_LIMIT:
                self.drops["tcp_limit"] += 1
                return
            self._tcp_connections[own] += 1
            try:
                await self._answer_stream(stream, host)
            except* (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self.drops["tcp_broken"] += 1
            finally:
                self._tcp_connections[own] -= 1

    async def _answer_stream(self, stream: SocketStream, host: str) -> None:
        """Questions with their lengths before them (RFC 1035 section 4.2.2); each is answered when its reply is there,
        whatever came before it (RFC 7766 section 6.2.1.1)."""
        data = b""
        room, writing = anyio.Semaphore(TCP_PIPELINE), anyio.Lock()

        async def answer(message: bytes) -> None:
            try:
                reply = await self.reply(message, host, stream=True)
                if reply is None:
                    tasks.cancel_scope.cancel()  # garbage: nothing good comes after it
                    return
                async with writing:
                    with anyio.fail_after(TCP_IDLE_TIMEOUT):  # a client that reads nothing
                        await stream.send(len(reply).to_bytes(2) + reply)
            except TimeoutError:
                self.drops["tcp_stalled"] += 1
                tasks.cancel_scope.cancel()
            finally:
                room.release()

        async with anyio.create_task_group() as tasks:
            while True:
                with anyio.move_on_after(TCP_IDLE_TIMEOUT) as idle:
                    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
                        data += await stream.receive()
                if idle.cancelled_caught:
                    self.drops["tcp_idle"] += 1
                    return
                end = 2 + int.from_bytes(data[:2])
                message, data = data[2:end], data[end:]
                await room.acquire()
                tasks.start_soon(answer, message)


class _Bucket:
    """So many at once, so many per second after."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._filled = burst, 0.0

    def take(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def _udp_socket(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER)
        udp.bind((address, port))
    except OSError:
        udp.close()
        raise
    return udp


def _pack(answer: DNSRecord, query: DNSRecord, *, stream: bool) -> bytes:
    answer.add_ar(*_edns(query))
    data = bytes(answer.pack())
    if not stream and len(data) > udp_limit(query):
        return _truncate(query)
    return data


def _truncate(query: DNSRecord) -> bytes:
    reply = query.reply(ra=1, aa=0)
    reply.header.tc, reply.header.cd = 1, query.header.cd
    reply.add_ar(*_edns(query))  # RFC 6891 section 7: truncated or not
    return bytes(reply.pack())


def _edns(query: DNSRecord) -> list[EDNS0]:
    """Ours where the client has one, its DO flag repeated (RFC 3225 section 3)."""
    return [EDNS0(udp_len=LARGEST_UDP_SIZE, flags="do" if each.edns_do else "") for each in query.ar]
