"""What is not exposed: users learn the same of it, whatever they ask for and however."""

import re

import anyio
import pytest

from tests.carrier.streams import Certificate
from tests.server.web.door import User
from tests.server.web.http2_user import tls_user
from tests.server.web.shared_port import HOST, shared_port, site_to

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n"
ASKED = [
    GET % b"other.test",
    GET % b"x.site.test",
    GET % b"127.0.0.1",
    GET % b"db.test",  # exposed by TLS alone
    GET % b"site.test",  # where only /docs/ is exposed
    GET.replace(b"/ ", b"/docs/../ ") % b"site.test",
    GET.replace(b"/ ", b"http://other.test/docs/ ") % b"other.test",
    b"POST / HTTP/1.1\r\nHost: other.test\r\nContent-Length: 5\r\n\r\nhello",
    b"GET / HTTP/1.0\r\n\r\n",
    b"CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: site.test\r\n\r\n",
    b"PROPFIND / HTTP/1.1\r\nHost: other.test\r\n\r\n",
]


async def test_each_404_is_the_same(certificate: Certificate) -> None:
    async with shared_port(certificate) as port:
        port.sites.add("site.test", "/docs/", site_to(1))
        port.sites.add_tls("db.test", site_to(1))
        answers = set()
        for asked in ASKED:
            user = User(await anyio.connect_tcp(HOST, port.port))
            async with user.stream:
                await user.say(asked)
                await user.stream.send_eof()
                answers.add(re.sub(rb"Date: [^\r]*\r\n", b"", await user.rest()))
        async with await tls_user(port, certificate) as stream:  # of another name than the one in TLS
            await stream.send(GET % b"other.test")
            answers.add(re.sub(rb"Date: [^\r]*\r\n", b"", await stream.receive()))
        (answer,) = answers
        assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n") and b"overlay" not in answer.lower()
        await port.dropped("http_stranger", len(ASKED) + 1)
        assert set(port.drops) == {"http_stranger"}
