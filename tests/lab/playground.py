"""A topology to play with by hand, run by `scripts/lab`: a shell in which each machine is a command.

a ping b.local.test        server overlay status        user curl http://198.51.100.1:9000/
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from overlay.errors import Exit
from tests.lab.netns import Lab
from tests.lab.topology import OVERLAY, TOPOLOGIES, Network

NODES = ("a", "b", "c")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lab",
        description="Bring a network up, play with it, and take it down by leaving the shell.",
        epilog="Topologies: " + "; ".join(f"{name}: {_first_line(build)}" for name, build in TOPOLOGIES.items()),
    )
    parser.add_argument("topology", metavar="TOPOLOGY", choices=TOPOLOGIES, help=", ".join(TOPOLOGIES))
    parser.add_argument("--bare", action="store_true", help="only the machines: start server and nodes yourself")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, highlight=False)
    try:
        with Lab() as lab:
            with console.status("Building the network…"):
                network = TOPOLOGIES[options.topology](lab)
                if not options.bare:
                    network.start_server()
                    network.join(*(name for name in NODES if name in network.machines))
            _write_commands(network)
            console.print(_overview(network))
            shell = os.environ.get("SHELL", "/bin/sh")
            path = f"{lab.directory / 'bin'}:{os.environ['PATH']}"
            return subprocess.run([shell], env={**os.environ, "PATH": path}, check=False).returncode
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _write_commands(network: Network) -> None:
    """One small program per machine that runs its arguments there: a shell without any."""
    folder = network.lab.directory / "bin"
    folder.mkdir()
    for name, namespace in network.lab.namespaces.items():
        machine = network.machines.get(name)
        state = f"export OVERLAY_STATE={shlex.quote(str(machine.state))}\n" if machine is not None else ""
        program = folder / name
        program.write_text(
            "#!/bin/sh\n"
            f"{state}PATH={shlex.quote(str(Path(OVERLAY).parent))}:$PATH\n"
            '[ $# -gt 0 ] || set -- "${SHELL:-/bin/sh}"\n'
            f'exec ip netns exec {namespace.name} "$@"\n'
        )
        program.chmod(0o755)


def _overview(network: Network) -> Table:
    table = Table(title="Each machine is a command: NAME PROGRAM …; 'exit' takes all down.", title_justify="left")
    for column in ("command", "namespace", "outside addresses", "overlay addresses"):
        table.add_column(column)
    for name, namespace in network.lab.namespaces.items():
        outside = namespace.run(["ip", "-o", "-4", "address", "show", "scope", "global"]).stdout.splitlines()
        addresses = " ".join(line.split()[3] for line in outside if "overlay" not in line)
        machine = network.machines.get(name)
        inside = machine.status()["addresses"] if machine is not None and machine.state_word() != "stopped" else []
        table.add_row(name, namespace.name, addresses, " ".join(inside))
    return table


def _first_line(build: object) -> str:
    return (build.__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
