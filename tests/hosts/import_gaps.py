"""AWS's packages, filled in just far enough that optimum-neuron's own code can be imported without them.

A finder at the front of ``sys.meta_path`` answers for their roots with empty packages. A name that nobody
defined becomes a placeholder: it can be called, subscripted, inherited from and used as a decorator, and
does nothing. Which names were handed out is recorded, so that a test sees when another release asks for more.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any


class _PlaceholderType(type):
    """So that the placeholder class itself answers for any attribute, as a module's class would."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder


class Placeholder(metaclass=_PlaceholderType):
    """Whatever it is used as; as a decorator it hands the function back."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is Placeholder and len(args) == 1 and callable(args[0]) and not kwargs:
            return args[0]
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Any arguments."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Any class arguments."""

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else Placeholder()


class _Package(ModuleType):
    """An empty package; unknown names are placeholders, and are written down."""

    def __init__(self, name: str, finder: GapFinder) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._finder.handed_out.add(f"{self.__name__}.{name}")
        return Placeholder


class GapFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module below ``roots``; ``defined`` are the stand-ins that do something.

    ``defined``: module name -> attribute name -> value. ``handed_out`` holds the dotted names of the
    placeholders that somebody asked for.
    """

    def __init__(self, roots: Collection[str], defined: dict[str, dict[str, Any]]) -> None:
        self.roots = roots
        self.defined = defined
        self.handed_out: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self.roots:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Package(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self.defined.get(module.__name__, {}))


def install(roots: Collection[str], defined: dict[str, dict[str, Any]]) -> GapFinder:
    """Put a finder in front of all others; raises ``RuntimeError`` where one of the packages is real.

    ``roots``: the packages of AWS's own index that a release of optimum-neuron imports.
    """
    real = [root for root in roots if root in sys.modules]
    if real:
        raise RuntimeError(f"{real} are imported already, so they cannot be stood in for")
    finder = GapFinder(roots, defined)
    sys.meta_path.insert(0, finder)
    for module in defined:  # else ``from package import module`` would be given a placeholder
        importlib.import_module(module)
    return finder
