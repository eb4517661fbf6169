"""Finding the server by several carriers: openers that do as they are told, around real TCP."""

from collections.abc import Mapping, Sequence

import anyio
import pytest

from overlay.carrier.carriers import CarrierName, CarrierStream, DialOptions, Opener
from overlay.carrier.choice import Favourite
from overlay.carrier.dialling import Found, find_server
from overlay.carrier.stream import connect
from overlay.errors import Exit, RemoteProtocolError, UserError
from overlay.wire.endpoint import Endpoint

from .ends import NODE, SERVER_PUBLIC, answer_pings, greeted, serving
from .openers import blocked, through

pytestmark = pytest.mark.anyio


async def refused(endpoint: Endpoint, options: DialOptions) -> CarrierStream:
    raise OSError("the proxy says 403 Forbidden")


async def strange(endpoint: Endpoint, options: DialOptions) -> CarrierStream:
    raise RemoteProtocolError("not_websocket", "it answers 200 OK")


async def find(
    addresses: Sequence[str],
    openers: Mapping[CarrierName, Opener],
    favourite: Favourite | None = None,
    timeout: float = 5.0,  # noqa: ASYNC109 - handed on
) -> Found:
    return await find_server(
        addresses, SERVER_PUBLIC, NODE, timeout, carriers=tuple(openers), openers=openers, favourite=favourite
    )


async def test_the_next_carrier_is_taken_where_one_is_blocked_and_it_is_told_why() -> None:
    async with serving(answer_pings) as server:
        found = await find([server.address], {"udp": blocked, "wss": refused, "tcp": through})
        assert found.connection.carrier == "tcp"
        assert found.why == "udp: no answer; wss: the proxy says 403 Forbidden"
        await (await greeted(found.connection)).aclose()


async def test_the_first_choice_wins_where_it_works() -> None:
    async with serving(answer_pings) as server:
        found = await find([server.address], {"tls": through, "tcp": through})
        assert (found.connection.carrier, found.why) == ("tls", "first choice")
        await found.connection.aclose()


async def test_what_worked_last_begins() -> None:
    async with serving(answer_pings) as server:
        favourite = Favourite(network="x", carrier="tcp", address=server.address, wall=0.0)
        found = await find([server.address], {"udp": blocked, "tcp": through}, favourite)
        assert (found.connection.carrier, found.why) == ("tcp", "worked last on this network")
        await found.connection.aclose()


async def test_a_url_says_the_carrier_host_and_path() -> None:
    seen: list[DialOptions] = []

    async def note(endpoint: Endpoint, options: DialOptions) -> CarrierStream:
        seen.append(options)
        return await connect(endpoint)

    async with serving(answer_pings) as server:
        found = await find([f"ws://localhost:{server.port}/p"], {"udp": blocked, "ws": note})
        assert (seen[0].host, seen[0].path) == ("localhost", "/p")
        assert (found.connection.carrier, found.why) == ("ws", "the server's address says so")
        await found.connection.aclose()


async def test_all_that_failed_is_in_one_sentence() -> None:
    with pytest.raises(UserError) as caught:
        await find(["192.0.2.1:443"], {"udp": blocked, "tls": refused, "wss": refused}, timeout=1.0)
    assert (caught.value.code, caught.value.exit_code) == ("server-unreachable", Exit.UNREACHABLE)
    assert caught.value.message == (
        "The server cannot be reached: "
        "192.0.2.1:443 by tls and wss (the proxy says 403 Forbidden), by udp (no answer within 1 s)."
    )


async def test_what_is_silent_is_not_waited_for_long_where_all_else_refuses() -> None:
    with anyio.fail_after(5), pytest.raises(UserError) as caught:
        await find_server(
            ["192.0.2.1:443"],
            SERVER_PUBLIC,
            NODE,
            60.0,
            carriers=("udp", "tls"),
            openers={"udp": blocked, "tls": refused},
            linger=0.1,
        )
    assert "by tls (the proxy says 403 Forbidden), by udp (no answer so far)." in caught.value.message


async def test_a_stranger_is_told_with_what_else_was_tried() -> None:
    with pytest.raises(UserError) as caught:
        await find(["192.0.2.1:443"], {"tls": refused, "ws": strange})
    assert caught.value.code == "server-key-mismatch"
    assert caught.value.message == (
        "What answers at 192.0.2.1:443 by ws is not the expected server: it answers 200 OK; "
        "also tried: 192.0.2.1:443 by tls (the proxy says 403 Forbidden)."
    )


async def test_an_address_of_a_carrier_that_is_not_allowed_is_told() -> None:
    with pytest.raises(UserError) as caught:
        await find(["wss://192.0.2.1"], {"tcp": through})
    assert "wss://192.0.2.1:443 (it is not for the carriers tcp)" in caught.value.message


async def test_a_name_server_that_does_not_answer_holds_up_no_address() -> None:
    async def never(host: str, port: int) -> list[Endpoint]:
        await anyio.sleep_forever()
        raise AssertionError

    async with serving(answer_pings) as server:
        addresses = ["vpn.example.org:443", server.address]
        with anyio.fail_after(4):  # less than a lookup may take
            found = await find_server(
                addresses, SERVER_PUBLIC, NODE, carriers=("tcp",), openers={"tcp": through}, look_up=never
            )
        await found.connection.aclose()
