"""Who may use a site: requests that are let in, and those that are not, through the web's door."""

from overlay.wire.control.terms import Access, Terms

from .door import Served, on_door
from .test_door import CLOSE, GET, hello


def test_lists_of_networks() -> None:
    async def test(served: Served) -> None:
        served.site.gate.terms = Terms(access=Access(deny=("127.0.0.0/8",)))
        refused = await (await served.user()).ask(GET)
        assert refused.startswith(b"HTTP/1.1 403 Forbidden\r\n") and b"Connection: close" in refused
        served.site.gate.terms = Terms(access=Access(allow=("127.0.0.1",)))
        user = await served.user()
        await user.say(GET)
        assert (await user.head()).startswith(b"HTTP/1.1 200 ")
        served.site.gate.terms = Terms(access=Access(allow=("192.0.2.0/24",)))  # for the next request already
        assert b"HTTP/1.1 403 " in await user.ask(CLOSE)
        assert served.connections == 1 and served.drops == {"source_refused": 2}

    on_door(hello, test)
