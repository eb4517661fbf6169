"""A file that says what is exposed, as a person writes it: TOML, a table for each exposure, its keys the long options
of `overlay expose`.

    [exposures.web]
    target = "3000"
    host = "app.example.com"

It is read by what the command itself declares, so that each of its options can stand here. Paths are relative to the
file.
"""

import difflib
import inspect
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import typer

from overlay.errors import Exit, UserError
from overlay_cli.wishes import NOT_OF_AN_EXPOSURE, Wish

_TABLE: Final = "exposures"
_LARGEST: Final = 1 << 20  # bytes
_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9_])?")
_LIKE_AN_ID: Final = re.compile(r"x[0-9]+")
_EXAMPLE: Final = 'Write, as in: [exposures.web], and below it: target = "3000"'
_KINDS: Final = {bool: "true or false", int: "a number", float: "a number", str: "a text in quotes", list: "a list"}

Values = dict[str, Any]
"""Of the command's options, by the names of its parameters."""

Signature = tuple[int, int, int]
"""Changes when a file is written, or another one is put in its place."""


class ExposureFile:
    """The file at `path`; it need not be there yet."""

    def __init__(
        self,
        path: Path,
        context: typer.Context,
        signature: inspect.Signature,
        wish: Callable[..., Wish],
        *,
        may_make_secrets: bool = True,
    ) -> None:
        """`context`, `signature`: of the command whose options are keys here; `wish` makes one of their values, by the
        names of the signature, of the folder that paths start from, and of the terms that hold already.
        `may_make_secrets`: somebody is there to read them."""
        self.path = Path(os.path.abspath(path))
        self._context = context
        self._wish = wish
        self._may_make_secrets = may_make_secrets
        self._keys = {
            key: parameter
            for parameter in context.command.params
            if parameter.name is not None and parameter.name not in NOT_OF_AN_EXPOSURE
            for key in _keys_of(parameter)
        }
        self._defaults = {
            name: each.default
            for name, each in signature.parameters.items()
            if name in {parameter.name for parameter in self._keys.values()}
        }

    def signature(self) -> Signature | None:
        """None: it is not there."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> dict[str, Values]:
        """What the options of each entry are, by its name. Raises `UserError`: "file-unreadable", "file-malformed",
        "file-invalid" (exit 2), which name file, entry and key."""
        import tomllib

        text = self._text()
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise UserError(
                "file-malformed", f"{self.path} is not TOML: {error}.", f"{_EXAMPLE}.", Exit.USAGE
            ) from error
        for key in document:
            if key != _TABLE:
                raise self._invalid(f"has an unknown table '{key}'", near(key, (_TABLE,)) or f"{_EXAMPLE}.")
        tables = document.get(_TABLE, {})
        if not isinstance(tables, dict):
            raise self._invalid(f"has something in '{_TABLE}' that is no table", f"{_EXAMPLE}.")
        return {name: self._entry(name, table) for name, table in tables.items()}

    def wishes(self, entries: Mapping[str, Values], known: Mapping[str, Mapping[str, Any]]) -> dict[str, Wish]:
        """What comes of that. `known`: the terms on which entries are exposed already. Raises `UserError`
        ("file-invalid")."""
        return {name: self._wish_of(name, values, known.get(name)) for name, values in entries.items()}

    # inside ----------------------------------------------------------------------------------------------------------

    def _text(self) -> str:
        try:
            # What is no file, as a pipe, must not hold us up.
            with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise self._invalid("is no file", "Name a file in TOML.")
                data = file.read(_LARGEST + 1)
        except OSError as error:
            raise UserError(
                "file-unreadable",
                f"Cannot read {self.path}: {error.strerror}.",
                "Name a file that you may read, with --file FILE.",
                Exit.USAGE,
            ) from error
        if len(data) > _LARGEST:
            raise self._invalid(f"is larger than {_LARGEST >> 20} MiB", "Name a file in TOML.")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                "file-malformed", f"{self.path} is not UTF-8: {error}.", "Save it as UTF-8.", Exit.USAGE
            ) from error

    def _wish_of(self, name: str, values: Values, known: Mapping[str, Any] | None) -> Wish:
        try:
            made = self._wish(values, self.path.parent, known=known)
        except UserError as error:
            raise self._invalid(f"cannot be used: {error.message.rstrip('.')}", error.hint, name) from error
        if made.made.shown and not self._may_make_secrets:
            hint = f"Have it made once with: overlay expose --file {self.path} --background"
            raise self._invalid("has a secret made, which nobody would see", hint, name)
        return made

    def _entry(self, name: str, table: Any) -> Values:
        if not _NAME.fullmatch(name) or _LIKE_AN_ID.fullmatch(name):
            why = "is what IDs look like" if _LIKE_AN_ID.fullmatch(name) else "is no name"
            raise self._invalid(
                f"has an entry '{name[:64]}', which {why}", "Names are letters, digits, -, _ and ., such as 'web'."
            )
        if not isinstance(table, dict):
            raise self._invalid(f"has something in '{_TABLE}.{name}' that is no table", f"{_EXAMPLE}.")
        values = dict(self._defaults)
        for key, value in table.items():
            parameter = self._keys.get(key) or self._keys.get(key.replace("_", "-"))
            if parameter is None:
                raise self._invalid(
                    f"has an unknown key '{key}'",
                    near(key, self._keys) or "Keys are 'target' and the long options of 'overlay expose --help'.",
                    name,
                )
            assert parameter.name is not None
            values[parameter.name] = self._value(name, key, parameter, value)
        if not values["target"]:
            raise self._invalid("has no target", 'Write what is to be exposed, as in: target = "3000"', name)
        return values

    def _value(self, name: str, key: str, parameter: Any, value: Any) -> Any:
        """As the command line would have it, which is a text or several."""
        several = bool(getattr(parameter, "multiple", False))
        if getattr(parameter, "is_flag", False):
            if not isinstance(value, bool):
                raise self._wrong_kind(name, key, bool)
            return value
        texts = value if several and isinstance(value, list) else [value]
        for each in texts:
            if isinstance(each, bool) or not isinstance(each, str | int | float | datetime):
                raise self._wrong_kind(name, key, list if several else str)
        words = [each.isoformat() if isinstance(each, datetime) else str(each) for each in texts]
        if "-" in words:
            raise self._invalid(f"has '{key}' wrong: nobody writes to standard input here", "Name a file.", name)
        try:
            made = parameter.process_value(self._context, words if several else words[0])
        except typer.BadParameter as error:
            raise self._invalid(f"has '{key}' wrong: {error.message.rstrip('.')}", "", name) from error
        if type(parameter.type).__name__.endswith("Path"):
            return [self.path.parent / each for each in made] if several else self.path.parent / made
        return list(made) if several else made

    def _wrong_kind(self, name: str, key: str, kind: type) -> UserError:
        return self._invalid(f"has '{key}' wrong: it must be {_KINDS[kind]}", "", name)

    def _invalid(self, what: str, hint: str, name: str = "") -> UserError:
        place = f"{self.path}, [{_TABLE}.{name}]" if name else str(self.path)
        hint = hint or "See 'overlay expose --help' for what it may be."
        return UserError("file-invalid", f"{place} {what}.", hint, Exit.USAGE)


def near(word: str, known: Iterable[str]) -> str:
    """A sentence that asks for what was meant, or nothing."""
    found = difflib.get_close_matches(word.replace("_", "-"), list(known), 1)
    return f"Did you mean '{found[0]}'?" if found else ""


def _keys_of(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.name]
    return [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]
