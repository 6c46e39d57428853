"""The docstring of every public function begins with a verb in the imperative: ruff's D401 knows only some nouns."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "sslguard"

# A verb that is missing here may be added.
VERBS = """
accept add advance announce answer append apply ask assemble attack average begin bind build call cancel change check
choose clean clear close collect combine commit compare complete compose compute convert copy count create cut decide
decode decrypt delete derive describe detect determine distil do download draw embed encode encrypt end ensure enter
escape estimate evaluate exclude expand explain export extract fetch fill filter find finish fit flag follow format
freeze generate get go group guard handle hash hide hold import infer insert inspect install invert iterate join keep
label launch leave let limit link list load locate lock look make map mark match measure merge move multiply name
normalise note open order pack parse permute pick place plan plot prepare pretrain pre-train print probe project
publish put raise rank read rebuild record refuse register reject release remember remove rename render repeat replace
report require reset resize resolve restore resume return reverse revoke rewrite rotate round run sample save say scale
score seal search seed select send serve set share shift show shuffle sign simulate sleep solve sort split start stop
store subtract sum summarise take teach tell test tie time track train transform translate turn unpack unseal update use
validate verify visit wait walk warn watermark whiten wrap write yield
"""


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function is read like an attribute, so that its docstring says what the value is."""
    return any(ast.unparse(each).split(".")[-1] in ("property", "cached_property") for each in function.decorator_list)


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield public functions, and public methods of public classes; no properties, no functions within functions."""
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    for scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                scopes.append(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not (
                node.name.startswith("_") or is_property(node)
            ):
                yield node


def without_verb(source: str) -> list[str]:
    """Return line, name and first line of each docstring that does not begin with a verb."""
    found = []
    for function in public_functions(ast.parse(source)):
        docstring = ast.get_docstring(function)
        if docstring is not None and docstring.split()[0].rstrip(".,:;").lower() not in VERBS.split():
            found.append(f"{function.lineno} {function.name}: {docstring.splitlines()[0]}")
    return found


CHECKED = sorted(SOURCE.rglob("*.py"))


def test_something_is_checked():
    assert sum(len(list(public_functions(ast.parse(path.read_text())))) for path in CHECKED) > 100


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_docstrings_of_functions_begin_with_a_verb(path):
    assert without_verb(path.read_text()) == []


@pytest.mark.parametrize(
    ("docstring", "found"),
    [
        ("Return one secret per sub-key.", []),
        ("Read.", []),
        ("Of a key's sub-keys.", ["1 f: Of a key's sub-keys."]),
        ("Returns it.\\n\\n    More.", ["1 f: Returns it."]),
        ("Eigenvalues, ascending.", ["1 f: Eigenvalues, ascending."]),
    ],
)
def test_a_docstring_without_a_verb_is_found(docstring, found):
    assert without_verb(f'def f():\n    """{docstring}"""'.replace("\\n", "\n")) == found


def test_methods_are_checked_and_private_ones_and_properties_are_not():
    source = """
class A:
    def f(self): "The f."
    def _g(self): "The g."
    @property
    def h(self): "The h."
class _B:
    def f(self): "The f."
"""
    assert without_verb(source) == ["3 f: The f."]
