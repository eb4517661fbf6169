"""Names as people type them, and the one way in which they are written: IDNA 2008 (RFC 5890, RFC 5891). Pure functions.

Every name that comes in passes here: of nodes, domains, records, exposures. What comes out is ASCII in small letters,
each label at most 63 bytes, without a dot at the end.
"""

import re
from collections.abc import Container
from typing import Final

import idna

MAX_LABEL: Final = 63  # bytes, RFC 1035 section 2.3.4
MAX_NAME: Final = 253  # characters of a name in text: 255 bytes on the wire, RFC 1035 section 3.1
_LONGEST_INPUT: Final = 1024  # characters; a longer text is not even looked at
_DOTS: Final = re.compile("[.\u3002\uff0e\uff61]")  # RFC 3490 section 3.1
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def ascii_name(text: str) -> tuple[str, bool]:
    """A name in ASCII, and whether it ended in a dot. Raises `ValueError` with a reason.

    Which ASCII characters a label may have is looked at by who knows what the name is for.
    """
    if len(text) > _LONGEST_INPUT:
        raise ValueError("it is too long")
    labels = _DOTS.split(text)
    absolute = len(labels) > 1 and not labels[-1]
    return ".".join(map(ascii_label, labels[:-1] if absolute else labels)), absolute


def ascii_label(label: str) -> str:
    """One label in ASCII (RFC 5891 section 4, after the mapping of UTS 46). Raises `ValueError` with a reason."""
    if len(label) > _LONGEST_INPUT:
        raise ValueError("it is too long")
    if not label.isascii():
        return idna.alabel(idna.uts46_remap(label, std3_rules=False)).decode()
    label = label.lower()
    if label.startswith("xn--"):
        idna.ulabel(label)  # raises for what stands for no U-label
    elif label[2:4] == "--":
        raise ValueError(
            f"'{label[:MAX_LABEL]}' has two hyphens in its third and fourth place (RFC 5891 section 4.2.3.1)"
        )
    return label


def shown_name(name: str) -> str:
    """A name that `ascii_name` returned as people read it: with U-labels (RFC 5890 section 2.3.2.1)."""
    return ".".join(map(_shown_label, name.split("."))) if "xn--" in name else name


def _shown_label(label: str) -> str:
    if not label.startswith("xn--"):
        return label
    try:
        return idna.ulabel(label)
    except ValueError:  # it stands for none
        return label


def is_host_label(label: str) -> bool:
    """Whether a label that `ascii_label` returned may be one of a host's name (RFC 1123 section 2.1)."""
    return _LABEL.fullmatch(label) is not None


def check_host_name(name: str) -> None:
    """Raises `ValueError` with a reason unless what `ascii_name` returned may be a host's name."""
    if len(name) > MAX_NAME:
        raise ValueError(f"a name has {MAX_NAME} characters at the most")
    for label in name.split("."):
        if not is_host_label(label):
            raise ValueError(
                f"'{label[:MAX_LABEL]}' cannot be a part of it: that is 1 to 63 letters, digits and hyphens"
            )


def is_suffixed(name: str, wish: str, names: Container[str]) -> bool:
    """Whether `name` is what became of `wish`, one label, because another node of `names` has that."""
    stem, _, number = name.rpartition("-")
    kept = wish[: MAX_LABEL - len(number) - 1].rstrip("-")
    return wish in names and number.isascii() and number.isdigit() and stem == kept
