"""Names beside the real NetworkManager: it writes the system's resolver file, or a file that this one links to."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.netns import wait_for
from tests.lab.resolvers import (
    FAR,
    FAR_ADDRESS,
    LIBRARIES,
    NODE,
    PROGRAMS,
    SERVER,
    Machine,
    inside,
    message_bus,
    server_and_node,
)

pytestmark = pytest.mark.lab

OTHER = "203.0.113.3"
"""A name server that the connection has later; nobody answers there."""


@contextmanager
def network_manager(node: Machine, folder: Path, manager: str) -> Iterator[tuple[Machine, list[str]]]:
    """The node with NetworkManager, and an /etc of their own that it may replace files in: and its `nmcli`."""
    etc = node.namespace.resolv_conf.parent
    for name in ("passwd", "group"):
        shutil.copy(f"/etc/{name}", etc)
    configuration = folder / "NetworkManager.conf"
    (folder / "connections").mkdir()
    configuration.write_text(
        f"[main]\ndns=default\nrc-manager={manager}\nplugins=keyfile\nno-auto-default=*\nauth-polkit=false\n"
        f"[keyfile]\npath={folder}/connections\n"
    )
    files = {"config-dir": "none", "system-config-dir": "none", "intern-config": "intern", "state-file": "state"}
    options = [f"--{option}={folder}/{name}" for option, name in files.items()]
    program = str(PROGRAMS / "network-manager/usr/sbin/NetworkManager")
    command = [program, "--debug", f"--config={configuration}", *options]
    script = [
        "mount -t tmpfs tmpfs /run",
        "mount -t tmpfs tmpfs /var/lib",
        "mount -o remount,ro /sys",  # as in a container: there is no udev to wait for
        f"mount --bind {shlex.quote(str(etc))} /etc",
        f"exec {shlex.join(command)}",
    ]
    with message_bus(node.namespace, folder) as bus:
        environment = {"DBUS_SYSTEM_BUS_ADDRESS": bus, "LD_LIBRARY_PATH": LIBRARIES}
        process = node.namespace.popen(
            ["sh", "-c", " && ".join(script)],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        machine = Machine(inside(node.namespace, process.pid), node.state)
        machine.environment = {"DBUS_SYSTEM_BUS_ADDRESS": bus}
        nmcli = ["env", *(f"{name}={value}" for name, value in environment.items())]
        nmcli.append(str(PROGRAMS / "network-manager/usr/bin/nmcli"))
        try:
            wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "NetworkManager\n", "it is started")
            wait_for(lambda: machine.namespace.run([*nmcli, "device"], check=False).returncode == 0, "it answers")
            yield machine, nmcli
        finally:
            machine.overlay("down")
            process.terminate()
            process.wait(10)


@pytest.mark.parametrize("manager", ["file", "symlink"])
def test_what_network_manager_writes_counts(manager: str, tmp_path: Path) -> None:
    with server_and_node() as (_, node), network_manager(node, tmp_path, manager) as (machine, nmcli):

        def manage(*arguments: str) -> None:
            machine.namespace.run([*nmcli, *arguments])

        def file() -> str:
            return str(machine.namespace.run(["cat", "/etc/resolv.conf"]).stdout)

        address = ["ipv4.method", "manual", "ipv4.addresses", f"{NODE}/24", "ipv4.gateway", SERVER]
        if manager == "symlink":
            node.namespace.resolv_conf.unlink()
            node.namespace.resolv_conf.symlink_to("/run/NetworkManager/resolv.conf")
        manage("connection", "add", "type", "ethernet", "ifname", "eth0", "con-name", "lan", *address)
        manage("connection", "modify", "lan", "ipv4.dns", SERVER, "ipv6.method", "disabled")
        manage("connection", "up", "lan")
        wait_for(lambda: "NetworkManager" in file(), "NetworkManager has written the file")
        before = file()
        assert machine.finds(FAR, FAR_ADDRESS)

        machine.done("up")
        own = machine.own_address()
        said = machine.done("dns", "status")
        assert f"NetworkManager (default, {manager})" in said and f"{SERVER} (the system's)" in said
        assert machine.finds("server.local.test", own) and machine.finds(FAR, FAR_ADDRESS)

        manage("connection", "modify", "lan", "ipv4.dns", f"{OTHER},{SERVER}")
        manage("connection", "up", "lan")
        wait_for(lambda: f"{OTHER} (the system's)" in machine.done("dns", "status"), "its new name servers are asked")
        assert machine.finds("server.local.test", own) and machine.finds(FAR, FAR_ADDRESS)

        machine.done("down")
        after = file()
        assert f"nameserver {OTHER}\nnameserver {SERVER}\n" in after and "NetworkManager" in after
        assert after == before.replace(f"nameserver {SERVER}", f"nameserver {OTHER}\nnameserver {SERVER}")
        assert machine.finds(FAR, FAR_ADDRESS)
