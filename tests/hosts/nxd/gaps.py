"""AWS's packages for the NxD generation, filled in just far enough that optimum-neuron's own code runs.

The finder, and what a placeholder is, are those of the legacy generation's tests; this one has a root more,
and its stand-ins are found also where a module is imported as an attribute of its package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from hosts.legacy.import_gaps import GapFinder

#: What optimum-neuron 0.3 and 0.4 import of AWS's package index.
ROOTS = ("torch_xla", "torch_neuronx", "neuronx_distributed", "neuronxcc", "libneuronxla")


class NxDGaps(GapFinder):
    """See ``GapFinder``: ``defined`` are the stand-ins, ``handed_out`` the names of the placeholders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in ROOTS else None


def install(defined: dict[str, dict[str, Any]]) -> NxDGaps:
    """Put the finder in front of all others; raises ``RuntimeError`` where one of the packages is real."""
    real = [root for root in ROOTS if root in sys.modules]
    if real:
        raise RuntimeError(f"{real} are imported already, so they cannot be stood in for")
    finder = NxDGaps(defined)
    sys.meta_path.insert(0, finder)
    for module in defined:  # else ``from package import module`` would be given a placeholder
        importlib.import_module(module)
    return finder
