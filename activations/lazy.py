"""Packages whose names are looked up when they are first used (PEP 562), so that importing a package costs nothing."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Type checkers do not follow them: the package imports the same names under `TYPE_CHECKING` as well.

    Args:
        package: Name of the package.
        homes: Module -> the names that it defines.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def look_up(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name]), name)

    return look_up, lambda: sorted(home_of)
