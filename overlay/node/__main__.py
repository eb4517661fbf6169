"""`python -m overlay.node`: the daemon in the background, with its settings on standard input."""

import sys

from overlay.daemon.process import background_main
from overlay.node.daemon import run
from overlay.node.settings import NodeSettings

if __name__ == "__main__":
    sys.exit(background_main(run, NodeSettings))
