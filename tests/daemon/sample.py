"""A daemon as small as can be, for the tests of starting one: `python -m tests.daemon.sample`."""

import os
import sys
from typing import Literal

import msgspec

from overlay.daemon.launch import read_settings, report_error, report_ready
from overlay.errors import Exit, UserError


class SampleSettings(msgspec.Struct):
    behaviour: Literal["ready", "refuse", "die", "hang"]
    secret: str = ""


def main() -> None:
    settings = read_settings(SampleSettings)
    if settings.behaviour == "ready":
        report_ready(
            {"pid": os.getpid(), "secret": settings.secret, "arguments": sys.argv[1:], "environment": dict(os.environ)}
        )
    elif settings.behaviour == "refuse":
        report_error(UserError("invite-expired", "The invite has expired.", "Ask for a new one.", Exit.REFUSED))
    elif settings.behaviour == "die":
        sys.exit("lost a screw")
    else:
        sys.stdin.close()
        os.read(os.pipe()[0], 1)


if __name__ == "__main__":
    main()
