"""Why a target is not reached, as the node tells it to the server with its 502 or 504, and as its owner may read it.

The node's answer has a field `Overlay-Trouble: SENTENCE`. The server shows the sentence to who is near the node, and
makes an answer of its own for all others: what and where a target is is nobody's business. A target that says such a
field itself is treated alike.
"""

from typing import Final

from overlay.wire.ingress.http1 import ResponseHead

_NAME: Final = "Overlay-Trouble"
_LONGEST: Final = 500  # characters
_STATUSES: Final = (502, 504)


def trouble_field(sentence: str) -> str:
    """A line of a head, in ASCII; what has no place there is `?`."""
    plain = "".join(each if each.isascii() and each.isprintable() else "?" for each in sentence[:_LONGEST])
    return f"{_NAME}: {plain}"


def trouble_in(response: ResponseHead) -> str | None:
    """The sentence; None: this is no such answer."""
    if response.status not in _STATUSES:
        return None
    found = [value for name, value in response.fields if name.lower() == _NAME.lower().encode()]
    if not found:
        return None
    return "".join(each if each.isprintable() else "?" for each in found[0].decode("latin-1")[:_LONGEST])


def trouble_page(sentence: str) -> bytes:
    """For the owner; text/plain."""
    lines = (
        f"{sentence.rstrip('.')}.",
        "",
        "Start the service, or see on the node what it leads to: overlay expose ls",
        "Only who comes from the network, or from the node's own address, is told this; others see the status alone.",
        "",
    )
    return "\n".join(lines).encode()
