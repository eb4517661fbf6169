"""Imports point down only: reads the imports of every file of ours and holds them against the layers.

The rules are those of docs/architecture.md. What a layer may import is what stands beside it here, itself, and
`overlay.errors`; a file that belongs to no layer fails, so that a new folder has to find its place first.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "overlay": ROOT / "overlay",
    "overlay_dns": ROOT / "dns/overlay_dns",
    "overlay_cli": ROOT / "cli/overlay_cli",
}

LAYERS: dict[str, tuple[str, ...]] = {
    "overlay_cli": ("overlay.node", "overlay.server", "overlay.daemon"),
    "overlay.server": (
        "overlay.node.member",
        "overlay.node.interface",
        "overlay.node.ciphers",
        "overlay.certificates",
        "overlay.engine",
        "overlay.carrier",
        "overlay.wire",
        "overlay.path",
        "overlay.daemon",
    ),
    "overlay.node": (
        "overlay_dns",
        "overlay.certificates",
        "overlay.engine",
        "overlay.carrier",
        "overlay.wire",
        "overlay.path",
        "overlay.daemon",
    ),
    "overlay.certificates": ("overlay.carrier", "overlay.wire", "overlay.daemon"),
    "overlay.testing": ("overlay.engine", "overlay.wire", "overlay.path"),
    "overlay.engine": ("overlay.wire", "overlay.path"),
    "overlay.carrier": ("overlay.wire",),
    "overlay.path": ("overlay.wire.endpoint",),
    "overlay.wire": (),
    "overlay.daemon": (),
    "overlay.errors": (),
    "overlay_dns": (),
}
"""Layer → what it may import besides itself and `overlay.errors`."""

LATE = {"overlay_cli": ("overlay.node", "overlay.server")}
"""Layer → what it may import inside functions only: a command that shows a help text must not load a data plane."""

SANS_IO = ("overlay.wire", "overlay.path")
IO_MODULES = frozenset(
    """anyio asyncio concurrent fcntl http multiprocessing os pyroute2 pytun random secrets select selectors signal
    socket sqlite3 ssl subprocess threading time urllib""".split()
)
"""Sockets, clocks, randomness and concurrency: what sans-I/O code is given as arguments, or does without."""


@dataclass(frozen=True, slots=True)
class Import:
    target: str
    line: int
    late: bool  # inside a function


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def layer_of(module: str) -> str | None:
    return max((layer for layer in LAYERS if within(module, layer)), key=len, default=None)


def imports(module: str, source: str, known: frozenset[str]) -> Iterator[Import]:
    """Every module that `source` names in an import. A package's own name ends in `.__init__`, in `known` too."""
    package = module.removesuffix(".__init__") if module.endswith(".__init__") else module.rpartition(".")[0]

    def visit(node: ast.AST, late: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(name.name, node.lineno, late) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                above = ".".join(parents[: len(parents) - node.level + 1])
                base = f"{above}.{base}" if base else above
            for name in node.names:
                # `from package import module` names the module, anything else what the package itself holds.
                full = f"{base}.{name.name}"
                yield Import(full if {full, full + ".__init__"} & known else base, node.lineno, late)
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late)

    return visit(ast.parse(source), False)


def violations(module: str, source: str, known: frozenset[str] = frozenset()) -> list[str]:
    """Sentences that say what is wrong; none if all is well."""
    name = module.removesuffix(".__init__")
    if name == "overlay":
        allowed: tuple[str, ...] = ()
        layer = "overlay"
    else:
        found = layer_of(name)
        if found is None:
            return [f"{name} belongs to no layer: give its folder a place in LAYERS of tests/test_layers.py"]
        layer = found
        allowed = (layer, "overlay.errors", *LAYERS[layer])
    wrong = []
    for each in imports(module, source, known):
        at = f"{name}, line {each.line}:"
        if each.target.split(".")[0] in FOLDERS:
            of_itself = each.target == "overlay" and layer != "overlay_dns"  # the name and version of the whole
            if not of_itself and not any(within(each.target, prefix) for prefix in allowed):
                may = ", ".join(prefix for prefix in allowed if prefix != layer) or "nothing of ours"
                wrong.append(f"{at} imports {each.target}, but {layer} may import {may} only (imports point down)")
            elif not each.late and any(within(each.target, prefix) for prefix in LATE.get(layer, ())):
                wrong.append(f"{at} imports {each.target} at its top, but {layer} may do so inside functions only")
        elif layer in SANS_IO and each.target.split(".")[0] in IO_MODULES:
            wrong.append(f"{at} imports {each.target}, but {layer} is sans-I/O: time and randomness are arguments")
    return wrong


def modules() -> dict[str, Path]:
    """Every module of ours; a package is called `package.__init__`."""
    return {
        ".".join((package, *path.relative_to(folder).with_suffix("").parts)): path
        for package, folder in FOLDERS.items()
        for path in sorted(folder.rglob("*.py"))
    }


def test_imports_point_down() -> None:
    found = modules()
    known = frozenset(found)
    wrong = [line for module, path in found.items() for line in violations(module, path.read_text(), known)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_folder_is_read() -> None:
    found = modules()
    assert {"overlay.__init__", "overlay_dns.__init__", "overlay_cli.__init__", "overlay.errors"} <= set(found)
    assert {layer for module in found if (layer := layer_of(module.removesuffix(".__init__")))} == set(LAYERS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("overlay.wire.made_up", "import overlay.engine.api"),
        ("overlay.wire.made_up", "from overlay.engine.api import PathKind"),
        ("overlay.wire.made_up", "from overlay import engine"),
        ("overlay.wire.deep.made_up", "from ...engine import api"),
        ("overlay.wire.deep.__init__", "from ... import engine"),
        ("overlay.wire.made_up", "def late():\n    from overlay.path import Path"),
        ("overlay.wire.made_up", "import struct, socket"),
        ("overlay.path.made_up", "from time import monotonic"),
        ("overlay.path.made_up", "from overlay.wire.disco import Ping"),
        ("overlay.engine.made_up", "if True:\n    import overlay.node.daemon"),
        ("overlay.carrier.made_up", "from overlay.daemon.state import StateDir"),
        ("overlay.daemon.made_up", "from overlay.wire.endpoint import Endpoint"),
        ("overlay.node.made_up", "import overlay.server"),
        ("overlay.node.made_up", "import overlay_cli.main"),
        ("overlay.server.made_up", "from overlay.node import daemon"),
        ("overlay.server.made_up", "import overlay_dns"),
        ("overlay.errors", "import overlay.wire.endpoint"),
        ("overlay.__init__", "from overlay.errors import UserError"),
        ("overlay_dns.made_up", "from overlay.daemon.state import StateDir"),
        ("overlay_dns.made_up", "import overlay"),
        ("overlay_cli.made_up", "def command():\n    import overlay.wire.endpoint"),
        ("overlay_cli.made_up", "from overlay.server.daemon import run"),
        ("overlay.made_up.module", ""),
    ],
)
def test_a_violation_is_caught(module: str, source: str) -> None:
    known = frozenset({"overlay.engine.__init__", "overlay.engine.api", "overlay.node.daemon"})
    (sentence,) = violations(module, source, known)
    assert module.removesuffix(".__init__") in sentence


def test_the_sentence_says_who_where_what_and_why() -> None:
    (sentence,) = violations("overlay.path.made_up", "\nimport overlay.engine.loop")
    assert sentence == (
        "overlay.path.made_up, line 2: imports overlay.engine.loop, but overlay.path may import overlay.errors, "
        "overlay.wire.endpoint only (imports point down)"
    )


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("overlay.wire.made_up", "import struct\nfrom overlay.errors import ProtocolError\nimport overlay.wire.record"),
        ("overlay.wire.deep.made_up", "from . import near\nfrom ..endpoint import Endpoint"),
        ("overlay.path.made_up", "from overlay.wire.endpoint import Endpoint\nfrom overlay.wire import endpoint"),
        ("overlay.engine.made_up", "import socket, time\nfrom overlay.path import Path"),
        ("overlay.server.made_up", "from overlay.node.member import Member\nfrom overlay import __version__"),
        ("overlay.node.made_up", "import overlay_dns.zone"),
        ("overlay_cli.made_up", "import overlay.daemon.client\ndef command():\n    import overlay.node.daemon"),
        ("overlay_dns.made_up", "import socket\nfrom overlay.errors import UserError"),
        ("overlay.wire.made_up", "import overlaysomething, timeit"),
    ],
)
def test_what_points_down_is_let_through(module: str, source: str) -> None:
    known = frozenset({"overlay.wire.endpoint", "overlay.node.member"})
    assert violations(module, source, known) == []
