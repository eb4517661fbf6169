"""`python -m overlay.server`: the daemon in the background, with its settings on standard input."""

import sys

from overlay.daemon.launch import read_settings, report_error
from overlay.errors import Exit, UserError


def main() -> int:
    from overlay.server.daemon import run
    from overlay.server.settings import ServerSettings

    try:
        run(read_settings(ServerSettings), background=True)
    except UserError as error:
        if not report_error(error):  # it was ready before: the log is all that is left to tell
            sys.stderr.write(f"overlay: {error.message} {error.hint}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
