"""`overlay version`."""

from overlay_cli import output
from overlay_cli.options import Json


def version(json: Json = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed_version

    number = installed_version("overlay-net")
    if json:
        output.print_json({"version": number})
    else:
        output.print_line(f"overlay {number}")
