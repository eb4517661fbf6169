"""The way to a peer's private exposure through the server, from where there is no overlay address, or to where there is
none. What goes by it is sealed between the two machines."""

from typing import Final

import anyio

from overlay.carrier.look_up import system_look_up
from overlay.carrier.port import TOKEN
from overlay.carrier.secured import secure_to
from overlay.carrier.streams import CodecStream
from overlay.errors import RemoteProtocolError
from overlay.node.proxying import open_secured
from overlay.wire.control.address import parse_server_address
from overlay.wire.control.messages import ByServer

_EACH: Final = 4.0  # s for one of the server's addresses


async def open_by_server(way: ByServer) -> CodecStream:
    """A connection to the peer, who has proven to be the one. Raises `OSError` (`TimeoutError` is one), whose text is
    the end of a sentence. Cancelled, it leaves nothing."""
    stream = await _reach_server(way)
    try:
        await stream.send(TOKEN + way.ticket)
        return await secure_to(stream, way.key)
    except RemoteProtocolError as error:
        stream.close()
        raise OSError(f"who answers there is not the node ({error})") from error
    except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
        stream.close()
        raise OSError("the server does not lead there now") from error
    except BaseException:
        stream.close()
        raise


async def _reach_server(way: ByServer) -> CodecStream:
    problem: Exception = OSError("no address of the server is known")
    for text in way.servers:
        server = parse_server_address(text)
        try:
            with anyio.fail_after(_EACH):
                for endpoint in await system_look_up(server.host, server.port):
                    return await open_secured(endpoint, server.host, way.pin)
        except (OSError, RemoteProtocolError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            problem = error
    raise OSError(f"the server is not reached: {str(problem) or 'no answer'}") from problem
