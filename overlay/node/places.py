"""Where users reach an exposure, as people read it."""


def shown_place(place: str) -> str:
    """`https://xn--bcher-kva.example.com/x` → `https://bücher.example.com/x`; a URL, or a host and a port."""
    if "xn--" not in place:
        return place
    from overlay.wire.control.hostnames import shown_name  # late: few names need it

    scheme, separator, rest = place.rpartition("://")
    authority, slash, path = rest.partition("/")
    host, colon, port = authority.partition(":")
    return f"{scheme}{separator}{shown_name(host)}{colon}{port}{slash}{path}"
