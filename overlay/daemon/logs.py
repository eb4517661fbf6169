"""Where a daemon's log goes: standard error in the foreground, a bounded file in the state folder else."""

import logging
import logging.handlers
import sys
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FILE_BYTES = 2 * 1024 * 1024  # two files of this size at the most: enough for weeks at INFO, never a full disk


def configure(verbosity: int, file: Path | None) -> None:
    """Set up the root logger: `verbosity` −1 quiet, 0 INFO of ours, 1 DEBUG of ours, 2 DEBUG of the libraries too."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.handlers.RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.raiseExceptions = False  # a full disk must not print a traceback for each line that could not be written
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbosity >= 2 else logging.WARNING)
    level = logging.WARNING if verbosity < 0 else logging.INFO if verbosity == 0 else logging.DEBUG
    for name in ("overlay", "overlay_dns"):
        logging.getLogger(name).setLevel(level)
