"""Starts the others' daemons: in the foreground of a machine, their words in a file of the lab."""

import os
import subprocess
from collections.abc import Callable, Sequence

from tests.lab.netns import Namespace, wait_for

PATIENCE = 10.0  # s until a daemon must be up


def start(machine: Namespace, name: str, command: Sequence[str], is_up: Callable[[], bool], **environment: str) -> int:
    """The process id of a daemon that is up. `ChildProcessError` if it ends before, `TimeoutError` if it takes long."""
    log_path = machine.lab.directory / f"{machine.short_name}-{name}.log"
    with log_path.open("w") as log:
        process = machine.popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment})

    def settled() -> bool:
        if process.poll() is not None:
            raise ChildProcessError(f"{name} ended with status {process.returncode}")
        return is_up()

    wait_for(settled, f"{name} is up", PATIENCE)
    return process.pid


def has_interface(machine: Namespace, interface: str) -> bool:
    return machine.run(["ip", "link", "show", interface], check=False).returncode == 0
