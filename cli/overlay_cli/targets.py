"""What a person types as a target, made to mean the same to a daemon that works in another folder."""

import os.path
from pathlib import Path

_SOCKETS = ("unix:", "http+unix:", "tcp+unix:")


def absolute_target(text: str, folder: Path = Path()) -> str:
    """`./dist`, `../site`, `.`, or the name of a folder that is in `folder`; `unix:./app.sock`. All else stays as it
    is."""
    text = text.strip()
    scheme, colon, path = text.partition(":")
    if colon and f"{scheme.lower()}:" in _SOCKETS:
        return f"{scheme}:{os.path.abspath(folder / (path.removeprefix('//') or '.'))}"
    if text.startswith(("/", "./", "../")) or text in (".", ".."):
        return os.path.abspath(folder / text)
    if text and not colon and not text.isdigit() and (folder / text).is_dir():
        return os.path.abspath(folder / text)
    return text
