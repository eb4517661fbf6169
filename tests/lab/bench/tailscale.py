"""Tailscale, with headscale as its control server: all of it inside the lab, which nothing leaves.

The control server is a machine of its own with a cable to each end, so that what the ends and it say to each other is
not on the cable that is measured. It relays too (DERP, without TLS), but a join is done only when the path is direct.
"""

import json
from pathlib import Path

from tests.lab.bench.contenders import Ends
from tests.lab.bench.daemon import start
from tests.lab.netns import Namespace

CONTROL = "203.0.113.1"
"""The control server. The ends have cables to it that do not lead to each other."""

PORT = 8080
USER = "bench"
UP_TIMEOUT = 30  # s
PINGS = 20  # until the path must be direct; one a second


class Tailscale:
    """Its own addresses inside, no names, no routes; the interface is `tailscale0`."""

    name = "tailscale"
    program = "tailscaled"

    def join(self, a: Namespace, b: Namespace, strangers: int = 0) -> Ends:
        lab = a.lab
        control = lab.namespace(f"{a.short_name}c")
        lab.link(control, f"{CONTROL}/30", a, "203.0.113.2/30")
        lab.link(control, "203.0.113.5/30", b, "203.0.113.6/30")
        b.route(CONTROL, via="203.0.113.5")
        key = _serve(control)
        ours, theirs = self._start(a, key), self._start(b, key)
        inner_a, inner_b = (_client(machine, "ip", "-4").strip() for machine in (a, b))
        _client(a, "ping", "--until-direct", "-c", str(PINGS), "--timeout", "1s", inner_b)
        return Ends(self.name, a, b, inner_a, inner_b, processes_a=[ours], processes_b=[theirs])

    def _start(self, machine: Namespace, key: Path) -> int:
        state = _folder(machine)
        command = [
            *("tailscaled", "--tun", "tailscale0", "--statedir", str(state), "--socket", str(state / "socket")),
            *("--no-logs-no-support",),
        ]
        process = start(machine, self.name, command, lambda: _answers(machine), TS_DEBUG_USE_DERP_HTTP="true")
        options = ["--accept-dns=false", f"--hostname={machine.short_name}", f"--timeout={UP_TIMEOUT}s"]
        _client(machine, "up", f"--login-server=http://{CONTROL}:{PORT}", f"--auth-key=file:{key}", *options)
        return process


def _folder(machine: Namespace) -> Path:
    folder = machine.lab.directory / f"{machine.short_name}-tailscale"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _client(machine: Namespace, *words: str) -> str:
    """What `tailscale` says; `CalledProcessError` with its last words."""
    command = ["tailscale", "--socket", str(_folder(machine) / "socket"), *words]
    return str(machine.run(command, timeout=UP_TIMEOUT + PINGS).stdout)


def _answers(machine: Namespace) -> bool:
    return (_folder(machine) / "socket").exists()


def _serve(control: Namespace) -> Path:
    """Start the control server; the file of a key that lets nodes in."""
    folder = _folder(control)
    configuration = folder / "headscale.json"
    configuration.write_text(json.dumps(headscale_configuration(folder)))
    headscale = ["headscale", "--config", str(configuration)]

    def asked(*words: str) -> str:
        return str(control.run([*headscale, "--output", "json", *words]).stdout)

    start(control, "headscale", [*headscale, "serve"], lambda: (folder / "socket").exists())
    user = json.loads(asked("users", "create", USER))
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_text(json.loads(asked("preauthkeys", "create", "--reusable", "--user", str(user["id"])))["key"])
    return key


def headscale_configuration(folder: Path) -> dict[str, object]:
    """Its whole configuration: plain HTTP, its own relay, nothing fetched from anywhere, state in `folder`."""
    return {
        "server_url": f"http://{CONTROL}:{PORT}",
        "listen_addr": f"0.0.0.0:{PORT}",
        "metrics_listen_addr": "127.0.0.1:9090",
        "grpc_listen_addr": "127.0.0.1:50443",
        "unix_socket": str(folder / "socket"),
        "unix_socket_permission": "0700",
        "disable_check_updates": True,
        "noise": {"private_key_path": str(folder / "noise.key")},
        "prefixes": {"v4": "100.64.0.0/10", "allocation": "sequential"},
        "database": {"type": "sqlite", "sqlite": {"path": str(folder / "database")}},
        "derp": {
            "server": {
                "enabled": True,
                "region_id": 900,
                "region_code": "bench",
                "region_name": "bench",
                "stun_listen_addr": "0.0.0.0:3478",
                "private_key_path": str(folder / "derp.key"),
                "automatically_add_embedded_derp_region": True,
            },
            "urls": [],
            "paths": [],
            "auto_update_enabled": False,
        },
        "dns": {"magic_dns": False, "override_local_dns": False, "base_domain": "bench.test"},
        "logtail": {"enabled": False},
        "log": {"level": "warn"},
    }
