"""Names that are imported when they are first used, so that importing a package or reading a table costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from importlib import import_module
from typing import Any


def exports(package: str, modules: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a `__getattr__` for the package, which finds each name in its module, and a `__dir__` that lists them.

    Args:
        package: dotted name of the package.
        modules: module below the package, such as "loop" → the names that it gives.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return __getattr__, lambda: sorted(homes)


def found_at(home: str) -> Any:
    """Return what is found at "module:Name" or "module:Name.attribute".

    Args:
        home: dotted name of the module, and dotted name in it.
    """
    module, _, path = home.partition(":")
    return reduce(getattr, path.split("."), import_module(module))
