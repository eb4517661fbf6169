"""Users by HTTP/2 on the shared port: real TLS, the h2 library and curl on their side, targets by HTTP/1.1 behind."""

import hashlib
import os
import socket
from collections import Counter

import anyio
import anyio.lowlevel
import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import ContinuationFrame, DataFrame, GoAwayFrame, HeadersFrame, PingFrame, SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.carrier.http import answer, say
from overlay.server.web import exchange
from overlay.server.web import http2 as module
from overlay.server.web.incoming import Incoming
from overlay.wire.control.terms import Access, Headers, Limits, Terms
from overlay.wire.credentials import digest_of
from overlay.wire.ingress.body import BodyReader
from overlay.wire.ingress.http1 import parse_request
from tests.carrier.streams import Certificate
from tests.server.web.door import Target
from tests.server.web.http2_user import NAME, http2_user, tls_user
from tests.server.web.http2_web import meeting, tell, web
from tests.server.web.shared_port import HOST, site_to

pytestmark = pytest.mark.anyio

SIZE = 3_000_000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()


async def whole(target: Target) -> None:
    """Takes a body in chunks, and says what it was."""
    head = await target.head()
    digest = hashlib.sha256()
    while size := int(await target.until(b"\r\n"), 16):
        digest.update(await target.exactly(size))
        await target.exactly(2)
    trailers = await target.until(b"\r\n")
    if trailers != b"\r\n":
        await target.until(b"\r\n")
    said = digest.hexdigest().encode() + b" " + trailers.strip()
    assert b"chunked" in head
    await target.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(said), said))
    await target.say(b"0\r\nX-Digest: fine\r\n\r\n")


async def test_requests_go_the_way_of_those_by_http1(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        answer = await user.answer(await user.ask("/a?b", (b"x-forwarded-for", b"6.6.6.6"), (b"accept", b"*/*")))
        assert answer.heads == [{b":status": b"200", b"content-length": b"%d" % len(answer.body), b"x-kept": b"yes"}]
        head = answer.body.lower()
        assert head.startswith(b"get /a?b http/1.1\r\nhost: site.test\r\n") and b"6.6.6.6" not in head
        assert b"x-forwarded-for: 127.0.0.1\r\n" in head and b"x-forwarded-proto: https\r\n" in head
        await user.answer(await user.ask("/second"))
        assert it.connections == 1, "one stream after the other has the connection of the last one"
        assert [(entry.path, entry.status) for entry in it.site.log] == [("/a?b", 200), ("/second", 200)]
        await it.until(lambda: it.site.connections == 0)
        unknown = await user.answer(await user.ask("/", (b"host", b"site.test")))
        assert unknown.status == b"200"
        assert it.port.drops == {}
    await it.until(lambda: it.open == 0)


async def test_the_streams_of_a_connection_are_one_user(certificate: Certificate) -> None:
    """A page's parts are asked for at once; the limit is on users."""
    go = anyio.Event()

    async def slowly(target: Target) -> None:
        await target.head()
        await go.wait()
        await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with meeting(certificate, slowly) as (it, user), http2_user(it.port, certificate) as other:
        it.site.gate.terms = Terms(limits=Limits(connections=1))
        asked = [await user.ask(f"/{number}") for number in range(5)]
        await it.until(lambda: it.connections == 5)
        assert it.site.connections == 1
        assert (await other.answer(await other.ask("/"))).status == b"503"
        go.set()
        assert {(await user.answer(number)).status for number in asked} == {b"200"}
        assert it.port.drops == {"too_many_users": 1}
        await it.until(lambda: it.site.connections == 0)


async def test_the_streams_of_a_connection_are_one_to_its_gate(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        terms = Terms(
            access=Access(bearers=(digest_of(b"token"),)),
            limits=Limits(connection_rate="1/d", request_rate="4/d"),
            headers=Headers(response_remove=("x-kept",)),
        )
        it.site.gate.terms = terms
        shown = (b"authorization", b"Bearer token")
        for _ in range(3):
            answer = await user.answer(await user.ask("/", shown))
            assert answer.status == b"200" and b"token" not in answer.body and b"x-kept" not in answer.heads[0]
        refused = await user.answer(await user.ask("/"))
        assert refused.status == b"401" and refused.heads[0][b"www-authenticate"].startswith(b"Bearer")
        assert (await user.answer(await user.ask("/", shown))).status == b"429"
        assert it.port.drops == {"no_credentials": 1, "request_rate": 1}


async def test_other_names_learn_nothing(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        number = user.h2.get_next_available_stream_id()
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"other.test"), (b":path", b"/")]
        user.h2.send_headers(number, fields, end_stream=True)
        await user.flush()
        assert (await user.answer(number)).status == b"404"
        assert it.port.drops == {"http_stranger": 1}
        assert (await user.answer(await user.ask())).status == b"200"


async def test_many_streams_at_once(certificate: Certificate) -> None:
    gate = anyio.Event()

    async def together(target: Target) -> None:
        head = await target.head()
        await gate.wait()
        await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + head[5:8])

    async with meeting(certificate, together) as (it, user):
        numbers = [await user.ask(f"/{number:03}") for number in range(module.MAX_STREAMS)]
        await it.until(lambda: it.connections == module.MAX_STREAMS)
        gate.set()
        for number, stream in enumerate(numbers):
            assert (await user.answer(stream)).body == b"%03d" % number
        await it.until(lambda: it.open <= 4)  # the rest is not kept
        again = [await user.ask(f"/{number:03}") for number in range(4)]
        for stream in again:
            await user.answer(stream)
        assert it.connections == module.MAX_STREAMS


async def test_bodies_both_ways_within_windows(certificate: Certificate) -> None:
    data = os.urandom(SIZE)

    async def large(target: Target) -> None:
        await target.head()
        await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        await target.say(data)

    async with meeting(certificate, large) as (_, user):
        assert (await user.answer(await user.ask())).body == data
    async with meeting(certificate, whole) as (_, user):
        number = await user.ask("/up", method="POST", end=False)
        at = 0
        while at < SIZE:
            size = min(user.h2.local_flow_control_window(number), user.h2.max_outbound_frame_size, SIZE - at)
            if not size:
                await user.turn()
                continue
            user.h2.send_data(number, data[at : at + size])
            await user.flush()
            at += size
        user.h2.send_headers(number, [(b"x-check", b"7")], end_stream=True)
        await user.flush()
        answer = await user.answer(number)
        assert answer.body == hashlib.sha256(data).hexdigest().encode() + b" x-check: 7"
        assert answer.trailers == {b"x-digest": b"fine"}


async def test_a_target_that_does_not_take_a_body_holds_up_its_own_stream_alone(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        with socket.create_server((HOST, 0)) as silent:  # which never accepts
            site = site_to(silent.getsockname()[1])
            it.port.sites.add(NAME, "/slow/", site)
            slow = await user.ask("/slow/", (b"content-length", b"900000000"), method="POST", end=False)
            full = 0
            while full < 3:  # the window, and what the kernel holds
                size = min(user.h2.local_flow_control_window(slow), user.h2.max_outbound_frame_size)
                full = 0 if size else full + 1
                if size:
                    user.h2.send_data(slow, bytes(size))
                await user.ping()
            assert (await user.answer(await user.ask("/quick"))).status == b"200"
            user.h2.reset_stream(slow, ErrorCodes.CANCEL)
            await user.flush()
            await it.until(lambda: site.connections == 0)
        while user.h2.outbound_flow_control_window < module.WINDOW / 2:
            await user.turn()  # what the lost stream held of the window is given back


async def test_who_does_not_take_an_answer_holds_up_its_own_stream_alone(certificate: Certificate) -> None:
    async def endless(target: Target) -> None:
        if b"/small" in await target.head():
            await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsmall")
            return
        await target.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await target.say(b"10000\r\n" + bytes(65536) + b"\r\n")

    async with meeting(certificate, endless) as (it, user):
        user.taking = False
        big = await user.ask("/big")
        while user.h2.remote_flow_control_window(big):
            await user.turn()
        user.h2.increment_flow_control_window(100_000)  # of the connection, not of that stream
        await user.flush()
        assert (await user.answer(await user.ask("/small"))).body == b"small"
        user.h2.reset_stream(big, ErrorCodes.CANCEL)
        await user.flush()
        await it.until(lambda: it.open == 1)
        assert [entry.status for entry in it.site.log] == [200, 200]


async def test_heads_alone_early_answers_and_interim_ones(certificate: Certificate) -> None:
    async def some(target: Target) -> None:
        head = await target.head()
        if head.startswith(b"HEAD"):
            await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n")
        elif b"/wait" in head:
            await target.say(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await target.exactly(5)
            await target.say(b"HTTP/1.1 204 No Content\r\nX-Body: %b\r\n\r\n" % body)
        else:
            await target.say(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!")

    async with meeting(certificate, some) as (it, user):
        head = await user.answer(await user.ask(method="HEAD"))
        assert (head.heads[0][b"content-length"], head.body, head.ended) == (b"77", b"", True)
        number = await user.ask(
            "/wait", (b"content-length", b"5"), (b"expect", b"100-continue"), method="POST", end=False
        )
        while not user.answers[number].heads:
            await user.turn()
        user.h2.send_data(number, b"hello", end_stream=True)
        await user.flush()
        waited = await user.answer(number)
        assert [head[b":status"] for head in waited.heads] == [b"100", b"204"] and waited.heads[1][
            b"x-body"
        ] == b"hello"
        refused = await user.ask("/refused", (b"content-length", b"900"), method="POST", end=False)
        answer = await user.answer(refused)
        assert (answer.status, answer.body, answer.ended) == (b"413", b"no!", True)
        while user.answers[refused].reset is None:
            await user.turn()
        assert answer.reset == ErrorCodes.NO_ERROR  # the rest is of no interest (RFC 9113 section 8.1)


async def test_what_goes_wrong_behind(certificate: Certificate) -> None:
    async def broken(target: Target) -> None:
        if b"/cut" in await target.head():
            await target.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await target.stream.aclose()
        raise anyio.EndOfStream

    async with meeting(certificate, broken) as (it, user):
        cut = await user.answer(await user.ask("/cut"))
        assert (cut.status, cut.ended, cut.reset) == (b"200", False, ErrorCodes.INTERNAL_ERROR)
        gone = await user.answer(await user.ask("/gone", method="POST"))
        assert (gone.status, gone.ended) == (b"502", True)
        it.site.close()
        assert it.port.drops == {"answer_cut": 1, "target_closed": 1}


async def test_a_user_who_cancels_takes_the_targets_connection_along(certificate: Certificate) -> None:
    async def silent(target: Target) -> None:
        await target.head()
        await anyio.sleep_forever()

    async with meeting(certificate, silent) as (it, user):
        number = await user.ask()
        await it.until(lambda: it.open == 1)
        user.h2.reset_stream(number, ErrorCodes.CANCEL)
        await user.flush()
        await it.until(lambda: it.site.connections == 0)
        assert [entry.status for entry in it.site.log] == [499]
        number = await user.ask()
        await it.until(lambda: it.site.connections == 1)
        it.site.close()  # given back
        assert (await user.answer(number)).reset == ErrorCodes.INTERNAL_ERROR


async def test_a_user_who_says_goodbye(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        await user.answer(await user.ask())
        await user.stream.send(GoAwayFrame(0).serialize())
        await user.end()
        await it.until(lambda: it.open == 0)


async def test_who_says_nothing_for_long_is_told_goodbye(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_TIMEOUT", 0.05)
    async with meeting(certificate, tell) as (_, user):
        await user.answer(await user.ask())
        assert await user.end() == ErrorCodes.NO_ERROR


SMUGGLED: list[tuple[bytes, bytes]] = [
    (b"a", b"x\r\ntransfer-encoding: chunked"),
    (b"a\r\nb", b"x"),
    (b"a:b", b"x"),
    (b"transfer-encoding", b"chunked"),
    (b"connection", b"keep-alive"),
    (b"Upper", b"x"),
    (b":path", b"/again"),
]


@pytest.mark.parametrize("field", SMUGGLED, ids=range(len(SMUGGLED)))
async def test_smuggling_reaches_no_target(certificate: Certificate, field: tuple[bytes, bytes]) -> None:
    async with meeting(certificate, tell) as (it, user):
        await user.ask("/", field)
        assert await user.end() == ErrorCodes.PROTOCOL_ERROR
        assert it.connections == 0 and sum(it.port.drops.values()) == 1


async def test_a_request_that_only_http1_cannot_say_is_a_400(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        assert (await user.answer(await user.ask("/a b"))).status == b"400"
        assert (await user.answer(await user.ask("*"))).status == b"400"
        assert (await user.answer(await user.ask("/", method="A B"))).status == b"400"
        assert (await user.answer(await user.ask("/", (b"content-length", b"5")))).status == b"400"
        assert (await user.answer(await user.ask())).status == b"200"
        assert it.connections == 1 and it.port.drops == {"bad_http": 4}


async def test_a_body_that_is_longer_than_it_said_reaches_nobody_whole(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        number = await user.ask("/", (b"content-length", b"3"), method="POST", end=False)
        user.h2.send_data(number, b"GET /smuggled", end_stream=True)
        await user.flush()
        assert await user.end() == ErrorCodes.PROTOCOL_ERROR
        assert it.port.drops["http2_error"] == 1


async def test_large_heads(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        for more in ([(b"a", b"x" * 20_000)], [(b"a", b"b")] * 101):
            assert (await user.answer(await user.ask("/", *more))).status == b"431"
        assert it.port.drops == {"http_head_too_large": 2}
        await user.ask("/", (b"a", b"x" * 70_000))
        assert await user.end() == ErrorCodes.ENHANCE_YOUR_CALM
        assert it.connections == 0


async def test_header_blocks_without_end(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        await user.turn()
        first = HeadersFrame(1, data=b"\x00")
        try:
            await user.stream.send(first.serialize())
            for _ in range(100):
                await user.stream.send(ContinuationFrame(1, data=bytes(16_000)).serialize())
        except anyio.BrokenResourceError:
            pass
        await user.end()
        await it.port.dropped("http2_flood")


async def test_streams_that_are_reset_as_soon_as_they_are_opened(certificate: Certificate) -> None:
    """CVE-2023-44487."""
    async with meeting(certificate, tell) as (it, user):
        await user.turn()
        try:
            for _ in range(2 * module.RESETS):
                user.h2.reset_stream(await user.ask(), ErrorCodes.CANCEL)
        except (anyio.BrokenResourceError, ProtocolError):
            pass
        await user.end()
        await it.port.dropped("http2_rapid_reset")
        await it.until(lambda: it.site.connections == 0 and it.open == 0)
        assert it.connections < 2 * module.RESETS


async def test_a_user_does_not_choose_how_much_is_remembered_of_answers(certificate: Certificate) -> None:
    """What HPACK remembers is searched for each field, so a table without bounds costs memory and time."""

    async def ever_new(target: Target) -> None:
        number = (await target.head()).split(b" ", 2)[1]
        fields = b"".join(b"X-%d: %b-%b\r\n" % (each, number, b"x" * 150) for each in range(20))
        await target.say(b"HTTP/1.1 204 No Content\r\n" + fields + b"\r\n")

    async with meeting(certificate, ever_new) as (_, user):
        user.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 2**31})
        await user.ping()
        for number in range(3):
            assert (await user.answer(await user.ask(f"/{number}"))).status == b"204"
        table = user.h2.decoder.header_table
        assert sum(32 + len(name) + len(value) for name, value in table.dynamic_entries) <= module.HEADER_TABLE


async def test_interim_answers_without_end(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_INTERIM", 30)
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

    async def endless(target: Target) -> None:
        if b"/quick" in await target.head():
            await target.say(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        await target.say(interim * 40)
        await target.until(b"never")

    async with meeting(certificate, endless) as (it, user):
        flooded = await user.ask()
        assert (await user.answer(await user.ask("/quick"))).status == b"204"  # others have their turn
        assert (await user.answer(flooded)).status == b"502"
        assert len(user.answers[flooded].heads) == exchange.MAX_INTERIM + 1
        assert it.port.drops == {"bad_answer": 1}


async def test_trailers_that_are_reset_for_are_counted_as_resets(certificate: Certificate) -> None:
    """CVE-2025-8671: a user has us reset the streams that it opens."""
    async with meeting(certificate, tell) as (it, user):
        await user.turn()
        try:
            for _ in range(2 * module.RESETS):
                number = await user.ask(method="POST", end=False)
                user.h2.send_headers(number, [(b"no(name", b"x")], end_stream=True)
                await user.ping()
        except (anyio.EndOfStream, ProtocolError):
            pass
        assert user.goodbye == ErrorCodes.ENHANCE_YOUR_CALM
        await it.port.dropped("http2_rapid_reset")


async def test_frames_that_bring_nothing(certificate: Certificate) -> None:
    async with meeting(certificate, tell) as (it, user):
        await user.answer(await user.ask())
        ping = PingFrame(0, opaque_data=b"12345678").serialize()
        try:
            for _ in range(100):
                await user.stream.send(ping * 1000)
                with anyio.move_on_after(0):
                    await user.turn()
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            pass
        await it.port.dropped("http2_flood")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "http2_error"),
        (PREFACE + DataFrame(1, data=b"x").serialize(), "http2_error"),
        (PREFACE + b"\xff" * 200_000, "http2_flood"),  # a frame of 16 MiB
    ],
)
async def test_what_is_no_http2(certificate: Certificate, said: bytes, reason: str) -> None:
    async with web(certificate, tell) as it:
        async with await tls_user(it.port, certificate) as stream:
            await stream.send(said)
            await it.port.dropped(reason)
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                while True:
                    await stream.receive()


@pytest.mark.parametrize("version", ["--http2", "--http1.1"])
async def test_curl(certificate: Certificate, version: str) -> None:
    async with web(certificate, tell) as it:
        url = f"https://{NAME}:{it.port.port}"
        done = await anyio.run_process(
            ["curl", "-sS", "-k", version, "--noproxy", "*", "--resolve", f"{NAME}:{it.port.port}:{HOST}"]
            + ["-w", "%{http_version} %{num_connects}\n", f"{url}/one", f"{url}/two"]
        )
        said = done.stdout.decode()
        assert "GET /one HTTP/1.1" in said and "GET /two HTTP/1.1" in said
        assert said.endswith("2 0\n" if version == "--http2" else "1.1 0\n"), said


class Said:
    """A stream of somebody who has said all that he says."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def receive(self, max_bytes: int) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self.data:
            raise anyio.EndOfStream
        data, self.data = self.data[:max_bytes], self.data[max_bytes:]
        return data

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()


class Deaf:
    """A stream of somebody who asks and asks, and takes no answer."""

    def __init__(self) -> None:
        self.asked = 0
        self._user = H2Connection()
        self._user.initiate_connection()

    async def receive(self, max_bytes: int) -> bytes:
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", "/")]
        self._user.send_headers(self._user.get_next_available_stream_id(), fields, end_stream=True)
        self.asked += 1
        return self._user.data_to_send()

    async def send(self, item: bytes) -> None:
        await anyio.sleep_forever()


async def test_who_takes_no_answers_is_not_heard() -> None:
    """Heads without bodies need no window, and would else pile up."""
    head = b"HTTP/1.1 204 No Content\r\nX-Large: %b\r\n\r\n" % (b"x" * 15_000)

    async def serve(stream: module.Http2Stream) -> None:
        await stream.send(head)

    deaf, drops = Deaf(), Counter[str]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(module.Http2Connection(deaf, b"", serve, drops).run)  # type: ignore[arg-type]
        await anyio.wait_all_tasks_blocked()
        assert 0 < deaf.asked <= module.MAX_STREAMS and drops == {}
        tasks.cancel_scope.cancel()


async def test_interim_answers_wait_for_who_takes_them() -> None:
    head = b"HTTP/1.1 103 Early Hints\r\nLink: %b\r\n\r\n" % (b"x" * 10_000)
    said = 0

    async def serve(stream: module.Http2Stream) -> None:
        nonlocal said
        while True:
            await stream.send(head)
            said += len(head)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(module.Http2Connection(Deaf(), b"", serve, Counter[str]()).run)  # type: ignore[arg-type]
        await anyio.wait_all_tasks_blocked()
        assert 0 < said < 4 * module.MAX_WAITING
        tasks.cancel_scope.cancel()


def conversation() -> bytes:
    """Two requests, one of them with a body and trailers, and what else a user may say."""
    user = H2Connection()
    user.initiate_connection()
    fields = [(":method", "POST"), (":scheme", "https"), (":authority", NAME), (":path", "/")]
    user.send_headers(1, fields)
    user.send_data(1, b"body", pad_length=3)
    user.ping(b"returned")
    user.send_headers(3, [*fields, ("content-length", "0")], end_stream=True)
    user.send_headers(1, [("x-check", "7")], end_stream=True)
    user.increment_flow_control_window(1000)
    user.reset_stream(3)
    return user.data_to_send()


CONVERSATION = conversation()


@settings(max_examples=60)
@given(st.integers(0, len(CONVERSATION) - 1), st.binary(max_size=6), st.integers(0, 6))
def test_fuzz_frames(at: int, put: bytes, cut: int) -> None:
    """Whatever comes, what streams are served is bounded and ends, and nothing is raised."""
    served = 0

    async def serve(stream: module.Http2Stream) -> None:
        nonlocal served
        served += 1
        user = Incoming(stream)
        request = parse_request(await user.head())
        body = BodyReader(request.framing)
        while not body.done:
            body.feed(await user.receive())
        await say(stream, answer(404))

    async def main() -> None:
        drops: Counter[str] = Counter()
        said = Said(CONVERSATION[:at] + put + CONVERSATION[at + cut :])
        with anyio.fail_after(5):
            await module.Http2Connection(said, b"", serve, drops).run()  # type: ignore[arg-type]
        assert set(drops) <= {"http2_error", "http2_flood", "bad_http", "bad_chunks"}

    anyio.run(main)
    assert served <= 3
