"""`overlay dns add | ls | rm | query | status`: names that people made, and this machine's resolver."""

from typing import Annotated
from urllib.parse import urlencode

import typer

from overlay_cli import output
from overlay_cli.options import Json, NodeState, Quiet

dns_app = typer.Typer(
    help="Names in the network's domain. On the server's host, name its folder with --state.",
    no_args_is_help=True,
    epilog="Example: overlay dns add api A 192.168.1.1",
)
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="With or without the network's domain; *.NAME stands for all below it that do not exist."
    ),
]


@dns_app.command("add", epilog="Example: overlay dns add www CNAME b   (or: overlay dns add _ssh._tcp SRV '0 0 22 b')")
def add_record(
    name: Name,
    type: Annotated[str, typer.Argument(metavar="TYPE", help="A, AAAA, CNAME, TXT or SRV.")],
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE",
            help="An address; a name (of one label: in the network's domain); a text; PRIORITY WEIGHT PORT HOST.",
        ),
    ],
    state: NodeState,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a record into the network's zone. All nodes know it within a second."""
    from overlay.daemon.client import LocalClient

    client = LocalClient(state)
    with output.working("Asking the server…", quiet=quiet or json):
        record = client.request("POST", "/v1/dns/records", {"name": name, "type": type, "value": value}, timeout=30)
    if json:
        output.print_json(record)
    elif not quiet:
        output.print_line(f"{record['name']}  {record['type']}  {record['value']}")


@dns_app.command("ls", epilog="Example: overlay dns ls --json")
def list_records(state: NodeState, json: Json = False) -> None:
    """List the records that people put into the zone. Nodes' own names are not among them: see 'overlay status'."""
    from overlay.daemon.client import LocalClient

    document = LocalClient(state).request("GET", "/v1/dns/records")
    if json:
        output.print_json(document)
        return
    from overlay_cli.tables import record_table

    output.show(record_table(document["records"]))


@dns_app.command("rm", epilog="Example: overlay dns rm api A")
def remove_records(
    name: Name,
    state: NodeState,
    type: Annotated[str, typer.Argument(metavar="[TYPE]", help="Of this type only.", show_default=False)] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take this machine's records of NAME out of the zone; the server's host may take out anybody's."""
    from overlay.daemon.client import LocalClient

    asked = urlencode({"name": name, "type": type})
    LocalClient(state).request("DELETE", f"/v1/dns/records?{asked}", timeout=30)
    if json:
        output.print_json({"removed": name})
    elif not quiet:
        output.note(f"{name} is out of the zone.")


@dns_app.command("query", epilog="Example: overlay dns query b.local.test AAAA")
def query_name(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of one label: in the network's domain.")],
    state: NodeState,
    type: Annotated[str, typer.Argument(metavar="[TYPE]", help="Of the record.")] = "A",
    json: Json = False,
) -> None:
    """Ask this machine's resolver, and show where its answer comes from."""
    from overlay.daemon.client import LocalClient

    answer = LocalClient(state).request("POST", "/v1/dns/query", {"name": name, "type": type}, timeout=30)
    if json:
        output.print_json(answer)
        return
    for record in answer["answers"]:
        output.print_line(record)
    where = {
        "zone": f"the network's zone {answer['zone']}",
        "exposure": "an exposure, which peers reach at its node",
        "cache": "memory: what a name server said before",
        "forwarded": "name servers, asked in this order: " + ", ".join(answer["upstreams"])
        if answer["upstreams"]
        else "nobody: there is no name server for this name",
    }
    output.print_line(f"{answer['rcode']} from {where[answer['source']]}, in {answer['took_ms']:.2f} ms")


@dns_app.command("status", epilog="Example: overlay dns status --json")
def names_status(state: NodeState, json: Json = False) -> None:
    """Show what this machine's resolver serves, and what the system was told of it and why."""
    from overlay.daemon.client import LocalClient

    document = LocalClient(state).request("GET", "/v1/dns")
    if json:
        output.print_json(document)
        return
    output.print_line(f"resolver   {document['endpoint'] or 'does not serve'}")
    output.print_line(f"zones      {'  '.join(document['zones'])}")
    of_system = [each for each in document["upstreams"] if each not in document["chosen"]]
    for upstream in document["chosen"]:
        output.print_line(f"upstream   {upstream} (chosen by --upstream)")
    for upstream in of_system:
        output.print_line(f"upstream   {upstream} (the system's)")
    if not document["upstreams"]:
        output.print_line("upstream   none: names of others are not found")
    output.print_line(f"found      {document['reason']}")
    output.print_line(f"done       {document['done']}")
    if document["reapplied"]:
        output.print_line(f"since      others changed that {document['reapplied']} times, and it was put right")
    if document["warning"]:
        output.print_line(f"warning    {document['warning']}")
    for reason, count in sorted(document["drops"].items()):
        output.print_line(f"dropped    {count} {reason}")
