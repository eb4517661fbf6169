"""`overlay server | invite`: run a server, and let nodes in."""

from pathlib import Path
from typing import Annotated, Any

import typer

from overlay_cli import output
from overlay_cli.options import Dscp, Json, Quiet, ServerState, Verbose, verbosity

START_TIMEOUT = 60.0


def server(
    state: ServerState,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="OVERLAY_LISTEN",
            help="Where to listen by TCP; may be given more than once. UDP has the first one's port. "
            "[default: port 443 everywhere]",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT]",
            envvar="OVERLAY_PUBLIC",
            help="Name or address under which nodes reach this server; may be given more than once. "
            "Without this the host's own addresses.",
            show_default=False,
        ),
    ] = None,
    stun_port: Annotated[
        int | None,
        typer.Option(
            "--stun-port",
            metavar="PORT",
            min=0,
            max=65535,
            envvar="OVERLAY_STUN_PORT",
            help="A second UDP port, by which nodes learn what their NAT does; 0 for none. "
            "[default: 3478, if it is free]",
            show_default=False,
        ),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN",
            envvar="OVERLAY_DOMAIN",
            help="A domain of the network, in which nodes have their names; may be repeated, and the first one is "
            "that of reverse names. [default: local.test]",
            show_default=False,
        ),
    ] = None,
    range: Annotated[
        str | None,
        typer.Option(
            metavar="CIDR",
            envvar="OVERLAY_RANGE",
            help="The network's IPv4 range; without this a free /16 of 10.0.0.0/8. Settled by the first start.",
            show_default=False,
        ),
    ] = None,
    no_tun: Annotated[
        bool, typer.Option("--no-tun", envvar="OVERLAY_NO_TUN", help="Do without a network interface: relay only.")
    ] = False,
    relay_rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            envvar="OVERLAY_RELAY_RATE",
            help="The most that this server relays for each node, per second: 800kbit, 100Mbit, 1Gbit. "
            "[default: as much as the line takes]",
            show_default=False,
        ),
    ] = None,
    web_domain: Annotated[
        str | None,
        typer.Option(
            "--web-domain",
            metavar="DOMAIN",
            envvar="OVERLAY_WEB_DOMAIN",
            help="Below which exposures by http get a name when none is asked for: all names below it must lead here. "
            "[default: they get a port instead]",
            show_default=False,
        ),
    ] = None,
    no_direct_names: Annotated[
        bool,
        typer.Option(
            "--no-direct-names",
            envvar="OVERLAY_NO_DIRECT_NAMES",
            help="Peers who ask for the public name of an exposure come here, too, and not straight to its node.",
        ),
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            envvar="OVERLAY_POLICY",
            help="Which node may expose what, in TOML: tables 'rule' for nodes or tags, and 'default' for the "
            "others, with hosts, ports, protocols, exposures, quota and bandwidth; as in: tags = ['web'], "
            "hosts = ['*.example.com'], ports = ['9000-9099'], quota = '100GB'. Read again when it changes.",
            show_default="policy.toml in the state folder, if there is one",
        ),
    ] = None,
    dscp: Dscp = "hide",
    tls_cert: Annotated[
        list[Path] | None,
        typer.Option(
            "--tls-cert",
            metavar="FILE",
            envvar="OVERLAY_TLS_CERT",
            help="The server's certificate and those above it, in PEM form; read again when it changes. May be "
            "repeated, for names that are exposed. [default: one that the server makes, which invites vouch for]",
            show_default=False,
        ),
    ] = None,
    tls_key: Annotated[
        list[Path] | None,
        typer.Option(
            "--tls-key",
            metavar="FILE",
            envvar="OVERLAY_TLS_KEY",
            help="The private key of --tls-cert, in PEM form; of several in the same order.",
            show_default=False,
        ),
    ] = None,
    acme_email: Annotated[
        str | None,
        typer.Option(
            "--acme-email",
            metavar="ADDRESS",
            envvar="OVERLAY_ACME_EMAIL",
            help="Get and renew a certificate for the public names by ACME, under the authority's terms, with this "
            "address to write to. The authority must reach port 443 or 80 of these names here.",
            show_default=False,
        ),
    ] = None,
    acme_directory: Annotated[
        str | None,
        typer.Option(
            "--acme-directory",
            metavar="URL",
            envvar="OVERLAY_ACME_DIRECTORY",
            help="Of the authority. [default: Let's Encrypt]",
            show_default=False,
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, for service managers and for a look.")
    ] = False,
    json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Run the server of a network. The first start makes the network and prints the first invite."""
    from overlay.daemon.quantities import parse_rate
    from overlay.server.settings import ServerSettings

    settings = ServerSettings(
        state=str(state.absolute()),
        listen=tuple(listen or ()),
        public=tuple(public or ()),
        stun_port=stun_port,
        domains=tuple(domain or ()),
        range=range or "",
        tun=not no_tun,
        relay_rate=parse_rate(relay_rate) if relay_rate else 0.0,
        direct_names=not no_direct_names,
        policy=str(policy.absolute()) if policy else "",
        dscp=dscp,
        web_domain=web_domain or "",
        tls_cert=tuple(str(path.absolute()) for path in tls_cert or ()),
        tls_key=tuple(str(path.absolute()) for path in tls_key or ()),
        acme_email=acme_email or "",
        acme_directory=acme_directory or "",
        verbosity=verbosity(verbose, quiet),
    )
    if foreground:
        from overlay.server.daemon import run

        run(settings)
        return
    from overlay.daemon.client import LocalClient
    from overlay.daemon.launch import launch
    from overlay.daemon.state import StateDir

    StateDir(state).open()
    with output.working("Starting…", quiet=quiet or json):
        ready = launch("overlay.server", settings, state, START_TIMEOUT)
        status = LocalClient(state).request("GET", "/v1/status")
    _show_started(ready, status, json=json, quiet=quiet)


def _show_started(ready: dict[str, Any], status: dict[str, Any], *, json: bool, quiet: bool) -> None:
    first_invite = ready.get("invite")  # of a network that nobody has joined yet
    if json:
        output.print_json({**status, **({"invite": first_invite} if first_invite else {})})
        return
    if not quiet:
        from overlay_cli.tables import server_summary

        output.show(server_summary(status))
    if first_invite:
        if not quiet:
            output.note("\nThe first machine joins with this, once and within a day:\n")
        output.print_line(f"sudo overlay up {first_invite}")


def invite(
    state: ServerState,
    uses: Annotated[int, typer.Option(min=1, envvar="OVERLAY_USES", help="How many machines it lets in.")] = 1,
    expires: Annotated[
        str, typer.Option(metavar="TIME", envvar="OVERLAY_EXPIRES", help="How long it is good: 90s, 30m, 24h, 7d.")
    ] = "24h",
    tag: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAG",
            envvar="OVERLAY_TAG",
            help="A tag for the machines that it lets in; may be given more than once.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make an invite and print it, alone. It lets a machine join: pass it on as you would a password."""
    from overlay.daemon.client import LocalClient
    from overlay_cli.durations import parse_duration

    wish = {"uses": uses, "expires_s": parse_duration(expires), "tags": tag or []}
    document = LocalClient(state).request("POST", "/v1/invites", wish)
    if json:
        output.print_json(document)
    else:
        output.print_line(document["invite"])
