"""The resolver: questions over UDP and TCP in, answers from the zone or from the forwarder out.

It serves this machine alone. It listens on the machine's overlay address, so that several can run on one host and none
is in the way of a resolver on loopback; questions that come from other members of the network are dropped.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import anyio
from anyio.abc import Listener, SocketAttribute, SocketStream, TaskGroup, TaskStatus, UDPSocket
from dnslib import EDNS0, RCODE, DNSRecord

from overlay_dns.forwarder import Forwarder, ForwardError, Upstream
from overlay_dns.message import LARGEST_UDP_SIZE, PLAIN_UDP_SIZE, is_truncated, parse_query, short_reply, udp_limit
from overlay_dns.zone import Address, Network, Zone

PORT = 53
TCP_IDLE_TIMEOUT = 10.0
"""Seconds that a TCP connection may wait for its next question (RFC 7766 section 6.2.3: "a few seconds")."""
TCP_CONNECTION_LIMIT = 64
UDP_QUESTION_LIMIT = 512
"""Questions from UDP under way at once; more are dropped, the client asks again."""

_log = logging.getLogger(__name__)


class Resolver:
    """Answers from `zone` and forwards the rest to `upstreams`."""

    def __init__(self, zone: Zone, upstreams: Callable[[], Sequence[Upstream]]) -> None:
        self._zone = zone
        self._forwarder = Forwarder(upstreams)
        self._tcp_connections = 0
        self._udp_questions = 0
        self._own: frozenset[Address] = frozenset()
        self.drops: Counter[str] = Counter()

    def set_zone(self, zone: Zone) -> None:
        """Answer from this zone from now on."""
        self._zone = zone

    async def serve(
        self,
        addresses: Sequence[str],
        *,
        port: int = PORT,
        task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on these addresses until cancelled. Signals the port once it listens on all. Raises `OSError`."""
        self._own = frozenset(ip_address(address) for address in addresses)
        async with anyio.create_task_group() as tasks:
            for address in addresses:
                listener = await anyio.create_tcp_listener(local_host=address, local_port=port)
                port = port or int(listener.extra(SocketAttribute.local_port))
                udp = await anyio.create_udp_socket(local_host=address, local_port=port)
                tasks.start_soon(self._serve_udp, udp)
                tasks.start_soon(self._serve_tcp, listener)
            task_status.started(port)

    async def reply(self, data: bytes, source: str, *, stream: bool) -> bytes | None:
        """The reply to one question, or None for what deserves none."""
        if not self._serves(ip_address(source.partition("%")[0]), self._zone.networks):
            self.drops["foreign_client"] += 1
            return None
        query = parse_query(data)
        if query is None:
            self.drops["not_a_query"] += 1
            return None
        if isinstance(query, int):
            self.drops["bad_query"] += 1
            return short_reply(data, query)
        answer = self._zone.answer(query)
        if answer is not None:
            return _pack(answer, query, stream=stream)
        try:
            reply = await self._forwarder.ask(data)
        except ForwardError as error:
            self.drops[str(error.args[0])] += 1
            return short_reply(data, RCODE.SERVFAIL)
        if not stream and len(reply) > max(udp_limit(query), PLAIN_UDP_SIZE) and not is_truncated(reply):
            # The upstream's TCP answer does not fit: the client must come by TCP as well.
            return _truncate(query)
        return reply

    def _serves(self, client: Address, networks: Sequence[Network]) -> bool:
        return client in self._own or not any(client in network for network in networks)

    async def _serve_udp(self, udp: UDPSocket) -> None:
        async with udp, anyio.create_task_group() as tasks:
            async for data, (host, port) in udp:
                self._take(tasks, udp, data, host, port)

    def _take(self, tasks: TaskGroup, udp: UDPSocket, data: bytes, host: str, port: int) -> None:
        if self._udp_questions >= UDP_QUESTION_LIMIT:
            self.drops["udp_limit"] += 1
            return
        self._udp_questions += 1
        tasks.start_soon(self._answer_udp, udp, data, host, port)

    async def _answer_udp(self, udp: UDPSocket, data: bytes, host: str, port: int) -> None:
        try:
            reply = await self.reply(data, host, stream=False)
            if reply is not None:
                await udp.sendto(reply, host, port)
        except OSError as error:
            self.drops["send_failed"] += 1
            _log.debug("no answer to %s: %s", host, error)
        finally:
            self._udp_questions -= 1

    async def _serve_tcp(self, listener: Listener[SocketStream]) -> None:
        async with listener:
            await listener.serve(self._serve_stream)

    async def _serve_stream(self, stream: SocketStream) -> None:
        async with stream:
            if self._tcp_connections >= TCP_CONNECTION_LIMIT:
                self.drops["tcp_limit"] += 1
                return
            self._tcp_connections += 1
            try:
                await self._answer_stream(stream, stream.extra(SocketAttribute.remote_address)[0])
            except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self.drops["tcp_broken"] += 1
            finally:
                self._tcp_connections -= 1

    async def _answer_stream(self, stream: SocketStream, host: str) -> None:
        """One question after the other, each with its length before it (RFC 1035 section 4.2.2)."""
        data = b""
        while True:
            with anyio.move_on_after(TCP_IDLE_TIMEOUT) as idle:
                while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
                    data += await stream.receive()
            if idle.cancelled_caught:
                self.drops["tcp_idle"] += 1
                return
            end = 2 + int.from_bytes(data[:2])
            message, data = data[2:end], data[end:]
            reply = await self.reply(message, host, stream=True)
            if reply is None:
                return
            await stream.send(len(reply).to_bytes(2) + reply)


def _pack(answer: DNSRecord, query: DNSRecord, *, stream: bool) -> bytes:
    if any(record.rtype == 41 for record in query.ar):
        answer.add_ar(EDNS0(udp_len=LARGEST_UDP_SIZE))
    data = bytes(answer.pack())
    if not stream and len(data) > udp_limit(query):
        return _truncate(query)
    return data


def _truncate(query: DNSRecord) -> bytes:
    reply = query.reply(ra=1, aa=0)
    reply.header.tc = 1
    return bytes(reply.pack())
