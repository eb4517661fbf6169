"""A browser (Chromium, without a window) in a namespace, driven over its debugging pipe: messages of the DevTools
protocol, JSON with a zero byte behind each, in by descriptor 3 and out by 4."""

import json
import os
import select
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.lab.netns import Namespace

PATIENCE: Final = 20.0  # s for an answer
_FLAGS: Final = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --remote-debugging-pipe"
).split()


class Browser:
    """One page. `complaints`: what the page's console says of errors, and of what its policy forbids."""

    def __init__(self, namespace: Namespace, profile: Path) -> None:
        theirs_in, self._into = os.pipe()
        self._out, theirs_out = os.pipe()
        # A shell gives the descriptors their numbers; sh knows none of two digits.
        script = f'exec 3<&{theirs_in} 4>&{theirs_out} && exec "$@"'
        command = ["bash", "-c", script, "bash", "chromium", *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = namespace.popen(command, pass_fds=(theirs_in, theirs_out))
        os.close(theirs_in)
        os.close(theirs_out)
        self.complaints: list[str] = []
        self._held = b""
        self._number = 0
        self._session = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._into)
        os.close(self._out)

    def open(self, url: str) -> None:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for each in ("Runtime", "Log", "Page"):
            self._call(f"{each}.enable")
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._into, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._hear()
            if heard.get("id") == self._number:
                assert "error" not in heard, heard
                result: dict[str, Any] = heard["result"]
                return result
            if heard.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(heard["params"]))

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._out], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            data = os.read(self._out, 65536)
            assert data, "the browser has ended"
            self._held += data
        line, _, self._held = self._held.partition(b"\0")
        heard: dict[str, Any] = json.loads(line)
        return heard
