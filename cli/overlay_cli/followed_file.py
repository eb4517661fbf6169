"""`overlay expose --file`: what a file says is exposed, now and as it changes, until somebody ends it."""

import json as jsonlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from overlay.errors import Exit, UserError
from overlay_cli import output
from overlay_cli.credentials import with_link
from overlay_cli.exposure_file import ExposureFile, Signature
from overlay_cli.requests import show_requests
from overlay_cli.wishes import Wish

if TYPE_CHECKING:
    from overlay.daemon.client import LocalClient

Connect = Callable[[], "tuple[LocalClient, bool]"]
"""→ the daemon, and whether it was started for this."""

LOOK_INTERVAL: Final = 0.5  # s between looks at the file; it is read when two of them show the same
RETRY_INTERVAL: Final = 10.0  # s until what wanted a server that was away is tried again
APPLY_TIMEOUT: Final = 120.0  # s, for many entries
_WORDS: Final = {"kept": "=", "added": "+", "changed": "~", "replaced": "~", "removed": "-", "over": "-"}


def apply_once(file: ExposureFile, connect: Connect, *, json: bool, quiet: bool) -> int:
    """In the background: the daemon follows the file from now on. → exit code"""
    entries = file.read()
    client, started = connect()
    try:
        wishes = file.wishes(entries, _known(client, file))
        document = _apply(client, file, wishes, watch=True)
    except UserError:
        if started:
            _end(client)
        raise
    return _tell(document, json=json, quiet=quiet)


def check(file: ExposureFile, state: Path, *, json: bool, quiet: bool) -> int:
    """Say what would be done. → exit code"""
    from overlay.daemon.client import LocalClient

    entries, client = file.read(), LocalClient(state)
    try:
        wishes = file.wishes(entries, _known(client, file))
        document = _apply(client, file, wishes, dry=True)
    except UserError as error:
        if error.code != "not-running":
            raise
        wishes = file.wishes(entries, {})
        document = {"file": str(file.path), "entries": [_unborn(*each) for each in wishes.items()]}
    for each in document["entries"]:
        if each["action"] in ("added", "changed", "replaced"):
            each["wish"] = wishes[each["entry"]].document
        each.pop("secrets", None)  # others are made when it is done
    return _tell(document, json=json, quiet=quiet, dry=True)


def follow(file: ExposureFile, connect: Connect, *, json: bool, quiet: bool) -> None:
    """In the foreground, until interrupted: then all is given back. Raises `UserError` for a file that is wrong at the
    start; later that is said, and nothing changes."""
    entries = file.read()
    client, started = connect()
    _refuse_if_watched(client, file)

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    log = _RequestLog(client, json=json, quiet=quiet)
    try:
        applied = file.signature()
        document = _applied(client, file, entries, json=json, quiet=quiet)
        log.follow(document)
        if not (json or quiet):
            if any(each["exposure"] and each["exposure"]["inspect"] for each in document["entries"]):
                output.note(f"Inspector: {client.request('POST', '/v1/inspector')['url']}")
            output.note(f"Following {file.path}; Ctrl-C ends it.")
        while True:
            retry_at = time.monotonic() + RETRY_INTERVAL if awaits_server(document) else float("inf")
            applied = _next_signature(file, applied, retry_at)
            try:
                entries = file.read()
                document = _applied(client, file, entries, json=json, quiet=quiet)
            except UserError as error:
                if error.exit_code != Exit.USAGE:
                    raise
                output.report_error(error, as_json=False)
                output.note("Nothing was changed.")
                continue
            log.follow(document)
    finally:
        _end(client, file, started=started)


def _next_signature(file: ExposureFile, applied: Signature | None, deadline: float) -> Signature | None:
    """When it is another one, and two looks show the same; or at the deadline, monotonic."""
    seen = file.signature()
    while True:
        time.sleep(LOOK_INTERVAL)
        before, seen = seen, file.signature()
        if seen == before and (seen != applied or time.monotonic() >= deadline):
            return seen


def awaits_server(document: dict[str, Any]) -> bool:
    """Whether something failed that is another thing when the server, or the network, is back."""
    passing = (Exit.UNREACHABLE, Exit.NOT_RUNNING)
    return any(each["error"] is not None and each["error"]["exit_code"] in passing for each in document["entries"])


def forget(client: "LocalClient", path: Path, *, json: bool, quiet: bool) -> int:
    """Give back all that a file asked for, and follow it no longer. → exit code"""
    document = client.request("DELETE", "/v1/exposure-files", {"file": str(path)}, timeout=APPLY_TIMEOUT)
    return _tell(document, json=json, quiet=quiet)


class _RequestLog:
    """Users' requests to what the file has exposed by http, each with the name of its entry."""

    def __init__(self, client: "LocalClient", *, json: bool, quiet: bool) -> None:
        self._client = client
        self._json = json
        self._quiet = quiet
        self._followed: set[str] = set()
        self._width = 0  # of names

    def follow(self, document: dict[str, Any]) -> None:
        self._width = max((len(each["entry"]) for each in document["entries"] if each["exposure"]), default=0)
        for each in document["entries"]:
            exposure = each["exposure"]
            if self._quiet or exposure is None or not exposure["url"] or exposure["id"] in self._followed:
                continue
            self._followed.add(exposure["id"])
            threading.Thread(target=self._show, args=(exposure["id"], each["entry"]), daemon=True).start()

    def _show(self, identity: str, entry: str) -> None:
        try:
            show_requests(self._client, identity, json=self._json, entry=lambda: f"{entry:{self._width}}")
        except UserError:
            pass  # it was given back, or the daemon has ended, which the main thread says
        self._followed.discard(identity)


def _applied(
    client: "LocalClient", file: ExposureFile, entries: dict[str, Any], *, json: bool, quiet: bool
) -> dict[str, Any]:
    document = _apply(client, file, file.wishes(entries, _known(client, file)))
    if json:
        output.print_line(jsonlib.dumps(document, ensure_ascii=False))
    else:
        _tell(document, json=False, quiet=quiet)
    sys.stdout.flush()
    return document


def _known(client: "LocalClient", file: ExposureFile) -> dict[str, Any]:
    """The terms on which entries of the file are exposed already."""
    return {
        each["entry"]["name"]: each["terms"]
        for each in client.request("GET", "/v1/exposures")["exposures"]
        if each["entry"] is not None and each["entry"]["file"] == str(file.path)
    }


def _apply(client: "LocalClient", file: ExposureFile, wishes: Mapping[str, Wish], **how: bool) -> dict[str, Any]:
    """What became of each entry; and secrets that were made for some, which nobody can show later."""
    body = {
        "file": str(file.path),
        "entries": {name: wish.document for name, wish in wishes.items()},
        "lasts": {name: wish.lasts for name, wish in wishes.items() if wish.lasts},
        **how,
    }
    with output.working("Asking the server…", quiet=not sys.stdout.isatty()):
        document = client.request("PUT", "/v1/exposure-files", body, timeout=APPLY_TIMEOUT)
    for each in document["entries"]:
        shown = dict(wishes[each["entry"]].made.shown) if each["entry"] in wishes else {}
        if shown and each["exposure"] is not None and each["error"] is None:
            if "link" in shown:
                shown["link"] = with_link(each["exposure"]["url"], shown["link"])
            each["secrets"] = shown
    return document


def _refuse_if_watched(client: "LocalClient", file: ExposureFile) -> None:
    for each in client.request("GET", "/v1/exposure-files")["files"]:
        if each["file"] == str(file.path) and each["watched"]:
            raise UserError(
                "file-watched",
                f"{file.path} is followed in the background already.",
                f"End that with: overlay expose rm {file.path}",
            )


def _end(client: "LocalClient", file: ExposureFile | None = None, *, started: bool = True) -> None:
    from overlay_cli.publisher import end_publisher

    if file is not None:
        _apply(client, file, {})
    if started:
        end_publisher(client)


def _tell(document: dict[str, Any], *, json: bool, quiet: bool, dry: bool = False) -> int:
    """→ exit code: that of the first entry that failed"""
    code = Exit.DONE
    if json:
        output.print_json(document)
    width = max((len(each["entry"]) for each in document["entries"]), default=0)
    for each in document["entries"]:
        error = each["error"]
        if error is not None:
            code = code or Exit(error["exit_code"])
            if not json:
                output.note(f"! {each['entry']:{width}}  {error['message']} {error['hint']}".rstrip())
        elif not json and not quiet and (dry or each["action"] != "kept"):
            output.print_line(f"{_WORDS[each['action']]} {each['entry']:{width}}  {_what(each, dry=dry)}".rstrip())
        if not json:
            for name, secret in each.get("secrets", {}).items():
                output.note(f"  {each['entry']:{width}}  {name:<9}{secret}")
    return code


def _what(outcome: dict[str, Any], *, dry: bool) -> str:
    exposure, action = outcome["exposure"], outcome["action"]
    there = f"{exposure['id']}  {exposure['url'] or exposure['public']} → {exposure['target']}" if exposure else ""
    if action == "over":
        return "not published: its time is over"
    if not dry:
        return there or "no longer published"
    wish = outcome.get("wish", {})
    place = wish.get("host") or wish.get("public") or "a place that the server picks"
    wished = f"{place} → {wish.get('target')}"
    return {
        "kept": there,
        "added": f"would be published: {wished}",
        "changed": f"would be changed: {there}, to {wished}",
        "replaced": f"would be published anew: {there}, as {wished}",
        "removed": f"would be given back: {there}",
    }[action]


def _unborn(name: str, wish: Wish) -> dict[str, Any]:
    over = 0 < wish.document["terms"]["expires"] <= time.time()
    return {"entry": name, "action": "over" if over else "added", "exposure": None, "error": None}
