"""A target through a proxy: SOCKS5 (RFC 1928, with a password: RFC 1929) by python-socks, or HTTP by CONNECT.

The proxy looks the target's name up: what this machine cannot reach, it often cannot name either. A password is in no
log, error text or argument list.
"""

from typing import Final

import anyio
from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio import Proxy as Socks

from overlay.carrier.proxy import PATIENCE, Proxy, open_tunnel, parse_proxy
from overlay.carrier.stream import TcpStream, errno_text
from overlay.carrier.streams import CodecStream, OverTcp
from overlay.errors import Exit, UserError
from overlay.wire.stream.codec import Plain

SCHEMES: Final = ("http", "socks5", "socks5h")
_LONGEST_SECRET: Final = 255  # bytes: RFC 1929 §2


def parse_target_proxy(url: str) -> Proxy:
    """`socks5://[user:password@]host[:1080]` or `http://[user:password@]host[:80]`. Raises `UserError`
    ("proxy-invalid"), which does not repeat the text: a password may be in it."""
    proxy = parse_proxy(url, SCHEMES)
    secrets = (proxy.user, proxy.password)
    if proxy.scheme != "http" and not all(each.isascii() and len(each) <= _LONGEST_SECRET for each in secrets):
        raise UserError(
            "proxy-invalid",
            f"A SOCKS5 proxy takes {_LONGEST_SECRET} ASCII characters at most as user name and password.",
            "Write others, percent-encoded.",
            Exit.USAGE,
        )
    return proxy


async def connect_by(proxy: Proxy, host: str, port: int) -> OverTcp:
    """Raises `OSError`, whose text is the end of a sentence."""
    if proxy.scheme == "http":
        stream, begun = await open_tunnel(proxy, host, port)
        # A target may speak first, and its words come right behind the proxy's answer.
        return CodecStream(stream, Plain(), begun) if begun else stream
    socks = Socks(ProxyType.SOCKS5, proxy.host, proxy.port, proxy.user or None, proxy.password or None)
    try:
        with anyio.fail_after(PATIENCE):
            return TcpStream(await socks.connect(host, port, timeout=PATIENCE + 1))
    except ProxyConnectionError as error:
        why = errno_text(error.errno) if error.errno else "it has no address"
        raise OSError(f"the proxy {proxy} cannot be reached: {why}") from error
    except (TimeoutError, ProxyTimeoutError) as error:
        raise OSError(f"the proxy {proxy} does not answer within {PATIENCE:g} s") from error
    except ProxyError as error:
        why = str(error).rstrip(".")
        raise OSError(f"the proxy {proxy} refuses: {why[:1].lower()}{why[1:100]}") from error
    except (ValueError, AssertionError) as error:  # what it makes of an answer that is none
        raise OSError(f"what answers at {proxy} is no SOCKS5 proxy") from error
