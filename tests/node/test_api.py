"""The node's local API: whose rights an exposure gets is the kernel's word, and never the caller's own."""

import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import anyio
import pytest
from anyio import to_thread

from overlay.daemon import localapi
from overlay.daemon.localapi import serve_local_api
from overlay.node.api import make_api
from overlay.node.status import ExposeWish, ExposureStatus

NOBODY = 65534
_CALLER = """
import http.client, json, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX); connection.sock.connect(sys.argv[1])
connection.request("POST", "/v1/exposures", json.dumps({"target": "unix:/run/s", "owner": 0}))
sys.stdout.write(connection.getresponse().read().decode())
"""


class Node:
    """Says whom it would expose for."""

    async def expose(self, wish: ExposeWish, owner: int) -> ExposureStatus:
        return ExposureStatus(id="x1", public=f"{owner}", url=None, target=wish.target, tunnel="single", connections=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_exposure_belongs_to_who_the_kernel_says_is_calling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localapi, "may_use", lambda uid, gid, owner: True)  # as a member of the group `overlay`

    async def main(folder: Path) -> dict[str, Any]:
        stub = cast(Any, Node())
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve_local_api, make_api(stub, stub, stub, stub, stub, stub), folder)
            (folder / "overlay.sock").chmod(0o666)
            command = ["/usr/bin/python3", "-c", _CALLER, str(folder / "overlay.sock")]
            done = await to_thread.run_sync(
                lambda: subprocess.run(command, capture_output=True, timeout=20, check=True)
            )
            tasks.cancel_scope.cancel()
        return cast(dict[str, Any], json.loads(done.stdout))

    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        assert anyio.run(main, Path(folder))["public"] == str(NOBODY)
