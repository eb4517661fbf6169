"""The options of `overlay expose TARGET`, by what they are about.

Those about one thing stand in one panel of the help. A new option is declared here, and stands in the signature of
`overlay_cli.commands.expose.add_exposure` with the same name; with that, it is a key of files of exposures, too, if
`overlay_cli.wishes.wish` makes something of it.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

import typer

MANY: Final = "Many at once"
PLACE: Final = "Where"
WHO: Final = "Who"
HOW_MUCH: Final = "How much"
PRIVATE: Final = "For peers alone"
SEVERAL: Final = "Several machines behind one name or port"
WAY: Final = "The way to the target"
LOOK: Final = "Looking at requests"
TOLD: Final = "What the target is told"

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="PORT, HOST:PORT, http://HOST:PORT, https://HOST:PORT, tls://HOST:PORT, tcp://HOST:PORT, "
        "udp://HOST:PORT, unix:PATH of a socket, or a folder (./dist). Without a scheme, and for unix: http, or tcp if "
        "--public is given.",
        show_default=False,
    ),
]

# many at once --------------------------------------------------------------------------------------------------------

File = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Publish what this TOML file says instead of TARGET, and follow its changes: a table exposures.NAME for "
        'each, with target = "3000" and any of the options here by their long names.',
        show_default=False,
        rich_help_panel=MANY,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", "--check", help="With --file: say what would be done, and do nothing.", rich_help_panel=MANY
    ),
]
Unattended = Annotated[bool, typer.Option("--unattended", hidden=True, help="Nobody sees what this prints.")]

# where ----------------------------------------------------------------------------------------------------------------

Public = Annotated[
    str,
    typer.Option(
        metavar="[HOST:]PORT[-PORT]",
        envvar="OVERLAY_PUBLIC",
        help="A port of its own on the server, or as many as TARGET has, as in tcp://localhost:8000-8010; without "
        "this, and without --host, the server picks one.",
        show_default=False,
        rich_help_panel=PLACE,
    ),
]
Host = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="NAME[/PATH]",
        envvar="OVERLAY_HOST",
        help="For http: the name, and the path below it, that users type; for tls: the name alone. It must lead to "
        "the server; *.example.com stands for all names of one label below.",
        show_default=False,
        rich_help_panel=PLACE,
    ),
]
Tunnel = Annotated[
    Literal["auto", "single", "udp", "tcp", "tls", "ws", "wss"],
    typer.Option(
        "--tunnel",
        envvar="OVERLAY_TUNNEL",
        help="How users' connections travel to this machine: by the overlay itself (single), encrypted from end to "
        "end, or each by a connection of its own to the server; auto: single where the network is up at both ends, "
        "else tls.",
        rich_help_panel=PLACE,
    ),
]
TlsEnd = Annotated[
    Literal["target", "server", "node"] | None,
    typer.Option(
        "--tls-end",
        envvar="OVERLAY_TLS_END",
        help="Where the TLS of users ends who come by a name; what is in it goes to the target. node: at this machine, "
        "so that the server has no key to it, sees no requests and logs none.",
        show_default="server for http, target for tls",
        rich_help_panel=PLACE,
    ),
]
AcmeEmail = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        envvar="OVERLAY_EXPOSE_ACME_EMAIL",
        help="With --tls-end node: get and renew the certificate by ACME, under the authority's terms, with this "
        "address to write to. The authority must reach port 443 of the name at the server.",
        show_default="self-signed",
        rich_help_panel=PLACE,
    ),
]
AcmeDirectory = Annotated[
    str,
    typer.Option(
        metavar="URL",
        envvar="OVERLAY_EXPOSE_ACME_DIRECTORY",
        help="Of that authority.",
        show_default="Let's Encrypt",
        rich_help_panel=PLACE,
    ),
]
KnownAs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        envvar="OVERLAY_KNOWN_AS",
        help="A name of the public DNS that leads to the server and is this exposure's alone; may be repeated. "
        "Peers who ask for it come straight to this machine, at the same port.",
        show_default=False,
        rich_help_panel=PLACE,
    ),
]
Service = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        envvar="OVERLAY_SERVICE",
        help="What it is, for peers who look for _NAME._tcp in the network's domain.",
        show_default="by TARGET's port",
        rich_help_panel=PLACE,
    ),
]

# the way to the target ------------------------------------------------------------------------------------------------

Listing = Annotated[
    bool,
    typer.Option(
        "--listing",
        envvar="OVERLAY_LISTING",
        help="Of a folder: show what is in it where there is no index.html.",
        rich_help_panel=WAY,
    ),
]

InsecureTarget = Annotated[
    bool,
    typer.Option(
        "--insecure-target",
        envvar="OVERLAY_INSECURE_TARGET",
        help="Of a target by https: take any certificate.",
        rich_help_panel=WAY,
    ),
]
TargetCa = Annotated[
    Path | None,
    typer.Option(
        "--target-ca",
        metavar="FILE",
        envvar="OVERLAY_TARGET_CA",
        help="Of a target by https: certificates (PEM) that it is verified by, instead of the system's.",
        show_default=False,
        rich_help_panel=WAY,
    ),
]

TargetProxy = Annotated[
    str,
    typer.Option(
        "--target-proxy",
        metavar="URL",
        envvar="OVERLAY_TARGET_PROXY",
        help="Reach the target through this proxy, which looks its name up: socks5://HOST:PORT or http://HOST:PORT.",
        show_default=False,
        rich_help_panel=WAY,
    ),
]
TargetProxyAuth = Annotated[
    Path | None,
    typer.Option(
        "--target-proxy-auth",
        metavar="FILE",
        envvar="OVERLAY_TARGET_PROXY_AUTH",
        help="USER:PASSWORD for that proxy, in the first line. Or put the whole URL, with USER:PASSWORD@ before its "
        "host, into the environment as OVERLAY_TARGET_PROXY.",
        show_default=False,
        rich_help_panel=WAY,
    ),
]

# who -----------------------------------------------------------------------------------------------------------------

Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NETWORK",
        envvar="OVERLAY_ALLOW",
        help="An address or network, such as 192.0.2.0/24, from which users may come; may be repeated.",
        show_default="from everywhere",
        rich_help_panel=WHO,
    ),
]
Deny = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NETWORK",
        envvar="OVERLAY_DENY",
        help="One from which nobody may come, whatever --allow says; may be repeated.",
        show_default=False,
        rich_help_panel=WHO,
    ),
]
Users = Annotated[
    str,
    typer.Option(
        "--users",
        metavar="FILE|new",
        envvar="OVERLAY_USERS",
        help="For http: a file of NAME:PASSWORD, one a line, of whom one must be (basic authentication); 'new' makes "
        "a user and a password. Of this, --bearer and --secret-link any one suffices.",
        show_default=False,
        rich_help_panel=WHO,
    ),
]
Bearer = Annotated[
    str,
    typer.Option(
        "--bearer",
        metavar="FILE|new",
        envvar="OVERLAY_BEARER",
        help="For http: a file of tokens, one a line, of which programs must send one ('Authorization: Bearer'); "
        "'new' makes one.",
        show_default=False,
        rich_help_panel=WHO,
    ),
]
SecretLink = Annotated[
    bool,
    typer.Option(
        "--secret-link",
        envvar="OVERLAY_SECRET_LINK",
        help="For http: whoever has opened the link that this prints may come, by a cookie.",
        rich_help_panel=WHO,
    ),
]

# how much -------------------------------------------------------------------------------------------------------------

MaxConnections = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=8192,
        envvar="OVERLAY_MAX_CONNECTIONS",
        help="So many users at once; more are turned away.",
        show_default="what the server allows, 1024",
        rich_help_panel=HOW_MUCH,
    ),
]
ConnectionRate = Annotated[
    str,
    typer.Option(
        "--connection-rate",
        metavar="N/s|m|h",
        envvar="OVERLAY_CONNECTION_RATE",
        help="So many new connections from each address, as in 10/s; of UDP, new flows.",
        show_default="any",
        rich_help_panel=HOW_MUCH,
    ),
]
RequestRate = Annotated[
    str,
    typer.Option(
        "--request-rate",
        metavar="N/s|m|h",
        envvar="OVERLAY_REQUEST_RATE",
        help="For http: so many requests from each address, as in 100/m; more are answered 429.",
        show_default="any",
        rich_help_panel=HOW_MUCH,
    ),
]
Bandwidth = Annotated[
    str,
    typer.Option(
        "--bandwidth",
        metavar="RATE",
        envvar="OVERLAY_BANDWIDTH",
        help="So much each way, of all users together: 800kbit, 10Mbit, 1Gbit per second.",
        show_default="as much as the line takes",
        rich_help_panel=HOW_MUCH,
    ),
]
Quota = Annotated[
    str,
    typer.Option(
        "--quota",
        metavar="AMOUNT",
        envvar="OVERLAY_QUOTA",
        help="So much in a month (UTC), both ways together: 500MB, 10GB. Then nobody is let in until the next.",
        show_default="any",
        rich_help_panel=HOW_MUCH,
    ),
]
Expires = Annotated[
    str,
    typer.Option(
        "--expires",
        metavar="TIME",
        envvar="OVERLAY_EXPIRES",
        help="When it ends by itself: after 90s, 30m, 2h, 7d, or at 2026-12-31T18:00:00Z.",
        show_default="never",
        rich_help_panel=HOW_MUCH,
    ),
]

# for peers alone ------------------------------------------------------------------------------------------------------

Private = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        envvar="OVERLAY_PRIVATE",
        help="Open no public place: only peers reach it, by 'overlay connect NAME'.",
        show_default=False,
        rich_help_panel=PRIVATE,
    ),
]
ForTag = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TAG",
        envvar="OVERLAY_FOR_TAG",
        help="Peers whose invite had this tag; may be repeated.",
        show_default=False,
        rich_help_panel=PRIVATE,
    ),
]
Token = Annotated[
    bool,
    typer.Option("--token", help="Peers who have the token that is made and shown now, once.", rich_help_panel=PRIVATE),
]

# several machines -----------------------------------------------------------------------------------------------------

Group = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        envvar="OVERLAY_GROUP",
        help="Share the place with all that is exposed with the same --group there, here or on other machines. Who is "
        "first opens it, and has a place picked if he names none.",
        show_default=False,
        rich_help_panel=SEVERAL,
    ),
]
Balance = Annotated[
    Literal["least", "round-robin", "sticky"],
    typer.Option(
        envvar="OVERLAY_BALANCE",
        help="Who of the group serves a user: whoever has the fewest connections, each in turn, or always the same "
        "one, by the user's address.",
        rich_help_panel=SEVERAL,
    ),
]
Health = Annotated[
    str,
    typer.Option(
        metavar="tcp|http[:/PATH]",
        envvar="OVERLAY_HEALTH",
        help="Look each second whether TARGET is well: whether it takes connections, or answers a GET with a status "
        "below 400. Users of a group are led past one that is not.",
        show_default=False,
        rich_help_panel=SEVERAL,
    ),
]

# what the target is told ----------------------------------------------------------------------------------------------

ProxyProtocol = Annotated[
    Literal["none", "v1", "v2", "v2-crc32c"],
    typer.Option(
        "--proxy-protocol",
        envvar="OVERLAY_PROXY_PROTOCOL",
        help="Begin each connection to the target with HAProxy's PROXY header, which tells the user's address and "
        "port; for udp, where there is v2 alone, each datagram. The target must expect it (nginx: listen … "
        "proxy_protocol).",
        rich_help_panel=TOLD,
    ),
]

Transparent = Annotated[
    bool,
    typer.Option(
        "--transparent",
        envvar="OVERLAY_TRANSPARENT",
        help="The target sees users' own addresses and ports as where connections and datagrams come from. Needs 'sudo "
        "overlay up'; the target is on this machine, or on one whose gateway this machine is. For users of IPv4 and "
        "IPv6 write localhost:PORT.",
        rich_help_panel=TOLD,
    ),
]
Forwarded = Annotated[
    Literal["set", "append", "remove"],
    typer.Option(
        "--forwarded",
        envvar="OVERLAY_FORWARDED",
        help="For http: whether X-Forwarded-For, -Host, -Proto and Forwarded say what is known here, say it behind "
        "what users' own proxies have said (let in only those then: --allow), or are left out.",
        rich_help_panel=TOLD,
    ),
]
HostHeader = Annotated[
    str,
    typer.Option(
        "--host-header",
        metavar="NAME[:PORT]",
        envvar="OVERLAY_HOST_HEADER",
        help="For http: the host that TARGET is asked for.",
        show_default="what the user asked for",
        rich_help_panel=TOLD,
    ),
]
RequestHeader = Annotated[
    list[str] | None,
    typer.Option(
        "--request-header",
        metavar="'NAME: VALUE'",
        envvar="OVERLAY_REQUEST_HEADER",
        help="For http: a field to set in each request, in the place of the user's; may be repeated.",
        show_default=False,
        rich_help_panel=TOLD,
    ),
]
RemoveRequestHeader = Annotated[
    list[str] | None,
    typer.Option(
        "--remove-request-header",
        metavar="NAME",
        envvar="OVERLAY_REMOVE_REQUEST_HEADER",
        help="One to leave out of each request; may be repeated.",
        show_default=False,
        rich_help_panel=TOLD,
    ),
]
ResponseHeader = Annotated[
    list[str] | None,
    typer.Option(
        "--response-header",
        metavar="'NAME: VALUE'",
        envvar="OVERLAY_RESPONSE_HEADER",
        help="One to set in each answer, in the place of TARGET's; may be repeated.",
        show_default=False,
        rich_help_panel=TOLD,
    ),
]
RemoveResponseHeader = Annotated[
    list[str] | None,
    typer.Option(
        "--remove-response-header",
        metavar="NAME",
        envvar="OVERLAY_REMOVE_RESPONSE_HEADER",
        help="One to leave out of each answer; may be repeated.",
        show_default=False,
        rich_help_panel=TOLD,
    ),
]

# looking at it --------------------------------------------------------------------------------------------------------

Inspect = Annotated[
    bool,
    typer.Option(
        "--inspect",
        help="For http: keep the last requests with their bodies in this machine's memory, show them here and on a "
        "local web page, and send them again at a key press.",
        rich_help_panel=LOOK,
    ),
]
InspectBody = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        help="So much of each body is kept, as in 64kB or 2MB.",
        rich_help_panel=LOOK,
    ),
]
ShowSecrets = Annotated[
    bool,
    typer.Option("--show-secrets", help="Show what fields like Authorization and Cookie hold.", rich_help_panel=LOOK),
]

# without 'overlay up' -------------------------------------------------------------------------------------------------

Invite = Annotated[
    str | None,
    typer.Option(
        metavar="INVITE",
        envvar="OVERLAY_INVITE",
        help="Publish without 'overlay up' and without root: what 'overlay invite' printed on the server; - reads it "
        "from standard input. Needed the first time. --carrier, --proxy and --ca are of use here alone.",
        show_default=False,
    ),
]

# this command --------------------------------------------------------------------------------------------------------

Foreground = Annotated[
    bool | None,
    typer.Option(
        "--foreground/--background",
        help="Show users' requests as they come and end with Ctrl-C, or return at once and stay published.",
        show_default="in the foreground for http on a terminal",
    ),
]
