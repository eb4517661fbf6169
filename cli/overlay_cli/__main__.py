"""`python -m overlay_cli`: the command `overlay`."""

import sys

from overlay_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
