"""`python -m overlay.server`: the daemon in the background, with its settings on standard input."""

import sys

from overlay.daemon.process import background_main
from overlay.server.daemon import run
from overlay.server.settings import ServerSettings

if __name__ == "__main__":
    sys.exit(background_main(run, ServerSettings))
