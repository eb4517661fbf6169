"""What a person sets for a server, as the command line hands it to the daemon. Imported by the command line: it costs
msgspec alone.
"""

from typing import Literal

import msgspec


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Empty means: the default, or what an earlier start settled."""

    state: str  # folder
    listen: tuple[str, ...] = ()  # "HOST:PORT", TCP and UDP; default port 443 everywhere
    public: tuple[str, ...] = ()  # "HOST" or "HOST:PORT"; default the host's own addresses
    stun_port: int | None = None  # UDP; 0: none; None: the default one, if it is free
    domains: tuple[str, ...] = ()  # default local.test
    range: str = ""  # CIDR, for the first start; default a free /16
    name: str = ""  # the server's own, as a node; default "server"
    interface: str = ""  # default the first free overlay0, overlay1, …
    tun: bool = True
    relay_rate: float = 0.0  # bytes per second relayed for each node; 0: no bound
    direct_names: bool = True  # peers are led past the server where they ask for an exposure's public name
    dscp: Literal["hide", "copy"] = "hide"  # of packets inside, in the headers outside
    tls_cert: tuple[str, ...] = ()  # files, PEM, the server's own first; default one that it makes and signs itself
    tls_key: tuple[str, ...] = ()  # files, PEM, of `tls_cert` in order
    acme_email: str = ""  # ask an authority for a certificate; whom it may write to
    acme_directory: str = ""  # URL; default Let's Encrypt's
    web_domain: str = ""  # below which exposures by http get a host when none is asked for; "": a port instead
    policy: str = ""  # file; "": policy.toml in the state folder, if there is one
    verbosity: int = 0  # as in `overlay.daemon.logs.configure`
