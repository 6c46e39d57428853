"""Imports only go down, and never in a circle.

Every module may use what stands before it in `LAYERS`, and its own package.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sslguard

PACKAGE = Path(sslguard.__file__).parent

# Lower first; those on one line know nothing of each other. "" is the package's own __init__, a façade over `api`.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "lazy"),
    ("files", "settings"),
    ("crypto", "stats", "report"),
    ("data",),
    ("encoders",),
    ("probes", "lineage"),
    ("training",),
    ("schemes",),
    ("attacks", "planning"),
    ("controls",),
    ("suspects",),
    ("verification",),
    ("tracing",),
    ("claims",),
    ("api",),
    ("",),
    ("serve", "bench"),
    ("demo",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def violations(package: Path) -> list[str]:
    """Imports that go up or sideways in a package laid out like this one, and modules that have no layer."""
    modules = {_name(package, path): path for path in sorted(package.rglob("*.py"))}
    found = []
    for module, path in modules.items():
        layer = _layer(module)
        if layer not in LEVEL:
            found.append(f"{module} has no layer")
            continue
        for line, target in _imports(module, path, modules):
            other = _layer(target)
            if other != layer and LEVEL.get(other, len(LAYERS)) >= LEVEL[layer]:
                found.append(f"{module}:{line} imports {target}")
    return found


def circles(package: Path) -> list[list[str]]:
    """Modules that import each other, directly or through others: strongly connected components of more than one."""
    modules = {_name(package, path): path for path in sorted(package.rglob("*.py"))}
    below = {
        module: {target for _, target in _imports(module, path, modules) if target in modules}
        for module, path in modules.items()
    }
    reached = {module: _reached(module, below) for module in below}
    found = {tuple(sorted({m} | {n for n in reached[m] if m in reached[n]})) for m in below}
    return sorted(list(circle) for circle in found if len(circle) > 1)


def _reached(start: str, below: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for target in below[waiting.pop()] - reached:
            reached.add(target)
            waiting.append(target)
    return reached


def _name(package: Path, path: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join((package.name, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _layer(module: str) -> str:
    """The second part of a dotted name; the package itself is the layer ""."""
    return (*module.split("."), "")[1]


def _imports(module: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything of the package that a module imports: at its top, inside functions, for
    type checkers, relatively, and through `import_module` with a literal name."""
    package = module.partition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, path, node)
            # `from package import x` is a module where there is one, else something that `package` defines.
            names = [full if (full := f"{base}.{a.name}") in modules else base for a in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == package)


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + (path.name == "__init__.py")]
    return ".".join([*kept, *([node.module] if node.module else [])])


def test_imports_only_go_down() -> None:
    assert violations(PACKAGE) == []


def test_every_layer_but_planned_ones_exists() -> None:
    """A renamed module must not leave a line here that nothing checks."""
    present = {_layer(_name(PACKAGE, path)) for path in PACKAGE.rglob("*.py")}
    assert present <= set(LEVEL)
    assert {"errors", "data", "encoders", "training", "schemes", "verification", "cli"} <= present


def test_no_modules_import_each_other() -> None:
    assert circles(PACKAGE) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package with the right imports and nothing else."""
    package = tmp_path / "sslguard"
    for name, text in {
        "__init__": "",
        "errors": "import math",
        "training": "from sslguard.errors import UsageError\nfrom sslguard import errors",
        "schemes/__init__": "",
        "schemes/base": "from ..training import run",
        "schemes/sslguard": "from . import base\nfrom sslguard.schemes.base import Key",
        "cli/__init__": "from sslguard import __version__",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_checker_accepts_what_is_right(tree: Path) -> None:
    assert violations(tree) == []


@pytest.mark.parametrize(
    ("module", "planted", "expected"),
    [
        ("errors", "import sslguard.training", "sslguard.errors:1 imports sslguard.training"),
        ("errors", "from sslguard import training", "sslguard.errors:1 imports sslguard.training"),
        ("errors", "from sslguard import __version__", "sslguard.errors:1 imports sslguard"),
        ("errors", "from . import cli", "sslguard.errors:1 imports sslguard.cli"),
        ("training", "def f():\n    from sslguard.schemes.base import Key", "imports sslguard.schemes.base"),
        (
            "training",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .schemes import base",
            "sslguard.training:3 imports sslguard.schemes.base",
        ),
        ("training", "from importlib import import_module\nimport_module('sslguard.cli')", "imports sslguard.cli"),
        ("schemes/base", "from ..cli import main", "sslguard.schemes.base:1 imports sslguard.cli"),
        ("schemes/__init__", "from ..cli import main", "sslguard.schemes:1 imports sslguard.cli"),
        ("training", "import sslguard.nowhere", "sslguard.training:1 imports sslguard.nowhere"),
        ("helpers", "", "sslguard.helpers has no layer"),
    ],
)
def test_checker_finds_a_planted_violation(tree: Path, module: str, planted: str, expected: str) -> None:
    (tree / f"{module}.py").write_text(planted)
    (found,) = violations(tree)
    assert expected in found


def test_equal_layers_do_not_import_each_other(tree: Path) -> None:
    (tree / "crypto.py").write_text("import sslguard.stats")
    (tree / "stats.py").write_text("")
    assert violations(tree) == ["sslguard.crypto:1 imports sslguard.stats"]


@pytest.mark.parametrize(
    "back",
    [
        "from sslguard.schemes.sslguard import Task",
        "def f():\n    from . import sslguard",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .sslguard import Task",
    ],
)
def test_a_planted_circle_is_found(tree: Path, back: str) -> None:
    assert circles(tree) == []
    (tree / "schemes" / "keys.py").write_text(back)
    (tree / "schemes" / "base.py").write_text("from sslguard.schemes.keys import Key")
    assert circles(tree) == [["sslguard.schemes.base", "sslguard.schemes.keys", "sslguard.schemes.sslguard"]]
